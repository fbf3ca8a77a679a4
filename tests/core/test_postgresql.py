# SPDX-License-Identifier: Apache-2.0
"""Conversations with PostgreSQL through the engine: which statement had which outcome, and when.

By hand from the specification, and as they were recorded (tests/protocols/seeds): whole, in other pieces, and
with losses, where a span that is there is one that is there without them.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT as CONNECTS
from tests.core.harness import IN, OUT, Connection, Core, Span
from tests.core.harness import SERVER as ACCEPTS
from tests.protocols import seeds
from tests.protocols.test_postgresql import (
    AUTHENTICATED,
    BOUND,
    CLOSED_NAME,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    FLUSH,
    KEY,
    LOGIN,
    NO_DATA,
    NOTIFICATION,
    PARSED,
    SSL,
    SYNCS,
    TERMINATE,
    bind,
    close,
    describe,
    error,
    execute,
    message,
    parse,
    query,
    ready,
    row,
    tag,
)

A, B, C = "SELECT a FROM t", "UPDATE t SET a = b", "DELETE FROM t"


def client(core: Core, **more: Any) -> Connection:
    local, remote = ("127.0.0.1", 50000), ("127.0.0.1", 5432)
    return core.open(CONNECTS, local=local, remote=remote, protocol=lib.PROTOCOL_POSTGRESQL, **more)


def connected(core: Core) -> Connection:
    conn = client(core)
    conn.send(LOGIN)
    conn.receive(AUTHENTICATED + KEY + ready())
    return conn


def told(span: Span) -> tuple[str, int | str | None]:
    """The text, and the code or the number of rows."""
    outcome = span["error.type"] or span["db.response.returned_rows"]
    return span["db.query.text"], span["ebpf_otlp_tracer.db.affected_rows"] if outcome is None else outcome


def unit(sql: str, *more: bytes) -> bytes:
    return parse(sql) + bind(b"1") + describe() + execute() + b"".join(more)


def done(text: str) -> bytes:
    return PARSED + BOUND + NO_DATA + tag(text)


def test_a_query_is_a_span_from_its_first_byte_to_ready() -> None:
    core = Core()
    conn = connected(core)
    conn.send(query(A), at=2000)
    conn.receive(COLUMNS + row(b"1"), at=2010)
    conn.receive(tag("SELECT 1"), at=2020)
    conn.receive(ready(), at=2030)
    (span,) = core.spans()
    assert (span.start, span.end, span.kind, span.status) == (2000, 2030, 3, 0)
    assert {key: value for key, value in span.attributes.items() if key != "db.query.summary"} == {
        "db.system.name": "postgresql",
        "db.namespace": "shop",
        "db.query.text": A,
        "db.response.returned_rows": 1,
        "server.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 5432,
    }


def test_an_extended_query_comes_in_any_pieces() -> None:
    for size in (1, 2, 7, 30, 1000):
        core = Core()
        conn = connected(core)
        asked, answered = unit(A, SYNCS), PARSED + BOUND + COLUMNS + row(b"1") + tag("SELECT 1") + ready()
        for at in range(0, len(asked), size):
            conn.send(asked[at : at + size])
        for at in range(0, len(answered), size):
            conn.receive(answered[at : at + size])
        assert [told(span) for span in core.spans()] == [(A, 1)]


def test_a_pipeline_ends_each_span_at_its_own_completion() -> None:
    core = Core()
    conn = connected(core)
    conn.send(unit(A) + unit(B) + unit(C, SYNCS), at=2000)
    conn.receive(done("SELECT 0"), at=2010)
    conn.receive(done("UPDATE 2") + done("DELETE 3"), at=2020)
    conn.receive(ready(), at=2030)
    spans = core.spans()
    assert [(*told(span), span.end) for span in spans] == [(A, 0, 2010), (B, 2, 2020), (C, 3, 2030)]
    assert {span["db.operation.batch.size"] for span in spans} >= {3}


def test_what_is_skipped_after_an_error_makes_no_span() -> None:
    core = Core()
    conn = connected(core)
    conn.send(unit(A) + unit(B) + unit(C) + SYNCS)
    conn.receive(done("SELECT 0") + PARSED + error("22012"))
    conn.receive(ready())
    conn.send(unit(C, SYNCS))
    conn.receive(done("DELETE 1") + ready())
    assert [told(span) for span in core.spans()] == [(A, 0), (B, "22012"), (C, 1)]
    assert core.stats().requests_void == 1


def test_a_statement_that_cannot_be_prepared_is_a_span() -> None:
    core = Core()
    conn = connected(core)
    conn.send(parse(A, "s") + describe("s", "S") + FLUSH)
    conn.receive(error("42P01"))
    conn.send(SYNCS)
    conn.receive(ready())
    conn.send(parse(B, "u") + SYNCS)
    conn.receive(PARSED + ready())
    conn.send(bind(name="u") + execute() + SYNCS)
    conn.receive(BOUND + tag("UPDATE 1") + ready())
    assert [told(span) for span in core.spans()] == [(A, "42P01"), (B, 1)]


def test_a_statement_that_was_prepared_already_is_not_taken_for_the_new_one() -> None:
    core = Core()
    conn = connected(core)
    conn.send(parse(A, "s") + SYNCS)
    conn.receive(PARSED + ready())
    conn.send(parse(B, "s") + SYNCS)
    conn.receive(error("42P05") + ready())
    conn.send(bind(name="s") + execute() + SYNCS)
    conn.receive(BOUND + row(b"1") + tag("SELECT 1") + ready())
    failed, span = core.spans()
    assert told(failed) == (B, "42P05")
    assert told(span) == (None, 1)
    assert span.name == "SELECT shop"


def test_a_refused_connection_is_a_span_of_the_database() -> None:
    core = Core()
    conn = client(core)
    conn.send(SSL)
    conn.receive(b"N")
    conn.send(LOGIN)
    conn.receive(error("3D000", "FATAL"))
    conn.close()
    (span,) = core.spans()
    assert (span.name, span["error.type"], span.status) == ("shop", "3D000", 2)


def test_after_tls_nothing_is_read() -> None:
    core = Core()
    conn = client(core)
    conn.send(SSL)
    conn.receive(b"S")
    conn.send(query(A))
    conn.receive(tag("SELECT 0") + ready())
    assert core.spans() == []
    assert core.ledger()["bytes"]["encrypted"] > 0


def test_notifications_answer_nothing() -> None:
    core = Core()
    conn = connected(core)
    conn.receive(NOTIFICATION)
    conn.send(query(A))
    conn.receive(NOTIFICATION + COLUMNS + tag("SELECT 0") + ready())
    conn.receive(NOTIFICATION)
    conn.send(TERMINATE)
    conn.close()
    assert [told(span) for span in core.spans()] == [(A, 0)]
    assert core.stats().responses_unmatched == 0


def test_a_copy_by_the_extended_protocol_is_one_span() -> None:
    """The server takes the Sync behind Execute for data, and waits for another one (protocol-flow, COPY)."""
    core = Core()
    conn = connected(core)
    conn.send(unit(A, SYNCS))
    conn.receive(PARSED + BOUND + NO_DATA + COPY_IN)
    conn.send(message("d", b"1\n") + COPY_DONE + SYNCS)
    conn.receive(tag("COPY 1") + ready())
    conn.send(query(B))
    conn.receive(tag("UPDATE 4") + ready())
    assert [told(span) for span in core.spans()] == [(A, 1), (B, 4)]


@pytest.mark.parametrize("kind", ["query", "parse"])
def test_of_a_statement_of_10_mb_the_beginning_is_enough(kind: str) -> None:
    core = Core()
    conn = connected(core)
    text = "INSERT INTO t VALUES ('" + "x" * 10_000_000 + "')"
    conn.send(
        query(text) if kind == "query" else parse(text) + bind() + execute() + SYNCS, head=60_000, tail=48
    )
    conn.receive((b"" if kind == "query" else PARSED + BOUND) + tag("INSERT 0 1") + ready())
    conn.send(query(A))
    conn.receive(error("22012") + ready())
    first, *more = core.spans()
    assert (first.name, first["error.type"]) == ("INSERT t", None)
    assert [told(span) for span in more] == [(A, "22012")]


def test_the_tail_of_a_long_result_tells_its_outcome() -> None:
    core = Core()
    conn = connected(core)
    conn.send(query(A), at=2000)
    rows = row(b"x" * 100) * 1000
    conn.receive(COLUMNS + rows, head=4000, tail=48, at=2010)
    conn.receive(rows, head=0, tail=48, at=2020)
    conn.receive(rows + tag("SELECT 2000") + ready(), head=0, tail=48, at=2030)
    conn.send(query(B), at=2040)
    conn.receive(tag("UPDATE 1") + ready(), at=2050)
    first, second = core.spans()
    assert (*told(first), first.end) == (A, 2000, 2030)
    assert told(second) == (B, 1)


def test_the_tail_of_a_long_result_that_fails_is_an_error_of_unknown_code() -> None:
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    rows = row(b"x" * 100) * 1000
    conn.receive(COLUMNS + rows, head=4000, tail=48)
    conn.receive(rows + error("22012", text="x" * 60) + ready(), head=0, tail=48)
    (span,) = core.spans()
    assert (*told(span), span.status) == (A, "_OTHER", 2)
    assert span["db.response.status_code"] is None


@pytest.mark.parametrize("apart", [False, True])
def test_a_longer_tail_tells_the_code_of_the_error(apart: bool) -> None:
    """Also when ReadyForQuery comes in a call of its own."""
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    rows = row(b"x" * 100) * 1000
    conn.receive(COLUMNS + rows, head=4000, tail=48)
    if apart:
        conn.receive(rows + error("57014", text="x" * 60), head=0, tail=200)
        conn.receive(ready())
    else:
        conn.receive(rows + error("57014", text="x" * 60) + ready(), head=0, tail=200)
    conn.send(query(B))
    conn.receive(tag("UPDATE 1") + ready())
    assert [told(span) for span in core.spans()] == [(A, "57014"), (B, 1)]


def test_a_long_result_that_ended_out_of_sight_before_the_connection_did_is_not_guessed() -> None:
    """The end of an error alone, then ReadyForQuery in a call of its own: whether it failed is not known."""
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    rows = row(b"x" * 100) * 1000
    conn.receive(COLUMNS + rows, head=4000, tail=48)
    conn.receive(rows + error("57014", text="x" * 60), head=0, tail=48)
    conn.receive(ready())
    conn.close()
    assert core.spans() == []
    assert core.stats().requests_dropped == 1


def test_an_outcome_that_was_lost_is_not_guessed() -> None:
    """The call with CommandComplete or ErrorResponse did not reach the agent, ReadyForQuery did."""
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    conn.receive(COLUMNS + row(b"1"))
    conn.lose(IN, error("22012"))
    conn.receive(ready())
    conn.send(query(B))
    conn.receive(tag("UPDATE 1") + ready())
    assert [told(span) for span in core.spans()] == [(B, 1)]


def test_the_rest_of_an_answer_may_be_that_of_a_request_that_was_lost() -> None:
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    conn.receive(COLUMNS + row(b"1"))
    conn.lose(IN, tag("SELECT 1") + ready())
    conn.lose(OUT, query(C))
    conn.lose(IN, COLUMNS + row(b"1"))
    conn.receive(row(b"1") + tag("SELECT 2") + ready())
    conn.send(query(B))
    conn.receive(tag("UPDATE 1") + ready())
    assert [told(span) for span in core.spans()] == [(B, 1)]


def test_an_execute_whose_bind_was_lost_has_no_text() -> None:
    """The portal that it names was another statement's before. Behind a lost request nothing has a pair."""
    core = Core()
    conn = connected(core)
    conn.send(unit(A, SYNCS))
    conn.receive(done("SELECT 0") + ready())
    lost = parse(B) + bind(b"0")
    conn.send(lost[:3])
    conn.lose(OUT, lost[3:])
    conn.send(execute() + SYNCS)
    conn.receive(error("22012") + ready())
    conn.send(execute() + SYNCS)
    conn.receive(error("34000") + ready())
    assert [told(span) for span in core.spans()] == [(A, 0), (None, "34000")]


