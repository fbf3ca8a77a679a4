# SPDX-License-Identifier: Apache-2.0
"""What the kernel side makes of real system calls on real sockets: chunks, positions, payload, ends.

The test process is the traced one: it makes its own calls on loopback and knows exactly what it did.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.engine import PROTOCOLS
from agent.loader import TARGETS

from .conftest import (
    AGAIN,
    CONTINUED,
    DEADLINE_S,
    ENCRYPTED,
    HTTP1,
    IN,
    LATE,
    OUT,
    OVERLAP,
    RESET,
    UNREADABLE,
    Event,
    Tracer,
    ended,
    load,
)

FRAMING = 256  # FRAMING_BYTES of bpf/chunk.bpf.h
REQUEST = b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, RECEIVE_QUEUE, SEND_QUEUE = 19, 20, 21, 1, 2
SERVER, CLIENT = 2, 1
ALLOWANCE, TAIL = 65536, 16
TURN_ALLOWANCE, ANSWERS_TO_REQUESTS = 4 * ALLOWANCE, 32  # of bpf/chunk.bpf.h
TARGETS_OF_SYSCALLS = [t for name, of in TARGETS.items() if "probe" not in name for t in of]
Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def pair(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[Pair]:
    """(client, server) of one new connection."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
    with client, server:
        yield client, server


def exactly(server: socket.socket, size: int) -> bytes:
    """`size` bytes, in as many calls as it takes."""
    data = b""
    while len(data) < size:
        data += server.recv(size - len(data))
    return data


def moved(event: Event) -> int:
    return event.pos + event.size


