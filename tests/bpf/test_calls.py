# SPDX-License-Identifier: Apache-2.0
"""Every call that moves bytes, on every kind of stream: each byte counted once, at its place, and no other.

The test process is the traced one, and knows exactly what it did.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import calls
from .calls import REQUEST, RESPONSE, Talk, received, sent, span_of, talk, told, wait_asleep, wait_bytes
from .conftest import IN, OUT, RESET, Tracer

pytestmark = pytest.mark.kernel

STREAMS = ["tcp", "tcp6", "unix"]


@pytest.fixture(params=STREAMS)
def ends(request: pytest.FixtureRequest, tracer: Tracer) -> Iterator[Talk]:
    """A connection of each kind; afterwards nothing was moved that was not seen."""
    with talk(tracer, request.param) as each:
        yield each
    check_counts(tracer)


@pytest.fixture
def tcp(tracer: Tracer) -> Iterator[Talk]:
    with talk(tracer) as each:
        yield each
    check_counts(tracer)


def check_counts(tracer: Tracer, gap_bytes: int = 0) -> None:
    """The kernel side's own totals are those of the records, which hold every byte here."""
    counted = tracer.counted()
    assert counted["bytes"] == counted["sent_bytes"] == sum(e.size for e in tracer.of("chunk"))
    assert counted["gap_bytes"] == gap_bytes and counted["overlaps"] == counted["faults"] == 0


# Several messages in one call


def test_several_messages_with_several_vectors_are_one_chunk(tracer: Tracer, ends: Talk) -> None:
    """Empty vectors, empty messages and one without vectors; a message of which only a part is filled."""
    assert calls.sendmmsg(ends.client, [[b"ab", b"", b"cde"], [], [b""], [b"fgh"]]) == [5, 0, 0, 3]
    wait_bytes(ends.server, 8)
    assert calls.recvmmsg(ends.server, [[3, 0, 1], [0], [1, 1], [100]]) == [b"abcd", b"", b"ef", b"gh"]
    assert sent(tracer, ends) == received(tracer, ends) == [b"abcdefgh"]


def test_messages_up_to_the_kernels_limit(tracer: Tracer, ends: Talk) -> None:
    """More than one record holds, more than one run of the copying program."""
    ends.client.setsockopt(socket.SOL_SOCKET, calls.SO_SNDBUFFORCE, 8 << 20)
    messages = [[bytes([i % 251]) * 38] for i in range(1024)]
    data = b"".join(b"".join(parts) for parts in messages)
    assert sum(calls.sendmmsg(ends.client, messages)) == len(data)
    wait_bytes(ends.server, len(data))
    got = calls.recvmmsg(ends.server, [[38]] * 1024, calls.MSG_WAITFORONE)
    assert b"".join(got) == data
    assert sent(tracer, ends) == received(tracer, ends) == [data]


def test_messages_of_more_vectors_than_can_be_followed(tracer: Tracer, ends: Talk) -> None:
    """What lies behind is counted: the bytes that are there are right, and the next call is at its place."""
    ends.client.setsockopt(socket.SOL_SOCKET, calls.SO_SNDBUFFORCE, 8 << 20)
    parts = [bytes([65 + i % 26]) for i in range(8)]
    data = b"".join(parts) * 1024
    assert sum(calls.sendmmsg(ends.client, [parts] * 1024)) == len(data)
    ends.client.send(b"next")
    _, *events, last = tracer.of("chunk", OUT, ends.here)
    copied = b"".join(e.head for e in events)
    assert sum(e.size for e in events) == len(data) and 1000 < len(copied) < len(data)
    assert copied == data[: len(copied)] and not any(e.tail for e in events)
    assert (last.head, last.pos) == (b"next", events[0].pos + len(data))


def test_recvmmsg_that_waits_for_one(tracer: Tracer, ends: Talk) -> None:
    ends.client.send(b"abcde")
    got = calls.recvmmsg(ends.server, [[3], [100], [100]], calls.MSG_WAITFORONE)
    assert got == [b"abc", b"de"]
    ends.server.setblocking(False)
    with pytest.raises(BlockingIOError):
        calls.recvmmsg(ends.server, [[3]], calls.MSG_WAITFORONE)
    assert received(tracer, ends) == [b"abcde"]


