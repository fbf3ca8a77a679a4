# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's library lacks; a connection's two ends, and what was told of its calls."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .conftest import CONTINUED, DEADLINE_S, IN, OUT, UNREADABLE, Event, Tracer

libc = ctypes.CDLL(None, use_errno=True)
REQUEST = b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
UNKNOWN_ROLE, CLIENT, SERVER = 0, 1, 2  # enum role
TCP, UDP, UNIX = 0, 1, 2  # enum transport
CLONE_FILES, CLONE_NEWNET = 0x400, 0x40000000
MSG_WAITFORONE, MSG_ZEROCOPY, MSG_FASTOPEN = 0x10000, 0x4000000, 0x20000000
SO_SNDBUFFORCE, SO_ZEROCOPY = 32, 60
TCP_FASTOPEN_CONNECT = 30
FIRST = 1 << 32  # of the positions of a Unix socket
Got = TypeVar("Got")


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MessageHeader(ctypes.Structure):
    """struct mmsghdr: struct msghdr, and the bytes that moved."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("length", ctypes.c_uint32),
    )


def checked(result: int) -> int:
    """The result of a call, or its error raised."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def vectors_of(parts: Sequence[bytes | bytearray]) -> tuple[Any, list[Any]]:
    """An array of struct iovec, and the buffers that it points to."""
    buffers = [ctypes.create_string_buffer(bytes(part), max(len(part), 1)) for part in parts]
    made = (Vector * len(parts))()
    for vector, buffer, part in zip(made, buffers, parts, strict=True):
        vector.base, vector.length = ctypes.addressof(buffer), len(part)
    return made, buffers


def headers_of(messages: Sequence[Sequence[bytes | bytearray]]) -> tuple[Any, list[list[Any]]]:
    """An array of struct mmsghdr, and the buffers of each message."""
    headers, buffers = (MessageHeader * len(messages))(), []
    for header, parts in zip(headers, messages, strict=True):
        vectors, of_message = vectors_of(parts)
        header.vectors, header.count = ctypes.cast(vectors, ctypes.POINTER(Vector)), len(parts)
        buffers.append([*of_message, vectors])
    return headers, buffers


def sendmmsg(sock: socket.socket, messages: Sequence[Sequence[bytes]], flags: int = 0) -> list[int]:
    """Bytes sent of each message that was sent."""
    headers, _keep = headers_of(messages)
    count = checked(libc.sendmmsg(sock.fileno(), headers, len(messages), flags))
    return [header.length for header in headers[:count]]


def recvmmsg(sock: socket.socket, sizes: Sequence[Sequence[int]], flags: int = 0) -> list[bytes]:
    """What arrived in each message that arrived; the messages have vectors of these sizes."""
    headers, buffers = headers_of([[bytes(size) for size in of] for of in sizes])
    count = checked(libc.recvmmsg(sock.fileno(), headers, len(sizes), flags, None))
    joined = [
        b"".join(b.raw[:n] for b, n in zip(of, ns, strict=False))
        for of, ns in zip(buffers, sizes, strict=True)
    ]
    return [data[: header.length] for data, header in zip(joined, headers[:count], strict=False)]


def pwritev2(fd: int, parts: Sequence[bytes], offset: int = -1, flags: int = 0) -> int:
    vectors, _keep = vectors_of(parts)
    return checked(libc.pwritev2(fd, vectors, len(parts), ctypes.c_long(offset), flags))


def preadv2(fd: int, sizes: Sequence[int], offset: int = -1, flags: int = 0) -> bytes:
    vectors, buffers = vectors_of([bytes(size) for size in sizes])
    size = checked(libc.preadv2(fd, vectors, len(sizes), ctypes.c_long(offset), flags))
    return b"".join(b.raw[:n] for b, n in zip(buffers, sizes, strict=True))[:size]


