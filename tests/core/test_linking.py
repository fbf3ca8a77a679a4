# SPDX-License-Identifier: Apache-2.0
"""Which trace and parent a request gets: the two certain links, the wire, and the cases without a link."""

from __future__ import annotations

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT, SERVER, Core

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def get(path: str, *headers: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{''.join(h + chr(13) + chr(10) for h in headers)}\r\n".encode()


def traceparent(flags: str = "01") -> str:
    return f"traceparent: 00-{TRACE}-{PARENT}-{flags}"


def by_kind(spans):
    return {span.kind: span for span in spans}


def test_the_client_span_is_the_parent_of_the_server_span_of_the_same_connection():
    core = Core()
    client, server = core.pair()
    client.send(get("/a"), at=2000)
    server.receive(get("/a"), at=2001)
    server.send(OK, at=2002)
    client.receive(OK, at=2003)
    spans = by_kind(core.spans())
    assert spans[2].parent_id == spans[3].span_id
    assert spans[2].trace_id == spans[3].trace_id
    assert spans[3].parent_id == ""
    assert spans[2]["ebpf_otlp_tracer.parent.method"] == "connection"
    assert not spans[2].remote_parent


def test_the_server_may_be_seen_before_the_client_in_the_ring():
    """The client's send is recorded when the call returns, which can be after the server has answered."""
    core = Core()
    client, server = core.pair()
    server.receive(get("/a"), at=2001)
    server.send(OK, at=2002)
    client.send(get("/a"), at=2000)
    client.receive(OK, at=2003)
    spans = by_kind(core.spans(drain=False) + core.spans())
    assert spans[2].parent_id == spans[3].span_id


def test_pipelined_requests_are_linked_one_by_one():
    core = Core()
    client, server = core.pair()
    requests = b"".join(get(f"/{i}") for i in range(20))
    client.send(requests)
    server.receive(requests)
    server.send(OK * 20)
    client.receive(OK * 20)
    spans = core.spans()
    clients = {s["url.full"].rsplit("/", 1)[1]: s for s in spans if s.kind == 3}
    servers = {s["url.path"][1:]: s for s in spans if s.kind == 2}
    assert len(clients) == len(servers) == 20
    assert all(servers[i].parent_id == clients[i].span_id for i in clients)


def test_the_one_open_request_of_a_thread_is_the_parent_of_what_it_sends():
    core = Core()
    incoming = core.open(SERVER, tgid=100, tid=101)
    outgoing = core.open(CLIENT, tgid=100, tid=101, local=("127.0.0.1", 41000), remote=("127.0.0.1", 9000))
    incoming.receive(get("/in"))
    outgoing.send(get("/out"))
    outgoing.receive(OK)
    incoming.send(OK)
    spans = by_kind(core.spans())
    assert spans[3].parent_id == spans[2].span_id
    assert spans[3]["ebpf_otlp_tracer.parent.method"] == "thread"


def test_two_open_requests_on_a_thread_give_no_link():
    core = Core()
    first = core.open(SERVER, tid=101)
    second = core.open(SERVER, tid=101, remote=("127.0.0.1", 50001))
    outgoing = core.open(CLIENT, tid=101, local=("127.0.0.1", 41000), remote=("127.0.0.1", 9000))
    first.receive(get("/1"))
    second.receive(get("/2"))
    outgoing.send(get("/out"))
    outgoing.receive(OK)
    spans = by_kind(core.spans())
    assert spans[3].parent_id == ""
    assert core.stats().links_ambiguous == 1
    first.send(OK)
    outgoing.send(get("/again"))
    outgoing.receive(OK)
    second.send(OK)
    spans = core.spans()
    again = next(s for s in spans if s.kind == 3)
    assert again.parent_id == next(s.span_id for s in spans if s["url.path"] == "/2")


def test_another_thread_gives_no_link():
    core = Core()
    incoming = core.open(SERVER, tid=101)
    outgoing = core.open(CLIENT, tid=102, local=("127.0.0.1", 41000), remote=("127.0.0.1", 9000))
    incoming.receive(get("/in"))
    outgoing.send(get("/out"))
    outgoing.receive(OK)
    (span,) = core.spans()
    assert span.parent_id == ""


def test_an_answered_request_is_no_parent():
    core = Core()
    incoming = core.open(SERVER, tid=101)
    outgoing = core.open(CLIENT, tid=101, local=("127.0.0.1", 41000), remote=("127.0.0.1", 9000))
    incoming.receive(get("/in"))
    incoming.send(OK)
    outgoing.send(get("/out"))
    outgoing.receive(OK)
    assert by_kind(core.spans())[3].parent_id == ""


def test_two_hops_are_one_trace():
    """curl -> nginx (one thread) -> service, all traced: five spans in one line."""
    core = Core()
    curl, nginx = core.pair(client_tgid=1, server_tgid=2)
    upstream = core.open(CLIENT, tgid=2, local=("127.0.0.1", 42000), remote=("127.0.0.1", 9000), pos=(70, 90))
    service = core.open(SERVER, tgid=3, local=("127.0.0.1", 9000), remote=("127.0.0.1", 42000), pos=(90, 70))
    curl.send(get("/a"))
    nginx.receive(get("/a"))
    upstream.send(get("/a"))
    service.receive(get("/a"))
    service.send(OK)
    upstream.receive(OK)
    nginx.send(OK)
    curl.receive(OK)
    spans = {(s.tgid, s.kind): s for s in core.spans()}
    line = [spans[1, 3], spans[2, 2], spans[2, 3], spans[3, 2]]
    assert len({s.trace_id for s in line}) == 1
    assert [s.parent_id for s in line] == ["", *[s.span_id for s in line[:-1]]]


def test_traceparent_is_adopted_with_its_flag_and_state():
    core = Core()
    c = core.open()
    c.receive(get("/a", "Cookie: " + "x" * 2048, traceparent(), "tracestate: vendor=1,other=2"))
    c.send(OK)
    (span,) = core.spans()
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert (span.trace_flags, span.remote_parent) == (1, 1)
    assert span.tracestate == "vendor=1,other=2"
    assert span["ebpf_otlp_tracer.parent.method"] == "traceparent"


def test_an_unsampled_parent_is_followed_but_counted_in_the_metrics():
    core = Core()
    c = core.open()
    c.receive(get("/a", traceparent("00")))
    c.send(OK)
    assert core.spans() == []
    assert core.stats().spans_unsampled == 1
    assert core.series()[0]["count"] == 1


def test_a_proxy_that_passes_the_header_on_stands_between():
    core = Core()
    incoming = core.open(SERVER, tgid=2)
    upstream = core.open(CLIENT, tgid=2, local=("127.0.0.1", 42000), remote=("127.0.0.1", 9000), pos=(70, 90))
    service = core.open(SERVER, tgid=3, local=("127.0.0.1", 9000), remote=("127.0.0.1", 42000), pos=(90, 70))
    request = get("/a", traceparent())
    incoming.receive(request)
    upstream.send(request)
    service.receive(request)
    service.send(OK)
    upstream.receive(OK)
    incoming.send(OK)
    spans = {(s.tgid, s.kind): s for s in core.spans()}
    assert spans[2, 2].parent_id == PARENT
    assert spans[2, 3].parent_id == spans[2, 2].span_id
    assert spans[3, 2].parent_id == spans[2, 3].span_id
    assert {s.trace_id for s in spans.values()} == {TRACE}


def test_a_context_of_another_trace_on_the_wire_wins_over_a_link():
    core = Core()
    incoming = core.open(SERVER, tid=101)
    outgoing = core.open(CLIENT, tid=101, local=("127.0.0.1", 41000), remote=("127.0.0.1", 9000))
    incoming.receive(get("/in"))
    outgoing.send(get("/out", traceparent()))
    outgoing.receive(OK)
    (span,) = core.spans()
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)