def sequence(sock: socket.socket, queue: int) -> int:
    """The kernel's own sequence number: of the next byte to send, or to arrive."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
    value = sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)  # off, without a probe of the window
    return value & 0xFFFFFFFF


class Demands:
    """The demand array, as the core writes it."""

    def __init__(self, tracer: Tracer) -> None:
        self.array = mmap.mmap(tracer.kernel.maps["demands"], 65536 * 32)

    def set(
        self,
        conn_id: int,
        skip_in: int = 0,
        skip_out: int = 0,
        mode: tuple[int, int] = (0, 0),
        protocol: int = 0,
    ) -> None:
        struct.pack_into(
            "=QQQBBB", self.array, conn_id % 65536 * 32, conn_id, skip_in, skip_out, *mode, protocol
        )


def opened(tracer: Tracer, sock: socket.socket) -> Event:
    """The open event of a socket of ours."""
    port, peer = sock.getsockname()[1], sock.getpeername()[1]
    found = [e for e in tracer.of("open") if (e.local[1], e.remote[1]) == (port, peer)]
    assert len(found) == 1, found
    return found[0]


SENDS: dict[str, Callable[[socket.socket, bytes], int]] = {
    "write": lambda s, data: os.write(s.fileno(), data),
    "writev": lambda s, data: os.writev(s.fileno(), [data[:7], b"", data[7:]]),
    "sendto": lambda s, data: s.send(data),
    "sendmsg": lambda s, data: s.sendmsg([data[:9], data[9:]]),
}
RECEIVES: dict[str, Callable[[socket.socket], bytes]] = {
    "read": lambda s: os.read(s.fileno(), 4096),
    "readv": lambda s: readv(s),
    "recvfrom": lambda s: s.recv(4096),
    "recvmsg": lambda s: s.recvmsg(4096)[0],
}


def readv(sock: socket.socket) -> bytes:
    parts = [bytearray(11), bytearray(3), bytearray(4096)]
    size = os.readv(sock.fileno(), parts)
    return b"".join(parts)[:size]


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("receive", RECEIVES)
def test_each_call_is_one_chunk_with_its_bytes(tracer: Tracer, send: str, receive: str) -> None:
    with pair() as (client, server):
        before = time.monotonic_ns()
        assert SENDS[send](client, REQUEST) == len(REQUEST)
        sent = time.monotonic_ns()
        assert RECEIVES[receive](server) == REQUEST
        assert SENDS[send](server, RESPONSE) == len(RESPONSE)
        assert RECEIVES[receive](client) == RESPONSE
        here, there = opened(tracer, client), opened(tracer, server)
        chunks = tracer.of("chunk")
    expected = [
        (here.conn_id, OUT, REQUEST),
        (there.conn_id, IN, REQUEST),
        (there.conn_id, OUT, RESPONSE),
        (here.conn_id, IN, RESPONSE),
    ]
    assert [(e.conn_id, e.direction, e.head) for e in chunks] == expected
    assert all(e.size == len(e.head) and not e.flags and not e.tail for e in chunks)
    assert {e.tgid for e in chunks} == {os.getpid()} and {e.tid for e in chunks} == {
        threading.get_native_id()
    }
    assert [e.protocol for e in chunks] == [HTTP1] * 4
    times = [before, chunks[0].ktime_ns, sent, *(e.ktime_ns for e in chunks[1:])]
    assert times == sorted(times), "a send has the time of its entry, a receive of its exit"
    counted = tracer.counted()
    assert (counted["chunks"], counted["bytes"]) == (4, 2 * len(REQUEST + RESPONSE))
    assert counted["gap_bytes"] == counted["overlaps"] == counted["faults"] == 0


def test_open_event_tells_both_ends(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        here, there = opened(tracer, client), opened(tracer, server)
        netns = os.stat("/proc/self/ns/net").st_ino
        mapped = bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1")
        assert here.local == there.remote == (mapped, client.getsockname()[1])
        assert here.remote == there.local == (mapped, server.getsockname()[1])
        assert (here.role, there.role) == (CLIENT, SERVER)
        assert here.netns == there.netns == netns
        assert here.flags == there.flags == 0


@pytest.mark.parametrize(
    "host, address", [("::1", bytes(15) + b"\1"), ("::ffff:127.0.0.1", bytes(10) + b"\xff\xff\x7f\0\0\1")]
)
def test_ipv6_and_mapped_addresses(tracer: Tracer, host: str, address: bytes) -> None:
    with pair(host, socket.AF_INET6) as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        for sock in (client, server):
            event = opened(tracer, sock)
            assert event.local == (address, sock.getsockname()[1])
            assert event.remote == (address, sock.getpeername()[1])


def test_positions_are_the_sequence_numbers_of_tcp(tracer: Tracer) -> None:
    with pair() as (client, server):
        for i in range(7):
            client.send(REQUEST + b"x" * i)
            server.recv(4096)
            server.send(RESPONSE)
            client.recv(4096)
        ends = {
            (opened(tracer, client).conn_id, OUT): sequence(client, SEND_QUEUE),
            (opened(tracer, client).conn_id, IN): sequence(client, RECEIVE_QUEUE),
            (opened(tracer, server).conn_id, OUT): sequence(server, SEND_QUEUE),
            (opened(tracer, server).conn_id, IN): sequence(server, RECEIVE_QUEUE),
        }
        for (conn_id, direction), end in ends.items():
            chunks = tracer.of("chunk", direction, conn_id)
            assert len(chunks) == 7
            assert all(moved(a) == b.pos for a, b in itertools.pairwise(chunks))
            assert moved(chunks[-1]) & 0xFFFFFFFF == end


def test_partial_writes_and_eagain_count_what_moved(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        written = client.send(b"POST /up HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
        calls, block = 1, b"b" * 300_000
        with pytest.raises(BlockingIOError):
            while True:
                written += client.send(block)
                calls += 1
        with pytest.raises(BlockingIOError):
            client.send(block)
        conn_id = opened(tracer, client).conn_id
        chunks = tracer.of("chunk", OUT, conn_id)
        whole = [e for e in chunks if not e.flags & CONTINUED]
        assert len(whole) == calls and sum(e.size for e in chunks) == written
        assert all(moved(a) == b.pos for a, b in itertools.pairwise(chunks))
        assert sequence(client, SEND_QUEUE) == moved(chunks[-1]) & 0xFFFFFFFF
        server.recv(10)


def test_a_send_that_waits_has_the_time_of_its_entry(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                client.send(bytes(100_000))
        client.setblocking(True)
        sender = threading.Thread(target=client.sendall, args=(bytes(100_000),))
        sender.start()
        state = Path(f"/proc/self/task/{sender.native_id}/stat")
        while state.read_text().rsplit(")", 1)[1].split()[0] != "S":
            time.sleep(0.001)
        waiting_ns = time.monotonic_ns()
        while sender.is_alive():
            if select.select([server], [], [], 0.1)[0]:  # the sender may be done and not gone
                server.recv(1 << 20)
        first = next(e for e in tracer.of("chunk", OUT) if e.tid == sender.native_id)
        assert first.ktime_ns < waiting_ns


def test_a_peeked_read_is_no_chunk(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        assert server.recv(4096, socket.MSG_PEEK) == REQUEST
        assert server.recvmsg(4096, 0, socket.MSG_PEEK)[0] == REQUEST
        assert server.recv(4096) == REQUEST
        assert len(tracer.of("chunk", IN)) == 1
    assert tracer.counted()["gap_bytes"] == 0


def test_discarded_bytes_are_unreadable(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        client.send(REQUEST)
        select.select([server], [], [])
        server.recv(len(REQUEST), socket.MSG_TRUNC)
        chunk = tracer.of("chunk", IN)[-1]
    assert (chunk.size, chunk.flags, chunk.head, chunk.tail) == (len(REQUEST), UNREADABLE, b"", b"")


@pytest.mark.parametrize("count", [3, 64, 97, 1024])
def test_scattered_bytes_are_gathered_up_to_the_kernels_limit(tracer: Tracer, count: int) -> None:
    parts = [REQUEST, b"", *(bytes([65 + i % 26]) * (i % 40) for i in range(count - 2))]
    data = b"".join(parts)
    with pair() as (client, server):
        os.writev(client.fileno(), parts)
        target = [bytearray(i % 50) for i in range(count)]
        size = os.readv(server.fileno(), target)
        out, into = tracer.of("chunk", OUT), tracer.of("chunk", IN)
        exactly(server, len(data) - size)
    for records, expected in ((out, data), (into, data[:size])):
        assert sum(e.size for e in records) == len(expected)
        assert b"".join(e.head for e in records) == expected
        assert not any(e.tail or e.flags & ~CONTINUED for e in records)


def test_one_call_is_cut_into_records_up_to_the_allowance(tracer: Tracer) -> None:
    """Head bytes as they are, the last bytes of the call in the last record, sizes that add up."""
    body = bytes(i * 7 % 251 for i in range(200_000))
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body
    with pair() as (client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        reader = threading.Thread(target=exactly, args=(server, len(data)))
        reader.start()
        assert client.send(data) == len(data)
        reader.join()
        records = tracer.of("chunk", OUT)
    assert len(records) == 4
    assert [bool(e.flags & CONTINUED) for e in records] == [False, True, True, True]
    assert all(moved(a) == b.pos for a, b in itertools.pairwise(records))
    assert sum(e.size for e in records) == len(data)
    copied = b"".join(e.head for e in records)
    assert copied == data[: len(copied)] and len(copied) == 4 * (16384 - TAIL)
    assert records[-1].tail == data[-TAIL:] and not any(e.tail for e in records[:-1])
    received = tracer.of("chunk", IN)
    beyond = sum(len(e.head) for e in received) - ALLOWANCE
    assert 0 <= beyond <= FRAMING * len(received), "over several calls"
    assert tracer.counted()["sent_bytes"] == 2 * len(data)


def test_a_tail_that_spans_two_vectors(tracer: Tracer) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 70_000
    with pair() as (client, server):
        reader = threading.Thread(target=exactly, args=(server, len(head) + 10))
        reader.start()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert client.sendmsg([head, b"0123456789"]) == len(head) + 10
        reader.join()
        assert tracer.of("chunk", OUT)[-1].tail == b"aaaaaa0123456789"


def test_a_tail_behind_many_vectors(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(b"HTTP/1.1 200 OK\r\n\r\n")
        client.sendall(b"x" * ALLOWANCE)
        exactly(server, 19 + ALLOWANCE)
        os.writev(client.fileno(), [b"y" * 10] * 1023 + [b"z"])
        assert (tracer.of("chunk", OUT)[-1].size, tracer.of("chunk", OUT)[-1].tail) == (
            10231,
            b"y" * (TAIL - 1) + b"z",
        )
        exactly(server, 10231)


def test_after_the_allowance_chunks_come_with_their_framing_and_tail_only(tracer: Tracer) -> None:
    with pair() as (client, server):
        sizes = [40_000, 40_000, 5000, 3]
        client.send(b"HTTP/1.1 200 OK\r\n\r\n")
        exactly(server, 19)
        for i, size in enumerate(sizes):
            client.sendall(bytes([97 + i]) * size)
            exactly(server, size)
        chunks = [e for e in tracer.of("chunk", OUT) if e.size]
        copied = sum(len(e.head) for e in chunks)
        assert copied == ALLOWANCE + FRAMING + 3
        assert [(e.size, e.head, e.tail) for e in chunks[-2:]] == [
            (5000, b"c" * FRAMING, b"c" * TAIL),
            (3, b"ddd", b""),
        ]
        client.send(bytes.fromhex("16030100f8010000f40303") + bytes(1000))
        server.recv(4096)
        other = tracer.of("chunk", OUT)[-1]
        assert len(other.head) == FRAMING, "the start of another protocol is none of this one"
        client.send(REQUEST)
        server.recv(4096)
        assert tracer.of("chunk", OUT)[-1].head == REQUEST, "a message start has a new allowance"


def test_of_a_database_a_turn_is_copied_and_of_what_is_longer_the_ends(tracer: Tracer) -> None:
    """A long answer has no framing in its middle; what is said next, by either side, has a new allowance."""
    question = b"*2\r\n$4\r\nKEYS\r\n$1\r\n*\r\n"
    answer = b"x" * 49_000 + b"0123456789" * 100
    with pair() as (client, server):
        for turn in range(1, 3):
            client.send(question)
            exactly(server, len(question))
            for _ in range(10):
                server.sendall(answer)
                exactly(client, len(answer))
            conn_id = opened(tracer, server).conn_id
            chunks = [e for e in tracer.of("chunk") if e.conn_id == conn_id]
            assert [e.head for e in chunks if e.direction == IN] == [question] * turn
            sent = [e for e in chunks if e.direction == OUT]
            allowances = turn * TURN_ALLOWANCE + ANSWERS_TO_REQUESTS * sum((21, 10 + 21)[:turn])
            assert sum(len(e.head) for e in sent) == allowances
            assert sum(e.tail == answer[-TAIL:] for e in sent) == turn * 5


def redis_set(number: int, size: int = 10) -> bytes:
    key = b"key:%06d" % number
    return b"*3\r\n$3\r\nSET\r\n$10\r\n%b\r\n$%d\r\n%b\r\n" % (key, size, b"v" * size)


def postgresql_execute(number: int, size: int = 10) -> bytes:
    """Bind of a prepared statement, Execute: PostgreSQL's message formats."""
    value = b"%06d" % number + b"v" * size
    bind = b"\0s_1\0" + struct.pack(">HHI", 0, 1, len(value)) + value + b"\0\0"
    return b"B" + struct.pack(">I", 4 + len(bind)) + bind + b"E\0\0\0\x09\0\0\0\0\0"