def test_an_error_that_was_seen_is_told_without_the_end() -> None:
    core = Core()
    conn = connected(core)
    conn.send(query(A))
    conn.receive(error("22012"))
    conn.lose(IN, ready())
    conn.send(query(B))
    conn.receive(tag("UPDATE 1") + ready())
    assert [told(span) for span in core.spans()] == [(A, "22012"), (B, 1)]


def test_who_joins_late_knows_the_text_once_it_is_sent() -> None:
    core = Core()
    conn = client(core, late=True)
    conn.receive(row(b"1") + tag("SELECT 1") + ready())  # of what was asked before
    conn.send(bind(name="s") + execute() + SYNCS)
    conn.receive(BOUND + tag("UPDATE 1") + ready())
    conn.send(parse(A, "s") + bind(name="s") + execute() + SYNCS)
    conn.receive(PARSED + BOUND + tag("SELECT 0") + ready())
    first, second = core.spans()
    assert (told(first), first.name) == ((None, 1), "UPDATE 127.0.0.1")
    assert told(second) == (A, 0)


def test_who_joins_within_a_pipeline_pairs_nothing_wrong() -> None:
    core = Core()
    conn = client(core, late=True)
    conn.send(query(B))  # behind others that were not seen
    conn.receive(done("SELECT 0") + done("SELECT 5") + ready())
    conn.receive(tag("UPDATE 4") + ready())
    conn.send(query(C))
    conn.receive(tag("DELETE 7") + ready())
    assert {told(span) for span in core.spans()} <= {(B, 4), (C, 7)}