def test_ratio_sampler_keeps_its_share_of_whole_traces():
    core = Core({"sampler_ratio": 0.25})
    for i in range(400):
        client, server = core.pair(port=40000 + i)
        client.send(get("/a"))
        server.receive(get("/a"))
        server.send(OK)
        client.receive(OK)
    spans = core.spans()
    traces: dict[str, int] = {}
    for span in spans:
        traces[span.trace_id] = traces.get(span.trace_id, 0) + 1
    assert 60 < len(traces) < 140
    assert set(traces.values()) == {2}
    assert all(int(t[16:], 16) < 0.25 * 2**64 for t in traces)


def test_same_tuple_in_another_connection_is_not_taken_when_the_sequence_differs():
    core = Core()
    client, server = core.pair()
    stranger = core.open(CLIENT, tgid=300, local=client.local, remote=client.remote, pos=(1, 999_999))
    stranger.send(get("/a"))
    client.send(get("/a"))
    server.receive(get("/a"))
    server.send(OK)
    client.receive(OK)
    spans = core.spans()
    server_span = next(s for s in spans if s.kind == 2)
    client_span = next(s for s in spans if s.kind == 3 and s.tgid == 200)
    assert server_span.parent_id == client_span.span_id
    assert server_span.link == lib.LINK_CONNECTION


