# SPDX-License-Identifier: Apache-2.0
"""Whole MySQL conversations through the core: recorded ones and some by hand, complete and damaged."""

from __future__ import annotations

import random
from typing import Any

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT, IN, OUT, SERVER, Connection, Core, Span
from tests.protocols import seeds
from tests.protocols.test_mysql import (
    AUTOCOMMIT,
    CURSOR,
    IN_TRANS,
    MORE,
    column,
    connected,
    eof,
    err,
    execute,
    greeting,
    ok,
    packet,
    packets,
    prepare,
    prepare_ok,
    query,
    response,
    rows,
    string,
)

# What the clients of benchmarks/clients did, as the server saw it: the database, the text without its
# literals, the error, the rows. PyMySQL begins with a statement of its own.
NAMES = ("test", "SET NAMES utf8mb4", None, None)
ONE = ("SELECT ?", None, 1)
SEVEN = ("test", "SELECT ?, ?, ?, ? FROM seq_1_to_7", None, 7)
EXPECTED: dict[str, list[tuple[str | None, str | None, str | None, int | None]]] = {
    "mariadb-bulk": [
        ("test", "CREATE TEMPORARY TABLE bulk (id INT)", None, None),
        ("test", "INSERT INTO bulk VALUES (?)", None, None),
        ("test", "SELECT * FROM bulk", None, 5),
    ],
    "mariadb-change_user": [("test", "SELECT CURRENT_USER()", None, 1), ("test", None, "1045", None)],
    "mariadb-commands": [
        ("test", None, None, None),
        ("second", "SELECT DATABASE()", None, 1),
        ("second", None, "1044", None),
        ("second", "SET @kept = ?", None, None),
        ("second", "SELECT @kept", None, 1),
        ("second", None, "1146", None),
    ],
    "mariadb-compressed": [
        ("test", *ONE),
        ("test", "SELECT seq, REPEAT(?, ?) FROM seq_1_to_100", None, 100),
        ("test", "SELECT no_such_column", "1054", None),
        ("test", "SELECT CONCAT(?, 'x')", None, 1),
    ],
    "mariadb-cursor": [("test", "SELECT seq FROM seq_1_to_25", None, None)],
    "mariadb-long_data": [("test", "SELECT LENGTH(?)", None, 1)],
    "mariadb-prepare": [
        ("test", "PREPARE by_hand FROM ?", None, None),
        ("test", "EXECUTE by_hand USING ?", None, 1),
        ("test", "DEALLOCATE PREPARE by_hand", None, None),
        *[SEVEN] * 4,
        ("test", *ONE),
        SEVEN,
        ("test", *ONE),
    ],
    "mariadb-prepare_error": [
        ("test", "SELEC ?", "1064", None),
        ("test", "SELECT * FROM no_such_table WHERE id = ?", "1146", None),
        ("test", "CREATE TEMPORARY TABLE prepare_error (id INT PRIMARY KEY)", None, None),
        ("test", "INSERT INTO prepare_error VALUES (?)", None, None),
        ("test", "INSERT INTO prepare_error VALUES (?)", "1062", None),
        ("test", "INSERT INTO prepare_error VALUES (?)", None, None),
    ],
    "mariadb-procedure": [
        (
            "test",
            "CREATE OR REPLACE PROCEDURE two(a INT) BEGIN SELECT a; SELECT a UNION SELECT a + ?; END",
            None,
            None,
        ),
        ("test", "CALL two(?)", None, 3),
        ("test", "CALL two(?)", None, 3),
    ],
    "node-compressed": [
        ("test", "SELECT REPEAT(?, ?) FROM seq_1_to_20", None, 20),
        ("test", *ONE),
        ("test", "SELECT ? AS wide", None, 1),
    ],
    "node-pipelined": [
        ("test", *ONE),
        ("test", "SELECT seq FROM seq_1_to_7", None, 7),
        ("test", "SELECT no_such_column", "1054", None),
        ("test", "SET @a = ?", None, None),
        ("test", *ONE),
    ],
    "node-prepared": [
        ("test", "SELECT seq FROM seq_1_to_5 WHERE seq > ?", None, 4),
        ("test", "SELECT seq FROM seq_1_to_5 WHERE seq > ?", None, 3),
        ("test", "SELECT ? AS other", None, 1),
    ],
    "node-without_eof": [
        ("test", "SELECT seq FROM seq_1_to_23", None, 23),
        ("test", "SELECT seq FROM seq_1_to_23 WHERE seq > ?", None, 0),
        ("test", "SELEC ?", "1064", None),
        ("test", "SET @a = ?", None, None),
    ],
    "pymysql-database": [
        NAMES,
        ("test", None, None, None),
        ("second", "SELECT DATABASE()", None, 1),
        ("second", "USE test", None, None),
        ("test", "SELECT DATABASE()", None, 1),
    ],
    "pymysql-errors": [
        NAMES,
        ("test", "SELEC ?", "1064", None),
        ("test", "SELECT * FROM no_such_table", "1146", None),
        ("test", "SELECT no_such_column", "1054", None),
        ("test", "CREATE TEMPORARY TABLE errors (id INT PRIMARY KEY)", None, None),
        ("test", "INSERT INTO errors VALUES (?)", "1062", None),
        ("test", "SIGNAL SQLSTATE ? SET MESSAGE_TEXT = ?", "1644", None),
        ("test", None, "1065", None),
        ("test", *ONE),
    ],
    "pymysql-infile": [
        NAMES,
        ("test", "CREATE TEMPORARY TABLE loaded (id INT, name TEXT)", None, None),
        ("test", "LOAD DATA LOCAL INFILE ? INTO TABLE loaded", None, None),
        ("test", "SELECT COUNT(*) FROM loaded", None, 1),
        ("test", "LOAD DATA LOCAL INFILE ? INTO TABLE loaded", None, None),
    ],
    "pymysql-large": [
        NAMES,
        ("test", "SELECT seq, REPEAT(?, ?) FROM seq_1_to_12", None, 12),
        ("test", "SELECT ? AS long_text", None, 1),
    ],
    "pymysql-multi": [
        NAMES,
        ("test", "SELECT ?; SELECT ? UNION SELECT ?; SELECT ?", None, 4),
        ("test", "SET @a = ?; SELECT @a; SELECT no_such_column; SELECT ?", "1054", None),
        ("test", *ONE),
    ],
    "pymysql-query": [
        NAMES,
        ("test", *ONE),
        ("test", "SELECT ?, NULL, ?", None, 1),
        ("test", "CREATE TABLE query (id INT PRIMARY KEY, name TEXT, data BLOB)", None, None),
        ("test", "INSERT INTO query VALUES (?, ?, ?)", None, None),
        ("test", "INSERT INTO query VALUES (?, ?, _binary?)", None, None),
        ("test", "UPDATE query SET name = ? WHERE id > ?", None, None),
        ("test", "SELECT * FROM query", None, 3),
        ("test", "SELECT * FROM query WHERE id > ?", None, 0),
        ("test", "SHOW TABLES", None, 1),
        ("test", "DELETE FROM query", None, None),
        ("test", "DROP TABLE query", None, None),
        ("test", "DO SLEEP(?)", None, None),
    ],
    "pymysql-startup": [NAMES],
    "pymysql-startup-2": [("test", None, "1045", None)],
    "pymysql-transactions": [
        NAMES,
        ("test", "CREATE TABLE transactions (id INT PRIMARY KEY) ENGINE=InnoDB", None, None),
        ("test", "BEGIN", None, None),
        ("test", "INSERT INTO transactions VALUES (?)", None, None),
        ("test", "ROLLBACK", None, None),
        ("test", "START TRANSACTION READ ONLY", None, None),
        ("test", "COMMIT", None, None),
        ("test", "DROP TABLE transactions", None, None),
    ],
}
DIRECTIONS = (OUT, IN)  # of what the client says, of what the server says, on the client's side