def test_closing_and_executing_in_one_message_row() -> None:
    core = Core()
    conn = connected(core)
    conn.send(close("s") + unit(A, SYNCS))
    conn.receive(CLOSED_NAME + done("SELECT 0") + ready())
    assert [told(span) for span in core.spans()] == [(A, 0)]


def test_a_server_is_seen_as_its_client_is() -> None:
    core = Core({"database_servers": 1})
    conn = core.open(ACCEPTS, local=("127.0.0.1", 5432), protocol=lib.PROTOCOL_POSTGRESQL)
    conn.receive(LOGIN)
    conn.send(AUTHENTICATED + ready())
    conn.receive(unit(A, SYNCS))
    conn.send(done("SELECT 0") + ready())
    (span,) = core.spans()
    assert (told(span), span.kind) == ((A, 0), 2)


# --- recorded conversations -------------------------------------------------------------------------------

NAMES = seeds.names("postgresql")
Pieces = list[tuple[int, bytes]]


def replay(pieces: Pieces, lost: frozenset[int] = frozenset()) -> list[tuple[Any, ...]]:
    """Of each span the number of the piece that began it, its text, and its outcome."""
    core = Core()
    conn = client(core)
    for number, (sender, data) in enumerate(pieces):
        conn.chunk(IN if sender else OUT, data, at=2000 + number, lost=number in lost)
    core.now_ms = 2000 + len(pieces)
    conn.close()
    return [(span.start - 2000, *told(span)) for span in core.spans()]


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_conversation_is_the_same_in_any_pieces(name: str) -> None:
    chunks = seeds.load(name)
    whole = [span[1:] for span in replay(chunks)]
    rng = random.Random(name)
    for most in (1, 5, 60):
        assert [span[1:] for span in replay(seeds.cut(chunks, rng, most))] == whole