# Network namespaces: addresses are told apart by them only where they cannot cross.


def exchange(*pairs) -> None:
    """One request on each pair, all of them open at the same time."""
    for client, _ in pairs:
        client.send(get("/a"))
    for _, server in pairs:
        server.receive(get("/a"))
    for _, server in pairs:
        server.send(OK)
    for client, _ in pairs:
        client.receive(OK)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_another_one_in_each_network_namespace(host):
    """The same addresses, ports and even sequence numbers: only the namespaces differ."""
    core = Core()
    one = core.pair(client_tgid=11, server_tgid=12, hosts=(host, host), netns=(7, 7))
    two = core.pair(client_tgid=21, server_tgid=22, hosts=(host, host), netns=(8, 8))
    exchange(one, two)
    spans = {s.tgid: s for s in core.spans()}
    assert spans[12].parent_id == spans[11].span_id
    assert spans[22].parent_id == spans[21].span_id
    assert {spans[12].link, spans[22].link} == {lib.LINK_CONNECTION}
    assert core.stats().links_ambiguous == 0


@pytest.mark.parametrize(
    "hosts",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.1", "127.0.0.1"),  # a socket bound to another address of the machine
        ("127.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_loopback_is_no_link_between_network_namespaces(hosts):
    core = Core()
    exchange(core.pair(hosts=hosts, netns=(7, 8)))
    assert by_kind(core.spans())[2].parent_id == ""


@pytest.mark.parametrize(
    "hosts",
    [
        ("10.88.0.2", "10.88.0.3"),
        ("fd00::2", "fd00::3"),
        ("128.0.0.1", "126.255.255.255"),
        ("::2", "::1:1"),
        ("7f00::1", "::7f00:1"),  # the bytes of 127.0.0.1, elsewhere
    ],
)
def test_other_addresses_are_linked_across_network_namespaces(hosts):
    core = Core()
    exchange(core.pair(hosts=hosts, netns=(7, 8)))
    spans = by_kind(core.spans())
    assert spans[2].parent_id == spans[3].span_id
    assert spans[2].link == lib.LINK_CONNECTION


def test_the_same_private_addresses_in_two_networks_give_no_link_where_the_sequence_does_not_tell():
    core = Core()
    hosts = ("10.88.0.2", "10.88.0.3")
    one = core.pair(client_tgid=11, server_tgid=12, hosts=hosts, netns=(1, 2))
    two = core.pair(client_tgid=21, server_tgid=22, hosts=hosts, netns=(3, 4))
    exchange(one, two)
    assert [s.parent_id for s in core.spans() if s.kind == 2] == ["", ""]
    assert core.stats().links_ambiguous == 2
