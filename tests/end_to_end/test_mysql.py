# SPDX-License-Identifier: Apache-2.0
"""Real clients of a real MariaDB: a span for each statement that the server logged, with its outcome."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pymysql
import pytest

from benchmarks.clients import client
from benchmarks.databases import Statement, mariadb
from benchmarks.spans import CLIENT, SERVER
from tests.sql_reference import sanitized

pytestmark = pytest.mark.kernel

# Without "large", of whose text the log has a part.
FEATURES = {
    "pymysql": ("startup", "query", "multi", "errors", "database", "transactions", "infile"),
    "mariadb": (
        *("prepare", "prepare_error", "cursor", "long_data", "bulk", "procedure", "commands", "change_user"),
        "compressed",
    ),
    "node": ("without_eof", "pipelined", "prepared", "compressed"),
}
SPOKEN = {"query", "execute", "bulk_execute", "init db"}
Told = tuple[str | None, str]  # text, error


def safe(text: str) -> str:
    """Without literals, and NULL, which the log has where a parameter was."""
    text = text.replace("NULL", "0")
    return sanitized(text, "mariadb", "escapes") or ""


def asked(statements: Sequence[Statement]) -> list[Told]:
    """What has a span: statements, and steps to them that failed. Of several statements in one query the log
    has the first with the whole text, and each later one with what is left; one of them may fail."""
    told: list[Told] = []
    whole = ""
    for each in sorted(statements, key=lambda each: (each.session, each.number)):
        if each.kind == "query" and each.text and whole.endswith("; " + each.text):
            told[-1] = (told[-1][0], each.error or "")
        elif each.kind in SPOKEN or each.error:
            told.append((safe(each.text) if each.text else None, each.error or ""))
        whole = each.text
    return told


@pytest.mark.parametrize(
    ("name", "unix"), [(name, False) for name in FEATURES] + [("pymysql", True), ("mariadb", True)]
)
def test_every_statement_that_the_server_logged_has_its_span(trace, name, unix):
    with mariadb() as server, client(name, server, *FEATURES[name], unix=unix) as program:
        with trace([program.pid]) as traced:
            program.output()
        logged = asked(server.statements())
    spans = sorted(traced.of(CLIENT), key=lambda span: span.start_ns)
    assert len(spans) == len(traced.spans)
    refused = [span for span in spans if span["db.operation.name"] == "Connect"]
    assert [span["error.type"] for span in refused] == (["1045"] if name == "pymysql" else [])
    spans = [span for span in spans if span not in refused]
    assert [span["error.type"] or "" for span in spans] == [error for _, error in logged]
    for span, (text, _) in zip(spans, logged, strict=True):
        assert text is None or safe(span["db.query.text"]) == text
    assert {span["db.system.name"] for span in spans} == {"mariadb"}
    assert {span["db.namespace"] for span in spans} <= {"test", "second"}
    assert {span["server.address"] for span in spans} == {str(server.socket) if unix else "127.0.0.1"}


def test_the_server_tells_rows_and_no_span_is_longer_than_its_call(trace):
    with mariadb() as server, client("pymysql", server, "query", "large") as program:
        with trace([program.pid]) as traced:
            calls = program.calls()
    spans = sorted(traced.of(CLIENT), key=lambda span: span.start_ns)
    for span, call in zip(spans, calls, strict=True):
        assert safe(call.text).startswith(safe(span["db.query.text"])), "long ones are told in part"
        assert span["db.response.returned_rows"] in (None, call.rows)
        assert span.end_ns - span.start_ns <= call.end_ns - call.start_ns
    assert sum(span["db.response.returned_rows"] is not None for span in spans) >= 5


def test_a_connection_that_was_there_before_the_agent(trace):
    """Its database is not known, its system is taken for MySQL, its statements are right."""
    with mariadb() as server:
        target = {"host": "127.0.0.1", "port": server.port, "user": "tester", "database": "test"}
        with pymysql.connect(**target) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            with trace([os.getpid()], exact=False) as traced:
                cursor.execute("SELECT 2 AS two")
                cursor.execute("USE second")
                cursor.execute("SELECT 3 AS three")
    spans = sorted(traced.of(CLIENT), key=lambda span: span.start_ns)
    told = [(span["db.query.text"], span["db.namespace"]) for span in spans if span["db.system.name"]]
    assert told == [("SELECT ? AS two", None), ("USE second", None), ("SELECT ? AS three", "second")]


def test_an_error_at_the_end_of_a_long_result_has_its_code(trace):
    """When all before it was received: what a call receives at full speed may end within the error."""
    statement = "SELECT REPEAT('x', 1000), SLEEP(IF(seq % 8000 = 0, 0.4, 0)) FROM seq_1_to_60000"
    with mariadb() as server, trace([os.getpid()], exact=False) as traced:
        target = {"host": "127.0.0.1", "port": server.port, "user": "tester", "database": "test"}
        with pymysql.connect(**target) as connection, connection.cursor() as cursor:
            cursor.execute("SET max_statement_time = 1")
            with pytest.raises(pymysql.err.OperationalError) as refused:
                cursor.execute(statement)
    (span,) = [s for s in traced.of(CLIENT) if s["db.query.text"] == safe(statement)]
    assert refused.value.args[0] == 1969
    assert (span["db.response.status_code"], span["error.type"]) == ("1969", "1969")


def test_the_servers_side_is_traced_if_asked_for(trace):
    with mariadb() as server, client("pymysql", server, "query") as program:
        with trace(server.pids, EBPF_OTLP_TRACER_DATABASE_SERVER_SPANS="true") as traced:
            calls = program.calls()
            traced.wait_for(len(calls))
    texts = [safe(span["db.query.text"]) for span in traced.of(SERVER)]
    assert [text for text in texts if text] == [safe(call.text) for call in calls]