def opened(core: Core, **options: Any) -> Connection:
    settings = {"role": CLIENT, "local": ("127.0.0.1", 50000), "remote": ("127.0.0.1", 3306), **options}
    return core.open(**settings, protocol=lib.PROTOCOL_MYSQL)


def conversed(*said: tuple[int, bytes], core: Core | None = None, **options: Any) -> list[Span]:
    """The spans of a connection on which both sides said this, each in one call."""
    core = core or Core()
    connection = opened(core, **options)
    for sender, data in said:
        connection.chunk(DIRECTIONS[sender], data)
    return core.spans()


def begun(**options: Any) -> list[tuple[int, bytes]]:
    return [(sender, data) for sender, data, _ in connected(**options)]


def told(span: Span) -> tuple[Any, ...]:
    return (
        span["db.namespace"],
        span["db.query.text"],
        span["error.type"],
        span["db.response.returned_rows"],
    )


def test_every_seed_has_its_expectation() -> None:
    assert {f"mysql/{name}" for name in EXPECTED} == set(seeds.names("mysql"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_conversation(name: str) -> None:
    core = Core()
    spans = conversed(*seeds.load(f"mysql/{name}"), core=core)
    assert [told(span) for span in spans] == EXPECTED[name]
    assert {span["db.system.name"] for span in spans} == {"mariadb"}
    assert core.stats().messages_invalid == 0 and core.stats().responses_unmatched == 0
    assert core.stats().requests_dropped == 0 and core.stats().requests_unanswered == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_calls_may_end_anywhere(name: str) -> None:
    rng = random.Random(name)
    for _ in range(10):
        core = Core()
        connection = opened(core)
        for sender, data in seeds.load(f"mysql/{name}"):
            while data:
                size = rng.choice((1, 2, 4, 5, 30, 1000))
                piece, data = data[:size], data[size:]
                connection.chunk(DIRECTIONS[sender], piece)
        assert [told(span) for span in core.spans()] == EXPECTED[name]


def damaged(name: str, rng: random.Random, late: bool, most: int) -> dict[int, tuple[Any, ...]]:
    """Start time -> what is told, where some calls were lost and of others only the ends were copied."""
    core = Core()
    connection = opened(core, late=late)
    chunks = seeds.cut(seeds.load(f"mysql/{name}"), rng, most)
    for sender, data in chunks[rng.randrange(len(chunks)) if late else 0 :]:
        kind, direction = rng.random(), DIRECTIONS[sender]
        core.now_ms += 1
        at = core.now_ms
        if kind < 0.15:
            connection.lose(direction, data)
        elif kind < 0.3 and len(data) > 60:
            connection.chunk(direction, data, head=rng.randrange(len(data) - 48), tail=48, at=at)
        else:
            connection.chunk(direction, data, at=at)
    return {span.start: told(span) for span in core.spans()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_no_loss_makes_a_wrong_pair(name: str, late: bool) -> None:
    """Every statement comes with its own outcome, rows and database, or without them, or not at all."""
    rng = random.Random(f"{name} {late}")
    outcomes = {(text, error) for _, text, error, _ in EXPECTED[name]}
    places = {(namespace, text) for namespace, text, _, _ in EXPECTED[name]}
    counts = {(text, returned) for _, text, _, returned in EXPECTED[name]}
    rounds, seen = 300, 0
    for n in range(rounds):
        whole = n % 3 == 0
        for namespace, text, error, returned in damaged(name, rng, late, 1 << 20 if whole else 200).values():
            seen += whole
            assert text is None or (text, error) in outcomes
            assert text is None or returned is None or (text, returned) in counts
            assert text is None or namespace is None or (namespace, text) in places
    share = 15 if name.endswith("compressed") else 5  # the end of an answer cannot be told from behind there
    assert late or seen > rounds / 3 * len(EXPECTED[name]) / share, "and many are there"


# --- by hand --------------------------------------------------------------------------------------------

SELECT = query(b"SELECT a FROM t WHERE b = 1")
TEXT = "SELECT a FROM t WHERE b = ?"
DONE = packet(1, ok())
ROWS = [string(b"%06d" % i) for i in range(5000)]


def asked_and_answered(core: Core, connection: Connection) -> list[Span]:
    """Is the next exchange right?"""
    connection.send(SELECT)
    connection.receive(packet(1, err(1146)))
    return core.spans()


def is_in_order(span: Span) -> bool:
    return (span["db.query.text"], span["error.type"]) == (TEXT, "1146")


def test_a_span_begins_with_its_command_and_ends_with_its_last_packet() -> None:
    core = Core()
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    connection.send(SELECT, at=2000)
    answer = packets(*rows(b"\x011", status=MORE), *rows(b"\x012"))
    connection.receive(answer[:60], at=2010)
    connection.receive(answer[60:], at=2030)
    (span,) = core.spans()
    assert (span.start, span.end, span.name, span.kind) == (2000, 2030, "SELECT t", lib.KIND_CLIENT)
    assert span["db.response.returned_rows"] == 2 and span["db.system.name"] == "mysql"
    assert (span["server.address"], span["server.port"]) == ("127.0.0.1", None)


def test_another_port_than_the_usual_is_told() -> None:
    (span,) = conversed(*begun(), (0, SELECT), (1, DONE), remote=("127.0.0.1", 3307))
    assert span["server.port"] == 3307


def test_a_server_reads_the_header_by_itself() -> None:
    said = [*begun(), (0, SELECT), (1, DONE)]
    pieces = [(sender, part) for sender, data in said for part in (data[:4], data[4:])]
    (span,) = conversed(*pieces)
    assert told(span) == ("shop", TEXT, None, None)


def test_the_servers_side_is_traced_when_it_is_wanted() -> None:
    def spans(**options: Any) -> list[Span]:
        core = Core(options)
        connection = core.open(
            SERVER, local=("127.0.0.1", 3306), remote=("127.0.0.1", 50000), protocol=lib.PROTOCOL_MYSQL
        )
        for sender, data in [*begun(), (0, SELECT), (1, DONE)]:
            connection.chunk((IN, OUT)[sender], data)
        return core.spans()

    assert spans() == []
    (span,) = spans(database_servers=1)
    assert (span.kind, span["db.query.text"]) == (lib.KIND_SERVER, TEXT)


def test_what_is_sent_together_is_a_batch() -> None:
    together = query(b"SELECT 1") + packet(0, b"\x0e") + query(b"SELECT 2")
    spans = conversed(*begun(), (0, together), (1, 3 * DONE))
    assert [span["db.operation.batch.size"] for span in spans] == [2, 2]


def test_the_end_of_the_connection_ends_what_waits() -> None:
    core = Core()
    connection = opened(core)
    for sender, data in [*begun(), (0, SELECT), (1, packets(b"\x01", column(), eof(), b"\x011"))]:
        connection.chunk(DIRECTIONS[sender], data)
    connection.close()
    (span,) = core.spans()
    assert span.status == lib.STATUS_ERROR and span["db.response.returned_rows"] is None


def test_a_transaction_is_told() -> None:
    spans = conversed(
        *begun(), (0, query(b"BEGIN")), (1, packet(1, ok(status=IN_TRANS))), (0, SELECT), (1, DONE)
    )
    assert [span["db.query.text"] for span in spans] == ["BEGIN", TEXT]


def test_refused_connections() -> None:
    said = (1, greeting()), (0, response()), (1, packet(2, err(1045, b"28000")))
    (span,) = conversed(*said)
    assert (span.name, span.status, span["error.type"]) == ("Connect shop", lib.STATUS_ERROR, "1045")
    assert conversed((1, packet(0, err(1040)))) == []


def test_a_connection_that_becomes_encrypted_is_counted_as_such() -> None:
    core = Core()
    request = packet(1, response()[4:8].replace(response()[4:6], b"\x08\xaa") + bytes(28))
    assert conversed((1, greeting()), (0, request), (0, b"\x16\x03\x01 and so on"), core=core) == []
    assert core.ledger()["bytes"]["encrypted"] > 0


def test_an_error_that_nobody_asked_for_answers_nothing() -> None:
    """A server that shuts down, or waited for too long, says so before it closes."""
    core = Core()
    connection = opened(core)
    for sender, data in [*begun(), (1, packet(0, err(4031, b"HY000")))]:
        connection.chunk(DIRECTIONS[sender], data)
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]


def test_answers_to_what_was_not_seen_answer_nothing() -> None:
    core = Core()
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    for data in (DONE, DONE, packets(*rows(b"\x011")), DONE):
        connection.lose(OUT, SELECT)
        connection.receive(data)
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]
    assert core.stats().messages_invalid == 0


def large(core: Core, status: int = AUTOCOMMIT) -> tuple[Connection, bytes]:
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    connection.send(SELECT)
    return connection, packets(*rows(*ROWS, status=status))


def test_of_a_large_answer_the_ends_are_enough() -> None:
    """As the kernel side copies it: the beginning of a turn, the end of each call."""
    core = Core()
    connection, answer = large(core)
    calls = [answer[at : at + 16384] for at in range(0, len(answer), 16384)]
    for i, call in enumerate(calls):
        connection.receive(call, head=8000 if i == 0 else 0, tail=48)
    (span,) = core.spans()
    assert told(span) == ("shop", TEXT, None, None)
    assert (span.end, span.status) == (core.now_ms, lib.STATUS_UNSET)
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]


