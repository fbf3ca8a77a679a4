# SPDX-License-Identifier: Apache-2.0
"""What a loss costs: never a wrong pair, and no neighbour that can still be told apart.

A model of an HTTP connection, seen from its server or its client, whose records are lost at random: by the
ring, one by one; in the middle of a call; or by shedding, all for a while. Each exchange carries its number
in the path and in a header of the answer, so a wrong pair shows.

The rule for a client that waits for its answers: an exchange is a span if all its records came, whatever
became of those around it. It is one too if records of its bodies alone did not fit into the ring, and then
says no size that is wrong. The rule for a client that pipelines, once it was seen to: whatever is lost, no
span is wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT, IN, OUT, SERVER, Connection, Core

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
NUMBER = "http.response.header.x-number"


@dataclass
class Exchange:
    """The records of one exchange: (role in it, bytes), and what became of them."""

    number: int
    request: list[bytes]
    answer: list[bytes]
    sizes: tuple[int, int]
    interim: bool
    lost: set[str] = field(default_factory=set)


def pieces(rng: random.Random, body: bytes, chunked: bool) -> tuple[bytes, list[bytes]]:
    """The header field of a body, and its bytes as they are written, in some calls."""
    parts = [body[i : i + 900] for i in range(0, len(body), 900)]
    if chunked:
        return b"Transfer-Encoding: chunked", [b"%x\r\n%s\r\n" % (len(p), p) for p in parts] + [b"0\r\n\r\n"]
    if rng.random() < 0.3:
        parts = [b"".join(parts)] if parts else []
    return b"Content-Length: %d" % len(body), parts


def an_exchange(rng: random.Random, number: int) -> Exchange:
    up = rng.randbytes(rng.choice((0, 0, 0, 10, 3000)))
    down = rng.randbytes(rng.choice((0, 5, 700, 5000)))
    verb = b"POST" if up else b"GET"
    asks, body = pieces(rng, up, rng.random() < 0.3) if up else (b"X: y", [])
    head = b"%s /q/%dx HTTP/1.1\r\nHost: h\r\n%s\r\n\r\n" % (verb, number, asks)
    request = [head, *body] if rng.random() < 0.7 else [head + b"".join(body[:1]), *body[1:]]
    tells, body = pieces(rng, down, rng.random() < 0.5)
    head = b"HTTP/1.1 200 OK\r\nX-Number: %d\r\n%s\r\n\r\n" % (number, tells)
    answer = [head, *body] if rng.random() < 0.5 else [head + b"".join(body[:1]), *body[1:]]
    interim = bool(up) and rng.random() < 0.3
    return Exchange(number, request, answer, (len(up), len(down)), interim)


class Loss:
    """Decides the fate of each record: it comes, it is refused or cut, or nothing comes for a while."""

    def __init__(self, rng: random.Random, ring: float, shed: float) -> None:
        self.rng, self.ring, self.shed, self.left_out = rng, ring, shed, 0

    def move(self, c: Connection, exchange: Exchange, part: str, direction: int, data: bytes) -> None:
        if self.rng.random() < self.shed:
            self.left_out = self.rng.randint(1, 12)
        c.core.now_ms += 1
        if self.left_out:
            self.left_out -= 1
            c.shed += 1
            c.pos[direction] += len(data)
            exchange.lost |= {part, "shed"}
        elif self.rng.random() >= self.ring:
            cut = self.rng.randint(min(40, len(data)), len(data)) if self.rng.random() < 0.2 else len(data)
            c.chunk(direction, data[:cut])
            if cut < len(data):
                if self.rng.random() < self.ring:
                    c.lose(direction, data[cut:])
                    exchange.lost.add(part)
                else:
                    c.chunk(direction, data[cut:], flags=lib.CHUNK_CONTINUED)
        else:
            c.lose(direction, data)
            exchange.lost.add(part)


def converse(c: Connection, exchanges: list[Exchange], loss: Loss) -> None:
    """One exchange after the other."""
    asks = IN if c.role == SERVER else OUT
    for exchange in exchanges:
        loss.move(c, exchange, "request", asks, exchange.request[0])
        if exchange.interim:
            loss.move(c, exchange, "interim", 1 - asks, b"HTTP/1.1 100 Continue\r\n\r\n")
        for data in exchange.request[1:]:
            loss.move(c, exchange, "request body", asks, data)
        loss.move(c, exchange, "answer", 1 - asks, exchange.answer[0])
        for data in exchange.answer[1:]:
            loss.move(c, exchange, "answer body", 1 - asks, data)


def pipeline(c: Connection, exchanges: list[Exchange], loss: Loss, rng: random.Random, depth: int) -> None:
    """Up to `depth` requests wait; the second is asked before the first is answered, and both come."""
    asks = IN if c.role == SERVER else OUT
    whole = Loss(rng, 0, 0)
    asked = answered = 0
    while answered < len(exchanges):
        may_ask = asked < len(exchanges) and asked - answered < depth
        if may_ask and (asked < 2 or asked == answered or rng.random() < 0.6):
            for data in exchanges[asked].request:
                (whole if asked < 2 else loss).move(c, exchanges[asked], "request", asks, data)
            asked += 1
        else:
            for data in exchanges[answered].answer:
                loss.move(c, exchanges[answered], "answer", 1 - asks, data)
            answered += 1


def check(core: Core, exchanges: list[Exchange]) -> set[int]:
    """No span is wrong; returns the numbers of those there are."""
    by_number = {exchange.number: exchange for exchange in exchanges}
    found: set[int] = set()
    for span in core.spans():
        path = span["url.path"] or span["url.full"].removeprefix("http://h")
        number = int(path.removeprefix("/q/").removesuffix("x"))
        assert number not in found, "a span twice"
        assert span[NUMBER] == [str(number)], "a wrong pair, or an answer that was not seen"
        assert span["error.type"] is None
        up, down = by_number[number].sizes
        assert span["http.request.body.size"] in (up, None)
        assert span["http.response.body.size"] in (down, None)
        found.add(number)
    return found


def a_connection(rng: random.Random, role: int) -> tuple[Core, Connection]:
    core = Core({"response_header": ("x-number",)})
    again = rng.random() < 0.2
    c = core.open(role, again=again, unknown_role=rng.random() < 0.2)
    if again:
        c.unsent, c.shed = [rng.randint(0, 1 << 31), rng.randint(0, 5)], rng.randint(0, 1000)
    return core, c


@pytest.mark.parametrize("role", [SERVER, CLIENT])
@pytest.mark.parametrize("seed", range(250))
def test_serial_exchanges_pay_for_their_own_losses_only(seed: int, role: int) -> None:
    rng = random.Random(seed)
    core, c = a_connection(rng, role)
    exchanges = [an_exchange(rng, number) for number in range(40)]
    converse(c, exchanges, Loss(rng, rng.choice((0.02, 0.1, 0.3)), rng.choice((0, 0, 0.02))))
    c.close()
    found = check(core, exchanges)
    whole = {e.number for e in exchanges if not e.lost}
    bodies = {e.number for e in exchanges if e.lost <= {"request body", "answer body"}}
    assert whole <= found
    assert bodies <= found
    assert core.stats().connections == 0


@pytest.mark.parametrize("role", [SERVER, CLIENT])
@pytest.mark.parametrize("seed", range(250))
def test_pipelined_exchanges_are_never_paired_wrongly(seed: int, role: int) -> None:
    rng = random.Random(seed)
    core, c = a_connection(rng, role)
    exchanges = [an_exchange(rng, number) for number in range(60)]
    loss = Loss(rng, rng.choice((0, 0.02, 0.1)), rng.choice((0, 0, 0.02)))
    pipeline(c, exchanges, loss, rng, rng.randint(2, 8))
    c.close()
    found = check(core, exchanges)
    if not any(e.lost for e in exchanges) and not c.shed:
        assert len(found) == 60


def paths(core: Core) -> list[str]:
    return [span["url.path"] for span in core.spans()]


def get(path: str) -> bytes:
    return GET.replace(b"/a", path.encode())


def test_a_pipelining_client_is_paired_up_to_the_loss_and_again_after_a_long_silence():
    core = Core({"request_timeout_ns": 10_000 * 1_000_000})
    c = core.open()
    c.receive(get("/1") + get("/2"))
    c.lose(IN, get("/3"))
    c.receive(get("/4"))
    c.send(OK * 4)
    assert paths(core) == ["/1", "/2"]
    c.receive(get("/5"))
    c.send(OK)
    assert paths(core) == []
    core.now_ms += 11_000
    c.receive(get("/6"))
    c.send(OK)
    assert paths(core) == ["/6"]


def test_a_request_that_did_not_wait_shows_by_the_answer_that_was_neither_seen_nor_lost():
    core = Core()
    c = core.open()
    c.lose(IN, get("/1"))
    c.receive(get("/2"))
    c.send(OK + OK)
    assert paths(core) == []


def test_a_pipelining_client_joined_in_the_middle_is_not_paired():
    core = Core()
    c = core.open(again=True)
    c.receive(get("/2"))
    c.receive(get("/3"))
    c.send(OK)  # to /1
    c.send(OK)
    c.send(OK)
    assert paths(core) == []


def test_the_first_chunk_of_a_connection_is_lost():
    core = Core()
    c = core.open()
    c.lose(IN, get("/1"))
    c.send(OK)
    c.receive(get("/2"))
    c.send(OK)
    assert paths(core) == ["/2"]
    assert core.ledger()["gaps"] == {"http1.lost": 1}


def test_the_last_answer_before_the_close_is_lost():
    core = Core()
    c = core.open()
    c.receive(get("/1"))
    c.send(OK)
    c.receive(get("/2"))
    c.lose(OUT, OK)
    c.fin(OUT)
    c.close()
    assert paths(core) == ["/1"]
    assert core.ledger()["gaps"] == {"http1.lost": 1}


@pytest.mark.parametrize("reset", [False, True])
def test_the_end_of_the_last_body_is_lost(reset: bool):
    """Closed in order it was complete; reset: before its end, or behind it?"""
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n", at=2000)
    c.lose(OUT, bytes(3000))
    c.close(reset=reset, at=2009)
    spans = core.spans()
    if reset:
        assert spans == []
    else:
        assert (spans[0].end, spans[0].status, spans[0]["http.response.body.size"]) == (2000, 0, None)


def test_a_request_that_is_not_answered_is_an_error_though_other_requests_were_lost():
    core = Core()
    c = core.open(CLIENT)
    c.lose(OUT, get("/1"))
    c.receive(OK)
    c.send(get("/2"))
    c.close(reset=True)
    (span,) = core.spans()
    assert span["error.type"] == "connection_reset"


def test_totals_that_jump_and_fall_invent_nothing():
    core = Core()
    c = core.open()
    rng = random.Random(1)
    for i in range(50):
        c.unsent, c.shed = [rng.getrandbits(32), rng.getrandbits(32)], rng.getrandbits(32)
        c.receive(get(f"/{i}"))
        c.send(OK)
    got = paths(core)
    assert len(set(got)) == len(got)


def test_a_cause_for_every_gap():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(OK)
    c.lose(OUT, b"?")
    c.receive(GET)
    c.send(OK)  # lost
    c.pos[IN] += 10
    c.receive(GET)  # unhooked
    c.send(OK)
    c.shed += 3
    c.pos[IN] += 500
    c.receive(GET)  # shed
    c.send(OK)
    c.receive(b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", size=500)  # truncated
    c.send(OK)
    c.receive(GET)
    c.send(b"HTTP/1.1 nonsense\r\n\r\n")  # invalid
    c.pos[OUT] -= 10
    c.send(OK, flags=lib.CHUNK_OVERLAP)  # overlap
    core.feed()
    causes = ("lost", "unhooked", "shed", "truncated", "invalid", "overlap")
    assert core.ledger()["gaps"] == {f"http1.{cause}": 1 for cause in causes}


def test_an_upload_whose_framing_was_lost_keeps_its_span():
    core = Core()
    c = core.open()
    c.receive(b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", size=500)
    c.send(OK)
    c.receive(get("/2"))
    c.send(OK)
    first, second = core.spans()
    assert (first["url.path"], first["http.request.body.size"]) == ("/p", None)
    assert second["url.path"] == "/2"


def test_two_threads_that_answer_at_once_cost_the_exchange_and_the_next_message_is_right():
    core = Core()
    c = core.open()
    c.receive(get("/1"))
    c.send(OK)
    c.receive(get("/2"))
    c.pos[OUT] += 50
    c.send(b"second half", at=core.now_ms + 1)
    c.pos[OUT] -= 61
    core.now_ms += 1
    c.send(
        OK + bytes(50 - len(OK) + 11), flags=lib.CHUNK_OVERLAP
    )  # begins as an answer does; its place is a guess
    c.receive(get("/3"))
    c.send(OK)
    assert paths(core) == ["/1", "/3"]
    assert core.ledger()["gaps"] == {"http1.overlap": 1, "http1.unhooked": 1}


def test_two_threads_that_ask_at_once_are_a_client_that_does_not_wait():
    core = Core()
    c = core.open()
    c.pos[IN] += 28
    c.receive(get("/2"))
    c.pos[IN] -= 40
    c.receive(get("/1"), flags=lib.CHUNK_OVERLAP)
    c.receive(get("/3"))
    c.send(OK * 3)
    assert paths(core) == []


def test_a_client_that_lost_too_few_answers_for_one_that_waits_is_not_paired():
    """/1 and /2 were asked at once: the one answer that is missing is that to /1, the next one that to /2."""
    core = Core()
    c = core.open()
    c.receive(get("/1"))
    c.lose(IN, get("/2"))
    c.lose(OUT, OK)
    c.receive(get("/3"))
    c.send(OK)
    c.send(OK)
    assert paths(core) == []


def test_what_an_earlier_pipeline_was_told_is_no_loss():
    core = Core()
    c = core.open(again=True)
    c.unsent, c.shed = [5, 1 << 31], 7
    c.receive(get("/1"))
    c.close()
    core.feed()
    assert core.ledger()["gaps"] == {}


def test_a_hole_within_a_body_of_known_length_costs_a_pipelining_client_nothing():
    core = Core()
    c = core.open()
    c.receive(get("/1") + get("/2"))
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + bytes(1000))
    c.lose(OUT, bytes(1000))
    c.receive(get("/3"))
    c.send(bytes(1000))
    c.send(OK + OK)
    spans = core.spans()
    assert [span["url.path"] for span in spans] == ["/1", "/2", "/3"]
    assert spans[0]["http.response.body.size"] == 3000
    assert core.ledger()["gaps"] == {}


def test_an_answer_whose_end_was_lost_ends_when_it_was_last_seen():
    core = Core()
    c = core.open()
    c.receive(get("/1"), at=2000)
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n", at=2005)
    c.lose(OUT, bytes(3000))
    c.lose(IN, get("/2"))
    c.send(OK, at=2900)
    (span,) = core.spans()
    assert (span.end, span["http.response.body.size"]) == (2005, 3000)


def test_bytes_of_a_call_that_is_not_hooked_may_be_the_answer():
    core = Core()
    c = core.open()
    c.receive(get("/0"))
    c.send(OK)
    c.receive(get("/1"))
    c.pos[OUT] += 100
    c.send(OK)
    c.receive(get("/2"))
    c.send(OK)
    assert paths(core) == ["/0", "/2"]
    assert core.ledger()["gaps"] == {"http1.unhooked": 1}


def test_a_call_that_is_not_hooked_may_have_asked():
    core = Core()
    c = core.open()
    c.receive(get("/1"))
    c.pos[IN] += 100
    c.receive(get("/2"))
    c.send(OK * 3)  # the second one answers what was not seen
    assert "/2" not in paths(core)


def test_bytes_that_are_not_understood_may_be_the_answer():
    core = Core()
    c = core.open()
    c.receive(get("/1"))
    c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    c.lose(OUT, b"5\r\nhello\r\n0\r\n\r\n")
    c.receive(get("/2"))
    c.send(b"the answer to /2, or what is left of that to /1")
    c.send(OK)
    assert paths(core) == ["/1"]


def test_what_two_processes_wrote_of_one_message_is_not_taken_from_the_wrong_one():
    core = Core()
    c = core.open()
    c.receive(b"GET / HTTP/1.1\r\nHost: x\r\nSp")
    c.tgid = 200
    c.receive(b"ace : y\r\n\r\n")
    core.feed()
    first, second = core.ledger(100)["bytes"], core.ledger(200)["bytes"]
    assert first == {"unknown": 27}
    assert sum(second.values()) == 11