def test_peeks_of_every_call_count_nothing(tracer: Tracer, ends: Talk) -> None:
    ends.client.send(b"abcde")
    peek = socket.MSG_PEEK
    assert ends.server.recv(3, peek) == b"abc"
    assert ends.server.recvmsg(4, 0, peek)[0] == b"abcd"
    assert calls.recvmmsg(ends.server, [[2, 2]], peek) == [b"abcd"]
    assert ends.server.recv(9) == b"abcde"
    assert received(tracer, ends) == [b"abcde"]


def test_a_sendmmsg_that_ends_in_the_middle_of_a_message(tracer: Tracer, ends: Talk) -> None:
    ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    ends.client.setblocking(False)
    messages = [[b"x" * 50_000], [b"y" * 5_000_000], [b"z"]]
    lengths = calls.sendmmsg(ends.client, messages)
    assert 0 < sum(lengths) < 5_050_000
    with pytest.raises(BlockingIOError):
        while True:
            lengths += [sum(calls.sendmmsg(ends.client, [[b"w" * 100_000]]))]
    events = tracer.of("chunk", OUT, ends.here)[1:]
    assert sum(e.size for e in events) == sum(lengths)
    assert b"".join(e.head for e in events).startswith(b"x" * lengths[0])


def test_recvmmsg_that_throws_away_is_counted(tracer: Tracer) -> None:
    """MSG_TRUNC: TCP gives the number of bytes and not the bytes."""
    with talk(tracer) as ends:
        ends.client.send(b"abcde")
        wait_bytes(ends.server, 5)
        calls.recvmmsg(ends.server, [[2], [3]], socket.MSG_TRUNC)
        ends.client.send(b"fg")
        ends.server.recv(10)
        assert received(tracer, ends) == [5, b"fg"]
    check_counts(tracer)


@pytest.mark.parametrize("empty", [7, 8])
def test_empty_vectors_before_the_first_byte(tracer: Tracer, ends: Talk, empty: int) -> None:
    """SEEK_STEPS of bpf/capture.bpf.h: behind eight vectors bytes are counted and not read."""
    assert os.writev(ends.client.fileno(), [b""] * empty + [b"abc"]) == 3
    assert os.readv(ends.server.fileno(), [bytearray(0)] * empty + [bytearray(10)]) == 3
    assert sent(tracer, ends) == received(tracer, ends) == [b"abc" if empty == 7 else 3]


# Vectors with a position


def test_preadv2_and_pwritev2_without_a_position_are_read_and_write(tracer: Tracer, ends: Talk) -> None:
    assert calls.pwritev2(ends.client.fileno(), [b"ab", b"", b"cde"]) == 5
    assert calls.preadv2(ends.server.fileno(), [1, 0, 2]) == b"abc"
    assert calls.preadv2(ends.server.fileno(), [10], flags=8) == b"de"  # RWF_NOWAIT
    with pytest.raises(BlockingIOError):
        calls.preadv2(ends.server.fileno(), [10], flags=8)
    assert (sent(tracer, ends), received(tracer, ends)) == ([b"abcde"], [b"abc", b"de"])


def test_calls_with_a_position_fail_and_count_nothing(tracer: Tracer, ends: Talk) -> None:
    out, into = ends.client.fileno(), ends.server.fileno()
    ends.client.send(b"abc")
    for call in (
        lambda: os.pwrite(out, b"x", 0),
        lambda: os.pread(into, 1, 0),
        lambda: os.pwritev(out, [b"x"], 0),
        lambda: os.preadv(into, [bytearray(1)], 0),
        lambda: calls.pwritev2(out, [b"x"], 0),
        lambda: calls.preadv2(into, [1], 0),
    ):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == errno.ESPIPE
    ends.server.recv(10)
    assert sent(tracer, ends) == received(tracer, ends) == [b"abc"]


# Bytes that never pass through the process's memory


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_splice_in_both_directions_is_counted_and_not_read(
    tracer: Tracer, ends: Talk, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    os.write(writer, b"a" * 1000)
    assert os.splice(reader, ends.client.fileno(), 1000) == 1000
    wait_bytes(ends.server, 1000)
    moved = 0
    sizes: list[bytes | int] = []
    while moved < 1000:
        sizes.append(os.splice(ends.server.fileno(), writer, 400))
        moved += sizes[-1]  # type: ignore[operator]
    assert os.read(reader, 1000) == b"a" * 1000
    ends.client.send(b"end")
    ends.server.recv(3)
    assert sent(tracer, ends) == [1000, b"end"]
    assert received(tracer, ends) == [*sizes, b"end"]
    ends.client.shutdown(socket.SHUT_WR)
    assert os.splice(ends.server.fileno(), writer, 400) == 0
    assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(ends.here, OUT), (ends.there, IN)]