@pytest.mark.parametrize("last", [err(1317, b"70100", b"interrupted"), ok(header=0xFE, more=b"\x03abc")])
def test_a_large_answer_may_end_otherwise(last: bytes) -> None:
    core = Core()
    connection, answer = large(core)
    answer = answer[:-9] + packet(5004, last)
    connection.receive(answer, head=8000, tail=48)
    (span,) = core.spans()
    assert span["error.type"] == ("1317" if last[0] == 0xFF else None)


def test_of_a_procedure_the_ok_is_the_end() -> None:
    core = Core()
    connection, answer = large(core, MORE)
    connection.receive(answer + packet(5005, ok()), head=8000, tail=48)
    assert [told(span) for span in core.spans()] == [("shop", TEXT, None, None)]


def test_an_answer_whose_end_was_not_seen_makes_no_span() -> None:
    core = Core()
    connection, answer = large(core)
    connection.receive(answer[:-30], head=8000)
    connection.receive(answer[-30:], head=0)
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]
    assert core.stats().requests_dropped == 1


def test_an_end_that_looked_like_a_row_costs_its_span_only() -> None:
    """The EOF that announced another result is lost: the OK behind it may be a row."""
    core = Core()
    connection, answer = large(core, MORE)
    connection.receive(answer, head=8000)
    connection.receive(packet(5005, ok()))
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_joined_late(first: int) -> None:
    """In the middle of an exchange or not: what comes whole afterwards is right."""
    said = [(0, query(b"SELECT 1")), (1, packets(*rows(b"\x011"))), (0, packet(0, b"\x0e")), (1, DONE)]
    core = Core()
    connection = opened(core, late=True)
    for sender, data in said[first:]:
        connection.chunk(DIRECTIONS[sender], data)
    spans = core.spans()
    assert [told(span) for span in spans] == ([(None, "SELECT ?", None, 1)] if first == 0 else [])
    (span,) = asked_and_answered(core, connection)
    assert is_in_order(span) and span["db.namespace"] is None