def move(calls: list[bytes], sender: socket.socket, receiver: socket.socket) -> None:
    """One call each, however little the socket has room for."""
    for call in calls:
        sending = threading.Thread(target=sender.sendall, args=(call,))
        sending.start()
        exactly(receiver, len(call))
        sending.join()


def copied(tracer: Tracer, direction: int, conn_id: int) -> tuple[int, int]:
    """(of bytes, so many were copied) of one end of a connection."""
    chunks = tracer.of("chunk", direction, conn_id)
    return sum(e.size for e in chunks), sum(len(e.head) + len(e.tail) for e in chunks)


@pytest.mark.parametrize("size", [4096, 8192, 600_000])
@pytest.mark.parametrize("message", [redis_set, postgresql_execute])
def test_a_pipeline_is_copied_however_long_and_so_are_its_answers(
    tracer: Tracer, size: int, message: Callable[[int], bytes]
) -> None:
    """Cut by a buffer of the client's, not where messages begin. Answers may be 32 times as long."""
    requests = b"".join(message(i) for i in range(15_000))
    calls = [requests[at : at + size] for at in range(0, len(requests), size)]
    answers = [b"$40000\r\n" + b"x" * 39_992] * 20
    with pair() as (client, server):
        move(calls, client, server)
        conn_id = opened(tracer, client).conn_id
        asked = copied(tracer, OUT, conn_id)
        assert asked == (len(requests), len(requests))
        move(answers, server, client)
        assert copied(tracer, IN, conn_id) == (800_000, 800_000)


def test_a_pipeline_that_begins_with_its_calls_is_copied_and_large_values_are_not(tracer: Tracer) -> None:
    """Calls of commands of 2,000 bytes show none at their ends; values of 300,000 are no pipeline."""
    with pair() as (client, server):
        move([redis_set(i, 2000) * 3 for i in range(100)], client, server)
        conn_id = opened(tracer, client).conn_id
        size, all_of_it = copied(tracer, OUT, conn_id)
        assert size == all_of_it > 2 * TURN_ALLOWANCE
        value = b"v" * 100_000
        for i in range(30):
            move([redis_set(i, 300_000)[:-300_002], value, value, value, b"\r\n"], client, server)
        values, some = copied(tracer, OUT, conn_id)
        assert some - size < 30 * (ALLOWANCE + 1000) + TURN_ALLOWANCE and values - size > 9_000_000


@pytest.mark.parametrize("begin", [redis_set(0), b"Q\0\0\0\x16COPY t FROM STDIN\0"])
def test_what_is_no_pipeline_stops_being_copied(tracer: Tracer, begin: bytes) -> None:
    """Also when commands come again, in the midst of calls: the core could not find its place there."""
    rows = b"".join(b"d\0\0\0\x44%064d" % i for i in range(8000))
    with pair() as (client, server):
        move([begin, *(rows[at : at + 8192] for at in range(0, len(rows), 8192))], client, server)
        conn_id = opened(tracer, client).conn_id
        calls = len(tracer.of("chunk", OUT, conn_id))
        assert copied(tracer, OUT, conn_id)[1] <= TURN_ALLOWANCE + calls * TAIL
        move([b"x" + redis_set(1) * 100], client, server)
        assert tracer.of("chunk", OUT, conn_id)[-1].head == b""
        move([redis_set(1) * 100], client, server)
        assert len(tracer.of("chunk", OUT, conn_id)[-1].head) == (4700 if begin == redis_set(0) else 0)


def sqlstate(text: int) -> bytes:
    """PostgreSQL's ErrorResponse, with a text so long."""
    fields = b"SERROR\0C22012\0M" + b"t" * text + b"\0\0"
    return b"E" + struct.pack(">I", 4 + len(fields)) + fields


QUERY = b"Q\0\0\0\x0dSELECT 1\0"
READY = b"Z\0\0\0\x05I"


