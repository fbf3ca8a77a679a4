# SPDX-License-Identifier: Apache-2.0
"""Streams that come damaged: what must hold whatever is lost, late, stuck or doubled.

No answer is given to another's request, no span comes twice, none is invented, and after the damage the
next exchange is right. How much of the neighbourhood is given up is not judged here (test_stream.py).
"""

from __future__ import annotations

import random

import pytest

from tests.core.harness import CLIENT, IN, MS, OUT, SERVER, Core

EXCHANGES = 9


def get(i: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i


def answer(i: int, body: bytes = b"hi") -> bytes:
    """Its status says which request it answers."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (200 + i, len(body)) + body


def check(spans) -> list[int]:
    """The numbers of the requests that have spans; each once, with its own answer or none."""
    seen = [int((span["url.path"] or span["url.full"]).rpartition("/")[2]) for span in spans]
    assert len(seen) == len(set(seen)), "a span comes once"
    for number, span in zip(seen, spans, strict=True):
        assert span["http.response.status_code"] in (200 + number, None)
    return seen


def conversation(spoken, core: Core, **options):
    """A connection with EXCHANGES exchanges; spoken(c, number, direction, data) makes each call, or not."""
    c = core.open(**options)
    for i in range(EXCHANGES):
        spoken(c, i, IN, get(i))
        spoken(c, i, OUT, answer(i))
    return c


@pytest.mark.parametrize("lost", range(2 * EXCHANGES))
def test_a_lost_event_costs_its_neighbours_at_most_and_is_told(lost):
    core = Core()
    events = iter(range(2 * EXCHANGES))

    def spoken(c, i, direction, data):
        c.lose(direction, data) if next(events) == lost else c.chunk(direction, data)

    c = conversation(spoken, core)
    seen = check(core.spans())
    damaged = lost // 2
    assert set(seen) >= set(range(EXCHANGES)) - {damaged, damaged + 1}
    assert damaged not in seen
    c.close()
    check(core.spans())
    assert sum(core.ledger()["chunks"].values()) == 2 * EXCHANGES - 1


@pytest.mark.parametrize("direction", [IN, OUT])
@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2), (0, 2)])
def test_head_and_middle_of_a_message_missing(direction, lost):
    """Messages that come in three parts, of which some are lost in the fourth exchange."""
    core = Core()

    def spoken(c, i, way, data):
        third = len(data) // 3
        for n, part in enumerate((data[:third], data[third : 2 * third], data[2 * third :])):
            c.lose(way, part) if i == 3 and way == direction and n in lost else c.chunk(way, part)

    conversation(spoken, core)
    seen = check(core.spans())
    assert set(seen) >= set(range(EXCHANGES)) - {3, 4} and 3 not in seen


@pytest.mark.parametrize("swapped", range(2 * EXCHANGES - 1))
def test_an_event_that_comes_late_into_the_ring_is_put_in_its_place(swapped):
    """Two CPUs wrote at once: the order of the records is not that of their times."""
    core = Core()
    c = core.open(pos=(1000, 2000))
    calls = [(way, data) for i in range(EXCHANGES) for way, data in ((IN, get(i)), (OUT, answer(i)))]
    records = []
    for n, (way, data) in enumerate(calls):
        core.feed(drain=False)
        c.chunk(way, data, at=2000 + n)
        records.append(bytes(core.records))
        core.records.clear()
    records[swapped], records[swapped + 1] = records[swapped + 1], records[swapped]
    for record in records:
        core.records += record
    assert check(core.spans()) == list(range(EXCHANGES))


def test_stuck_for_a_while_then_the_rest_comes():
    core = Core()
    c = core.open()
    c.receive(get(0)[:10], at=2000)
    assert core.spans() == []
    core.feed(now_ms=32_000)
    c.receive(get(0)[10:], at=32_000)
    c.send(answer(0)[:5], at=62_000)
    assert core.spans() == []
    c.send(answer(0)[5:], at=92_000)
    (span,) = core.spans()
    assert (span.start, span.end, span["http.response.status_code"]) == (2000, 92_000, 200)


def test_stuck_for_too_long_and_what_comes_then_is_given_to_no_one_else():
    """The answer that comes after its request was given up is not the next one's."""
    core = Core({"request_timeout_ns": 10_000 * MS})
    c = core.open(CLIENT)
    c.send(get(0), at=2000)
    core.now_ms = 2001
    core.feed()
    core.now_ms = 20_000
    (span,) = core.spans()
    assert (span["url.full"], span["error.type"]) == ("http://x/0", "timeout")
    c.receive(answer(0))
    c.send(get(1))
    c.receive(answer(1))
    assert check(core.spans()) in ([1], [])
    c.send(get(2))
    c.receive(answer(2))
    assert check(core.spans()) == [2]


def test_a_connection_that_is_idle_for_too_long_is_forgotten_with_what_it_held():
    core = Core({"idle_timeout_ns": 10_000 * MS})
    c = core.open()
    c.receive(get(0)[:10], at=2000)
    core.feed(now_ms=2001)
    for later in (20_000, 40_000):
        core.feed(now_ms=later)
    assert core.stats().connections == 0 and core.stats().buffered_bytes == 0
    assert core.spans() == []


@pytest.mark.parametrize("seed", range(60))
def test_late_events_and_lost_ones_together(seed):
    """Late by up to 170 ms, which is within the time that events are held back here, beside losses."""
    rng = random.Random(seed)
    core = Core({"hold_ns": 200 * MS})
    c = core.open()
    calls = [(way, data) for i in range(EXCHANGES) for way, data in ((IN, get(i)), (OUT, answer(i)))]
    late = []
    for n, (way, data) in enumerate(calls):
        fate = rng.random()
        if fate < 0.1:
            c.lose(way, data)
            continue
        c.chunk(way, data, at=2000 + 10 * n)
        if fate < 0.2:
            late.append(bytes(core.records))
            core.records.clear()
        elif late and fate < 0.5:
            core.records += late.pop()
        core.feed(drain=False, now_ms=2000 + 10 * n + 5)
    for record in late:
        core.records += record
    core.now_ms = 5000
    assert set(check(core.spans())) <= set(range(EXCHANGES))
    for i in (90, 91):
        c.receive(get(i))
        c.send(answer(i))
    c.close()
    assert 91 in check(core.spans())
    assert core.stats().buffered_bytes == 0


@pytest.mark.parametrize("seed", range(100))
def test_loss_disorder_and_doubles_never_pair_wrongly(seed):
    """Stress: records lost without a word, swapped and doubled, on several connections."""
    rng = random.Random(seed)
    core = Core()
    connections = [
        core.open(rng.choice([SERVER, CLIENT]), remote=("127.0.0.1", 50_000 + i)) for i in range(4)
    ]
    core.feed(drain=False)
    for i in range(40):
        for c in connections:
            first, second = (IN, OUT) if c.role == SERVER else (OUT, IN)
            for way, data in ((first, get(i)), (second, answer(i))):
                cut = rng.randrange(len(data) + 1)
                for part in (data[:cut], data[cut:]):
                    if part:
                        c.chunk(way, part, lost=rng.random() < 0.05)
    records, whole = [], bytes(core.records)
    while whole:
        size = 8 + (int.from_bytes(whole[:4], "little") + 7 & ~7)
        records.append(whole[:size])
        whole = whole[size:]
    core.records.clear()
    for n in range(len(records) - 1):
        if rng.random() < 0.05:
            records[n], records[n + 1] = records[n + 1], records[n]
        if rng.random() < 0.02:
            records[n] += records[n]
    for record in records:
        core.records += record
    spans = core.spans()
    for c in connections:
        c.close()
    spans += core.spans()
    for c in connections:
        check([s for s in spans if s["network.peer.port"] == c.remote[1]])
    assert core.stats().buffered_bytes == core.stats().connections == 0


@pytest.mark.parametrize(
    "noise",
    [
        bytes.fromhex("16030100f8010000f40303") + bytes(200),
        b"*1\r\n$4\r\nPING\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["tls", "redis", "http2", "ssh"],
)
def test_what_was_known_to_be_http_stays_http(noise):
    """A protocol is decided once: other bytes on the connection are damage, and the next request is seen."""
    core = Core()
    c = core.open()
    c.receive(get(0))
    c.send(answer(0))
    c.receive(noise)
    c.send(noise)
    for i in (1, 2, 3):
        c.receive(get(i))
        c.send(answer(i))
    seen = check([s for s in core.spans() if s["url.path"] != "*"])
    assert {0, 3} <= set(seen)


@pytest.mark.parametrize("cut", range(0, 45, 4))
def test_after_a_loss_no_exchange_comes_twice(cut):
    """The bytes that the search for the next message begins with are those it ended with before."""
    core = Core()
    c = core.open()
    for i in range(EXCHANGES):
        c.receive(get(i))
        if i == 3:
            c.lose(OUT, answer(i)[:cut])
            c.send(answer(i)[cut:] + b"" if cut < len(answer(i)) else b"x")
        else:
            c.send(answer(i))
        core.feed()
    assert set(check(core.spans())) >= {0, 1, 2, 6, 7, 8}


@pytest.mark.parametrize("known", [False, True], ids=["role unknown", "role known"])
@pytest.mark.parametrize("late", [False, True])
def test_a_stream_that_starts_with_an_answer_then_goes_on(known, late):
    """As a connection that was in use before the agent came, or a Unix socket of which nobody can tell."""
    core = Core()
    c = core.open(late=late, unknown_role=not known)
    c.send(answer(50))
    for i in range(3):
        c.receive(get(i))
        c.send(answer(i))
    assert check(core.spans()) == [0, 1, 2]


def test_a_stream_that_starts_in_the_middle_of_an_answer_then_goes_on():
    core = Core()
    c = core.open(late=True, unknown_role=True)
    c.send(answer(50)[17:])
    for i in range(3):
        c.receive(get(i))
        c.send(answer(i))
    assert check(core.spans()) == [0, 1, 2]


def test_thousands_of_requests_that_nobody_answers_push_out_no_good_one():
    """On connections of their own: the table holds them, and the good ones are whole."""
    core = Core({"connections_max": 2000, "request_timeout_ns": 3000 * MS})
    silent = [core.open(remote=("127.0.0.1", i)) for i in range(1, 5001)]
    good = core.open(remote=("127.0.0.2", 1))
    core.now_ms = 2000
    for n, c in enumerate(silent):
        c.receive(b"GET /silent/%d HTTP/1.1\r\nHost: x\r\n\r\n" % n, at=2000 + n // 10)
        if n % 100 == 0:
            good.receive(get(n // 100), at=2000 + n // 10)
            good.send(answer(n // 100), at=2000 + n // 10)
        core.feed(drain=False, now_ms=2000 + n // 10)
    spans = core.spans()
    assert check([s for s in spans if s["network.peer.address"] == "127.0.0.2"]) == list(range(50))
    assert core.stats().connections <= 2000


@pytest.mark.parametrize("idle_ms", [1000, 2900, 3100, 10_000])
@pytest.mark.parametrize("delay_ms", [10, 3000])
def test_a_slow_answer_and_a_short_patience(idle_ms, delay_ms):
    """An answer that takes longer than a connection may be idle: a span with its own, or without any."""
    core = Core({"idle_timeout_ns": idle_ms * MS})
    c = core.open()
    for i in range(3):
        at = 2000 + 10_000 * i
        c.receive(get(i), at=at)
        for step in range(0, delay_ms, 500):
            core.feed(now_ms=at + step)
        c.send(answer(i), at=at + delay_ms)
        core.feed()
    seen = check(core.spans())
    if delay_ms < idle_ms:
        assert seen[0] == 0 and (idle_ms < 7000 or seen == [0, 1, 2])