def test_joined_late_what_was_prepared_before_has_no_text() -> None:
    said = (
        (0, execute(3)),
        (1, DONE),
        (0, prepare(b"SELECT ?")),
        (1, packet(1, prepare_ok(4))),
        (0, execute(4)),
        (1, DONE),
    )
    spans = conversed(*said, late=True)
    assert [span["db.query.text"] for span in spans] == [None, "SELECT ?"]
    assert spans[0].name == "127.0.0.1"


def test_a_statement_that_was_forgotten_has_no_text() -> None:
    """One connection may have 1024 of them; above, the oldest goes."""
    said = begun()
    for number in range(1, 1027):
        sql = b"SELECT %d FROM t%d" % (number, number)
        said += [(0, prepare(sql)), (1, packet(1, prepare_ok(number)))]
    said += [(0, execute(1)), (1, DONE), (0, execute(1026)), (1, DONE)]
    core = Core()
    first, last = conversed(*said, core=core)
    assert (first["db.query.text"], last["db.query.text"]) == (None, "SELECT ? FROM t1026")
    assert core.stats().statements_forgotten > 0


def test_a_lost_prepare_is_not_taken_for_the_last_one() -> None:
    core = Core()
    connection = opened(core)
    for sender, data in [*begun(), (0, prepare(b"SELECT 1")), (1, packet(1, prepare_ok(1)))]:
        connection.chunk(DIRECTIONS[sender], data)
    connection.lose(OUT, prepare(b"SELECT 2"))
    connection.lose(IN, packet(1, prepare_ok(2)))
    connection.send(execute(0xFFFFFFFF))
    connection.receive(DONE)
    assert [span["db.query.text"] for span in core.spans()] == [None]


