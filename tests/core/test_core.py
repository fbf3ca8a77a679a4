# SPDX-License-Identifier: Apache-2.0
"""The core as a whole: order of time, caps, series, ledger, and that it gives back what it took."""

from __future__ import annotations

import gc
import resource

import pytest
from agent.core._core import ffi, lib

from agent.layouts import dtype_of
from tests.core.harness import CLIENT, MS, Core

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


def test_events_are_held_back_and_put_in_the_order_of_their_times():
    core = Core()
    c = core.open(CLIENT)
    c.receive(OK, at=2005)
    c.pos[lib.DIRECTION_IN] -= 0
    core.feed(drain=False, now_ms=2006)
    assert lib.core_held(core.core) == 5 * MS
    c.send(GET, at=2004)
    core.feed(drain=False, now_ms=2020)
    assert lib.core_held(core.core) == 0
    assert len(core.spans()) == 1
    assert core.stats().events_late == 0


def test_an_event_that_comes_later_than_the_hold_is_counted():
    core = Core()
    c = core.open(CLIENT)
    c.receive(OK, at=2005)
    core.feed(drain=False, now_ms=2100)
    c.send(GET, at=2004)
    core.feed(drain=False, now_ms=2200)
    assert core.spans() == []
    assert core.stats().events_late == 1
    assert core.stats().responses_unmatched == 1


def test_more_than_may_be_held_back_is_still_handled_in_order():
    """8 MiB within the hold: the oldest are handled early, none before an older one."""
    core = Core()
    c = core.open()
    c.receive(GET, at=2000)
    c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", at=2001)
    piece = b"4000\r\n" + bytes(16384) + b"\r\n"
    for _ in range(512):
        c.send(piece[:16000], at=2002)
        c.send(piece[16000:], at=2002)
    core.feed(drain=False, now_ms=2003)
    assert lib.core_held(core.core) > 0
    c.send(b"0\r\n\r\n", at=2003)
    core.feed(drain=False, now_ms=2004)
    (span,) = core.spans()
    assert span["http.response.body.size"] == 512 * 16384
    assert core.ledger()["gaps"] == {}


def test_connections_over_the_cap_push_out_the_longest_idle():
    core = Core({"connections_max": 10})
    connections = [core.open(remote=("127.0.0.1", 50000 + i)) for i in range(10)]
    connections[0].receive(GET)
    core.feed()
    core.open(remote=("127.0.0.1", 60000))
    connections[0].send(OK)
    assert len(core.spans()) == 1
    assert core.stats().connections == 10
    assert core.stats().connections_evicted == 1
    connections[1].receive(GET)
    core.feed()
    assert core.stats().events_unknown_connection == 1


def test_idle_connections_are_forgotten():
    core = Core({"idle_timeout_ns": 1000 * MS})
    core.open()
    core.feed()
    core.feed(now_ms=core.now_ms + 5000)
    assert core.stats().connections == 0
    assert core.stats().connections_expired == 1


def test_pending_requests_over_the_cap_are_dropped_and_counted():
    core = Core({"pending_max": 10})
    c = core.open()
    c.receive(b"".join(GET.replace(b"/a", b"/%d" % i) for i in range(11)))
    c.send(OK * 10)
    assert [span["url.path"] for span in core.spans()] == [f"/{i}" for i in range(10)]
    assert core.stats().requests_dropped == 1
    c.receive(GET)
    c.send(OK + OK)  # which of the two answers /a is not known
    assert core.spans() == []


def test_requests_that_wait_hold_no_more_memory_than_the_cap():
    core = Core({"buffer_bytes_max": 64 * 1024})
    for i in range(1000):
        core.open(remote=("127.0.0.1", 10000 + i)).receive(GET)
    core.feed()
    dropped = core.stats().requests_dropped
    assert 500 < dropped < 1000
    assert core.stats().memory_bytes < 1 << 20


def test_processes_over_the_cap_are_counted_together():
    core = Core({"processes_max": 2})
    for tgid in (100, 200, 300, 400):
        c = core.open(tgid=tgid, remote=("127.0.0.1", 40000 + tgid))
        c.receive(GET)
        c.send(OK)
    assert len(core.spans()) == 4
    assert core.ledger(100)["spans"] == core.ledger(200)["spans"] == 1
    assert core.ledger(300) == core.ledger(400) == {}
    assert core.ledger(0)["spans"] == 2
    assert core.ledger(0)["bytes"] == {"parsed": 2 * len(GET + OK)}
    assert core.stats().processes_refused == 4


def test_a_full_batch_waits_for_python_and_loses_nothing():
    core = Core({"batch_spans_max": 64})
    c = core.open()
    for _ in range(1000):
        c.receive(GET)
        c.send(OK)
    core.feed()
    total = 0
    out = ffi.new("struct span_batch *")
    for _ in range(100):
        lib.core_take_spans(core.core, out)
        total += out.count
        core.feed()
    assert total == 1000


def test_series_count_each_span_in_its_bucket():
    core = Core()
    c = core.open()
    for duration in (4, 5, 6, 11_000):
        start = core.now_ms + 1
        c.receive(GET, at=start)
        c.send(OK, at=start + duration)
        core.now_ms = start + duration
    core.feed()
    (series,) = core.series()
    assert series["count"] == 4
    assert series["buckets"][:3] == [2, 1, 0]  # 5 ms belongs to the bucket that ends at 5 ms
    assert series["buckets"][14] == 1
    assert (series["min"], series["max"]) == (0.004, 11.0)
    assert series["attributes"] == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "http.route": "/a",
    }