def test_tee_and_vmsplice_touch_pipes_only(tracer: Tracer, ends: Talk, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    other_reader, other_writer = os.pipe()
    assert calls.vmsplice(writer, REQUEST) == len(REQUEST)
    assert calls.tee(reader, other_writer, 100) == len(REQUEST)
    for call in (
        lambda: calls.vmsplice(ends.client.fileno(), REQUEST),
        lambda: calls.tee(ends.server.fileno(), other_writer, 10),
        lambda: calls.tee(reader, ends.client.fileno(), 10),
        lambda: os.splice(ends.client.fileno(), ends.server.fileno(), 10),
    ):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno in (errno.EINVAL, errno.EBADF)
    os.close(other_reader)
    os.close(other_writer)
    assert sent(tracer, ends) == received(tracer, ends) == []


def test_sendfile_to_a_socket_with_and_without_a_position(tracer: Tracer, ends: Talk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"f" * 3000)
    with (tmp_path / "file").open("rb") as file:
        assert os.sendfile(ends.client.fileno(), file.fileno(), 500, 1000) == 1000
        assert os.sendfile(ends.client.fileno(), file.fileno(), None, 10_000) == 3000
        assert os.sendfile(ends.client.fileno(), file.fileno(), None, 10_000) == 0
    wait_bytes(ends.server, 4000)
    assert ends.server.recv(5000) == b"f" * 4000
    assert (sent(tracer, ends), received(tracer, ends)) == ([1000, 3000], [b"f" * 4000])


def test_sendfile_from_a_socket(tracer: Tracer, ends: Talk, pipe: tuple[int, int], tmp_path: Path) -> None:
    """To a file or a socket it fails; to a pipe it is a splice (since Linux 5.12)."""
    reader, writer = pipe
    ends.client.send(b"abcdef")
    wait_bytes(ends.server, 6)
    with (tmp_path / "file").open("wb") as file:
        for target in (file.fileno(), ends.server.fileno()):
            with pytest.raises(OSError) as error:
                os.sendfile(target, ends.server.fileno(), None, 6)
            assert error.value.errno == errno.EINVAL
    assert os.sendfile(writer, ends.server.fileno(), None, 4) == 4
    assert os.read(reader, 10) == b"abcd"
    assert ends.server.recv(10) == b"ef"
    assert received(tracer, ends) == [4, b"ef"]


# Flags


def test_bytes_held_back_by_msg_more_are_counted_when_they_are_written(tracer: Tracer, ends: Talk) -> None:
    assert ends.client.send(b"abc", socket.MSG_MORE) == 3
    assert sent(tracer, ends) == [b"abc"]
    ends.client.send(b"de")
    assert ends.server.recv(5, socket.MSG_WAITALL) == b"abcde"
    assert (sent(tracer, ends), received(tracer, ends)) == ([b"abc", b"de"], [b"abcde"])


def test_a_wait_for_all_is_one_chunk(tracer: Tracer, ends: Talk) -> None:
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(ends.server.recv(6, socket.MSG_WAITALL)))
    reader.start()
    assert reader.native_id is not None
    for part in (b"ab", b"cd", b"ef"):
        wait_asleep(reader.native_id)
        ends.client.send(part)
    reader.join()
    assert got == received(tracer, ends) == [b"abcdef"]
    assert sent(tracer, ends) == [b"ab", b"cd", b"ef"]


def test_a_wait_for_all_that_the_end_cuts_short(tracer: Tracer, ends: Talk) -> None:
    ends.client.send(b"abc")
    ends.client.shutdown(socket.SHUT_WR)
    assert ends.server.recv(6, socket.MSG_WAITALL) == b"abc"
    assert ends.server.recv(6, socket.MSG_WAITALL) == b""
    assert received(tracer, ends) == [b"abc"]
    assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(ends.here, OUT), (ends.there, IN)]


def test_sends_without_a_copy_and_their_notifications(tracer: Tracer, tcp: Talk) -> None:
    tcp.client.setsockopt(socket.SOL_SOCKET, calls.SO_ZEROCOPY, 1)
    data = b"z" * 5000
    assert tcp.client.send(data, calls.MSG_ZEROCOPY) == 5000
    assert tcp.client.sendmsg([data, b"end"], [], calls.MSG_ZEROCOPY) == 5003
    wait_bytes(tcp.server, 10_003)
    assert len(tcp.server.recv(20_000)) == 10_003
    poll = select.poll()
    poll.register(tcp.client, 0)
    assert poll.poll(5000), "the notifications wait"
    data_read, control, flags, _ = tcp.client.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
    assert data_read == b"" and control and flags & socket.MSG_ERRQUEUE
    assert sent(tracer, tcp) == [data, data + b"end"]
    assert tracer.of("chunk", IN, tcp.here) == []


