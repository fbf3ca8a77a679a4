# SPDX-License-Identifier: Apache-2.0
"""Each kind of server and client, a prime number of requests each: as many spans, each once."""

from __future__ import annotations

import asyncio
import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import pytest

from benchmarks import servers
from benchmarks.patience import patience
from benchmarks.spans import CLIENT, SERVER

pytestmark = pytest.mark.kernel

KINDS = {
    "http.server": servers.python_threads,
    "asyncio": servers.python_asyncio,
    "node": servers.node,
    "go": servers.go,
}


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=patience(10)) as sock:
        yield sock


def read_responses(sock: socket.socket, count: int) -> list[bytes]:
    """Bodies of `count` pipelined responses that have a Content-Length."""
    stream, bodies = sock.makefile("rb"), []
    for _ in range(count):
        assert stream.readline().startswith(b"HTTP/1.1 ")
        length = 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        bodies.append(stream.read(length))
    return bodies


def test_curl_asks_nginx_23_times(trace):
    with servers.nginx(access_log=True) as server, trace(server.pids) as traced:
        urls = [f"{server.url}/item/{i}?q={i}" for i in range(23)]
        subprocess.run(["curl", "-sS", "-o", "/dev/null", *urls], check=True)
        logged = server.requests(count=23)
    spans = traced.of(SERVER)
    assert [s.target for s in spans] == [f"/item/{i}?q={i}" for i in range(23)]
    assert [(s["http.request.method"], s.target, s["http.response.status_code"]) for s in spans] == [
        (entry.method, entry.target, entry.status) for entry in logged
    ]
    assert {s.service for s in spans} == {"nginx"}
    assert all(s["user_agent.original"].startswith("curl/") for s in spans)
    assert all(s["server.port"] == server.port for s in spans)


@pytest.mark.parametrize("kind", KINDS)
def test_23_requests_of_all_sorts_on_one_connection(trace, kind):
    with KINDS[kind]() as server, trace(server.pids) as traced:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience(10))
        wanted = []
        for i in range(23):
            sent = b""
            if i % 5 == 4:
                sent = b'{"product": %d, "quantity": 1}' % i
                client.request("POST", "/orders", body=sent)
            else:
                client.request("GET", f"/products/{i * 100}", headers={"User-Agent": "test/1"})
            answer = client.getresponse()
            body = answer.read()
            wanted.append((answer.status, len(sent), len(body)))
        client.close()
    spans = traced.of(SERVER)
    got = [
        (s["http.response.status_code"], s["http.request.body.size"], s["http.response.body.size"])
        for s in spans
    ]
    assert got == wanted
    assert {s["http.request.method"] for s in spans} == {"GET", "POST"}


