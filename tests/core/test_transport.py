# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: how spans name them, how their ends are linked, and what a killed process leaves behind."""

from __future__ import annotations

import struct

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT, SERVER, Connection, Core

GET = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n"
BARE = b"GET /a HTTP/1.0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
FIRST = 1 << 32  # the kernel side counts the bytes of a Unix socket from here
PATH = b"/run/shop.sock"


def socket_number(number: int) -> str:
    """An address of which the last 8 bytes are this number."""
    return "::" + ":".join(f"{part:x}" for part in struct.unpack(">4H", struct.pack(">Q", number)))


def unix(core: Core, role: int, *, own: int = 0x1234, peer: int = 0x5678, **options: object) -> Connection:
    return core.open(
        role,
        local=(socket_number(own), 0),
        remote=(socket_number(peer), 0),
        pos=(FIRST, FIRST),
        transport=lib.TRANSPORT_UNIX,
        **options,  # type: ignore[arg-type]
    )


def one_span(role: int, request: bytes, path: bytes) -> dict[str, object]:
    core = Core()
    c = unix(core, role, path=path)
    asks, answers = (c.receive, c.send) if role == SERVER else (c.send, c.receive)
    asks(request)
    answers(OK)
    (span,) = core.spans()
    return span.attributes


NETWORK = ("network.", "server.", "client.", "url.full")


def network(attributes: dict[str, object]) -> dict[str, object]:
    found = {k: v for k, v in attributes.items() if k.startswith(NETWORK)}
    del found["network.protocol.version"]
    return found


def test_a_client_names_the_socket_as_its_peer_and_the_host_as_the_server():
    assert network(one_span(CLIENT, GET, PATH + b"\0")) == {
        "network.transport": "unix",
        "network.peer.address": "/run/shop.sock",
        "server.address": "shop",
        "url.full": "http://shop/a",
    }


def test_a_server_names_the_socket_as_its_own_and_has_a_client_without_a_name():
    assert network(one_span(SERVER, GET, PATH)) == {
        "network.transport": "unix",
        "network.local.address": "/run/shop.sock",
        "server.address": "shop",
    }


@pytest.mark.parametrize("role,side", [(CLIENT, "peer"), (SERVER, "local")])
def test_the_path_stands_for_the_server_where_no_host_is_named(role: int, side: str):
    assert network(one_span(role, BARE, PATH)) == {
        "network.transport": "unix",
        f"network.{side}.address": "/run/shop.sock",
        "server.address": "/run/shop.sock",
    }


def test_an_abstract_socket_begins_with_an_at_sign():
    assert one_span(CLIENT, BARE, b"\0shop")["server.address"] == "@shop"


def test_an_unknown_path_is_left_out():
    assert network(one_span(CLIENT, BARE, b"")) == {"network.transport": "unix"}


def test_a_path_of_any_size_is_kept_within_that_of_the_kernel():
    assert one_span(CLIENT, BARE, b"/" + b"x" * 5000)["server.address"] == "/" + "x" * 107


def test_a_port_in_the_host_is_kept():
    attributes = one_span(CLIENT, GET.replace(b"shop", b"shop:8080"), PATH)
    assert (attributes["server.address"], attributes["server.port"]) == ("shop", 8080)


def test_tcp_spans_say_nothing_of_their_transport():
    core = Core()
    c = core.open(CLIENT, path=PATH)
    c.send(GET)
    c.receive(OK)
    (span,) = core.spans()
    assert span["network.transport"] is None
    assert (span["network.peer.address"], span["network.peer.port"]) == ("127.0.0.1", 50000)


def test_the_ends_of_a_unix_socket_are_linked_by_their_numbers():
    core = Core()
    client = unix(core, CLIENT, tgid=200, own=0xFFFF88001234ABCD, peer=0xFFFF880056780000, netns=2)
    server = unix(core, SERVER, tgid=100, own=0xFFFF880056780000, peer=0xFFFF88001234ABCD)
    stranger = unix(core, CLIENT, tgid=300, own=0xFFFF88001234ABCE, peer=0xFFFF880056780000)
    for _ in range(3):
        stranger.send(GET)
        client.send(GET)
        server.receive(GET)
        server.send(OK)
        client.receive(OK)
        spans = {span.tgid: span for span in core.spans()}
        assert spans[100].parent_id == spans[200].span_id
        assert spans[100].link == lib.LINK_CONNECTION
        stranger.receive(OK)


def test_what_waits_on_the_unix_sockets_of_a_killed_process_is_closed():
    core = Core()
    unanswered = unix(core, CLIENT, tgid=200, own=1, peer=2)
    inherited = unix(core, CLIENT, tgid=200, own=3, peer=4)
    tcp = core.open(CLIENT, tgid=200)
    other = unix(core, CLIENT, tgid=300, own=5, peer=6)
    for c in (unanswered, inherited, tcp, other):
        c.send(GET)
    inherited.tgid = 201
    inherited.send(b"")
    assert core.spans() == []
    lib.core_process_gone(core.core, 200)
    reported = core.now_ms
    core.feed(now_ms=reported + 500)
    assert core.spans() == []  # its last events may be on their way
    core.feed(now_ms=reported + 2500)
    core.now_ms = reported + 2500
    (span,) = core.spans()
    assert (span.tgid, span["error.type"], span.end) == (200, "connection_closed", reported)
    assert core.stats().connections == 3
    again = unix(core, CLIENT, tgid=200, own=7, peer=8)  # another process of that id
    again.send(GET)
    core.feed()
    lib.core_process_gone(core.core, 300)
    core.feed(now_ms=core.now_ms + 5000)
    core.now_ms += 5000
    again.receive(OK)
    assert [(s.tgid, s["error.type"]) for s in core.spans()] == [(300, "connection_closed"), (200, None)]


def test_what_nothing_is_known_of_is_counted_and_costs_nothing():
    """UDP: announced, no protocol uses it."""
    core = Core()
    c = core.open(transport=lib.TRANSPORT_UDP, pos=(FIRST, FIRST))
    c.receive(b"\x12\x34\x01\x00\x00\x01", protocol=0)
    c.close()
    assert core.spans() == []
    assert core.ledger()["bytes"] == {"unknown": 6}
