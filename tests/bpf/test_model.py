# SPDX-License-Identifier: Apache-2.0
"""20,000 random calls on a few connections against a model of them: every byte, every position, every count.

The seed of a run that fails is in its name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from dataclasses import dataclass, field

import pytest

from . import calls
from .calls import REQUEST, Talk, talk
from .conftest import CONTINUED, IN, OUT, UNREADABLE, Event, Tracer

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

CALLS, SEEDS = 10_000, (20260729, 7)
ALLOWANCE, FRAMING, TAIL = 65536, 256, 16  # of bpf/chunk.bpf.h and the configuration
Call = tuple[bytes, bool]  # what moved, and whether the process had it in memory


@dataclass
class End:
    """One end of a connection, and what it has moved."""

    sock: socket.socket
    conn_id: int
    moved: dict[int, list[Call]] = field(default_factory=lambda: {IN: [], OUT: []})
    copied: dict[int, int] = field(default_factory=lambda: {IN: 0, OUT: 0})  # of the present message


class Model:
    """Makes calls, and checks the records of each against what it did."""

    def __init__(self, tracer: Tracer, rng: random.Random, pairs: list[Talk], pipe: tuple[int, int]) -> None:
        self.tracer, self.rng, self.pipe = tracer, rng, pipe
        self.peers: list[tuple[End, End]] = []
        for ends in pairs:
            client, server = End(ends.client, ends.here), End(ends.server, ends.there)
            client.moved[OUT] = [(REQUEST, True)]
            server.moved[IN] = [(REQUEST, True)]
            self.peers += [(client, server), (server, client)]
        for sock in (end.sock for end, _ in self.peers):
            sock.setblocking(False)
        self.how = 0  # which call, for the message of a failure
        self.waiting: dict[tuple[int, int], bytes] = {}  # written and not read yet, by direction

    def bytes_to_send(self) -> bytes:
        rng = self.rng
        size = rng.choice(
            [0, 1, 2, 15, 16, 17, rng.randrange(300), rng.randrange(5000), rng.randrange(60_000)]
        )
        data = rng.randbytes(min(size, 997)) * (size // 997 + 1)
        start = rng.choice(
            [b"", b"", b"", REQUEST, b"HTTP/1.1 200 OK\r\n\r\n", b"GE", b"\x16\x03\x01\x00\xf8\x01"]
        )
        return start + data[:size]

    def cut(self, data: bytes, most: int = 6) -> list[bytes]:
        """The same in a few parts, of which some are empty; not the first (see SEEK_STEPS)."""
        ends = sorted(self.rng.randint(min(1, len(data)), len(data)) for _ in range(self.rng.randrange(most)))
        return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]

    def send(self, end: End) -> Call:
        """One call that sends: what it moved of its bytes."""
        sock, data, rng = end.sock, self.bytes_to_send(), self.rng
        how = self.how = rng.randrange(9)
        readable = True
        if how == 0:
            size = os.write(sock.fileno(), data)
        elif how == 1:
            size = os.writev(sock.fileno(), self.cut(data))
        elif how == 2:
            size = sock.send(data, rng.choice([0, socket.MSG_MORE, socket.MSG_DONTWAIT]))
        elif how == 3:
            size = sock.sendmsg(self.cut(data, 40))
        elif how == 4:
            size = sum(calls.sendmmsg(sock, [self.cut(part, 3) for part in self.cut(data)]))
        elif how == 5:
            size = calls.pwritev2(sock.fileno(), self.cut(data))
        elif how == 6:
            size, readable = self.send_file(sock, data), False
        elif how == 7:
            size, readable = self.send_pipe(sock, data[:4096]), False
        else:
            copy = os.dup(sock.fileno())
            try:
                size = os.write(copy, data)
            finally:
                os.close(copy)
        return data[:size], readable

    def send_file(self, sock: socket.socket, data: bytes) -> int:
        fd = os.memfd_create("body")
        try:
            os.write(fd, data)
            return os.sendfile(sock.fileno(), fd, 0, len(data)) if data else 0
        finally:
            os.close(fd)

    def send_pipe(self, sock: socket.socket, data: bytes) -> int:
        reader, writer = self.pipe
        if not data:
            return 0
        os.write(writer, data)
        size = 0
        try:
            size = os.splice(reader, sock.fileno(), len(data))
        finally:
            left = len(data) - size
            assert not left or len(os.read(reader, left)) == left
        return size

    def receive(self, end: End) -> Call:
        sock, rng = end.sock, self.rng
        size = rng.choice([0, 1, 5, 17, rng.randrange(1, 400), rng.randrange(1, 70_000)])
        how = self.how = rng.randrange(10)
        parts = [len(part) for part in self.cut(bytes(size), 5)]
        if how == 0:
            return os.read(sock.fileno(), size), True
        if how == 1:
            buffers = [bytearray(n) for n in parts]
            moved = os.readv(sock.fileno(), buffers)
            return b"".join(buffers)[:moved], True
        if how == 2:
            return sock.recv(size), True
        if how == 3:
            buffers = [bytearray(n) for n in parts]
            moved = sock.recvmsg_into(buffers)[0]
            return b"".join(buffers)[:moved], True
        if how == 4:
            return b"".join(calls.recvmmsg(sock, [[n, 3] for n in parts], calls.MSG_WAITFORONE)), True
        if how == 5:
            return calls.preadv2(sock.fileno(), parts), True
        if how == 6:
            sock.recv(max(size, 1), socket.MSG_PEEK)
            return b"", True
        if how == 7 and size:
            reader, writer = self.pipe
            moved = os.splice(sock.fileno(), writer, min(size, 4096), flags=2)  # SPLICE_F_NONBLOCK
            return os.read(reader, moved), False
        if how == 8 and size:
            reader, writer = self.pipe
            moved = os.sendfile(writer, sock.fileno(), None, min(size, 4096))
            return os.read(reader, moved), False
        return sock.recv(size, socket.MSG_WAITALL), True

    def step(self) -> None:
        """One call, and what was told of it."""
        end, peer = self.rng.choice(self.peers)
        way = (end.conn_id, peer.conn_id)
        before = len(self.tracer.events)
        direction = self.rng.choice([IN, OUT])
        with contextlib.suppress(BlockingIOError):
            if direction == OUT:
                data, readable = self.send(end)
                self.waiting[way] = self.waiting.get(way, b"") + data
            else:
                data, readable = self.receive(end)
                back = (peer.conn_id, end.conn_id)
                assert self.waiting.get(back, b"").startswith(data)
                self.waiting[back] = self.waiting.get(back, b"")[len(data) :]
            if data:
                end.moved[direction].append((data, readable))
                self.check(end, direction, data, readable, self.tracer.read()[before:])
                return
        assert self.tracer.read()[before:] == []

    def check(self, end: End, direction: int, data: bytes, readable: bool, records: list[Event]) -> None:
        """The records of one call, which moved `data`."""
        assert {(e.kind, e.conn_id, e.direction) for e in records} == {("chunk", end.conn_id, direction)}
        assert [bool(e.flags & CONTINUED) for e in records] == [False] + [True] * (len(records) - 1)
        at = records[0].pos
        copied = b""
        for event in records:
            assert event.pos == at + sum(e.size for e in records[: records.index(event)])
            copied += event.head
        assert sum(e.size for e in records) == len(data)
        if not readable:
            assert copied == b"" and records[0].flags & UNREADABLE and len(records) == 1
            return
        told = (self.how, direction, len(data), [(e.size, len(e.head), e.flags) for e in records])
        assert not any(e.flags & UNREADABLE for e in records), told
        assert data.startswith(copied) and len(copied) >= min(len(data), FRAMING)
        assert records[-1].tail == data[len(copied) :][-TAIL:]
        assert all(len(e.head) == e.size for e in records[:-1])
        starts = data.startswith((b"GET /", b"HTTP/1."))
        end.copied[direction] = (0 if starts else end.copied[direction]) + len(copied)
        if starts:
            assert len(copied) >= min(len(data), ALLOWANCE - 2 * TAIL * 5)

    def check_all(self) -> None:
        """Positions of both ends, and the kernel side's own totals."""
        chunks = total = 0
        for end, peer in self.peers:
            out = self.tracer.of("chunk", OUT, end.conn_id)
            into = self.tracer.of("chunk", IN, peer.conn_id)
            assert out[0].pos & 0xFFFFFFFF == into[0].pos & 0xFFFFFFFF if into and out else True
            for events, moved in ((out, end.moved[OUT]), (into, peer.moved[IN])):
                assert sum(e.size for e in events) == sum(len(data) for data, _ in moved)
                for a, b in itertools.pairwise(events):
                    assert a.pos + a.size == b.pos
            chunks += len(end.moved[OUT]) + len(end.moved[IN])
            total += sum(len(data) for d in (IN, OUT) for data, _ in end.moved[d])
        counted = self.tracer.counted()
        assert (counted["chunks"], counted["bytes"]) == (counted["sent_chunks"], counted["sent_bytes"])
        assert (counted["chunks"], counted["bytes"]) == (chunks, total)
        assert counted["gap_bytes"] == counted["overlaps"] == counted["faults"] == 0
        assert counted["captured_bytes"] == sum(len(e.head + e.tail) for e in self.tracer.of("chunk"))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls(tracer: Tracer, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(talk(tracer, kind)) for kind in ("tcp", "unix", "tcp6", "tcp", "unix")]
        pipe = os.pipe()
        stack.callback(os.close, pipe[0])
        stack.callback(os.close, pipe[1])
        model = Model(tracer, rng, pairs, pipe)
        for _ in range(CALLS):
            model.step()
        model.check_all()
