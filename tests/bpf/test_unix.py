# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: who they are, which two belong together, and their ends, which no tracepoint tells of."""

from __future__ import annotations

import contextlib
import fcntl
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
from .calls import (
    CLIENT,
    FIRST,
    REQUEST,
    RESPONSE,
    SERVER,
    UNIX,
    UNKNOWN_ROLE,
    libc,
    received,
    sent,
    talk,
    told,
    unix_pair,
    wait_asleep,
)
from .conftest import HTTP1, IN, OUT, RESET, Event, Tracer

pytestmark = pytest.mark.kernel

Pair = tuple[socket.socket, socket.socket]


def exchange(client: socket.socket, server: socket.socket) -> None:
    client.sendall(REQUEST)
    assert server.recv(4096) == REQUEST
    server.sendall(RESPONSE)
    assert client.recv(4096) == RESPONSE


def close_unseen(*socks: socket.socket) -> None:
    """Closes without the call that is hooked."""
    for sock in socks:
        fd = sock.detach()
        assert libc.syscall(436, fd, fd, 0) == 0  # close_range


def alive() -> set[int]:
    """Inodes of all Unix sockets of the system."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {int(line.split()[6]) for line in lines}


def entries(tracer: Tracer) -> dict[int, int]:
    """conn_id and inode of what the kernel side remembers."""
    found = (struct.unpack_from("=QQ", value) for _, value in tracer.kernel._entries("unix_connections"))
    return dict(found)


@pytest.fixture(autouse=True)
def nothing_left(tracer: Tracer) -> Iterator[None]:
    """No test begins or ends with a connection remembered that is gone."""
    tracer.kernel._unix_begun = -1  # asks again, whatever was begun
    tracer.kernel.forget_unix(alive)
    before = entries(tracer)
    yield
    left = {conn_id for conn_id, inode in entries(tracer).items() if inode in alive()}
    assert left <= set(before)


@contextlib.contextmanager
def named(kind: str, folder: Path) -> Iterator[tuple[bytes, Pair]]:
    """(the path that is told, (client, server))."""
    if kind == "unnamed":
        with contextlib.ExitStack() as stack:
            a, b = (stack.enter_context(s) for s in socket.socketpair(socket.AF_UNIX))
            yield b"", (a, b)
        return
    names = {
        "path": str(folder / "socket"),
        "longest": str(folder / "socket").ljust(107, "x"),
        "abstract": "\0ebpf-otlp-tracer-test",
        "abstract-binary": "\0\0\1\377\0".encode("latin-1").decode("utf-8", "surrogateescape"),
        "autobind": "",
    }
    with unix_pair(names[kind]) as (client, server):
        bound = server.getsockname()
        path = bound.encode() if isinstance(bound, str) else bound
        yield path + (b"\0" if kind == "path" else b""), (client, server)


@pytest.mark.parametrize("kind", ["path", "longest", "abstract", "abstract-binary", "autobind", "unnamed"])
def test_open_events_tell_address_role_and_peer(tracer: Tracer, tmp_path: Path, kind: str) -> None:
    with named(kind, tmp_path) as (path, (client, server)):
        exchange(client, server)
        here, there = tracer.of("open")
    assert {here.transport, there.transport} == {UNIX}
    assert here.path.rstrip(b"\0") == there.path.rstrip(b"\0") == path.rstrip(b"\0")
    assert here.path[:1] == path[:1], "an abstract address begins with a zero byte"
    roles = (UNKNOWN_ROLE, UNKNOWN_ROLE) if kind == "unnamed" else (CLIENT, SERVER)
    assert (here.role, there.role) == roles
    assert here.peer_tgid == there.peer_tgid == here.tgid == there.tgid == os.getpid()
    assert here.netns == there.netns == os.stat("/proc/self/ns/net").st_ino
    assert here.local == there.remote != here.remote == there.local
    assert here.local[0][:8] == here.remote[0][:8] == bytes(8) and here.local[1] == here.remote[1] == 0
    assert here.flags == there.flags == 0


def test_chunks_and_positions_are_the_same_on_both_ends(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        for i in range(37):
            ends.client.send(b"q" * (i + 1))
            ends.server.recv(100)
            ends.server.send(RESPONSE + b"r" * i)
            ends.client.recv(4096)
        for a, b in ((ends.here, ends.there), (ends.there, ends.here)):
            out, into = tracer.of("chunk", OUT, a), tracer.of("chunk", IN, b)
            assert [(e.pos, e.size, e.head) for e in out] == [(e.pos, e.size, e.head) for e in into]
            assert out[0].pos == FIRST and {e.protocol for e in out} == {HTTP1}
    assert tracer.counted()["gap_bytes"] == 0


def test_peers_that_bind_too_have_no_role(tracer: Tracer) -> None:
    """Credentials asked for give the client an address of its own: it can be told from the server no more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        client.connect(listener.getsockname())
        assert client.getsockname()
        server, _ = listener.accept()
        with server:
            exchange(client, server)
            assert [e.role for e in tracer.of("open")] == [UNKNOWN_ROLE] * 2