def test_client_series_carry_the_server_address():
    core = Core()
    c = core.open(CLIENT, remote=("10.0.0.9", 80))
    c.send(GET)
    c.receive(OK)
    core.feed()
    (series,) = core.series()
    assert series["metric"] == lib.METRIC_HTTP_CLIENT_DURATION
    assert series["attributes"]["server.address"] == "x"
    assert series["attributes"]["server.port"] == 80


def test_series_over_the_cap_are_counted_together():
    core = Core({"series_max": 5})
    c = core.open()
    for i in range(20):
        c.receive(GET)
        c.send(OK.replace(b"200", b"%d" % (200 + i)))
    core.feed()
    series = core.series()
    assert len(series) == 6
    assert [s["count"] for s in series if s["overflow"]] == [15]


def test_series_of_a_process_that_is_gone_are_forgotten():
    core = Core()
    for tgid in (100, 200):
        c = core.open(tgid=tgid, remote=("127.0.0.1", 40000 + tgid))
        c.receive(GET)
        c.send(OK)
    core.feed()
    lib.core_forget(core.core, [100], 1)
    assert [s["tgid"] for s in core.series()] == [200]
    assert core.ledger(100) == {}
    assert core.series()[0]["attributes"]["http.route"] == "/a"


def test_numpy_reads_the_rows_at_the_offsets_of_the_compiler():
    for name in ("span_row", "series_row", "ledger_row", "kernel_counters", "core_stats"):
        assert dtype_of(ffi, f"struct {name}").itemsize == ffi.sizeof(f"struct {name}")
    dtype = dtype_of(ffi, "struct span_row")
    assert dtype["trace_id"].shape == (16,)
    assert dtype.fields["tgid"][1] == ffi.offsetof("struct span_row", "tgid")


def test_what_the_core_took_it_gives_back():
    def round_trip() -> None:
        core = Core()
        for i in range(50):
            client, server = core.pair(port=40000 + i)
            client.send(GET)
            server.receive(GET[:10])
            server.receive(GET[10:])
            server.send(OK[:30])
            client.receive(OK[:30])
            if i % 2:
                server.close()
        core.spans()
        del core
        gc.collect()

    for _ in range(20):
        round_trip()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        round_trip()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096


def test_memory_that_is_counted_returns_to_where_it_was_when_connections_close():
    core = Core()
    core.feed()
    c = core.open()
    c.receive(GET[:10])
    core.feed()
    assert core.stats().memory_bytes > 0
    c.close()
    core.spans()
    after_first = core.stats().memory_bytes
    for _ in range(50):
        c = core.open()
        c.receive(GET + GET[:10])
        c.send(OK)
        c.close()
        core.spans()
    assert core.stats().memory_bytes <= after_first + 3 * 1024 * 1024
    assert core.stats().connections == 0


def test_fifty_thousand_idle_connections_cost_less_than_14_mib_and_give_it_back():
    """Keep-alive connections that once moved a request; with 8 bytes more of the allocator's for each."""
    core = Core({"connections_max": 60_000})

    def exchange(first: int, count: int) -> list[object]:
        connections = []
        for i in range(first, first + count):
            c = core.open(remote=(f"10.0.{i >> 8 & 255}.{i & 255}", 1024 + i // 65536))
            c.receive(GET)
            c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            c.send(b"2\r\nhi\r\n0\r\n\r\n")
            connections.append(c)
        core.spans()
        return connections

    for _ in range(2):  # the two batches that are filled in turn have their memory then
        for c in exchange(0, 1000):
            c.close()  # type: ignore[attr-defined]
        core.spans()
        core.spans()
    before = core.stats().memory_bytes
    connections = [c for part in range(50) for c in exchange(part * 1000, 1000)]
    assert core.stats().connections == 50_000
    assert core.stats().memory_bytes - before < 14 << 20
    for part in range(50):
        for c in connections[part * 1000 : (part + 1) * 1000]:
            c.close()  # type: ignore[attr-defined]
        core.spans()
    assert core.stats().connections == 0
    assert core.stats().memory_bytes - before < 256 * 1024


@pytest.mark.parametrize("late", range(6))
def test_a_request_that_comes_behind_its_own_answer_shifts_nothing(late: int) -> None:
    """Its record came later than events are held (a thread was stopped behind its send, another one read the
    answer): it costs one span, and no other request gets a wrong answer."""
    core = Core()
    client = core.open(CLIENT, local=("10.0.0.1", 4000), remote=("10.0.0.2", 80))
    core.feed(drain=False)
    at = 2000
    for i in range(8):
        at += 30
        client.send(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i, at=at)
        if i == late:
            kept = bytes(core.records)
            core.records.clear()
        core.feed(drain=False, now_ms=at + 9)
        client.receive(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nhi" % (200 + i), at=at + 10)
        core.feed(drain=False, now_ms=at + 19)
        if i == late:
            core.records += kept
            core.feed(drain=False, now_ms=at + 20)
    core.now_ms = at + 50
    pairs = [(s["url.full"].rpartition("/")[2], s["http.response.status_code"]) for s in core.spans()]
    assert pairs == [(str(i), 200 + i) for i in range(8) if i != late]
    assert core.stats().events_late == core.stats().requests_dropped == 1
