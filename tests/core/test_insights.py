# SPDX-License-Identifier: Apache-2.0
"""Findings of database statements: what is told, when, with which spans; and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from agent.core._core import ffi, lib

from agent.engine import FINDINGS
from agent.spans import read_attributes
from tests.core.harness import CLIENT, SERVER, Connection, Core

OWN = "ebpf_otlp_tracer."


def command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)


def redis(core: Core, **options: Any) -> Connection:
    return core.open(CLIENT, remote=("10.0.0.7", 6379), **options)


def ask(
    connection: Connection, *words: str, answer: bytes = b"+OK\r\n", takes_ms: int = 1, **options: Any
) -> None:
    """A command and its answer."""
    core = connection.core
    connection.send(command(*words), protocol=lib.PROTOCOL_UNDECIDED, **options)
    connection.receive(answer, at=core.now_ms + takes_ms, protocol=lib.PROTOCOL_UNDECIDED)
    core.now_ms += takes_ms


def findings(core: Core) -> list[dict[str, Any]]:
    """Those of all that was pushed so far; the spans are taken too."""
    core.taken = core.spans()  # type: ignore[attr-defined]
    out = ffi.new("struct finding_batch *")
    lib.core_take_findings(core.core, out)
    arena = memoryview(ffi.buffer(out.arena, out.arena_size)) if out.arena_size else memoryview(b"")
    told = []
    for i in range(out.count):
        row = out.rows[i]
        told.append(
            {
                "name": FINDINGS[row.finding].name,
                "span_id": bytes(row.span_id).hex(),
                "trace_id": bytes(row.trace_id).hex(),
                "tgid": row.tgid,
                **dict(read_attributes(arena, row.attributes_offset, row.attributes_size, core.keys)),
            }
        )
    return told


def names(core: Core) -> list[str]:
    return [finding["name"] for finding in findings(core)]


def test_a_slow_statement_is_marked_and_told_with_its_span() -> None:
    core = Core()
    connection = redis(core)
    ask(connection, "GET", "a", takes_ms=99)
    ask(connection, "GET", "b", takes_ms=100)
    (finding,) = findings(core)
    fast, slow = core.taken  # type: ignore[attr-defined]
    assert (fast[OWN + "slow"], slow[OWN + "slow"]) == (None, True)
    assert (finding["name"], finding["span_id"], finding["trace_id"]) == (
        "slow_statement",
        slow.span_id,
        slow.trace_id,
    )
    assert finding[OWN + "finding.duration_ms"] == 100
    assert finding["db.query.text"] == "GET b"
    assert core.ledger()["spans"] == 2


def test_to_wait_is_not_to_be_slow() -> None:
    core = Core()
    ask(redis(core), "BLPOP", "queue", "0", answer=b"*-1\r\n", takes_ms=5000)
    assert names(core) == []
    ask(redis(core), "LPOP", "queue", answer=b"$-1\r\n", takes_ms=5000)
    assert names(core) == ["slow_statement"]


@pytest.mark.parametrize(("count", "told"), [(9, []), (10, ["n_plus_one"]), (30, ["n_plus_one"])])
def test_the_same_read_again_and_again_is_told_once(count: int, told: list[str]) -> None:
    core = Core()
    connection = redis(core)
    for i in range(count):
        ask(connection, "HGET", f"user:{i}", f"name{i}", answer=b"$-1\r\n")
    found = findings(core)
    assert [finding["name"] for finding in found] == told
    for finding in found:
        assert finding[OWN + "finding.count"] == 10
        first = [span.span_id for span in core.taken[:8]]  # type: ignore[attr-defined]
        assert finding[OWN + "finding.span_ids"] == first


def test_what_is_written_again_and_again_is_not_told() -> None:
    core = Core()
    connection = redis(core)
    for i in range(30):
        ask(connection, "SET", f"user:{i}", "x")
    assert names(core) == []


def test_with_pauses_it_is_no_run() -> None:
    core = Core()
    connection = redis(core)
    for i in range(30):
        core.now_ms += 1001 if i % 9 == 8 else 1
        ask(connection, "GET", f"user:{i}", answer=b"$-1\r\n")
    assert names(core) == []


def test_many_at_once_are_no_run() -> None:
    core = Core()
    connection = redis(core)
    connection.send(b"".join(command("GET", f"k{i}") for i in range(50)), protocol=lib.PROTOCOL_UNDECIDED)
    connection.receive(b"$-1\r\n" * 50, protocol=lib.PROTOCOL_UNDECIDED)
    assert names(core) == []
    assert {span["db.operation.batch.size"] for span in core.taken} == {50}  # type: ignore[attr-defined]


def test_a_batch_of_which_some_have_no_place_has_no_size() -> None:
    """Those behind core.pending_max make no span: the size of the batch would be that of its beginning."""
    core = Core({"pending_max": 10})
    connection = redis(core)
    connection.send(b"".join(command("GET", f"k{i}") for i in range(15)), protocol=lib.PROTOCOL_UNDECIDED)
    connection.receive(b"$-1\r\n" * 15, protocol=lib.PROTOCOL_UNDECIDED)
    for _ in range(2):  # the second of them is of another batch
        connection.send(command("GET", "a") * 3, protocol=lib.PROTOCOL_UNDECIDED)
        connection.receive(b"$-1\r\n" * 3, protocol=lib.PROTOCOL_UNDECIDED)
    sizes = [span["db.operation.batch.size"] for span in core.spans()]
    assert (sizes[:10], sizes[-3:]) == ([None] * 10, [3] * 3)


def test_two_connections_are_two_runs_unless_one_request_asks() -> None:
    """Without a parent each connection counts for itself; behalf of one request, all of them do."""
    core = Core()
    a, b = redis(core), redis(core)
    for i in range(9):
        ask(a, "GET", f"a{i}", answer=b"$-1\r\n")
        ask(b, "GET", f"b{i}", answer=b"$-1\r\n")
    assert names(core) == []
    server = core.open(SERVER, tid=77)
    server.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for i in range(5):
        ask(a, "GET", f"c{i}", answer=b"$-1\r\n", tid=77)
        ask(b, "GET", f"d{i}", answer=b"$-1\r\n", tid=77)
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    (finding,) = findings(core)
    assert finding["name"] == "n_plus_one"
    (request,) = [span for span in core.taken if span.kind == lib.KIND_SERVER]  # type: ignore[attr-defined]
    assert finding["trace_id"] == request.trace_id


@pytest.mark.parametrize(("count", "told"), [(4, []), (5, ["duplicate_reads"])])
def test_the_same_data_read_again_is_told(count: int, told: list[str]) -> None:
    core = Core()
    connection = redis(core)
    for i in range(count):
        ask(connection, "GET", "same", answer=b"$1\r\nx\r\n")
        ask(connection, "SET", f"other{i}", "x")
    assert names(core) == told


def test_a_costly_command_is_told_again_after_a_pause() -> None:
    core = Core()
    connection = redis(core)
    for _ in range(3):
        ask(connection, "KEYS", "*", answer=b"*0\r\n")
    core.now_ms += 61_000
    ask(connection, "KEYS", "*", answer=b"*0\r\n")
    ask(connection, "GET", "x", answer=b"$-1\r\n")
    assert names(core) == ["costly_command", "costly_command"]


def test_a_hot_key_is_told_once_in_its_window() -> None:
    core = Core({"n_plus_one_min": 0, "duplicate_reads_min": 0})
    connection = redis(core)
    for i in range(1500):
        ask(connection, "SET", "hot" if i % 3 == 0 else f"key{i}", "x", takes_ms=0)
    (finding,) = findings(core)
    assert (finding["name"], finding["db.query.text"]) == ("hot_key", "SET hot ?")


def test_keys_that_are_asked_for_alike_are_not_hot() -> None:
    core = Core()
    connection = redis(core)
    for i in range(4000):
        ask(connection, "SET", f"key{i % 200}", "x", takes_ms=0)
    assert names(core) == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("slow_statement_ns", ("SET", "a", "b")),
        ("n_plus_one_min", ("GET", "{}")),
        ("duplicate_reads_min", ("GET", "a")),
        ("costly_commands", ("KEYS", "*")),
        ("hot_keys", ("SET", "a", "b")),
    ],
)
def test_each_has_its_switch(option: str, words: tuple[str, ...]) -> None:
    """With it off nothing is told that otherwise is."""
    others = {"slow_statement_ns", "n_plus_one_min", "duplicate_reads_min", "costly_commands", "hot_keys"}
    for off in (others - {option}, others):
        core = Core(dict.fromkeys(off, 0))
        connection = redis(core)
        for i in range(1100):
            spoken = [word.format(i) for word in words]
            ask(connection, *spoken, takes_ms=150 if option == "slow_statement_ns" and i < 2 else 0)
        assert bool(names(core)) == (off != others)


def test_nothing_is_told_of_the_database_side() -> None:
    core = Core({"database_servers": 1})
    connection = core.open(SERVER, local=("10.0.0.7", 6379))
    connection.receive(command("GET", "a"), protocol=lib.PROTOCOL_UNDECIDED)
    core.now_ms += 500
    connection.send(b"+OK\r\n", protocol=lib.PROTOCOL_UNDECIDED)
    assert names(core) == []
    assert [span.kind for span in core.taken] == [lib.KIND_SERVER]  # type: ignore[attr-defined]


def postgresql(core: Core) -> Connection:
    """Connected and logged in."""
    connection = core.open(CLIENT, remote=("10.0.0.8", 5432))
    parameters = b"user\0ada\0database\0shop\0\0"
    startup = (8 + len(parameters)).to_bytes(4, "big") + b"\0\3\0\0" + parameters
    connection.send(startup, protocol=lib.PROTOCOL_UNDECIDED)
    connection.receive(b"R\0\0\0\x08\0\0\0\0" + READY % b"I", protocol=lib.PROTOCOL_UNDECIDED)
    return connection


READY = b"Z\0\0\0\x05%s"


def query(connection: Connection, text: bytes, tag: bytes, state: bytes) -> None:
    connection.send(b"Q" + (5 + len(text)).to_bytes(4, "big") + text + b"\0", protocol=lib.PROTOCOL_UNDECIDED)
    done = b"C" + (5 + len(tag)).to_bytes(4, "big") + tag + b"\0" + READY % state
    connection.receive(done, protocol=lib.PROTOCOL_UNDECIDED)


def later(core: Core, seconds: float) -> None:
    core.now_ms += int(seconds * 1000)
    core.feed()


def test_a_transaction_left_open_is_told_once_with_its_last_statement() -> None:
    core = Core()
    connection = postgresql(core)
    query(connection, b"BEGIN", b"BEGIN", b"T")
    query(connection, b"UPDATE orders SET paid = 1", b"UPDATE 3", b"T")
    later(core, 9.9)
    assert names(core) == []
    later(core, 1.2)
    core.taken = core.spans()  # type: ignore[attr-defined]
    (finding,) = findings(core)
    assert (finding["name"], finding["db.query.text"]) == (
        "idle_in_transaction",
        "UPDATE orders SET paid = ?",
    )
    assert finding[OWN + "finding.duration_ms"] >= 10_000
    later(core, 60)
    query(connection, b"SELECT 1", b"SELECT 1", b"T")
    later(core, 60)
    assert names(core) == [], "once for a transaction"
    query(connection, b"COMMIT", b"COMMIT", b"I")
    query(connection, b"BEGIN", b"BEGIN", b"T")
    later(core, 60)
    assert names(core) == ["idle_in_transaction"]


def test_who_is_busy_or_has_no_transaction_is_not_idle_in_one() -> None:
    core = Core()
    busy, done, gone = postgresql(core), postgresql(core), postgresql(core)
    for connection in (busy, done, gone):
        query(connection, b"BEGIN", b"BEGIN", b"T")
    busy.send(b"Q\0\0\0\x0dSELECT 1\0", protocol=lib.PROTOCOL_UNDECIDED)
    query(done, b"ROLLBACK", b"ROLLBACK", b"I")
    gone.close()
    later(core, 60)
    assert names(core) == []


def test_transactions_are_not_watched_when_switched_off() -> None:
    core = Core({"idle_in_transaction_ns": 0})
    query(postgresql(core), b"BEGIN", b"BEGIN", b"T")
    later(core, 600)
    assert names(core) == []
