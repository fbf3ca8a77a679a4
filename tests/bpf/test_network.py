# SPDX-License-Identifier: Apache-2.0
"""What the network does to packets does nothing to what is told: the agent sees calls, not packets.

Lost, doubled and late packets, windows of zero, ends that never come, ports used again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reflector import HERE, PEER, Reflector

from .calls import CLIENT, REQUEST, RESPONSE, SERVER, in_network, span_of, wait_until
from .conftest import IN, OUT, RESET, Event, Tracer, ended

pytestmark = pytest.mark.kernel


@contextlib.contextmanager
def across(port: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(client, server) over the reflector."""
    with socket.create_server((HERE, port)) as listener:
        client = socket.create_connection((PEER, listener.getsockname()[1]), timeout=30)
        server, _ = listener.accept()
        server.settimeout(30)
    with client, server:
        yield client, server


def opened(tracer: Tracer, client: socket.socket) -> tuple[Event, Event]:
    """The open events of both ends."""
    port = client.getsockname()[1]
    (here,) = [e for e in tracer.of("open") if e.local[1] == port]
    (there,) = [e for e in tracer.of("open") if e.remote[1] == port]
    return here, there


def ask(client: socket.socket, server: socket.socket, size: int) -> None:
    """A request and an answer with bodies, at the speed of the network."""

    def answer() -> None:
        left = len(head) + size
        while left:
            left -= len(server.recv(65536))
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size)

    head = b"POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    thread = threading.Thread(target=answer)
    thread.start()
    client.sendall(head + b"q" * size)
    left = len(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size) + size
    while left:
        left -= len(client.recv(65536))
    thread.join()


def check_both_ends(tracer: Tracer, here: Event, there: Event) -> None:
    """Every byte once, in order, at the same place on both ends, both ways."""
    check_way(tracer, here, there)
    check_way(tracer, there, here)


def check_way(tracer: Tracer, sender: Event, receiver: Event) -> None:
    out, into = tracer.of("chunk", OUT, sender.conn_id), tracer.of("chunk", IN, receiver.conn_id)
    for events in (out, into):
        assert all(a.pos + a.size == b.pos for a, b in itertools.pairwise(events))
    assert span_of(out) == span_of(into)
    assert sum(e.size for e in out) == sum(e.size for e in into)
    counted = tracer.counted()
    assert counted["gap_bytes"] == counted["overlaps"] == counted["unsent_chunks"] == 0


def test_packets_lost_doubled_and_out_of_order_change_nothing(tracer: Tracer) -> None:
    def inside() -> Reflector:
        with Reflector(loss=0.03, doubling=0.05, reordering=0.1, seed=11) as network, across() as ends:
            for size in (0, 1, 1000, 50_000, 0, 100_000, 3):
                ask(*ends, size)
            check_both_ends(tracer, *opened(tracer, ends[0]))
            return network

    network = in_network(inside)
    assert network.lost and network.doubled and network.late, "the test needs a bad network"
    statistics = tracer.counted()
    assert statistics["bytes"] == statistics["sent_bytes"]


def test_addresses_translated_on_the_way(tracer: Tracer) -> None:
    """Each end says what it sees: they are no mirror images, and both are right."""

    def inside() -> None:
        with Reflector(), across() as (client, server):
            ask(client, server, 10)
            here, there = opened(tracer, client)
            mapped = [bytes(10) + b"\xff\xff" + socket.inet_aton(a) for a in (HERE, PEER)]
            assert (here.local[0], here.remote[0]) == (there.local[0], there.remote[0]) == tuple(mapped)
            assert (here.role, there.role) == (CLIENT, SERVER)
            check_both_ends(tracer, here, there)

    in_network(inside)


def zero_windows() -> int:
    """How often this network namespace said that a window is closed."""
    names, values = Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2]
    return int(dict(zip(names.split(), values.split(), strict=True))["TCPToZeroWindowAdv"])


def test_a_window_of_zero_only_delays(tracer: Tracer) -> None:
    def inside() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                client.setblocking(False)
                total, before = client.send(REQUEST), zero_windows()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        total += client.send(b"x" * 10_000)
                wait_until(lambda: zero_windows() > before)
                got = 0
                while got < total:
                    got += len(server.recv(3000))
                here, there = opened(tracer, client)
                check_way(tracer, here, there)
                assert sum(e.size for e in tracer.of("chunk", OUT, here.conn_id)) == total

    in_network(inside)


def test_a_peer_that_falls_silent_is_a_reset(tracer: Tracer) -> None:
    """Half open: one end gives up after its time, the other knows nothing until it is closed."""

    def inside() -> None:
        with Reflector() as network, across() as (client, server):
            ask(client, server, 10)
            here, there = opened(tracer, client)
            network.mute = True
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
            client.sendall(REQUEST)
            with pytest.raises(OSError) as error:
                client.recv(10)
            assert error.value.errno == errno.ETIMEDOUT
            ends = [e for e in tracer.of("fin") if e.conn_id == here.conn_id]
            assert sorted(e.direction for e in ends) == [IN, OUT] and all(e.flags & RESET for e in ends)
            assert [e for e in tracer.of("fin") if e.conn_id == there.conn_id] == []
            server.close()
            fins = [e for e in tracer.of("fin") if e.conn_id == there.conn_id]
            assert [(e.direction, e.flags) for e in fins] == [(OUT, 0)]

    in_network(inside)


def test_a_port_used_again_is_another_connection(tracer: Tracer) -> None:
    """The same four numbers, a moment later: after a reset, and out of the other's TIME_WAIT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = 0
        for i in range(7):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.0.0.1", port))
                port = client.getsockname()[1]
                client.connect(listener.getsockname())
                server, _ = listener.accept()
                client.send(REQUEST)
                server.recv(4096)
                server.send(RESPONSE)
                client.recv(4096)
                if i % 2:
                    server.close()  # which stays in TIME_WAIT, and may be taken out of it
                    assert client.recv(10) == b""
                else:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    with pytest.raises(ConnectionResetError):
                        server.recv(10)
                    server.close()
    tracer.wait(lambda events: len(ended(events)) == 14)
    opens = tracer.of("open")
    assert len({(e.local, e.remote) for e in opens}) == 2 and len({e.conn_id for e in opens}) == 14
    for event in opens:
        assert event.flags == 0
        assert [len(tracer.of("chunk", d, event.conn_id)) for d in (IN, OUT)] == [1, 1]
    assert tracer.counted()["gap_bytes"] == 0


def test_many_connections_at_once_in_a_bad_network(tracer: Tracer) -> None:
    def inside() -> None:
        with Reflector(loss=0.02, doubling=0.02, reordering=0.05, seed=5), contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(across()) for _ in range(8)]
            threads = [threading.Thread(target=ask, args=(*ends, 20_000)) for ends in pairs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for client, _ in pairs:
                check_both_ends(tracer, *opened(tracer, client))

    in_network(inside)
    assert tracer.counted()["connections"] == 16


def test_an_accept_queue_that_overflows_still_gives_whole_connections(tracer: Tracer) -> None:
    """Clients that believe they are connected, and write, before there is room for them."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        clients = []
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            client.send(REQUEST)
            clients.append(client)
        for client in clients:
            server, _ = listener.accept()
            with server:
                assert server.recv(4096) == REQUEST
                here, there = opened(tracer, client)
                assert (here.role, there.role, here.flags, there.flags) == (CLIENT, SERVER, 0, 0)
                check_way(tracer, here, there)
    assert tracer.counted()["gap_bytes"] == 0