@pytest.mark.parametrize("kind", ["nginx", "asyncio", "node", "go"])
def test_53_pipelined_requests_are_53_spans_in_order(trace, kind):
    start = servers.nginx if kind == "nginx" else KINDS[kind]
    with start() as server, trace(server.pids) as traced, connected(server.port) as sock:
        sock.sendall(b"".join(b"GET /r/%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(53)))
        assert len(read_responses(sock, 53)) == 53
    assert [s["url.path"] for s in traced.of(SERVER)] == [f"/r/{i}" for i in range(53)]


def test_requests_byte_by_byte(trace):
    with servers.nginx() as server, trace(server.pids) as traced, connected(server.port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(3):
            for byte in b"GET /slow/%d HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n" % (i, b"y" * 50):
                sock.sendall(bytes([byte]))
            read_responses(sock, 1)
    assert [s["url.path"] for s in traced.of(SERVER)] == ["/slow/0", "/slow/1", "/slow/2"]


def test_a_client_gives_client_spans_and_its_service_the_other_end(trace):
    script = (
        "import http.client, sys\n"
        "sys.stdin.readline()\n"
        "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))\n"
        "for i in range(23):\n"
        "    c.request('GET', f'/r/{i}?sig=secret&i={i}'); c.getresponse().read()\n"
    )
    with servers.python_threads() as server:
        client = subprocess.Popen([sys.executable, "-c", script, str(server.port)], stdin=subprocess.PIPE)
        with trace([*server.pids, client.pid]) as traced:
            client.communicate(b"go\n", timeout=patience(20))
    clients, answered = traced.of(CLIENT), traced.of(SERVER)
    assert len(clients) == len(answered) == 23
    assert [s["url.full"] for s in clients] == [
        f"http://127.0.0.1:{server.port}/r/{i}?sig=REDACTED&i={i}" for i in range(23)
    ]
    assert [s.parent_id for s in answered] == [s.span_id for s in clients]
    assert all(a.trace_id == b.trace_id for a, b in zip(clients, answered, strict=True))
    for ours, theirs in zip(clients, answered, strict=True):
        assert ours.start_ns <= theirs.start_ns <= theirs.end_ns <= ours.end_ns


def test_two_hops_are_one_trace(trace):
    with servers.python_threads() as service, servers.nginx(proxy_to=service.port) as front:
        with trace([*front.pids, *service.pids]) as traced:
            for i in range(23):
                subprocess.run(["curl", "-sS", "-o", "/dev/null", f"{front.url}/products/{i}"], check=True)
    incoming, outgoing = traced.of(SERVER, front.pids or ()), traced.of(CLIENT)
    by_path = {}
    for span in traced.spans:
        by_path.setdefault(span.trace_id, []).append(span)
    assert len(by_path) == 23
    for spans in by_path.values():
        root, hop, leaf = sorted(spans, key=lambda s: (s.start_ns, -s.end_ns))
        assert (root.kind, hop.kind, leaf.kind) == (SERVER, CLIENT, SERVER)
        assert (root.parent_id, hop.parent_id, leaf.parent_id) == ("", root.span_id, hop.span_id)
        assert (root.service, hop.service) == ("nginx", "nginx")
        assert hop["ebpf_otlp_tracer.parent.method"] == "thread"
        assert leaf["ebpf_otlp_tracer.parent.method"] == "connection"
        assert root["url.path"] == leaf["url.path"]
    assert incoming or outgoing


def test_h11_client_with_chunked_upload_and_expect(trace):
    """A second implementation of the protocol frames the requests: the sizes are the ones it counted."""
    with servers.node() as server, trace(server.pids) as traced, connected(server.port) as sock:
        conn = h11.Connection(h11.CLIENT)
        sizes = []
        for i in range(7):
            body = [b"x" * (100 * i), b"y" * i, b"z"]
            events = [
                h11.Request(
                    method="POST",
                    target=f"/orders?{i}",
                    headers=[("Host", "x"), ("Transfer-Encoding", "chunked")],
                )
            ]
            events += [h11.Data(data=part) for part in body if part]
            for event in [*events, h11.EndOfMessage(headers=[("X-Trailer", "1")])]:
                sock.sendall(conn.send(event))
            sizes.append(sum(map(len, body)))
            while not isinstance(event := conn.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    conn.receive_data(sock.recv(65536))
            conn.start_next_cycle()
    spans = traced.of(SERVER)
    assert [s["http.request.body.size"] for s in spans] == sizes
    assert [s["url.query"] for s in spans] == [str(i) for i in range(7)]


def test_header_fields_count_wherever_they_stand(trace):
    """traceparent behind 2 KiB of cookies, a target of 8 KiB, a block near 64 KiB."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"traceparent: 00-{trace_id}-00f067aa0ba902b7-01"
    target = "/" + "p" * 8000
    with servers.nginx() as server, trace(server.pids) as traced, connected(server.port) as sock:
        for path, filler in ((target, 2048), ("/big", 60_000)):
            cookies = (
                "".join(f"X-Filler-{i}: {'c' * 4000}\r\n" for i in range(filler // 4000))
                or f"Cookie: {'c' * filler}\r\n"
            )
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{cookies}{parent}\r\n\r\n".encode())
            read_responses(sock, 1)
    first, second = traced.of(SERVER)
    assert first["url.path"] == target
    assert (first.trace_id, second.trace_id) == (trace_id, trace_id)
    assert first.flags & 0x3FF == 0x301


def test_many_connections_at_once_on_one_event_loop(trace):
    async def ask(port: int, i: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for k in range(5):
            writer.write(b"GET /r/%d-%d HTTP/1.1\r\nHost: x\r\n\r\n" % (i, k))
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
        writer.close()

    async def all_of_them(port: int) -> None:
        await asyncio.gather(*(ask(port, i) for i in range(97)))

    with servers.python_asyncio() as server, trace(server.pids) as traced:
        asyncio.run(all_of_them(server.port))
    paths = [s["url.path"] for s in traced.of(SERVER)]
    assert sorted(paths) == sorted(f"/r/{i}-{k}" for i in range(97) for k in range(5))