def test_a_client_whose_server_has_gone_is_still_a_client(tracer: Tracer) -> None:
    """Its first chunk is seen when the other end is closed already."""
    with unix_pair() as (client, server):
        tracer.kernel.untrace(os.getpid())
        server.send(RESPONSE)
        name = server.getsockname()
        server.close()
        tracer.kernel.trace(os.getpid())
        assert client.recv(4096) == RESPONSE and client.recv(4096) == b""
        (event,) = tracer.of("open")
        assert (event.role, event.path) == (CLIENT, name)
        assert [e.direction for e in tracer.of("fin")] == [IN]


def test_a_request_written_before_it_is_accepted(tracer: Tracer) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        client.connect(listener.getsockname())
        client.send(REQUEST)
        server, _ = listener.accept()
        with server:
            server.recv(4096)
            here, there = tracer.of("open")
            assert (here.role, there.role) == (CLIENT, SERVER) and here.local == there.remote
            assert told(tracer, here.conn_id, OUT) == told(tracer, there.conn_id, IN) == [REQUEST]


def ends_of(tracer: Tracer, conn_id: int) -> list[tuple[str, int, bool]]:
    """What was told of the end of a connection."""
    events = [e for e in tracer.read() if e.conn_id == conn_id and e.kind in ("fin", "close")]
    return [(e.kind, e.direction, bool(e.flags & RESET)) for e in events]