@pytest.mark.parametrize("rows", [0, 700, 15_000, 30_000])
@pytest.mark.parametrize("message", [sqlstate(10), sqlstate(480), sqlstate(100) + READY])
def test_an_error_that_ends_a_long_answer_is_copied_whole(tracer: Tracer, message: bytes, rows: int) -> None:
    """Whatever vectors it lies in; rows of the same length are not, nor is what the answer goes on behind."""
    with pair() as (client, server):
        move([QUERY], client, server)
        conn_id = opened(tracer, server).conn_id
        move([b"x" * 65_000] * 5, server, client)
        rest = b"x" * rows
        for pieces in (
            [rest + message],
            [rest, message],
            [rest + message + b"x"],
            [rest + b"x" * len(message)],
        ):
            server.sendmsg(pieces)
            exactly(client, sum(map(len, pieces)))
        tails = [e.tail for e in tracer.of("chunk", OUT, conn_id)][-4:]
    assert tails[:2] == [message, message]
    assert [len(tail) for tail in tails[2:]] == [TAIL, TAIL]


def test_the_receiver_of_a_long_answer_copies_its_error_too(tracer: Tracer) -> None:
    """Not where several vectors were offered: which of them the bytes ended in is not told."""
    message = sqlstate(100)
    call = b"x" * 3000 + message
    with pair() as (client, server):
        move([QUERY], client, server)
        conn_id = opened(tracer, client).conn_id
        move([b"x" * 65_000] * 5, server, client)
        for buffers in ([bytearray(9000)], [bytearray(2000), bytearray(9000)]):
            server.sendall(call)
            assert client.recvmsg_into(buffers)[0] == len(call)
        tails = [e.tail for e in tracer.of("chunk", IN, conn_id)][-2:]
    assert tails == [message, message[-TAIL:]]


@pytest.mark.parametrize("message", [sqlstate(10), sqlstate(480)])
@pytest.mark.parametrize("left", [1, 500, 8000, 16_368, 16_000 * 2])
def test_an_error_in_the_call_that_is_copied_in_part(tracer: Tracer, message: bytes, left: int) -> None:
    """The turn's allowance ends within the call: the tail has what room the last record has."""
    with pair() as (client, server):
        move([QUERY], client, server)
        conn_id = opened(tracer, server).conn_id
        allowance = TURN_ALLOWANCE + ANSWERS_TO_REQUESTS * len(QUERY)
        move([b"x" * (allowance - left), b"x" * 40_000 + message], server, client)
        events = tracer.of("chunk", OUT, conn_id)
    assert sum(len(e.head) for e in events) == allowance
    room = 16_384 - ((left - 1) % (16_384 - TAIL) + 1)
    assert events[-1].tail == (message if room >= len(message) else message[-TAIL:])


