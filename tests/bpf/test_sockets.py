# SPDX-License-Identifier: Apache-2.0
"""Which connection is it, and whose: how sockets begin, change hands and numbers, and end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import calls
from .calls import (
    CLIENT,
    REQUEST,
    RESPONSE,
    SERVER,
    UNKNOWN_ROLE,
    in_network,
    in_thread,
    libc,
    received,
    sent,
    talk,
    tcp_pair,
    told,
    wait_bytes,
)
from .conftest import IN, LATE, OUT, RESET, Event, Tracer, ended

pytestmark = pytest.mark.kernel

Pair = tuple[socket.socket, socket.socket]
IP_BIND_ADDRESS_NO_PORT = 24
IPPROTO_MPTCP = 262


def exchange(client: socket.socket, server: socket.socket) -> None:
    client.sendall(REQUEST)
    assert server.recv(4096) == REQUEST
    server.sendall(RESPONSE)
    assert client.recv(4096) == RESPONSE


def opened(tracer: Tracer, sock: socket.socket) -> Event:
    """The open event of a TCP socket of ours."""
    ports = sock.getsockname()[1], sock.getpeername()[1]
    (event,) = [e for e in tracer.of("open") if (e.local[1], e.remote[1]) == ports]
    return event


def check_no_gap(tracer: Tracer) -> None:
    counted = tracer.counted()
    assert counted["gap_bytes"] == counted["overlaps"] == 0


# How a connection begins


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("call", ["accept", "accept4"])
def test_accept_without_an_address_still_knows_the_peer(tracer: Tracer, host: str, call: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname())
        flags = (0,) if call == "accept4" else ()
        fd = calls.checked(getattr(libc, call)(listener.fileno(), None, None, *flags))
        with socket.socket(fileno=fd) as server:
            exchange(client, server)
            there = opened(tracer, server)
            packed = socket.inet_pton(family, host)
            address = packed if family == socket.AF_INET6 else bytes(10) + b"\xff\xff" + packed
            assert there.remote == (address, client.getsockname()[1])
            assert there.local == (address, listener.getsockname()[1])
            assert (there.role, opened(tracer, client).role) == (SERVER, CLIENT)


def fast_open(connects: bool, rounds: int) -> list[tuple[Pair, bool]]:
    """Connections with TCP Fast Open: (client, server), and whether the SYN carried the request.

    connects: by a connect that waits for the first write, not by a send that connects.
    """
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
    made = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    for _ in range(rounds):
        client = socket.socket()
        if connects:
            client.setsockopt(socket.IPPROTO_TCP, calls.TCP_FASTOPEN_CONNECT, 1)
            client.connect(listener.getsockname())
            assert client.send(REQUEST) == len(REQUEST)
        else:
            assert client.sendto(REQUEST, calls.MSG_FASTOPEN, listener.getsockname()) == len(REQUEST)
        server, _ = listener.accept()
        in_syn = bool(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[5] & 32)  # SYN_DATA
        made.append(((client, server), in_syn))
        assert server.recv(4096) == REQUEST
        server.sendall(RESPONSE)
        assert client.recv(4096) == RESPONSE
        client.sendall(REQUEST)
        assert server.recv(4096) == REQUEST
    listener.close()
    return made


@pytest.mark.parametrize("connects", [False, True], ids=["sendto", "connect"])
def test_tcp_fast_open(tracer: Tracer, connects: bool) -> None:
    """In a network namespace, whose cookies are its own: the first SYN asks for one, the next carry bytes."""
    made = in_network(lambda: fast_open(connects, 3))
    assert [in_syn for _, in_syn in made] == [False, True, True]
    for (client, server), _ in made:
        here, there = opened(tracer, client), opened(tracer, server)
        assert (here.role, there.role) == (CLIENT, SERVER) and here.flags == there.flags == 0
        for a, b, expected in ((here, there, [REQUEST, REQUEST]), (there, here, [RESPONSE])):
            assert told(tracer, a.conn_id, OUT) == told(tracer, b.conn_id, IN) == expected
            out, into = tracer.of("chunk", OUT, a.conn_id), tracer.of("chunk", IN, b.conn_id)
            assert calls.span_of(out) == calls.span_of(into)
        client.close()
        server.close()
    check_no_gap(tracer)


def test_fast_open_without_waiting(tracer: Tracer) -> None:
    """A non-blocking send returns with the SYN on its way."""

    def inside() -> list[Pair]:
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")
        made = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
            for _ in range(2):
                client = socket.socket()
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.sendto(REQUEST, calls.MSG_FASTOPEN, listener.getsockname())
                server, _ = listener.accept()
                select.select([], [client], [], 5)
                client.setblocking(True)
                if not made:  # had no cookie, sent nothing
                    client.sendall(REQUEST)
                assert server.recv(4096) == REQUEST
                made.append((client, server))
        return made

    for client, server in in_network(inside):
        here, there = opened(tracer, client), opened(tracer, server)
        assert (here.role, here.flags, there.role, there.flags) == (CLIENT, 0, SERVER, 0)
        assert told(tracer, here.conn_id, OUT) == told(tracer, there.conn_id, IN) == [REQUEST]
        client.close()
        server.close()
    check_no_gap(tracer)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_connection_in_progress_whichever_end_speaks_first(tracer: Tracer, first: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        server, _ = listener.accept()
        with server:
            select.select([], [client], [])
            client.setblocking(True)
            (client if first == "client" else server).sendall(REQUEST)
            (server if first == "client" else client).recv(4096)
            assert (opened(tracer, client).role, opened(tracer, server).role) == (CLIENT, SERVER)
            assert opened(tracer, client).flags == opened(tracer, server).flags == 0
    check_no_gap(tracer)


def test_a_refused_connection_is_nothing(tracer: Tracer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect(address)
        with pytest.raises(OSError):
            client.send(REQUEST)
    assert tracer.read() == [] and tracer.counted()["connections"] == 0


def test_a_socket_that_connects_again_is_another_connection(tracer: Tracer) -> None:
    """connect with AF_UNSPEC takes a connection apart, and the socket may make another."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        for _ in range(3):
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                exchange(client, server)
                unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
                calls.checked(libc.connect(client.fileno(), unspecified, len(unspecified)))
    tracer.wait(lambda events: len(ended(events)) == 6)
    ours = [e for e in tracer.of("open") if e.role == CLIENT]
    assert len({e.conn_id for e in ours}) == 3 and not any(e.flags for e in ours)
    for event in ours:
        order = [(e.kind, e.direction) for e in tracer.read() if e.conn_id == event.conn_id]
        assert order[:3] == [("open", 0), ("chunk", OUT), ("chunk", IN)]
        assert sorted(order[3:]) == [("close", 0), ("fin", IN), ("fin", OUT)] and order[-1][0] == "close"
    check_no_gap(tracer)