def test_shutdown_and_end_of_file_end_one_direction(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        ends.client.shutdown(socket.SHUT_WR)
        assert ends.server.recv(10) == b"" and ends.server.recv(10) == b""
        ends.client.shutdown(socket.SHUT_WR)
        assert ends_of(tracer, ends.here) == [("fin", OUT, False)]
        assert ends_of(tracer, ends.there) == [("fin", IN, False)]
        ends.server.send(RESPONSE)
        ends.server.shutdown(socket.SHUT_RDWR)
        assert ends.client.recv(4096) == RESPONSE
        assert ends.client.recv(4096) == b""
        assert ends_of(tracer, ends.here) == [("fin", OUT, False), ("fin", IN, False)]
        assert ends_of(tracer, ends.there) == [("fin", IN, False), ("fin", OUT, False)]


def test_shutdown_of_the_receiving_side_only_is_told_by_the_read(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        ends.server.shutdown(socket.SHUT_RD)
        assert ends_of(tracer, ends.there) == []
        assert ends.server.recv(10) == b""
        assert ends_of(tracer, ends.there) == [("fin", IN, False)]
        with pytest.raises(BrokenPipeError):
            ends.client.send(b"x")
        assert ends_of(tracer, ends.here) == []


def test_close_is_told_at_once_with_the_totals(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        ends.server.send(RESPONSE)
        ends.client.recv(4096)
        ends.client.close()
        assert ends_of(tracer, ends.here) == [("close", 0, False)]
        totals = tracer.of("close", conn_id=ends.here)[0].totals
        assert totals["bytes"] == (len(RESPONSE), len(REQUEST)) and totals["chunks"] == (1, 1)
        assert ends.server.recv(10) == b""
        assert ends_of(tracer, ends.there) == [("fin", IN, False)]
        assert ends.here not in entries(tracer) and ends.there in entries(tracer)


def test_a_descriptor_that_stays_open_keeps_the_connection(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        other = os.dup(ends.client.fileno())
        inherited = os.fork()
        if inherited == 0:
            signal.pause()
        try:
            ends.client.close()
            assert ends_of(tracer, ends.here) == []
            os.write(other, b"abc")
            os.close(other)
            assert ends_of(tracer, ends.here) == [], "the child has it still"
        finally:
            os.kill(inherited, signal.SIGKILL)
            os.waitpid(inherited, 0)
        assert received_after(ends.server) == [b"abc", b""]
        assert told(tracer, ends.here, OUT) == [REQUEST, b"abc"]
        assert tracer.kernel.forget_unix(alive) >= 1
        assert ends.here not in entries(tracer) and ends.there in entries(tracer)


def received_after(sock: socket.socket) -> list[bytes]:
    """All reads up to the end, and that."""
    got = []
    while not got or got[-1]:
        got.append(sock.recv(4096))
    return got


def test_the_last_of_several_descriptors_ends_it(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        copies = [os.dup(ends.client.fileno()) for _ in range(3)]
        ends.client.close()
        for fd in copies[:-1]:
            os.close(fd)
        assert ends_of(tracer, ends.here) == []
        os.close(copies[-1])
        assert ends_of(tracer, ends.here) == [("close", 0, False)]


def test_a_close_while_another_thread_reads(tracer: Tracer) -> None:
    """The call keeps the file open and loses the descriptor: what it reads cannot be followed to a socket."""
    with talk(tracer, "unix") as ends:
        reader = threading.Thread(target=ends.server.recv, args=(10,))
        reader.start()
        assert reader.native_id is not None
        wait_asleep(reader.native_id)
        os.close(ends.server.detach())
        ends.client.send(b"x")
        reader.join()
        assert told(tracer, ends.there, IN) == [REQUEST] and ends_of(tracer, ends.there) == []
        with pytest.raises(BrokenPipeError):
            ends.client.send(b"y")
    tracer.kernel.forget_unix(alive)
    assert ends.there not in entries(tracer)


CHILD_READS = """
import socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
s.sendall(sys.argv[2].encode())
s.recv(1)
"""


def test_a_killed_process_ends_the_other_side(tracer: Tracer) -> None:
    """A reset, where it left bytes unread; what it leaves behind is taken away by the keeper."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours:
        child = os.fork()
        if child == 0:
            ours.close()
            theirs.sendall(REQUEST)
            signal.pause()
        theirs.close()
        assert ours.recv(4096) == REQUEST
        there, here = tracer.of("open")
        assert (there.tgid, here.tgid) == (child, os.getpid())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert ours.recv(4096) == b""
        assert ends_of(tracer, here.conn_id) == [("fin", IN, False)]
        assert there.conn_id in entries(tracer)
        assert tracer.kernel.forget_unix(alive) == 1
        assert set(entries(tracer)) & {there.conn_id, here.conn_id} == {here.conn_id}
        assert tracer.kernel.forget_unix(alive) == 0, "asked again without anything new it does not look"


def test_an_address_used_again_is_another_connection(tracer: Tracer) -> None:
    """Their ends are not seen, so that each address keeps its entry until another socket comes to it."""
    rounds, conn_ids = 200, set()
    for i in range(rounds):
        before = len(tracer.read())
        a, b = socket.socketpair(socket.AF_UNIX)
        a.send(REQUEST)
        b.recv(4096)
        events = tracer.read()[before:]
        opens = [e for e in events if e.kind == "open"]
        chunks = [e for e in events if e.kind == "chunk"]
        assert len(opens) == len(chunks) == 2, (i, events)
        assert all(e.pos == FIRST and e.flags == 0 for e in chunks)
        assert {e.conn_id for e in opens} == {e.conn_id for e in chunks}
        conn_ids |= {e.conn_id for e in opens}
        close_unseen(a, b)
    assert len(conn_ids) == 2 * rounds
    told_by_reuse = {e.conn_id for e in tracer.of("close")}
    left = set(entries(tracer)) & conn_ids
    assert told_by_reuse | left == conn_ids and not told_by_reuse & left
    assert told_by_reuse, "the test needs an address that was used again"
    for event in tracer.of("close"):
        assert sum(event.totals["bytes"]) == len(REQUEST)
    assert tracer.kernel.forget_unix(alive) == len(left)
    assert tracer.counted()["unix_connections"] == 2 * rounds


def test_the_first_call_on_an_address_used_again_may_be_any(tracer: Tracer) -> None:
    """A close, a shutdown, or a read of the end: of a socket that moved nothing, nothing is told."""
    seen_reuse = 0
    for i in range(150):
        a, b = socket.socketpair(socket.AF_UNIX)
        before = len(tracer.read())
        if i % 3 == 0:
            a.shutdown(socket.SHUT_WR)
            assert b.recv(10) == b""
        elif i % 3 == 1:
            a.close()
            assert b.recv(10) == b""
        else:
            a.send(REQUEST)
            b.recv(4096)
        fresh = tracer.read()[before:]
        if i % 3 != 2:
            # an earlier socket's end may be told now, of which more is told afterwards
            gone = {e.conn_id for e in fresh}
            seen_reuse += len(gone)
            assert all(e.kind in ("close", "fin") for e in fresh), fresh
        else:
            assert [e.kind for e in fresh if e.kind in ("open", "chunk")] == ["open", "chunk"] * 2
        close_unseen(*(s for s in (a, b) if s.fileno() >= 0))
    closes = [e.conn_id for e in tracer.of("close")]
    assert len(closes) == len(set(closes)), "each ends once"
    by_conn: dict[int, list[Event]] = {}
    for event in tracer.read():
        by_conn.setdefault(event.conn_id, []).append(event)
    for events in by_conn.values():
        assert events[0].kind == "open"
        assert [e.kind for e in events].count("close") <= 1 and (
            "close" not in [e.kind for e in events] or events[-1].kind == "close"
        )
    tracer.kernel.forget_unix(alive)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_datagrams_and_packets_are_not_traced(tracer: Tracer, kind: socket.SocketKind) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    with a, b:
        a.send(REQUEST)
        assert b.recv(4096) == REQUEST
        calls.sendmmsg(a, [[REQUEST], [REQUEST]])
        assert calls.recvmmsg(b, [[4096], [4096]]) == [REQUEST, REQUEST]
        a.close()
    assert tracer.read() == []
    counted = tracer.counted()
    assert counted["chunks"] == counted["connections"] == 0


def test_a_message_with_descriptors_is_a_chunk_like_others(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        socket.send_fds(ends.client, [b"take"], [0, 1])
        data, fds, _, _ = socket.recv_fds(ends.server, 100, 2)
        for fd in fds:
            os.close(fd)
        assert sent(tracer, ends) == received(tracer, ends) == [data] == [b"take"]


def test_full_buffers_and_both_directions_at_once(tracer: Tracer) -> None:
    """Non-blocking ends that write until nothing goes, and read until nothing comes."""
    with talk(tracer, "unix") as ends:
        for sock in (ends.client, ends.server):
            sock.setblocking(False)
        totals = {OUT: 0, IN: 0}
        for _ in range(5):
            with contextlib.suppress(BlockingIOError):
                while True:
                    totals[OUT] += ends.client.send(b"w" * 70_000)
            with contextlib.suppress(BlockingIOError):
                while True:
                    totals[IN] += len(ends.server.recv(50_000))
        select.select([], [ends.client], [], 5)
        for direction, conn_id in ((OUT, ends.here), (IN, ends.there)):
            events = tracer.of("chunk", direction, conn_id)
            assert sum(e.size for e in events) == totals[direction] + len(REQUEST)
            assert events[-1].pos + events[-1].size == FIRST + totals[direction] + len(REQUEST)
        assert totals[IN] == totals[OUT]


def test_descriptors_duplicated_by_fcntl_lead_to_the_same_connection(tracer: Tracer) -> None:
    with talk(tracer, "unix") as ends:
        high = fcntl.fcntl(ends.client.fileno(), fcntl.F_DUPFD_CLOEXEC, 900)
        os.write(high, b"abc")
        os.close(high)
        ends.server.recv(10)
        assert sent(tracer, ends) == received(tracer, ends) == [b"abc"]
        assert ends_of(tracer, ends.here) == []