def test_a_lost_use_leaves_the_database_unknown() -> None:
    core = Core()
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    connection.lose(OUT, query(b"USE second"))
    connection.lose(IN, DONE)
    (span,) = asked_and_answered(core, connection)
    assert is_in_order(span) and span["db.namespace"] is None


def test_a_command_of_more_than_16_megabytes() -> None:
    """It is continued, here by an empty packet; its answer has the number that follows."""
    sql = b"\x03INSERT INTO t VALUES ('" + b"x" * (0xFFFFFF - 24)
    core = Core()
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    start = core.now_ms + 1
    connection.send(packet(0, sql)[:16384], size=0xFFFFFF + 4)
    connection.send(packet(1))
    connection.receive(packet(2, ok(1)))
    (span,) = core.spans()
    assert (span.name, span.start, span["ebpf_otlp_tracer.db.affected_rows"]) == ("INSERT t", start, 1)


def test_long_data_belongs_to_its_execute() -> None:
    """It is not answered; to send other data is to ask something else."""
    long_data = packet(0, b"\x18\x01\0\0\0\0\0", b"v" * 5000)
    said = [(0, prepare(b"SELECT ?")), (1, packet(1, prepare_ok(1)))]
    said += [(0, long_data + execute(1)), (1, DONE)]
    (span,) = conversed(*begun(), *said)
    assert span["db.query.text"] == "SELECT ?" and span["db.operation.batch.size"] is None