# Who asked, by what a socket shows


def connected(
    *,
    backlog: int = 5,
    bind: tuple[str, int] | None = None,
    no_port: bool = False,
    reuse: bool = False,
) -> Pair:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        listener.bind(("127.0.0.1", 0))
        calls.checked(libc.listen(listener.fileno(), backlog))  # Python makes 0 of a negative one
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, no_port)
        if bind:
            client.bind(bind)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


ROLES: dict[str, tuple[Callable[[], Pair], int, int]] = {
    "plain": (connected, CLIENT, SERVER),
    "backlog 1": (lambda: connected(backlog=1), CLIENT, SERVER),
    "backlog of the system's most": (lambda: connected(backlog=1 << 30), CLIENT, SERVER),
    "backlog 0": (lambda: connected(backlog=0), CLIENT, UNKNOWN_ROLE),
    "negative backlog": (lambda: connected(backlog=-1), CLIENT, SERVER),
    "reused addresses": (lambda: connected(reuse=True), CLIENT, SERVER),
    "backlog 0, reused addresses": (lambda: connected(backlog=0, reuse=True), CLIENT, UNKNOWN_ROLE),
    "bound to a port": (lambda: connected(bind=("127.0.0.1", free_port())), UNKNOWN_ROLE, SERVER),
    "bound to an address": (lambda: connected(bind=("127.0.0.2", 0)), UNKNOWN_ROLE, SERVER),
    "bound to an address, port later": (
        lambda: connected(bind=("127.0.0.2", 0), no_port=True),
        CLIENT,
        SERVER,
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("how", ROLES)
def test_a_role_is_right_or_unknown(tracer: Tracer, how: str, old: bool) -> None:
    """Of sockets that the agent saw from their first byte, and of those older than it."""
    make, client_role, server_role = ROLES[how]
    if old:
        tracer.kernel.untrace(os.getpid())
    client, server = make()
    with client, server:
        if old:
            exchange(client, server)
            tracer.kernel.trace(os.getpid())
        exchange(client, server)
        here, there = opened(tracer, client), opened(tracer, server)
        assert (here.role, there.role) == (client_role, server_role)
        assert here.flags == there.flags == (LATE if old else 0)


def test_a_port_shared_by_a_client_and_a_listener_says_nothing_wrong(tracer: Tracer) -> None:
    """Both ask for addresses to be reused: the listener comes to the port that a connect was given."""
    client, server = connected(reuse=True)
    with client, server, socket.socket() as listener, socket.socket() as other:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.3", client.getsockname()[1]))
        listener.listen(0)
        other.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            exchange(client, server)
            exchange(other, accepted)
            assert opened(tracer, client).role in (CLIENT, UNKNOWN_ROLE)
            assert opened(tracer, accepted).role == UNKNOWN_ROLE
            assert (opened(tracer, server).role, opened(tracer, other).role) == (SERVER, CLIENT)


def test_a_client_that_asked_for_a_listener_s_port_before(tracer: Tracer) -> None:
    """A socket that bound a port, then connected; and one that connected to itself."""
    with socket.socket() as alone:
        alone.bind(("127.0.0.1", 0))
        alone.connect(alone.getsockname())
        alone.send(REQUEST)
        assert alone.recv(4096) == REQUEST
        (event,) = tracer.of("open")
        assert event.role == UNKNOWN_ROLE and event.local == event.remote
        assert told(tracer, event.conn_id, OUT) == told(tracer, event.conn_id, IN) == [REQUEST]
    check_no_gap(tracer)


# How it ends


@pytest.mark.parametrize("first", ["client", "server"])
def test_whoever_closes_first_every_end_is_told_once(tracer: Tracer, first: str) -> None:
    with tcp_pair() as (client, server):
        exchange(client, server)
        one, other = (client, server) if first == "client" else (server, client)
        ids = {opened(tracer, one).conn_id: OUT, opened(tracer, other).conn_id: IN}
        one.close()
        assert other.recv(10) == b""
        other.close()
    tracer.wait(lambda events: len(ended(events)) == 2)
    for conn_id, first_end in ids.items():
        ends = [e for e in tracer.read() if e.conn_id == conn_id and e.kind in ("fin", "close")]
        assert (ends[0].kind, ends[0].direction) == ("fin", first_end)
        assert ends[-1].kind == "close" and not any(e.flags & RESET for e in ends)
        assert len([e for e in ends if e.kind == "fin"]) <= 2


def test_a_close_with_bytes_unread_is_a_reset(tracer: Tracer) -> None:
    with tcp_pair() as (client, server):
        exchange(client, server)
        conn_id = opened(tracer, client).conn_id
        client.send(b"unread")
        wait_bytes(server, 6)
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    tracer.wait(lambda events: len(ended(events)) == 2)
    ends = [e for e in tracer.read() if e.conn_id == conn_id and e.kind in ("fin", "close")]
    assert sorted(e.kind for e in ends) == ["close", "fin", "fin"] and all(e.flags & RESET for e in ends)


def test_a_reset_behind_the_response_takes_nothing_back(tracer: Tracer) -> None:
    """SO_LINGER 0: what was written before is a chunk of the server, whether or not the client got it."""
    with tcp_pair() as (client, server):
        client.send(REQUEST)
        server.recv(4096)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.send(RESPONSE)
        conn_id = opened(tracer, server).conn_id
        server.close()
        assert told(tracer, conn_id, OUT) == [RESPONSE]
        ends = [e for e in tracer.wait(lambda es: any(e.kind == "close" for e in es)) if e.conn_id == conn_id]
        assert [e.kind for e in ends] == ["open", "chunk", "chunk", "fin", "fin", "close"]
        assert all(e.flags & RESET for e in ends[3:])
        with contextlib.suppress(ConnectionResetError):
            client.recv(4096)


def test_nothing_is_remembered_of_connections_that_ended(tracer: Tracer) -> None:
    for i in range(60):
        with tcp_pair() as (client, server):
            exchange(client, server)
            if i % 3 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tracer.wait(lambda events: len(ended(events)) == 120)
    ours = {e.conn_id for e in tracer.of("open")}
    left = {struct.unpack_from("=Q", value)[0] for _, value in tracer.kernel._entries("connections")}
    assert len(ours) == 120 and not ours & left


# Descriptors: numbers are nothing, sockets everything


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_socket_passed_to_another_process_stays_the_same_connection(tracer: Tracer, transport: str) -> None:
    """By SCM_RIGHTS: the other reads and writes on, under a number of its own."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, talk(tracer, transport) as ends:
        child = os.fork()
        if child == 0:  # it inherited the socket: that descriptor is closed first
            os.close(ends.server.fileno())
            _, fds, _, _ = socket.recv_fds(right, 10, 1)
            target = os.dup(fds[0])
            os.close(fds[0])
            os.read(target, 100)
            os.write(target, RESPONSE)
            os._exit(0)
        socket.send_fds(left, [b"take"], [ends.server.fileno()])
        ends.client.send(b"abc")
        assert ends.client.recv(4096) == RESPONSE
        os.waitpid(child, 0)
        ends.client.send(b"back")
        assert ends.server.recv(10) == b"back"
        assert received(tracer, ends) == [b"abc", b"back"]
        chunks = [e for e in tracer.of("chunk") if e.conn_id == ends.there]
        assert [e.tgid for e in chunks] == [os.getpid(), child, child, os.getpid()]
        kinds = [e.kind for e in tracer.read() if e.conn_id in (ends.here, ends.there)]
        assert set(kinds) == {"open", "chunk"} and kinds.count("open") == 2
    check_no_gap(tracer)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_parent_and_child_take_turns_on_an_inherited_socket(tracer: Tracer, transport: str) -> None:
    with talk(tracer, transport) as ends:
        child = os.fork()
        if child == 0:
            for _ in range(3):
                data = os.read(ends.server.fileno(), 100)
                os.write(ends.server.fileno(), b"child:" + data)
            os._exit(0)
        for i in range(3):
            ends.client.send(b"%d" % i)
            assert ends.client.recv(100) == b"child:%d" % i
        os.waitpid(child, 0)
        ends.client.send(b"last")
        assert ends.server.recv(100) == b"last"
        assert received(tracer, ends) == [b"0", b"1", b"2", b"last"]
        assert told(tracer, ends.there, OUT) == [b"child:%d" % i for i in range(3)]
        kinds = {e.kind for e in tracer.read() if e.conn_id in (ends.here, ends.there)}
        assert kinds == {"open", "chunk"}, "the child's end closes nothing"
    check_no_gap(tracer)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_another_socket_put_on_the_same_number(tracer: Tracer, transport: str) -> None:
    """dup2 of one connection over the other: the number changes sides, the bytes do not."""
    with talk(tracer, transport) as one, talk(tracer, transport) as two:
        number = one.client.fileno()
        kept = os.dup(number)
        os.dup2(two.client.fileno(), number)
        os.write(number, b"to the second")
        os.dup2(kept, number)
        os.write(number, b"to the first")
        assert (one.server.recv(100), two.server.recv(100)) == (b"to the first", b"to the second")
        os.close(kept)
        assert sent(tracer, one) == received(tracer, one) == [b"to the first"]
        assert sent(tracer, two) == received(tracer, two) == [b"to the second"]
        assert not {one.here, two.here} & {e.conn_id for e in tracer.of("close")}
    check_no_gap(tracer)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("how", ["close", "close_range"])
def test_a_number_used_again_is_another_connection(tracer: Tracer, transport: str, how: str) -> None:
    numbers, ids = set(), set()
    for _ in range(5):
        with talk(tracer, transport) as ends:
            numbers.add((ends.client.fileno(), ends.server.fileno()))
            ids |= {ends.here, ends.there}
            ends.client.send(b"x")
            ends.server.recv(10)
            assert sent(tracer, ends) == received(tracer, ends) == [b"x"]
            if how == "close_range":
                for sock in (ends.client, ends.server):
                    fd = sock.detach()
                    assert libc.syscall(436, fd, fd, 0) == 0
    assert len(numbers) == 1, "the test needs the same numbers"
    assert len(ids) == 10
    check_no_gap(tracer)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_thread_with_a_table_of_its_own(tracer: Tracer, transport: str) -> None:
    """unshare(CLONE_FILES): from then on the same number is another socket there."""
    with talk(tracer, transport) as one, talk(tracer, transport) as two:
        number = one.client.fileno()

        def inside() -> None:
            calls.checked(libc.unshare(calls.CLONE_FILES))
            os.dup2(two.client.fileno(), number)
            os.write(number, b"second")

        in_thread(inside)
        os.write(number, b"first")
        assert (one.server.recv(100), two.server.recv(100)) == (b"first", b"second")
        assert sent(tracer, one) == received(tracer, one) == [b"first"]
        assert sent(tracer, two) == received(tracer, two) == [b"second"]
        ends = {one.here, one.there, two.here, two.there}
        assert not [e for e in tracer.read() if e.kind in ("fin", "close") and e.conn_id in ends]
    check_no_gap(tracer)


def test_descriptors_beyond_the_first_table(tracer: Tracer) -> None:
    """A table grows when it is full: the kernel puts another in its place."""
    with talk(tracer) as ends:
        copies = [os.dup(ends.client.fileno()) for _ in range(700)]
        for i in (0, 63, 255, 256, 699):
            os.write(copies[i], b"%d" % i)
            ends.server.recv(10)
        for fd in copies:
            os.close(fd)
        assert sent(tracer, ends) == received(tracer, ends) == [b"0", b"63", b"255", b"256", b"699"]
    check_no_gap(tracer)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_program_that_becomes_another_keeps_its_open_socket(tracer: Tracer, transport: str) -> None:
    second = "import os, sys; fd = int(sys.argv[1]); os.read(fd, 100); os.write(fd, b'two')"
    first = (
        "import os, sys; fd = int(sys.argv[1]); os.read(fd, 100); os.write(fd, b'one');"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[2], sys.argv[1]])"
    )
    with talk(tracer, transport) as ends:
        fd = ends.server.fileno()
        child = subprocess.Popen([sys.executable, "-c", first, str(fd), second], pass_fds=[fd])
        for word in (b"one", b"two"):
            ends.client.send(b"go " + word)
            assert ends.client.recv(10) == word
        child.wait()
        assert received(tracer, ends) == [b"go one", b"go two"]
        assert told(tracer, ends.there, OUT) == [b"one", b"two"]
        assert len(tracer.of("open")) == 2
    check_no_gap(tracer)


def test_a_read_whose_descriptor_is_closed_meanwhile_is_a_gap(tracer: Tracer) -> None:
    """Its bytes cannot be followed to a socket when it returns: they are counted when the next are."""
    with talk(tracer) as ends:
        number, kept = ends.server.fileno(), os.dup(ends.server.fileno())
        reader = threading.Thread(target=os.read, args=(number, 10))
        reader.start()
        assert reader.native_id is not None
        calls.wait_asleep(reader.native_id)
        os.close(ends.server.detach())
        ends.client.send(b"lost")
        reader.join()
        ends.client.send(b"seen")
        assert os.read(kept, 10) == b"seen"
        assert received(tracer, ends, gaps=4) == [b"seen"]
        os.close(kept)
    assert tracer.counted()["gap_bytes"] == 4


# Datagrams: counted, nothing more


@contextlib.contextmanager
def datagrams(host: str, connected: bool) -> Iterator[tuple[socket.socket, socket.socket, tuple[str, int]]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as a, socket.socket(family, socket.SOCK_DGRAM) as b:
        a.bind((host, 0))
        b.bind((host, 0))
        if connected:
            a.connect(b.getsockname())
            b.connect(a.getsockname())
        yield a, b, b.getsockname()


def check_datagrams(tracer: Tracer, count: int, size: int) -> None:
    counted = tracer.counted()
    assert (counted["chunks"], counted["unknown_chunks"]) == (count, count)
    assert (counted["bytes"], counted["unknown_bytes"]) == (size, size)
    assert counted["connections"] == counted["gap_bytes"] == 0 and tracer.read() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_are_counted_exactly(tracer: Tracer, host: str) -> None:
    data = REQUEST
    with datagrams(host, connected=False) as (a, b, there):
        a.sendto(data, there)
        assert b.recvfrom(4096)[0] == data
        a.sendmsg([data[:5], data[5:]], [], 0, there)
        assert b.recvmsg(4096)[0] == data
        a.sendto(b"", there)
        assert b.recvfrom(10)[0] == b""
    check_datagrams(tracer, 4, 4 * len(data))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connected_datagrams_are_counted_exactly(tracer: Tracer, host: str) -> None:
    data = REQUEST
    with datagrams(host, connected=True) as (a, b, _):
        a.send(data)
        assert b.recv(4096) == data
        os.write(a.fileno(), data)
        assert os.read(b.fileno(), 4096) == data
        os.writev(a.fileno(), [data, b"", b"x"])
        assert os.readv(b.fileno(), [bytearray(3), bytearray(4096)]) == len(data) + 1
        calls.pwritev2(a.fileno(), [data])
        assert calls.preadv2(b.fileno(), [4096]) == data
        with pytest.raises(BlockingIOError):
            b.recv(10, socket.MSG_DONTWAIT)
        a.send(data)
        assert b.recv(4, socket.MSG_PEEK) == data[:4]
        assert b.recv(4) == data[:4], "the rest is gone: what was given to the process counts"
    check_datagrams(tracer, 10, 9 * len(data) + 2 + 4)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_several_datagrams_in_one_call_are_as_many_chunks(tracer: Tracer, host: str) -> None:
    with datagrams(host, connected=True) as (a, b, _):
        messages = [[b"abc"], [b""], [b"de", b"fgh"], [], [b"i"]]
        assert calls.sendmmsg(a, messages) == [3, 0, 5, 0, 1]
        got = calls.recvmmsg(b, [[10], [10], [2, 2], [10], [10], [10]], socket.MSG_DONTWAIT)
        assert got == [b"abc", b"", b"defg", b"", b"i"]
        calls.sendmmsg(a, [[b"abcdef"], [b"gh"]])
        calls.recvmmsg(b, [[2], [2]], socket.MSG_TRUNC)
    # with MSG_TRUNC a message is as long as its datagram was, not as what was given
    check_datagrams(tracer, 3 + 3 + 2 + 2, 9 + 8 + 8 + 8)


# What is none of ours


def test_multipath_tcp_netlink_raw_and_packet_sockets_are_nothing(tracer: Tracer) -> None:
    with contextlib.ExitStack() as stack:
        make = lambda *kind: stack.enter_context(socket.socket(*kind))  # noqa: E731
        listener, client = (make(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) for _ in range(2))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])
        exchange(client, server)
        netlink = make(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        netlink.sendto(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0), (0, 0))  # RTM_GETLINK
        assert netlink.recv(65536)
        raw = make(socket.AF_INET, socket.SOCK_RAW, 253)  # for experiments
        raw.sendto(REQUEST, ("127.0.0.1", 0))
        assert raw.recv(4096).endswith(REQUEST)
        packet = make(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        packet.bind(("lo", 0))
        raw.sendto(REQUEST, ("127.0.0.1", 0))
        assert packet.recv(4096)
    counted = tracer.counted()
    assert counted["chunks"] == counted["connections"] == 0 and tracer.read() == []


def test_a_listener_of_multipath_tcp_serves_plain_clients(tracer: Tracer) -> None:
    """As Go does by default since 1.24: what it accepts from a plain client is a plain socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                exchange(client, server)
                here, there = opened(tracer, client), opened(tracer, server)
                assert (here.role, there.role) == (CLIENT, SERVER)
                assert told(tracer, there.conn_id, IN) == [REQUEST]
    check_no_gap(tracer)


def test_the_system_calls_of_a_child_with_shared_memory(tracer: Tracer) -> None:
    """posix_spawn: a child on its parent's memory, with a table of its own, moves what it inherited."""
    with talk(tracer) as ends:
        os.set_inheritable(ends.client.fileno(), True)
        code = f"import os; os.write({ends.client.fileno()}, b'spawned')"
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        assert ends.server.recv(100) == b"spawned"
        os.waitpid(child, 0)
        assert sent(tracer, ends) == received(tracer, ends) == [b"spawned"]
    check_no_gap(tracer)