@pytest.mark.parametrize("inline", [False, True])
def test_an_urgent_byte_of_tcp(tracer: Tracer, inline: bool) -> None:
    """Read apart it is a gap of one byte where it stands in the sequence; all others are at their places. In
    line it is a byte like others."""
    with talk(tracer) as ends:
        ends.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        ends.client.send(b"abc")
        ends.client.send(b"de!", socket.MSG_OOB)
        ends.client.send(b"fgh")
        wait_bytes(ends.server, 5)
        if not inline:
            assert ends.server.recv(1, socket.MSG_OOB) == b"!"
        assert ends.server.recv(100) == b"abcde", "a read stops at the mark"
        assert ends.server.recv(100) == (b"!fgh" if inline else b"fgh")
        assert sent(tracer, ends) == [b"abc", b"de!", b"fgh"]
        assert received(tracer, ends, gaps=not inline) == [b"abcde", b"!fgh" if inline else b"fgh"]
        out, into = tracer.of("chunk", OUT, ends.here), tracer.of("chunk", IN, ends.there)
        assert span_of(out) == span_of(into)
        assert into[-1].pos == out[-1].pos - inline
        ends.client.send(b"more")
        ends.server.recv(100)
        assert span_of(tracer.of("chunk", OUT, ends.here)) == span_of(tracer.of("chunk", IN, ends.there))
    check_counts(tracer, gap_bytes=not inline)


def test_an_urgent_byte_of_a_unix_socket(tracer: Tracer) -> None:
    """Read apart it is in no chunk of the reader, and no sequence number shows it: the ends differ by one."""
    with talk(tracer, "unix") as ends:
        ends.client.send(b"abc")
        ends.client.send(b"de!", socket.MSG_OOB)
        ends.client.send(b"fgh")
        assert ends.server.recv(1, socket.MSG_OOB) == b"!"
        got = b""
        while len(got) < 8:
            got += ends.server.recv(100)
        assert got == b"abcdefgh"
        assert sent(tracer, ends) == [b"abc", b"de!", b"fgh"]
        assert b"".join(received(tracer, ends)) == b"abcdefgh"  # type: ignore[arg-type]
        ends.client.shutdown(socket.SHUT_WR)
        assert ends.server.recv(100) == b""
        assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(ends.here, OUT), (ends.there, IN)]
    check_counts(tracer)


def test_msg_trunc_throws_away_on_tcp(tracer: Tracer, tcp: Talk) -> None:
    tcp.client.send(b"abcdefgh")
    tcp.server.recv(3, socket.MSG_TRUNC)
    tcp.server.recvmsg(2, 0, socket.MSG_TRUNC)
    assert tcp.server.recv(10) == b"fgh"
    assert received(tracer, tcp) == [3, 2, b"fgh"]


