# SPDX-License-Identifier: Apache-2.0
"""Real clients of a real PostgreSQL: the spans of the client are the statements of the server's log.

The log has the text of a statement when its execution begins, or when it fails before that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from benchmarks import clients
from benchmarks.databases.postgres import Postgres, postgres
from benchmarks.databases.server import Statement
from benchmarks.spans import CLIENT, Span
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