def vmsplice(fd: int, data: bytes) -> int:
    vectors, _keep = vectors_of([data])
    return checked(libc.vmsplice(fd, vectors, 1, 0))


def tee(source: int, target: int, size: int) -> int:
    return checked(libc.tee(source, target, size, 0))


def in_thread(work: Callable[[], Got]) -> Got:
    """What the function gives in a thread of its own, which it may change for good (unshare)."""
    results: list[Got] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def in_network(work: Callable[[], Got]) -> Got:
    """What the function gives in a network namespace of its own, with loopback up."""

    def inside() -> Got:
        checked(libc.unshare(CLONE_NEWNET))
        interface_up("lo")
        return work()

    return in_thread(inside)


def interface_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", name.encode(), 1 | 0x40))  # SIOCSIFFLAGS


def wait_bytes(sock: socket.socket, size: int) -> None:
    """Returns when `size` bytes can be read in one call."""
    count = array.array("i", [0])
    wait_until(lambda: fcntl.ioctl(sock, termios.FIONREAD, count) == 0 and count[0] >= size)


def wait_until(condition: Callable[[], Got]) -> Got:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s"
        time.sleep(0.001)
    return found


def wait_asleep(tid: int) -> None:
    """Returns when a thread waits in the kernel."""
    state = Path(f"/proc/self/task/{tid}/stat")
    wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "S")


@dataclass
class Talk:
    """The two ends of a connection that has carried REQUEST: its protocol is known."""

    client: socket.socket
    server: socket.socket
    here: int  # conn_id of the client's end
    there: int


@contextlib.contextmanager
def unix_pair(path: str | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(client, server) over a Unix socket at a path, or at an abstract address of the kernel's choice."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path or "")
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield client, server


@contextlib.contextmanager
def tcp_pair(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield client, server


@contextlib.contextmanager
def talk(tracer: Tracer, transport: str = "tcp") -> Iterator[Talk]:
    """transport: tcp, tcp6 or unix."""
    made = unix_pair() if transport == "unix" else tcp_pair("::1" if transport == "tcp6" else "127.0.0.1")
    with made as (client, server):
        seen = len(tracer.of("open"))
        client.sendall(REQUEST)
        assert server.recv(4096) == REQUEST
        opens = tracer.of("open")[seen:]
        assert len(opens) == 2, (tracer.counted(), tracer.kernel.shed_share(), opens)
        here, there = opens
        yield Talk(client, server, here.conn_id, there.conn_id)


def told(tracer: Tracer, conn_id: int, direction: int, gaps: int = 0) -> list[bytes | int]:
    """The calls of one direction, in order: their bytes, or their size where the bytes could not be read.

    Checks that each begins where the one before ended, but for `gaps` bytes in all.
    """
    calls: list[bytes | int] = []
    events = tracer.of("chunk", direction, conn_id)
    for event in events:
        seen: bytes | int = event.size if event.flags & UNREADABLE else event.head + event.tail
        assert event.flags & UNREADABLE or len(event.head + event.tail) == event.size, event
        if not event.flags & CONTINUED:
            calls.append(seen)
        else:
            calls[-1] += seen  # type: ignore[operator]
    between = sum(b.pos - (a.pos + a.size) for a, b in itertools.pairwise(events))
    assert between == gaps, "positions go on"
    return calls


def sent(tracer: Tracer, ends: Talk, gaps: int = 0) -> list[bytes | int]:
    """The client's sends after the first request."""
    return told(tracer, ends.here, OUT, gaps)[1:]


def received(tracer: Tracer, ends: Talk, gaps: int = 0) -> list[bytes | int]:
    """The server's receives after the first request."""
    return told(tracer, ends.there, IN, gaps)[1:]


def span_of(events: Sequence[Event]) -> tuple[int, int]:
    """First and last position, low 32 bits: what both ends of a connection agree on."""
    return events[0].pos & 0xFFFFFFFF, events[-1].pos + events[-1].size & 0xFFFFFFFF