def test_msg_trunc_changes_nothing_on_a_unix_socket(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        ends.client.send(b"abcdefgh")
        assert ends.server.recv(3, socket.MSG_TRUNC) == b"abc"
        assert calls.recvmmsg(ends.server, [[9]], socket.MSG_TRUNC) == [b"defgh"]
        assert received(tracer, ends) == [b"abc", b"defgh"]


def test_calls_that_would_block_count_nothing(tracer: Tracer, ends: Talk) -> None:
    for call in (
        lambda: ends.server.recv(10, socket.MSG_DONTWAIT),
        lambda: ends.server.recvmsg(10, 0, socket.MSG_DONTWAIT),
        lambda: calls.recvmmsg(ends.server, [[10]], socket.MSG_DONTWAIT),
    ):
        with pytest.raises(BlockingIOError):
            call()
    ends.client.setblocking(False)
    total = 0
    with pytest.raises(BlockingIOError):
        while True:
            total += ends.client.send(b"x" * 1000, socket.MSG_DONTWAIT)
    for call in (
        lambda: ends.client.sendmsg([b"y"]),
        lambda: calls.sendmmsg(ends.client, [[b"y"]]),
        lambda: os.writev(ends.client.fileno(), [b"y"]),
    ):
        with pytest.raises(BlockingIOError):
            call()
    assert sum(e.size for e in tracer.of("chunk", OUT, ends.here)) == total + len(REQUEST)
    assert received(tracer, ends) == []


def test_a_send_that_a_signal_interrupts_counts_what_it_had_moved(tracer: Tracer, ends: Talk) -> None:
    """Straight through libc: Python's own methods would go on with the rest."""
    ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    ends.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    data = REQUEST + b"x" * 8_000_000
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        moved = calls.libc.send(ends.client.fileno(), data, len(data), 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < moved < len(data)
    events = tracer.of("chunk", OUT, ends.here)[1:]
    assert sum(e.size for e in events) == moved
    copied = b"".join(e.head for e in events)
    assert copied == data[: len(copied)]


def test_a_receive_that_a_signal_interrupts_counts_what_it_had_moved(tracer: Tracer, ends: Talk) -> None:
    ends.client.send(b"abc")
    wait_bytes(ends.server, 3)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    buffer = ctypes.create_string_buffer(100)
    try:
        assert calls.libc.recv(ends.server.fileno(), buffer, 100, socket.MSG_WAITALL) == 3
        assert calls.libc.recv(ends.server.fileno(), buffer, 100, 0) == -1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ends.client.send(b"de")
    ends.server.recv(10)
    assert received(tracer, ends) == [b"abc", b"de"]


# Nothing at all


def test_calls_of_no_bytes_count_nothing(tracer: Tracer, ends: Talk) -> None:
    out, into = ends.client.fileno(), ends.server.fileno()
    assert os.write(out, b"") == ends.client.send(b"") == os.writev(out, [b"", b""]) == 0
    assert ends.client.sendmsg([b""]) == 0 and calls.sendmmsg(ends.client, [[b""], []]) == [0, 0]
    ends.client.send(b"abc")
    assert os.read(into, 0) == b"" and os.readv(into, [bytearray(0)]) == 0
    assert ends.server.recv(0) == b""
    assert ends.server.recv(10) == b"abc"
    assert sent(tracer, ends) == received(tracer, ends) == [b"abc"]
    assert tracer.of("fin") == []


def test_calls_of_no_bytes_are_no_end_while_bytes_wait(tracer: Tracer, ends: Talk) -> None:
    """The peer has ended its direction, and what it sent is not read yet."""
    ends.client.send(b"abc")
    ends.client.shutdown(socket.SHUT_WR)
    poll = select.poll()
    poll.register(ends.server, select.POLLRDHUP)
    assert poll.poll(5000)
    assert os.read(ends.server.fileno(), 0) == b"" and ends.server.recv(0) == b""
    assert calls.sendmmsg(ends.server, [[b""]]) == [0]
    assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(ends.here, OUT)]
    assert ends.server.recv(10) == b"abc"
    assert calls.sendmmsg(ends.server, [[b""]]) == [0], "a send is no end of the other direction"
    assert len(tracer.of("fin")) == 1
    assert ends.server.recv(10) == b""
    assert [(e.conn_id, e.direction) for e in tracer.of("fin")] == [(ends.here, OUT), (ends.there, IN)]


def test_a_reset_read_by_any_call_is_told(tracer: Tracer, tcp: Talk) -> None:
    tcp.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.server.close()
    with pytest.raises(ConnectionResetError):
        calls.recvmmsg(tcp.client, [[10]])
    ends = [e for e in tracer.of("fin") if e.conn_id == tcp.here]
    assert sorted(e.direction for e in ends) == [IN, OUT] and all(e.flags & RESET for e in ends)


def test_a_unix_peer_that_leaves_bytes_unread_resets(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        ends.client.send(b"unread")
        ends.server.close()
        with pytest.raises(ConnectionResetError):
            ends.client.recv(10)
        fins = [e for e in tracer.of("fin") if e.conn_id == ends.here]
        assert [(e.direction, bool(e.flags & RESET)) for e in fins] == [(IN, True)]


def test_both_ways_at_once_both_ends_name_the_same_bytes(tracer: Tracer, ends: Talk) -> None:
    for i in range(31):
        ends.client.send(b"q" * (i + 1))
        ends.server.recv(100)
        ends.server.send(RESPONSE + b"r" * i)
        ends.client.recv(4096)
    for a, b in ((ends.here, ends.there), (ends.there, ends.here)):
        assert told(tracer, a, OUT) == told(tracer, b, IN)
        assert span_of(tracer.of("chunk", OUT, a)) == span_of(tracer.of("chunk", IN, b))
