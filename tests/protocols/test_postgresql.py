# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's messages, built by hand from the specification, and the units and answers that they are.

https://www.postgresql.org/docs/current/protocol-message-formats.html, protocol-flow.html
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import pytest

from tests.contract import CLIENT, KIND_CLIENT, SERVER, Case, Contract, Side, driver

PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, QUERY, FUNCTION, STARTUP, MANY, UNTOLD = (
    1 << n for n in range(11)
)
NONE, OPEN, IN_FAILED = 1, 2, 3  # enum transaction
ANSWERED, CLOSED, RESET = range(3)  # enum outcome


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack(">I", 4 + len(body)) + body


def untyped(code: int, body: bytes = b"") -> bytes:
    return struct.pack(">II", 8 + len(body), code) + body


def startup(version: int = 3 << 16, **parameters: str) -> bytes:
    pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items())
    return untyped(version, pairs + b"\0")


def query(sql: str) -> bytes:
    return message("Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "") -> bytes:
    return message("P", f"{name}\0{sql}\0".encode() + struct.pack(">HI", 1, 23))


def bind(*values: bytes, name: str = "", portal: str = "") -> bytes:
    sized = b"".join(struct.pack(">I", len(value)) + value for value in values)
    return message("B", f"{portal}\0{name}\0".encode() + struct.pack(">HH", 0, len(values)) + sized + b"\0\0")


def describe(name: str = "", kind: str = "P") -> bytes:
    return message("D", f"{kind}{name}\0".encode())


def execute(portal: str = "", rows: int = 0) -> bytes:
    return message("E", f"{portal}\0".encode() + struct.pack(">I", rows))


def close(name: str, kind: str = "S") -> bytes:
    return message("C", f"{kind}{name}\0".encode())


def row(*values: bytes) -> bytes:
    return message(
        "D", struct.pack(">H", len(values)) + b"".join(struct.pack(">I", len(v)) + v for v in values)
    )


def tag(text: str) -> bytes:
    return message("C", text.encode() + b"\0")


def ready(state: str = "I") -> bytes:
    return message("Z", state.encode())


def report(kind: str, code: str, severity: str = "ERROR", text: str = "no") -> bytes:
    return message(kind, f"S{severity}\0V{severity}\0C{code}\0M{text}\0\0".encode())


def error(code: str, severity: str = "ERROR", text: str = "no") -> bytes:
    return report("E", code, severity, text)


SYNCS, FLUSH, TERMINATE = message("S"), message("H"), message("X")
PARSED, BOUND, CLOSED_NAME, NO_DATA, SUSPENDED, EMPTY = (message(kind) for kind in "123nsI")
COLUMNS = message("T", struct.pack(">H", 1) + b"i\0" + struct.pack(">IHIHIH", 0, 0, 23, 4, 0, 0))
TYPES = message("t", struct.pack(">HI", 1, 23))
COPY_IN, COPY_OUT, COPY_BOTH = (message(kind, b"\0\0\1\0\0") for kind in "GHW")
COPY_DONE = message("c")
SETTING = message("S", b"TimeZone\0UTC\0")
NOTIFICATION = message("A", struct.pack(">I", 7) + b"channel\0payload\0")
AUTHENTICATED = message("R", struct.pack(">I", 0))
KEY = message("K", bytes(8))
SSL, GSS, CANCEL = untyped(80877103), untyped(80877104), untyped(80877102, bytes(8))
LOGIN = startup(user="ada", database="shop")
ALL = PARSE | BIND | DESCRIBE | EXECUTE | SYNC
A, B = "SELECT a FROM t", "UPDATE t SET a = b"


def request(name: str, data: bytes, *messages: dict[str, Any], **more: Any) -> Case:
    return Case(name, CLIENT, data, list(messages), kind=KIND_CLIENT, remote=("192.0.2.7", 5432), **more)


def answer(name: str, data: bytes, *messages: dict[str, Any], **more: Any) -> Case:
    return Case(name, SERVER, data, list(messages), kind=KIND_CLIENT, remote=("192.0.2.7", 5432), **more)


def asks(hint: int, text: str | None = None, **more: Any) -> dict[str, Any]:
    executes = bool(hint & (EXECUTE | QUERY | FUNCTION))
    attributes = {"db.query.text": text, "db.system.name": "postgresql", "server.port": None}
    return {"hint": hint, "silent": not executes, "complete": True, "attributes": attributes, **more}


def says(rows: int | None = None, affected: int | None = None, **more: Any) -> dict[str, Any]:
    counts = {
        "db.response.returned_rows": rows,
        "ebpf_otlp_tracer.db.affected_rows": affected,
        "db.response.status_code": more.pop("code", None),
        "error.type": more.pop("error", None),
        "db.operation.name": more.pop("operation", None),
    }
    return {"complete": True, "failed": False, "voids": False, "attributes": counts, **more}


def fails(code: str, **more: Any) -> dict[str, Any]:
    return says(code=code, error=code, **{"failed": True, **more})


VOID = {"voids": True, "complete": True, "transaction": NONE}
LONG = "SELECT " + "a, " * 4000 + "a FROM t"
OPEN_LOGIN = ((CLIENT, LOGIN, 0),)

REQUESTS = [
    request(
        "startup tells the database",
        LOGIN,
        asks(STARTUP, attributes={"db.namespace": "shop", "db.system.name": "postgresql"}),
    ),
    request(
        "the database is the user's", startup(user="ada"), asks(STARTUP, attributes={"db.namespace": "ada"})
    ),
    request("startup of protocol 3.2", startup(3 << 16 | 2, user="ada"), asks(STARTUP)),
    request("startup without replication", startup(user="a", replication="false"), asks(STARTUP)),
    request("replication is left alone", startup(user="a", replication="database"), end="opaque"),
    request("a cancel request is left alone", CANCEL, end="opaque"),
    request("TLS and GSS are asked for, then neither", GSS + SSL + LOGIN, asks(STARTUP)),
    request("protocol 2", startup(2 << 16, user="ada"), end="invalid"),
    request("a startup that is too long", untyped(3 << 16, bytes(10000)), end="invalid"),
    request(
        "query of a known database",
        query(A),
        asks(QUERY, A, attributes={"db.namespace": "shop", "db.query.text": A}),
        before=OPEN_LOGIN,
    ),
    request("two queries and the end", query(A) + query(B) + TERMINATE, asks(QUERY, A), asks(QUERY, B)),
    request("a password is passed over", message("p", b"secret\0") + query(A), asks(QUERY, A)),
    request("a long query", query(LONG), asks(QUERY | MANY, LONG[:4096].rstrip())),
    request("function call", message("F", bytes(10)), asks(FUNCTION)),
    request("the extended protocol", parse(A) + bind(b"1") + describe() + execute() + SYNCS, asks(ALL, A)),
    request(
        "prepared once, executed twice",
        parse(A, "s") + describe("s", "S") + SYNCS + (bind(b"1", name="s") + execute() + SYNCS) * 2,
        asks(PARSE | DESCRIBE | SYNC, A),
        asks(BIND | EXECUTE | SYNC, A),
        asks(BIND | EXECUTE | SYNC, A),
    ),
    request(
        "a pipeline with one Sync",
        (parse(A) + bind() + execute()) + (parse(B) + bind() + execute()) + SYNCS,
        asks(PARSE | BIND | EXECUTE, A),
        asks(PARSE | BIND | EXECUTE | SYNC, B),
    ),
    request(
        "Flush ends a unit, Sync is one",
        parse(A) + bind() + execute() + FLUSH + SYNCS,
        asks(PARSE | BIND | EXECUTE, A),
        asks(SYNC),
    ),
    request("a Flush alone is nothing", FLUSH + query(A), asks(QUERY, A)),
    request(
        "Describe before Bind is a unit of its own",
        parse(A, "s") + describe("s", "S") + bind(name="s") + execute() + SYNCS,
        asks(PARSE | DESCRIBE, A),
        asks(BIND | EXECUTE | SYNC, A),
    ),
    request(
        "closed statements",
        close("s") + close("t") + SYNCS,
        asks(CLOSE),
        asks(CLOSE | SYNC),
    ),
    request(
        "a closed statement is not known",
        close("s") + bind(name="s") + execute() + SYNCS,
        asks(CLOSE),
        asks(BIND | EXECUTE | SYNC | UNTOLD, None),
        before=((CLIENT, parse(A, "s") + SYNCS, 0),),
    ),
    request(
        "a statement prepared before anybody looked",
        bind(name="s") + execute() + SYNCS,
        asks(BIND | EXECUTE | SYNC | UNTOLD, None),
    ),
    request(
        "a portal fetched in parts",
        bind(name="s", portal="p") + execute("p", 2) + FLUSH + execute("p", 2) + SYNCS + execute("q") + SYNCS,
        asks(BIND | EXECUTE, A),
        asks(EXECUTE | SYNC, A),
        asks(EXECUTE | SYNC | UNTOLD, None),
        before=((CLIENT, parse(A, "s") + SYNCS, 0),),
    ),
    request(
        "a query destroys the unnamed statement",
        query(B) + bind() + execute() + SYNCS,
        asks(QUERY, B),
        asks(BIND | EXECUTE | SYNC | UNTOLD, None),
        before=((CLIENT, parse(A) + SYNCS, 0),),
    ),
    *(
        request(
            f"{sql} forgets",
            query(sql) + bind(name="s") + execute() + SYNCS,
            asks(QUERY, sql),
            asks(BIND | EXECUTE | SYNC | (0 if kept else UNTOLD), A if kept else None),
            before=((CLIENT, parse(A, "s") + SYNCS, 0),),
        )
        for sql, kept in {
            "DISCARD ALL": False,
            "deallocate ALL;": False,
            "DEALLOCATE s": False,
            "DEALLOCATE PREPARE s": False,
            "PREPARE s AS TABLE t": False,
            'DEALLOCATE "s"': False,
            "DEALLOCATE t": True,
            "SELECT s": True,
        }.items()
    ),
    request(
        "copied data belongs to no unit",
        query("COPY t FROM STDIN") + message("d", b"x" * 400) + COPY_DONE + message("f", b"no\0") + query(A),
        asks(QUERY, "COPY t FROM STDIN"),
        asks(QUERY, A),
    ),
    request(
        "the Sync that ends a copy was asked for before",
        message("d", b"x") + COPY_DONE + SYNCS + parse(A) + SYNCS,
        asks(PARSE | SYNC, A),
        before=(
            (CLIENT, parse("COPY t FROM STDIN") + bind() + execute() + SYNCS, 0),
            (SERVER, PARSED + BOUND + COPY_IN, PARSE | BIND | EXECUTE | SYNC),
        ),
    ),
    request("no such message", message("Y", b"abc"), end="invalid"),
    request("a Sync with a body", message("S", b"abc"), end="invalid"),
    request("a length that is too short", b"Q\0\0\0\3abc", end="invalid"),
    request("a length that is too long", b"Q\x7f\xff\xff\xffabc", end="invalid"),
]


E_S = EXECUTE | SYNC
ANSWERS = [
    answer("startup", AUTHENTICATED + SETTING + KEY + ready(), says(transaction=NONE), hints=(STARTUP,)),
    answer("a refused startup", error("3D000", "FATAL"), fails("3D000"), hints=(STARTUP,)),
    answer("TLS", b"S", end="opaque", before=((CLIENT, SSL, 0),)),
    answer("GSS", b"G", end="opaque", before=((CLIENT, GSS, 0),)),
    answer("no TLS", b"N", before=((CLIENT, SSL, 0),)),
    answer("neither yes nor no", b"G", end="invalid", before=((CLIENT, SSL, 0),)),
    answer(
        "rows of a query",
        COLUMNS + row(b"1") + row(b"2") + tag("SELECT 2") + ready("T"),
        says(2, transaction=OPEN),
        hints=(QUERY,),
    ),
    answer("long rows", COLUMNS + row(b"x" * 3000) * 3 + tag("SELECT 3") + ready(), says(3), hints=(QUERY,)),
    answer("a query without rows", COLUMNS + tag("SELECT 0") + ready(), says(0), hints=(QUERY,)),
    answer("a new table", tag("CREATE TABLE") + ready(), says(), hints=(QUERY,)),
    answer("a new table of five rows", tag("SELECT 5") + ready(), says(affected=5), hints=(QUERY,)),
    *(
        answer(text, tag(text) + ready(), says(affected=7), hints=(QUERY,))
        for text in ("INSERT 0 7", "UPDATE 7", "DELETE 7", "MERGE 7", "COPY 7")
    ),
    answer("an empty query", EMPTY + ready(), says(), hints=(QUERY,)),
    answer(
        "several statements",
        COLUMNS + row(b"1") + tag("SELECT 1") + tag("INSERT 0 2") + tag("DELETE 3") + ready(),
        says(1, 5),
        hints=(QUERY | MANY,),
    ),
    answer("a failed query", error("42601") + ready(), fails("42601", transaction=NONE), hints=(QUERY,)),
    answer(
        "a query that fails among its rows",
        COLUMNS + row(b"1") + error("22012") + ready("E"),
        fails("22012", transaction=IN_FAILED),
        hints=(QUERY,),
    ),
    answer("a long error", error("42601", text="x" * 5000) + ready(), fails("42601"), hints=(QUERY,)),
    answer("an error that ends the connection", error("57P01", "FATAL"), fails("57P01"), hints=(QUERY,)),
    answer(
        "an error without a code",
        message("E", b"SERROR\0Mno\0\0") + ready(),
        says(failed=True, error="_OTHER"),
        hints=(QUERY,),
    ),
    answer(
        "a warning",
        report("N", "01000", "WARNING") + tag("COMMIT") + ready(),
        says(code="01000"),
        hints=(QUERY,),
    ),
    answer("a notice", report("N", "00000", "NOTICE") + tag("DROP TABLE") + ready(), says(), hints=(QUERY,)),
    answer(
        "a warning and an error",
        report("N", "01000", "WARNING") + error("22012") + ready(),
        fails("22012"),
        hints=(QUERY,),
    ),
    answer(
        "what comes at any time",
        NOTIFICATION + COLUMNS + NOTIFICATION + row(b"1") + SETTING + tag("SELECT 1") + SETTING + ready(),
        says(1),
        hints=(QUERY,),
    ),
    answer(
        "nobody asked",
        NOTIFICATION + SETTING + report("N", "01000") + row(b"1") + ready(),
        {"complete": True},
    ),
    answer("a function's result", message("V", b"\xff\xff\xff\xff") + ready(), says(), hints=(FUNCTION,)),
    answer(
        "the extended protocol",
        PARSED + BOUND + COLUMNS + row(b"1") + tag("SELECT 1") + ready(),
        says(1),
        hints=(ALL,),
    ),
    answer(
        "a statement that is not known has an operation",
        BOUND + tag("CREATE TABLE") + ready() + BOUND + tag("INSERT 0 1") + ready(),
        says(operation="CREATE TABLE"),
        says(affected=1, operation="INSERT"),
        hints=(BIND | E_S | UNTOLD, BIND | E_S | UNTOLD),
    ),
    answer(
        "preparing",
        PARSED + TYPES + COLUMNS + PARSED + TYPES + NO_DATA + ready(),
        says(),
        says(transaction=NONE),
        hints=(PARSE | DESCRIBE, PARSE | DESCRIBE | SYNC),
    ),
    answer(
        "a pipeline",
        (PARSED + BOUND + NO_DATA + tag("UPDATE 1")) * 2 + ready(),
        says(affected=1),
        says(affected=1, transaction=NONE),
        hints=(ALL & ~SYNC, ALL),
    ),
    answer(
        "a Sync apart",
        BOUND + tag("UPDATE 1") + ready(),
        says(affected=1),
        {"voids": False, "answers": 0},
        hints=(BIND | EXECUTE, SYNC),
    ),
    answer(
        "an error in a unit with Sync",
        PARSED + error("22012") + ready(),
        fails("22012", transaction=NONE),
        hints=(ALL,),
    ),
    answer(
        "an error in a pipeline",
        BOUND + tag("UPDATE 1") + error("22012") + ready() + COLUMNS + tag("SELECT 0") + ready(),
        says(affected=1),
        fails("22012"),
        {**VOID, "answers": SYNC},
        says(0),
        hints=(BIND | EXECUTE, BIND | EXECUTE, BIND | EXECUTE, QUERY),
    ),
    answer(
        "a failed Parse",
        error("42P01") + ready(),
        fails("42P01"),
        {"voids": False, "complete": True},
        hints=(PARSE | DESCRIBE, SYNC),
    ),
    answer(
        "a portal in parts",
        BOUND + row(b"1") * 2 + SUSPENDED + row(b"2") + tag("SELECT 1") + ready(),
        says(2),
        says(1),
        hints=(BIND | EXECUTE, E_S),
    ),
    answer("closed", CLOSED_NAME * 2 + ready(), says(), says(), hints=(CLOSE, CLOSE | SYNC)),
    answer(
        "rows to a client",
        COPY_OUT + message("d", b"x" * 900) * 3 + COPY_DONE + tag("COPY 3") + ready(),
        says(affected=3),
        hints=(QUERY,),
    ),
    answer("rows of a client", COPY_IN + tag("COPY 3") + ready(), says(affected=3), hints=(QUERY,)),
    answer("refused rows of a client", COPY_IN + error("22P02") + ready(), fails("22P02"), hints=(QUERY,)),
    answer("replication", COPY_BOTH, end="opaque", hints=(QUERY,)),
    answer(
        "a late start",
        row(b"1") + tag("SELECT 1") + ready() + COLUMNS + tag("SELECT 0") + ready(),
        {"complete": True},
        says(0),
        hints=(0, QUERY),
    ),
    answer("ready, but not why", ready(), {**VOID, "answers": SYNC | QUERY | FUNCTION}, hints=(ALL,)),
    answer("rows, but of what", row(b"1"), end="invalid", hints=(PARSE | SYNC,)),
    answer("complete, but what was asked is not", tag("SELECT 1"), end="invalid", hints=(ALL,)),
    answer("ready without an outcome", COLUMNS + ready(), {"complete": False}, end="invalid", hints=(QUERY,)),
    answer("no such state", ready("X"), end="invalid", hints=(QUERY,)),
    answer("no such answer", message("B", bytes(20)), end="invalid", hints=(QUERY,)),
]


class TestContract(Contract):
    protocol = "postgresql"
    cases: ClassVar[list[Case]] = REQUESTS + ANSWERS


SIDE = {sender: Side("postgresql", sender, KIND_CLIENT) for sender in (CLIENT, SERVER)}


@pytest.mark.parametrize("case", REQUESTS + ANSWERS, ids=lambda case: case.name)
def test_valid_messages_are_a_start(case: Case) -> None:
    """Whatever the contract cases begin with; what is invalid, one byte long or ready alone is none."""
    vague = case.end == "invalid" or len(case.data) == 1 or (case.data[:1] == b"Z" and case.sender == SERVER)
    if not vague:
        assert driver().resync(SIDE[case.sender], case.data) == 0
        assert driver().resync(SIDE[case.sender], case.data[:16]) == 0


@pytest.mark.parametrize(
    ("sender", "data"),
    [
        (CLIENT, b"GET / HTTP/1.1\r\n\r\n"),
        (CLIENT, query(A)[:-1] + b"x" + query(B)),
        (CLIENT, describe()[:-2] + b"x\0"),
        (CLIENT, query(A) + b"\1\2\3\4\5\6"),
        (CLIENT, b"Q\0\0"),
        (SERVER, query(A)),
        (SERVER, row(b"1") + b"\1\2\3\4\5\6"),
        (SERVER, message("D", struct.pack(">HI", 1, 9) + b"x")),
        (SERVER, message("D", struct.pack(">HI", 1, 1) + b"xy")),
        (SERVER, message("C", b"select 1\0")),
        (SERVER, message("C", b"SELECT 1")),
        (SERVER, ready()),
        (SERVER, b"N\0Z\0\0\0\5T"),
        (SERVER, message("d", bytes(2 << 20))[:100]),
        (SERVER, b"v\0\0Z\0\0\0\5I"),
        (SERVER, b"K\0\0Z\0\0\0\5I"),
        (SERVER, b"R\0\0Z\0\0\0\5I"),
        (SERVER, b"H\0\0Z\0\0\0\5I"),
        (SERVER, b"t\0\0Z\0\0\0\5I"),
        (SERVER, b"T\0\0\0\x18\0\x02" + bytes(18)),
    ],
)
def test_other_bytes_are_no_start(sender: int, data: bytes) -> None:
    assert driver().resync(SIDE[sender], data) == len(data)


def test_a_failed_request_has_its_code() -> None:
    span = driver().finish(SIDE[CLIENT], query(A), error("42P01"))
    assert span["attributes"]["error.type"] == span["attributes"]["db.response.status_code"] == "42P01"
    assert span["status"] == 2


def test_a_port_that_is_not_the_usual_one_is_told() -> None:
    span = driver().finish(Side("postgresql", CLIENT, KIND_CLIENT, remote=("192.0.2.7", 6432)), query(A))
    assert span["attributes"]["server.port"] == 6432
