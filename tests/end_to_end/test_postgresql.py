# SPDX-License-Identifier: Apache-2.0
"""Real clients of a real PostgreSQL: the spans of the client are the statements of the server's log.

The log has the text of a statement when its execution begins, or when it fails before that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable

import psycopg
import pytest

from benchmarks import clients
from benchmarks.agent import CHUNKS
from benchmarks.databases.postgres import Postgres, postgres
from benchmarks.databases.server import Statement
from benchmarks.patience import patience
from benchmarks.spans import CLIENT, SERVER, Span
from tests.end_to_end.test_lifecycle import wait_until
from tests.sql_reference import sanitized

pytestmark = pytest.mark.kernel

LONG = 8192  # SQL_MAX of agent/core/statements.h
FEATURES = {
    "psycopg": (
        *("startup", "simple", "extended", "prepared", "pipeline", "copy", "cursors", "notify", "errors"),
        *("transactions", "large"),
    ),
    "asyncpg": ("prepared", "executemany", "cursor", "copy"),
}


def shape(text: str | None) -> str:
    """Without literals. Of a long text the span has the beginning, which ends within a literal."""
    text = text or ""
    return sanitized(text if len(text) < LONG else text[:LONG] + "'", "postgresql", "literal") or ""


def logged(statements: Iterable[Statement]) -> Counter[tuple[str, str]]:
    kinds = ("statement", "execute", "error")
    return Counter((shape(s.text), s.error or "") for s in statements if s.kind in kinds)


def seen(spans: Iterable[Span]) -> Counter[tuple[str, str]]:
    return Counter((shape(s["db.query.text"]), s["error.type"] or "") for s in spans)


@pytest.mark.parametrize(
    ("name", "feature"), [(name, feature) for name in FEATURES for feature in FEATURES[name]]
)
def test_a_client_has_the_spans_that_the_server_logged(trace, name, feature):
    with postgres() as server, clients.client(name, server, feature) as program:
        with trace([program.pid]) as traced:
            calls = program.calls()
        wanted = logged(server.statements())
    spans = traced.of(CLIENT)
    assert seen(spans) == wanted
    assert {s["db.system.name"] for s in spans} <= {"postgresql"}
    assert {s["db.namespace"] for s in spans} <= {"postgres"}
    assert all(s["db.query.text"] for s in spans)
    assert all(s["server.port"] == server.port for s in spans)
    rows = Counter(call.rows for call in calls if call.rows and not call.error)
    told = (s["db.response.returned_rows"] or s["ebpf_otlp_tracer.db.affected_rows"] for s in spans)
    if feature != "copy":  # of which it counts pieces
        assert rows <= Counter(told)  # and it counts those of queries only


@pytest.mark.parametrize("mode", clients.PGBENCH_MODES)
def test_pgbench_in_each_mode(trace, mode):
    with postgres() as server:
        clients.initialize_pgbench(server)
        begun = len(server.statements())
        with clients.pgbench(server, mode, connections=2, transactions=23) as program:
            with trace([program.pid]) as traced:
                program.output()
        wanted = logged(own(server, begun))
    spans = traced.of(CLIENT)
    assert seen(spans) == wanted
    assert sum(s["db.query.text"].startswith("UPDATE pgbench_branches") for s in spans) == 2 * 23


def own(server: Postgres, begun: int) -> list[Statement]:
    """By session: those of an earlier one stand before, as sessions are numbered in the order of the log."""
    return server.statements()[begun:]


def test_a_connection_that_was_there_before_the_agent(trace):
    """What was prepared before has no text, only what the answer tells; what is asked anew has its own."""
    with postgres() as server:
        target = {"host": "127.0.0.1", "port": server.port, "user": "postgres", "dbname": "postgres"}
        with psycopg.connect(
            **target, autocommit=True, sslmode="disable", gssencmode="disable"
        ) as connection:
            connection.prepare_threshold = 0
            connection.execute("SELECT %s::int AS before", [1])
            with trace([os.getpid()], exact=False) as traced:
                connection.execute("SELECT %s::int AS before", [2])
                connection.execute("SELECT %s::int AS after", [3])
                connection.execute("SELECT %s::int AS after", [4])
    spans = [
        span for span in traced.of(CLIENT) if span["db.system.name"]
    ]  # and the test asks the agent itself
    told = [(span["db.query.text"], span["db.response.returned_rows"]) for span in spans]
    assert told[-2:] == [("SELECT $1::int AS after", 1)] * 2
    assert set(told[:-2]) <= {(None, 1)}
    assert {span["db.namespace"] for span in spans} == {None}


def test_what_is_said_over_tls_is_counted_and_not_read(trace, monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "require")
    with postgres(tls=True) as server, clients.client("psycopg", server, "simple") as program:
        with trace([program.pid]) as traced:
            program.output()
            wait_until(lambda: traced.agent.counters().by(CHUNKS, "class").get("encrypted"), "TLS is counted")
    assert traced.spans == []


def test_of_a_large_result_the_ends_are_copied_and_the_rows_are_known(trace):
    """The first quarter of a MiB, and of what comes then 48 bytes of each call: there stands the count."""
    rows = 100_000
    script = f"SELECT repeat('x', 1000) FROM generate_series(1, {rows});"
    with postgres(log=False) as server, clients.psql(server, script) as program:
        sleeper = subprocess.Popen(["sleep", "infinity"])  # with the last process the agent would end
        try:
            with trace([program.pid, sleeper.pid]) as traced:
                size = len(program.output())
                traced.wait_for(1)
                counters = traced.agent.counters()
        finally:
            sleeper.kill()
            sleeper.wait()
    (span,) = traced.of(CLIENT)
    assert span["db.response.returned_rows"] == rows
    assert counters.total("ebpf_otlp_tracer_kernel_captured_bytes_total") < size / 100


# After a line: what is told, on a connection of its own.
DEEP = """
import sys, psycopg
port, what = int(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
with psycopg.connect(
    host="127.0.0.1", port=port, user="postgres", dbname="postgres", sslmode="disable", gssencmode="disable",
    autocommit=True,
) as connection:
    cursor = connection.cursor()
    if what == "pipeline":
        with connection.pipeline():
            for i in range(20_000):
                cursor.execute("SELECT %s::int", [i])
    elif what == "copy":
        cursor.execute("CREATE TABLE t (a text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for _ in range(64):
                copy.write(("x" * 1023 + "\\n") * 1024)
    else:
        try:
            cursor.execute(what)
        except psycopg.Error as error:
            print(error.sqlstate)
"""


def run_deep(trace, what: str, prelude: str = "") -> tuple[list[Span], str, int]:
    """Spans, what it printed, bytes copied."""
    pipe = subprocess.PIPE
    with postgres(log=False) as server:
        command = [sys.executable, "-c", DEEP, str(server.port), what]
        options = {**os.environ, "PGOPTIONS": prelude}
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=options) as process:
            sleeper = subprocess.Popen(["sleep", "infinity"])  # with the last process the agent would end
            try:
                with trace([process.pid, sleeper.pid]) as traced:
                    output, _ = process.communicate("go\n", timeout=patience(60))
                    assert process.returncode == 0
                    copied = traced.agent.counters().total("ebpf_otlp_tracer_kernel_captured_bytes_total")
            finally:
                process.kill()
                sleeper.kill()
                sleeper.wait()
    return traced.of(CLIENT), output.strip(), copied


def test_a_deep_pipeline_has_a_span_for_each_statement(trace):
    spans, _, _ = run_deep(trace, "pipeline")
    assert Counter(s["db.query.text"] for s in spans) == {"SELECT $1::int": 20_000}
    assert {s["db.response.returned_rows"] for s in spans} == {1}


def test_of_a_long_copy_little_is_copied(trace):
    spans, _, copied = run_deep(trace, "copy")
    assert [s["ebpf_otlp_tracer.db.affected_rows"] for s in spans] == [None, 64 * 1024]
    assert copied < (64 << 20) / 50


PAUSE = "repeat('x', 1000), CASE WHEN i % 8000 = 0 THEN pg_sleep(0.4) END FROM generate_series(1, 60000) AS i"


@pytest.mark.parametrize(
    ("statement", "code"), [(f"SELECT 1 / (24001 - i), {PAUSE}", "22012"), (f"SELECT {PAUSE}", "57014")]
)
def test_an_error_at_the_end_of_a_long_result_has_its_code(trace, statement, code):
    """When all before it was received: what a call receives at full speed may end within the error."""
    timeout = 1000 if code == "57014" else 0
    spans, printed, copied = run_deep(trace, statement, f"-c statement_timeout={timeout}")
    assert printed == code
    assert [(s["db.response.status_code"], s["error.type"]) for s in spans] == [(code, code)]
    assert spans[0]["db.query.text"] == shape(statement)
    assert copied < 1 << 20


def test_the_servers_side_is_traced_if_asked_for(trace):
    with postgres() as server, clients.client("psycopg", server, "simple") as program:
        with trace(server.pids, EBPF_OTLP_TRACER_DATABASE_SERVER_SPANS="true") as traced:
            program.output()
            wanted = logged(server.statements())
            traced.wait_for(wanted.total())
    of_server = [span for span in traced.spans if span.kind == SERVER and span["db.query.text"]]
    assert wanted <= seen(of_server)