def test_a_cursor_is_one_span_however_often_it_is_fetched() -> None:
    fetch = packet(0, b"\x1c\x01\0\0\0\x0a\0\0\0")
    said = [
        (0, prepare(b"SELECT a FROM t")),
        (1, packets(prepare_ok(1, 1), column(), eof())),
        (0, execute(1)),
        (1, packets(b"\x01", column(), eof(CURSOR))),
        (0, fetch),
        (1, packets(b"\0\0\1", eof(CURSOR))),
        (0, fetch),
        (1, packet(1, err(1317))),
    ]
    spans = conversed(*begun(), *said)
    assert [(span.name, span["error.type"]) for span in spans] == [("SELECT t", None), ("Fetch shop", "1317")]


@pytest.mark.parametrize(
    "said",
    [
        [(0, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), (1, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
        [(0, b"*1\r\n$4\r\nPING\r\n"), (1, b"+PONG\r\n")],
        [(1, b"220 mail.example ESMTP\r\n"), (0, b"EHLO x\r\n")],
        [(0, random.Random(1).randbytes(500)), (1, random.Random(2).randbytes(500))],
        [(0, bytes(64)), (1, bytes(64))],
        [(0, b"\x0b\0\0\0\x03SELECT 1")],
    ],
    ids=["http", "redis", "smtp", "noise", "zeros", "a wrong length"],
)
def test_other_traffic_on_the_port_is_not_labelled(said: list[tuple[int, bytes]]) -> None:
    spans = conversed(*said)
    assert [span for span in spans if span["db.system.name"] == "mysql"] == []


def test_a_command_and_a_row_of_several_packets_of_which_the_ends_are_copied() -> None:
    """The lengths of their second packets lie in the middle of calls."""
    core = Core()
    connection = opened(core)
    for sender, data in begun():
        connection.chunk(DIRECTIONS[sender], data)
    text = b"\x03SELECT '" + b"x" * 18_000_000 + b"'"
    row = b"\xfd\x00\x00\xff" + b"x" * 0xFF0000 + string(b"x" * 1_000_000)
    connection.send(packets(text[:0xFFFFFF], text[0xFFFFFF:], first=0), head=60_000, tail=48)
    answer = packets(b"\x02", column(), column(), eof(), row[:0xFFFFFF], row[0xFFFFFF:], eof(), first=2)
    for at in range(0, len(answer), 65_536):
        connection.receive(answer[at : at + 65_536], head=0 if at else 60_000, tail=48)
    (span,) = core.spans()
    assert told(span) == ("shop", "SELECT ?", None, None)
    assert [is_in_order(span) for span in asked_and_answered(core, connection)] == [True]
