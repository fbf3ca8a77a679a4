# SPDX-License-Identifier: Apache-2.0
"""A fake OTLP receiver: http.server on loopback in a thread, with answers that a test writes down."""

from __future__ import annotations

import ssl
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """hold: answered only when this is set. chunks: sent one by one, each after the call that makes it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: threading.Event | None = None
    chunks: list[Callable[[], bytes]] = field(default_factory=list)
    drop: bool = False  # close without an answer


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    raw: bytes
    peer: dict[str, Any] | None

    @property
    def body(self) -> bytes:
        return zlib.decompress(self.raw, 31) if self.headers.get("content-encoding") == "gzip" else self.raw


class Collector:
    """replies: used one by one, then 200 for ever. received: what came, in order."""

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None) -> None:
        self.replies, self.received = list(replies), list[Received]()
        self.connections = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                collector.connections += 1

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                peer = self.connection.getpeercert() if tls else None
                headers = {key.lower(): value for key, value in self.headers.items()}
                collector.received.append(Received(self.path, headers, raw, peer))
                reply = collector.replies.pop(0) if collector.replies else Reply()
                if reply.hold:
                    reply.hold.wait(10)
                if reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for key, value in reply.headers.items():
                    self.send_header(key, value)
                if reply.chunks:
                    self.send_header("Connection", "close")
                    self.end_headers()
                    for chunk in reply.chunks:
                        self.wfile.write(chunk())
                        self.wfile.flush()
                    self.close_connection = True
                    return
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Refused handshakes and clients that hang up are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if tls:
            scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