@pytest.mark.parametrize("name", NAMES)
def test_losses_in_a_recorded_conversation_cost_spans_and_falsify_none(name: str) -> None:
    """A text, rows, or the code of an error may be missing: a Parse or a part of the answer was lost."""
    rng = random.Random(name)
    for n in range(300):
        chunks = seeds.load(name)
        if n % 3:
            chunks = seeds.cut(chunks, rng, rng.choice((10, 50, 200, 1000)))
        truth = replay(chunks)
        share = rng.choice((0.02, 0.1, 0.3))
        lost = frozenset(n for n in range(1, len(chunks)) if rng.random() < share)
        for start, text, outcome in replay(chunks, lost):
            of_its_chunk = [span for span in truth if span[0] == start]
            assert any(
                text in (true_text, None)
                and (
                    outcome in (true_outcome, None) or (outcome == "_OTHER" and isinstance(true_outcome, str))
                )
                for _, true_text, true_outcome in of_its_chunk
            ), (n, sorted(lost), start, text, outcome, of_its_chunk)


def test_what_was_passed_over_is_gone_though_a_later_request_was_sent_with_it() -> None:
    """The unit that is asked piece by piece began when those before it still waited."""
    core = Core()
    conn = connected(core)
    conn.send(parse(A) + bind() + execute() + FLUSH)
    conn.receive(error("22012"))
    conn.send(parse(B) + bind() + execute())
    conn.send(SYNCS)
    conn.send(parse(C) + bind())
    conn.receive(ready())
    conn.send(execute() + SYNCS)
    conn.receive(PARSED + BOUND + tag("DELETE 1") + ready())
    assert [told(span) for span in core.spans()] == [(A, "22012"), (C, 1)]
    assert core.stats().requests_void == 1