def test_behind_what_is_skipped_a_database_goes_on(tracer: Tracer) -> None:
    """Also when the turn's allowance is used up: there stands the next length."""
    with pair() as (client, server):
        client.send(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n")
        exactly(server, 20)
        for _ in range(TURN_ALLOWANCE // 50_000 + 1):
            server.sendall(b"x" * 50_000)
            exactly(client, 50_000)
        last = [e for e in tracer.of("chunk", OUT) if e.conn_id == opened(tracer, server).conn_id][-1]
        end = moved(last)
        Demands(tracer).set(last.conn_id, skip_out=end + 1000)
        server.sendall(b"y" * 1000 + b"next" * 100)
        exactly(client, 1400)
        behind = [e for e in tracer.of("chunk", OUT) if e.conn_id == last.conn_id][-1]
        assert (behind.offset, behind.head) == (1000, (b"next" * 100)[:FRAMING])


def test_sendfile_is_counted_and_not_read(tracer: Tracer, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"f" * 50_000)
    with pair() as (client, server), file.open("rb") as body:
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        moved_bytes = os.sendfile(client.fileno(), body.fileno(), 0, 50_000)
        chunk = tracer.of("chunk", OUT)[-1]
        assert (chunk.size, chunk.flags, chunk.head, chunk.tail) == (moved_bytes, UNREADABLE, b"", b"")
        assert moved(chunk) & 0xFFFFFFFF == sequence(client, SEND_QUEUE)
        server.recv(10)


def test_bytes_moved_by_other_calls_are_a_gap(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        tracer.kernel.pause(True)
        client.send(b"s" * 1000)
        tracer.kernel.pause(False)
        client.send(REQUEST)
        exactly(server, 1000 + len(REQUEST))
        first, second = tracer.of("chunk", OUT)
        assert second.pos - moved(first) == 1000
        assert second.pos + len(REQUEST) & 0xFFFFFFFF == sequence(client, SEND_QUEUE)
    assert tracer.counted()["gap_bytes"] == 1000


def test_two_threads_on_one_direction_lose_no_byte(tracer: Tracer) -> None:
    """Positions may be guesses (CHUNK_OVERLAP), but they heal, and false gaps are taken back."""
    count = 4000
    with pair() as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(REQUEST)
        server.recv(len(REQUEST))

        def read_some() -> None:
            while server.recv(3) != b"":
                pass

        readers = [threading.Thread(target=read_some) for _ in range(2)]
        for reader in readers:
            reader.start()
        for _ in range(count):
            client.send(b"xyz")
        client.shutdown(socket.SHUT_WR)
        for reader in readers:
            reader.join()
        conn_id = opened(tracer, server).conn_id
        chunks = tracer.of("chunk", IN, conn_id)
        assert sum(e.size for e in chunks) == 3 * count + len(REQUEST)
        assert max(moved(e) for e in chunks) - chunks[0].pos == 3 * count + len(REQUEST)
        assert tracer.counted()["overlaps"] == sum(bool(e.flags & OVERLAP) for e in chunks)
    tracer.wait(lambda events: len(ended(events)) == 2)
    assert tracer.counted()["gap_bytes"] == 0, "what two threads at once made of it is set right at the end"


def test_descriptor_reused_by_dup2_is_not_mistaken(tracer: Tracer, tmp_path: Path) -> None:
    with pair() as (client, server), (tmp_path / "log").open("wb") as log:
        client.send(REQUEST)
        server.recv(4096)
        fd, kept = client.fileno(), os.dup(client.fileno())
        os.dup2(log.fileno(), fd)
        os.write(fd, b"GET /not-on-the-wire HTTP/1.1\r\n")
        os.dup2(kept, fd, inheritable=False)  # dup3
        os.write(fd, REQUEST)
        server.recv(4096)
        assert [e.head for e in tracer.of("chunk", OUT)] == [REQUEST, REQUEST]
        assert len({e.conn_id for e in tracer.of("chunk", OUT)}) == 1
        os.close(kept)
    assert tracer.counted()["chunks"] == 4


def test_descriptor_reused_by_another_connection(tracer: Tracer) -> None:
    seen = []
    for _ in range(3):
        with pair() as (client, server):
            client.send(REQUEST)
            server.recv(4096)
            seen.append((client.fileno(), server.fileno()))
    assert len(set(seen)) == 1, "the test needs the same numbers"
    assert len({e.conn_id for e in tracer.of("open")}) == 6
    assert [e.conn_id for e in tracer.of("open")] == [e.conn_id for e in tracer.of("chunk")]
    assert len(tracer.wait(lambda events: len(ended(events)) == 6)) > 0


@pytest.mark.parametrize("width", [1, 1000])
def test_descriptor_reused_after_close_range(tracer: Tracer, width: int) -> None:
    libc = ctypes.CDLL(None)
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        high = fcntl.fcntl(client.fileno(), fcntl.F_DUPFD, 5000)
        os.write(high, REQUEST)
        assert libc.syscall(436, 5000, 5000 + width - 1, 0) == 0
        reader, writer = os.pipe()
        assert fcntl.fcntl(writer, fcntl.F_DUPFD, 5000) == 5000
        os.write(5000, b"GET /pipe HTTP/1.1\r\n")
        for fd in (5000, reader, writer):
            os.close(fd)
        assert [e.head for e in tracer.of("chunk", OUT)] == [REQUEST, REQUEST]


def test_half_close_ends_one_direction(tracer: Tracer) -> None:
    """The client ends its direction, and reads the answer after that."""
    with pair() as (client, server):
        client.send(REQUEST)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(4096) == REQUEST
        assert server.recv(4096) == b"" and server.recv(4096) == b""
        here, there = opened(tracer, client).conn_id, opened(tracer, server).conn_id
        assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(here, OUT), (there, IN)]
        server.send(RESPONSE)
        server.close()
        assert client.recv(4096) == RESPONSE, "the peer's FIN has closed the socket, with bytes to read"
        assert client.recv(4096) == b""
    tracer.wait(lambda events: len(ended(events)) == 2)
    order = [(e.kind, e.direction) for e in tracer.events if e.conn_id == here]
    assert order == [("open", 0), ("chunk", OUT), ("fin", OUT), ("chunk", IN), ("fin", IN), ("close", 0)]
    assert not any(e.flags & RESET for e in tracer.events if e.kind in ("fin", "close"))
    close = tracer.of("close", conn_id=here)[0]
    assert close.totals["bytes"] == (len(RESPONSE), len(REQUEST)) and close.totals["chunks"] == (1, 1)
    assert tracer.counted()["gap_bytes"] == 0


def test_a_fin_read_with_the_last_bytes_is_no_gap(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        server.send(RESPONSE)
        server.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        assert poll.poll(5000)
        assert client.recv(4096) == RESPONSE
        assert client.recv(4096) == b""
        chunk = tracer.of("chunk", IN, opened(tracer, client).conn_id)[0]
        there = tracer.of("chunk", OUT, opened(tracer, server).conn_id)[0]
        assert chunk.pos & 0xFFFFFFFF == there.pos & 0xFFFFFFFF
    assert tracer.counted()["gap_bytes"] == 0


@pytest.mark.parametrize("seen", ["connect", "late"])
def test_a_fin_read_with_the_first_bytes_that_are_seen(tracer: Tracer, seen: str) -> None:
    """No position is expected there, so the FIN must be told from a byte by the socket's state."""
    if seen == "late":
        tracer.kernel.untrace(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        server, _ = listener.accept()
        tracer.kernel.trace(os.getpid())
        server.send(RESPONSE)
        server.close()
        poll = select.poll()
        poll.register(client, select.POLLRDHUP)
        assert poll.poll(5000)
        assert client.recv(4096) == RESPONSE
        into, out = tracer.of("chunk", IN)[0], tracer.of("chunk", OUT)[0]
        assert into.pos & 0xFFFFFFFF == out.pos & 0xFFFFFFFF
        assert opened(tracer, client).flags == 0
        assert client.recv(4096) == b""


def test_reset_is_told(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        client.recv(4096)
        here, there = opened(tracer, client).conn_id, opened(tracer, server).conn_id
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(4096)
    tracer.wait(lambda events: len(ended(events)) == 2)
    for conn_id in (here, there):
        ends = [e for e in tracer.events if e.conn_id == conn_id and e.kind in ("fin", "close")]
        assert sorted(e.kind for e in ends) == ["close", "fin", "fin"]
        assert all(e.flags & RESET for e in ends), ends


def test_connect_in_progress_is_a_client_from_its_first_byte(tracer: Tracer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        server, _ = listener.accept()
        with server:
            select.select([], [client], [])
            assert client.connect_ex(listener.getsockname()) == 0, "tells the outcome"
            server.send(b"HTTP/1.1 200 OK\r\n\r\n")
            select.select([client], [], [])
            client.recv(4096)
            event = opened(tracer, client)
            assert (event.role, event.flags) == (CLIENT, 0)
            chunk = tracer.of("chunk", IN, event.conn_id)[0]
            assert moved(chunk) & 0xFFFFFFFF == sequence(client, RECEIVE_QUEUE)
    assert tracer.counted()["gap_bytes"] == 0


def test_sockets_older_than_the_agent(tracer: Tracer) -> None:
    """With bytes moved before: late. With none: from its first byte. The socket shows its role either way."""
    tracer.kernel.untrace(os.getpid())
    with pair() as (client, server), pair() as (fresh, other):
        client.send(REQUEST)
        server.recv(4096)
        tracer.kernel.trace(os.getpid())
        for here, there in ((client, server), (fresh, other)):
            there.send(RESPONSE)
            here.recv(4096)
        events = [opened(tracer, sock) for sock in (client, server, fresh, other)]
        assert [(e.role, e.flags) for e in events] == [
            (CLIENT, LATE),
            (SERVER, LATE),
            (CLIENT, 0),
            (SERVER, 0),
        ]
        first = tracer.of("chunk", OUT, events[1].conn_id)[0]
        assert moved(first) & 0xFFFFFFFF == sequence(server, SEND_QUEUE)
        assert tracer.counted()["gap_bytes"] == 0


@pytest.mark.parametrize("both", [False, True])
def test_a_connection_that_begins_after_its_end_was_sent(tracer: Tracer, both: bool) -> None:
    """And closes before that arrived, as before it is data the peer has no room for: no byte is missing."""
    tracer.kernel.untrace(os.getpid())
    with pair() as (client, server):
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(65536))
        client.setblocking(True)
        server.send(RESPONSE)
        if both:
            server.shutdown(socket.SHUT_WR)
            polled = select.poll()
            polled.register(client, select.POLLRDHUP)
            assert polled.poll(DEADLINE_S * 1000), "the end arrives"
        tracer.kernel.trace(os.getpid())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(4096) == RESPONSE
        if both:
            assert client.recv(4096) == b""
        client.close()
        while server.recv(1 << 20):
            pass
    tracer.wait(lambda events: len(ended(events)) == 1)
    assert tracer.counted()["gap_bytes"] == 0


def test_middle_of_a_body_is_counted_until_a_message_begins(tracer: Tracer) -> None:
    tracer.kernel.untrace(os.getpid())
    with pair() as (client, server):
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 2000\r\n\r\n" + b"b" * 1000)
        server.recv(4096)
        tracer.kernel.trace(os.getpid())
        client.send(b"b" * 1000)
        server.recv(4096)
        assert tracer.read() == []
        server.send(RESPONSE)
        client.recv(4096)
        assert [e.flags for e in tracer.of("open")] == [LATE, LATE]
    counted = tracer.counted()
    assert (counted["unknown_chunks"], counted["unknown_bytes"], counted["sent_chunks"]) == (2, 2000, 2)


def test_other_protocols_are_counted_without_records(tracer: Tracer) -> None:
    with pair() as (client, server):
        for _ in range(5):
            client.send(b"incr counter\r\n")
            server.recv(4096)
    counted = tracer.counted()
    assert (counted["unknown_chunks"], counted["unknown_bytes"]) == (10, 140)
    assert tracer.read() == []


def test_tls_is_counted_as_encrypted(tracer: Tracer) -> None:
    hello = bytes.fromhex("16030100f8010000f40303") + bytes(100)
    with pair() as (client, server):
        client.send(hello)
        server.recv(4096)
        client.send(REQUEST)  # whatever it looks like
        server.recv(4096)
    counted = tracer.counted()
    assert counted["encrypted_chunks"] == 4 and counted["encrypted_bytes"] == 2 * len(hello + REQUEST)
    assert tracer.read() == []


def test_what_is_no_connection_is_not_counted(tracer: Tracer, tmp_path: Path) -> None:
    """Files, pipes, netlink, Unix datagrams, descriptors that only name a path."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        here.send(REQUEST)
        there.recv(4096)
        netlink.sendto(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0), (0, 0))  # RTM_GETLINK
        netlink.recv(65536)
    reader, writer = os.pipe()
    os.write(writer, REQUEST)
    os.read(reader, 4096)
    for fd in (reader, writer, os.open("/", os.O_PATH)):
        os.close(fd)
    (tmp_path / "file").write_bytes(REQUEST)
    counted = tracer.counted()
    assert counted["chunks"] == counted["connections"] == 0 and tracer.read() == []


def test_request_that_arrives_byte_by_byte(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(REQUEST)):
            client.send(REQUEST[i : i + 1])
            server.recv(1)
            if i == 2:
                Demands(tracer).set(opened(tracer, server).conn_id, protocol=HTTP1)
                Demands(tracer).set(opened(tracer, client).conn_id, protocol=HTTP1)
        for direction in (IN, OUT):
            assert b"".join(e.head for e in tracer.of("chunk", direction)) == REQUEST


def test_what_may_become_a_start_is_captured_until_enough_has_come_to_tell(tracer: Tracer) -> None:
    with pair() as (client, server):
        for _ in range(16):
            client.send(b"A")
            server.recv(1)
        assert len(tracer.of("chunk", OUT)) == 15  # no method is as long
    counted = tracer.counted()
    assert (counted["sent_chunks"], counted["unknown_chunks"]) == (30, 2)


def test_first_request_byte_by_byte_is_captured_and_known(tracer: Tracer) -> None:
    with pair() as (client, server):
        for byte in REQUEST:
            client.send(bytes([byte]))
            server.recv(1)
        chunks = tracer.of("chunk", OUT)
    assert b"".join(e.head for e in chunks) == REQUEST
    known = [e.protocol for e in chunks].index(HTTP1)
    assert known == len("GET /") - 1
    assert tracer.counted()["unknown_chunks"] == 0


@pytest.mark.parametrize("asked", [b"PING\r\nGET a\r\n", b"auth secret\n"])
def test_an_inline_command_of_redis_is_known_where_it_opens_a_connection(
    tracer: Tracer, asked: bytes
) -> None:
    redis = HTTP1 + PROTOCOLS.index("redis") - PROTOCOLS.index("http1")
    with pair() as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(5):
            client.send(asked[at : at + 1])
            server.recv(1)
        client.send(asked[5:])
        exactly(server, len(asked) - 5)
        server.send(b"+OK\r\n")
        client.recv(100)
        for direction in (IN, OUT):
            requests = [e for e in tracer.of("chunk", direction) if e.head != b"+OK\r\n"]
            assert b"".join(e.head for e in requests) == asked
            assert [e.protocol for e in requests][-1] == redis
    assert tracer.counted()["unknown_chunks"] == 0


@pytest.mark.parametrize("who", ["the server before", "the client before", "the server", "one who was there"])
def test_elsewhere_it_is_counted_without_a_record(tracer: Tracer, who: str) -> None:
    with pair() as (client, server):
        if who == "one who was there":
            tracer.kernel.untrace(os.getpid())
        if who == "the client before":
            client.send(b"CAPABILITIES\r\n")
            exactly(server, 14)
        elif who != "the server":
            server.send(b"INFO {}\r\n")
            exactly(client, 9)
        tracer.kernel.trace(os.getpid())
        sender, receiver = (server, client) if who == "the server" else (client, server)
        sender.send(b"PING\r\n")
        exactly(receiver, 6)
    assert tracer.of("chunk") == []


def test_skipped_bytes_are_not_copied(tracer: Tracer) -> None:
    demands = Demands(tracer)
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        conn_id = opened(tracer, client).conn_id
        end = moved(tracer.of("chunk", OUT, conn_id)[0])
        demands.set(conn_id, skip_out=end + 250)
        client.send(b"a" * 100)  # ends before the last skipped byte: quiet
        client.send(b"b" * 149)  # so does this, by one
        client.send(b"c")  # ends where the skip ends: a record, without bytes
        demands.set(conn_id, skip_out=end + 260)
        client.send(b"d" * 10 + REQUEST)  # the next message begins inside
        quiet, last = tracer.of("chunk", OUT, conn_id)[1:]
        assert (quiet.quiet, quiet.pos, quiet.size, quiet.offset) == ((2, 249), end + 249, 1, 1)
        assert quiet.head == quiet.tail == b""
        assert (last.quiet, last.offset, last.head, last.size) == ((0, 0), 10, REQUEST, 10 + len(REQUEST))
        exactly(server, 260 + len(REQUEST))
    counted = tracer.counted()
    assert (counted["quiet_chunks"], counted["quiet_bytes"]) == (2, 249)


def test_quiet_bytes_are_told_once(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        conn_id = opened(tracer, client).conn_id
        end = moved(tracer.of("chunk", OUT, conn_id)[0])
        Demands(tracer).set(conn_id, skip_out=end + 101)
        client.send(b"q" * 100)
        Demands(tracer).set(conn_id, mode=(0, 1))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert client.send(b"w" * 40_000) == 40_000
        assert [e.quiet for e in tracer.of("chunk", OUT, conn_id)[1:]] == [(1, 100), (0, 0), (0, 0)]
        exactly(server, 40_100)


def test_quiet_bytes_at_the_end_are_told_by_the_close(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        conn_id = opened(tracer, client).conn_id
        Demands(tracer).set(conn_id, skip_out=1 << 63)
        client.send(b"a" * 100)
        client.send(b"a" * 100)
        exactly(server, 200)
    tracer.wait(lambda events: any(e.kind == "close" and e.conn_id == conn_id for e in events))
    totals = tracer.of("close", conn_id=conn_id)[0].totals
    assert (totals["quiet_chunks"][OUT], totals["quiet_bytes"][OUT]) == (2, 200)


def test_demand_of_all_and_of_nothing(tracer: Tracer) -> None:
    demands = Demands(tracer)
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        conn_id = opened(tracer, client).conn_id
        demands.set(conn_id, mode=(0, 1))
        for _ in range(10):
            client.send(b"w" * 10_000)
            exactly(server, 10_000)
        assert sum(len(e.head) for e in tracer.of("chunk", OUT, conn_id)) == 100_000 + len(REQUEST)
        demands.set(conn_id, mode=(0, 2))
        before = len(tracer.of("chunk", OUT, conn_id))
        client.send(REQUEST)
        assert len(tracer.of("chunk", OUT, conn_id)) == before
        demands.set(conn_id + 65536, mode=(0, 2))  # another connection's, in the same slot
        client.send(REQUEST)
        assert tracer.of("chunk", OUT, conn_id)[-1].quiet == (1, len(REQUEST))


@pytest.mark.parametrize("protocol, account", [(ENCRYPTED, "encrypted"), (2, "unknown"), (HTTP1, "quiet")])
def test_what_the_core_decides_is_counted_so(tracer: Tracer, protocol: int, account: str) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        Demands(tracer).set(opened(tracer, client).conn_id, mode=(2, 2), protocol=protocol)
        client.send(REQUEST)
        server.recv(4096)
    counted = tracer.counted()
    assert (counted[f"{account}_chunks"], counted[f"{account}_bytes"]) == (1, len(REQUEST))


def test_a_new_epoch_announces_again(tracer: Tracer) -> None:
    with pair() as (client, server):
        for epoch in (0, 0, 1, 1, 2):
            tracer.kernel.set_epoch(epoch)
            client.send(REQUEST)
            server.recv(4096)
        tracer.kernel.set_epoch(0)
        port = client.getsockname()[1]
        opens = [e for e in tracer.of("open") if e.local[1] == port]
        assert [e.flags for e in opens] == [0, AGAIN, AGAIN]
        assert len({e.conn_id for e in opens}) == 1


def test_paused_nothing_is_looked_at(tracer: Tracer) -> None:
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        tracer.kernel.pause(True)
        client.send(REQUEST)
        server.recv(4096)
        tracer.kernel.pause(False)
        client.send(REQUEST)
        server.recv(4096)
    counted = tracer.counted()
    assert counted["chunks"] == 4 and counted["gap_bytes"] == 2 * len(REQUEST)


def test_a_child_is_followed_and_its_end_is_told(tracer: Tracer) -> None:
    tracer.kernel.process_events()
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        child = os.fork()
        if child == 0:
            os.write(server.fileno(), RESPONSE)
            os._exit(0)
        os.waitpid(child, 0)
        assert client.recv(4096) == RESPONSE
        conn_id = opened(tracer, server).conn_id
        assert [(e.tgid, e.head) for e in tracer.of("chunk", OUT, conn_id)] == [(child, RESPONSE)]
    events = {(e.kind, e.tgid, e.parent_tgid, e.traced) for e in tracer.kernel.process_events()}
    assert {("fork", child, os.getpid(), True), ("exit", child, 0, True)} <= events
    assert not tracer.kernel.is_traced(child)


def test_threads_are_no_children(tracer: Tracer) -> None:
    tracer.kernel.process_events()
    threads = [threading.Thread(target=time.time) for _ in range(5)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    mine = [e for e in tracer.kernel.process_events() if os.getpid() in (e.tgid, e.parent_tgid)]
    assert mine == [] and tracer.kernel.is_traced(os.getpid())


def test_exec_is_told_and_the_process_stays_traced(tracer: Tracer) -> None:
    """A child that inherits a socket and becomes another program."""
    tracer.kernel.process_events()
    with pair() as (client, server):
        code = f"import os; os.write({server.fileno()}, {RESPONSE!r})"
        child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[server.fileno()])
        assert exactly(client, len(RESPONSE)) == RESPONSE
        child.wait()
        assert [(e.tgid, e.head) for e in tracer.of("chunk", OUT)] == [(child.pid, RESPONSE)]
    mine = [e for e in tracer.kernel.process_events() if e.tgid == child.pid]
    assert [e.kind for e in mine] == ["fork", "exec", "exit"]
    assert mine[1].traced and mine[1].comm.startswith("python")


def test_child_of_a_process_that_is_not_followed(tracer: Tracer) -> None:
    tracer.kernel.trace(os.getpid(), follow_children=False)
    child = os.fork()
    if child == 0:
        signal.pause()
    assert not tracer.kernel.is_traced(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


LISTENER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
connection, _ = listener.accept()
connection.recv(4096)
connection.sendall(sys.argv[2].encode())
connection.recv(1)
"""


def serve_once(port: int) -> tuple[int, bytes]:
    """A server in a process of its own answers one request: (its pid, the answer)."""
    command = [sys.executable, "-c", LISTENER, str(port), RESPONSE.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(REQUEST)
            answer = exactly(client, len(RESPONSE))
    return server.pid, answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as each:
        return int(each.getsockname()[1])


def test_who_listens_on_a_selected_port_is_traced_from_the_first_byte(tracer: Tracer) -> None:
    tracer.kernel.untrace(os.getpid())
    port = free_port()
    tracer.kernel.process_events()
    tracer.kernel.select_port(port)
    pid, answer = serve_once(port)
    tracer.kernel.deselect_port(port)
    assert answer == RESPONSE
    assert [(e.tgid, e.head) for e in tracer.of("chunk")] == [(pid, REQUEST), (pid, RESPONSE)]
    assert tracer.of("open")[0].role == SERVER
    listens = [e for e in tracer.kernel.process_events() if e.kind == "listen" and e.tgid == pid]
    assert [(e.port, e.traced, e.netns) for e in listens] == [
        (port, True, os.stat("/proc/self/ns/net").st_ino)
    ]


def test_a_process_that_was_not_selected_is_left_alone(tracer: Tracer) -> None:
    tracer.kernel.untrace(os.getpid())
    tracer.kernel.process_events()
    port = free_port()
    pid, _ = serve_once(port)
    assert tracer.read() == [] and tracer.counted()["chunks"] == 0
    mine = [e for e in tracer.kernel.process_events() if e.tgid == pid]
    assert [(e.kind, e.traced) for e in mine] == [("exec", False), ("listen", False)]


def test_a_full_ring_loses_no_count() -> None:
    """Nobody reads: what is refused is counted, told by the next chunk and by the close, and adds up."""
    with load(ring_bytes=16384, shed=False) as small:
        tracer = Tracer(small)
        small.trace(os.getpid())
        with pair() as (client, server):
            for _ in range(200):
                client.send(REQUEST)
                server.recv(4096)
            kept = len(tracer.of("chunk"))
            counted = tracer.counted()
            assert counted["chunks"] == 400 and counted["sent_chunks"] == kept < 400
            assert counted["unsent_bytes"] == (400 - kept) * len(REQUEST)
            client.send(REQUEST)
            server.recv(4096)
            told = {e.conn_id: e.unsent for e in tracer.of("chunk")[kept:]}
            assert sum(sum(each) for each in told.values()) == 400 - kept
            conn_ids = {opened(tracer, client).conn_id, opened(tracer, server).conn_id}
            with pair() as (second, other):  # not announced: the ring is full before its first chunk
                for _ in range(200):
                    client.send(REQUEST)
                    server.recv(4096)
                second.send(REQUEST)
                other.recv(4096)
                tracer.read()
                second.send(REQUEST)
                other.recv(4096)
                assert opened(tracer, second).flags == 0
                assert tracer.of("chunk", OUT, opened(tracer, second).conn_id)[0].unsent[OUT] == 1
        tracer.wait(lambda events: {e.conn_id for e in events if e.kind == "close"} >= conn_ids)
        closes = [e for e in tracer.of("close") if e.conn_id in conn_ids]
        # the last round is told by no chunk: by the close alone
        assert sum(sum(e.totals["unsent_chunks"]) for e in closes) == counted_unsent(tracer, conn_ids)
        assert tracer.counted()["unsent_events"] >= 1
        small.untrace(os.getpid())


def counted_unsent(tracer: Tracer, conn_ids: set[int]) -> int:
    """Chunks of these connections that no record tells of: all made, less those that came."""
    came = sum(1 for e in tracer.of("chunk") if e.conn_id in conn_ids and not e.flags & CONTINUED)
    return 2 * 401 - came


def test_under_pressure_whole_connections_are_left_out() -> None:
    """Nobody reads: the share that is left out goes up. With a reader again it goes down, and what was left
    out is told by the next record of its connection."""
    with load(ring_bytes=65536) as small, contextlib.ExitStack() as stack:
        tracer = Tracer(small)
        small.trace(os.getpid())
        pairs = [stack.enter_context(pair()) for _ in range(40)]
        deadline = time.monotonic() + DEADLINE_S

        def a_round() -> None:
            assert time.monotonic() < deadline
            for client, server in pairs:
                client.send(REQUEST)
                server.recv(4096)

        while tracer.kernel.shed_share() < 0.9:
            a_round()
        counted = tracer.counted()
        assert counted["shed_chunks"] > 0 and counted["shed_bytes"] == counted["shed_chunks"] * len(REQUEST)
        while tracer.kernel.shed_share() > 0:
            tracer.read()
            a_round()
        for _ in range(3):
            tracer.read()
            a_round()
        shed: dict[int, int] = {}
        for event in tracer.of("chunk"):
            assert event.shed >= shed.get(event.conn_id, 0), "a total only grows"
            shed[event.conn_id] = event.shed
        counted = tracer.counted()
        assert sum(shed.values()) == counted["shed_chunks"], "each is told"
        assert min(shed.values()) == 0 < max(shed.values()), "some connections are kept all the time"
        small.untrace(os.getpid())


def test_a_chunk_that_the_ring_refuses_half_way_adds_up() -> None:
    """Its first records are sent, the rest is not: the chunk came, the bytes are told apart."""
    size = 66_000  # four records, of which the ring takes three
    with load(ring_bytes=65536) as small:
        tracer = Tracer(small)
        small.trace(os.getpid())
        with pair() as (client, server):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            assert client.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (size - 19)) == size
            counted = tracer.counted()
            kept = sum(e.size for e in tracer.of("chunk"))
            assert (counted["chunks"], counted["sent_chunks"], counted["unsent_chunks"]) == (1, 1, 0)
            assert 0 < counted["sent_bytes"] == kept == size - counted["unsent_bytes"]
            client.send(REQUEST)
            last = tracer.of("chunk", OUT)[-1]
            assert last.unsent[OUT] == 1 and last.pos - moved(tracer.of("chunk", OUT)[-2]) == size - kept
            exactly(server, size)
        small.untrace(os.getpid())


def test_tables_that_are_full_are_counted() -> None:
    with load(connections_max=16) as small:
        tracer = Tracer(small)
        small.trace(os.getpid())
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(pair()) for _ in range(20)]
            for client, server in pairs:
                client.send(REQUEST)
                server.recv(4096)
            counted = tracer.counted()
            assert counted["connections"] == 16 and counted["connections_refused"] >= 24
            assert (counted["chunks"], counted["sent_chunks"], counted["unsent_chunks"]) == (40, 16, 24)
        small.untrace(os.getpid())


def test_many_short_connections_leave_nothing_behind(tracer: Tracer) -> None:
    for _ in range(300):
        with pair() as (client, server):
            client.send(REQUEST)
            server.recv(4096)
    tracer.wait(lambda events: len(ended(events)) == 600)
    assert len({e.conn_id for e in tracer.of("open")}) == 600
    counted = tracer.counted()
    assert counted["connections"] == 600 and counted["unsent_events"] == 0


def test_closing_the_kernel_side_detaches_all() -> None:
    each = load()
    attached = len(each._attachments.fds)
    assert attached == len(TARGETS_OF_SYSCALLS) + 5
    each.trace(os.getpid())
    each.close()
    with pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
