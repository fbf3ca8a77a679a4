# SPDX-License-Identifier: Apache-2.0
"""/metrics, /status and /healthz on the loopback: the least of HTTP/1.1, inside the pipeline's own loop.

No thread, as the core may be asked by one thread only. A few connections at once, one request each, with
a time limit: who is slow or says nothing cannot hold anything up.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

AGENT = "ebpf-otlp-tracer"  # how /status says whose page it is
CONNECTIONS_MAX = 8
REQUEST_MAX = 8192
TIMEOUT_S = 5.0

Page = Callable[[], tuple[str, str]]  # content type, text


@dataclass
class _Connection:
    socket: socket.socket
    until: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class StatusServer:
    """Answers GET and HEAD of `pages`, by path. Its sockets are in the caller's `epoll`."""

    def __init__(self, listener: socket.socket, epoll: select.epoll, pages: Mapping[str, Page]) -> None:
        self._listener = listener
        self._epoll = epoll
        self._pages = pages
        self._connections: dict[int, _Connection] = {}
        listener.setblocking(False)
        epoll.register(listener, select.EPOLLIN)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    def handle(self, fd: int) -> bool:
        """Something happened at a descriptor. False: it is not one of this server."""
        if fd == self._listener.fileno():
            self._accept()
            return True
        connection = self._connections.get(fd)
        if connection is None:
            return False
        try:
            if connection.answer is None:
                self._read(connection)
            if connection.answer is not None:
                self._write(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
        return True

    def tick(self, now: float) -> None:
        """Closes connections that took too long."""
        for connection in [c for c in self._connections.values() if now >= c.until]:
            self._close(connection)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        self._listener.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._close(min(self._connections.values(), key=lambda c: c.until))
        accepted.setblocking(False)
        self._connections[accepted.fileno()] = _Connection(accepted, time.monotonic() + TIMEOUT_S)
        self._epoll.register(accepted, select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(REQUEST_MAX)
        connection.request += data
        if b"\r\n\r\n" in connection.request or b"\n\n" in connection.request:
            connection.answer = memoryview(self._answer(bytes(connection.request)))
            self._epoll.modify(connection.socket, select.EPOLLOUT)
        elif not data or len(connection.request) >= REQUEST_MAX:
            self._close(connection)

    def _write(self, connection: _Connection) -> None:
        assert connection.answer is not None
        sent = connection.socket.send(connection.answer)
        connection.answer = connection.answer[sent:]
        if not connection.answer:
            connection.socket.shutdown(socket.SHUT_WR)
            self._close(connection)

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        page = self._pages.get(path)
        status, kind, text = "200 OK", "text/plain; charset=utf-8", ""
        if method not in (b"GET", b"HEAD"):
            status, text = "405 Method Not Allowed", "only GET\n"
        elif page is None:
            status, text = "404 Not Found", f"there are {', '.join(self._pages)}\n"
        else:
            kind, text = page()
        body = text.encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        return head if method == b"HEAD" else head + body

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        connection.socket.close()  # which takes it out of the epoll set too


def listen(address: str) -> socket.socket:
    """A listening socket at an address as of `parse_address`. Raises OSError or ValueError."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=CONNECTIONS_MAX)


def parse_address(address: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT or :PORT (loopback). Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"self.listen {address!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
