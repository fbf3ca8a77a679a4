# SPDX-License-Identifier: Apache-2.0
"""Every database serves in its block and is gone after it, and its log has exactly what the clients sent."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from benchmarks import clients, servers
from benchmarks.clients import Call, client
from benchmarks.databases import Database, MariaDB, Postgres, Redis, Statement, mariadb, postgres, redis
from benchmarks.databases.mariadb import TEXT_BYTES
from benchmarks.databases.server import has_ended
from benchmarks.patience import patience
from benchmarks.processes import ProcessError
from tests.protocols.relay import relay

Start = Callable[..., AbstractContextManager[Database]]
STARTS: tuple[Start, ...] = (postgres, mariadb, redis)


@pytest.fixture
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def mariadb_server() -> Iterator[MariaDB]:
    with mariadb() as server:
        yield server


@pytest.fixture
def redis_server() -> Iterator[Redis]:
    with redis() as server:
        yield server


def by_port(told: Sequence[Call | Statement]) -> dict[int, list[tuple[str, str | None]]]:
    """Text and error of each, in order."""
    ports = defaultdict(list)
    for each in told:
        ports[each.port].append((each.text, each.error))
    return ports


def begun(statements: Sequence[Statement]) -> list[Statement]:
    """PostgreSQL's statements without the steps to them."""
    return [each for each in statements if each.kind not in ("parse", "bind", "refused")]


@pytest.mark.parametrize("start", STARTS)
def test_a_database_serves_in_its_block_and_is_gone_after_it(start: Start) -> None:
    with start() as server:
        assert servers.is_listening(server.port)
        assert server.socket.is_socket()
        family = []
        for pid in server.pids:
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that has done its work
                family.append(psutil.Process(pid))
                assert family[-1].uids().effective != 0
        assert server.pid == family[0].pid
    assert all(has_ended(process) for process in family)
    assert not servers.is_listening(server.port)
    assert not server.folder.exists()


_CRASHING = """
import os, signal, sys
from benchmarks import databases
with getattr(databases, sys.argv[1])() as server:
    print(server.folder, *server.pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["postgres", "mariadb", "redis"])
def test_a_database_ends_when_who_started_it_is_killed(name: str) -> None:
    crashed = subprocess.run([sys.executable, "-c", _CRASHING, name], stdout=subprocess.PIPE, timeout=60)
    folder, *pids = crashed.stdout.decode().split()
    assert crashed.returncode == -signal.SIGKILL
    left = []
    for pid in map(int, pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    deadline = time.monotonic() + patience(10)
    while not all(has_ended(process) for process in left):
        assert time.monotonic() < deadline, left
        time.sleep(0.005)
    shutil.rmtree(folder)


@pytest.mark.parametrize("start", STARTS)
def test_without_a_log_there_is_nothing_to_read(start: Start) -> None:
    with start(log=False) as server, pytest.raises(ValueError, match="log=True"):
        server.statements()


def test_what_a_server_refuses_is_told_with_its_reason() -> None:
    with pytest.raises(ProcessError, match="no_such_setting"), postgres(settings=["no_such_setting=1"]):
        pass
    with pytest.raises(ProcessError, match="no-such-option"), mariadb(options=["--no-such-option"]):
        pass
    with pytest.raises(ProcessError, match="no-such-option"), redis(options=["--no-such-option", "1"]):
        pass


def test_a_client_does_nothing_before_it_is_told_to(postgres_server: Postgres) -> None:
    with client("psycopg", postgres_server, "simple") as program:
        assert psutil.pid_exists(program.pid)
        assert postgres_server.statements() == []
        assert len(program.calls()) == len(postgres_server.statements())


def test_a_client_that_fails_says_why(postgres_server: Postgres) -> None:
    with client("psycopg", postgres_server, "no_such_feature") as program:
        with pytest.raises(ProcessError, match="no such features: no_such_feature\nhint: startup, "):
            program.calls()


@pytest.mark.parametrize(("name", "count"), [("psycopg", 104), ("asyncpg", 148)])
def test_postgres_logs_what_its_clients_sent(postgres_server: Postgres, name: str, count: int) -> None:
    with client(name, postgres_server) as program:
        calls = program.calls()
    assert len(calls) == count
    assert by_port(begun(postgres_server.statements())) == by_port(calls)


def test_postgres_statements_are_waited_for_when_the_log_is_late(postgres_server: Postgres) -> None:
    (logger,) = (pid for pid in postgres_server.pids if "logger" in psutil.Process(pid).cmdline()[0])
    os.kill(logger, signal.SIGSTOP)
    later = threading.Timer(0.5, os.kill, (logger, signal.SIGCONT))
    later.start()
    try:
        with client("psycopg", postgres_server, "errors") as program:
            calls = program.calls()
        assert by_port(begun(postgres_server.statements())) == by_port(calls)
    finally:
        later.join()


def test_postgres_durations_lie_within_those_of_the_client(postgres_server: Postgres) -> None:
    with client("psycopg", postgres_server, "slow") as program:
        calls = program.calls()
    statements = begun(postgres_server.statements())
    for call, statement, sleep_ns in zip(calls, statements, (10**6, 10**7, 10**8), strict=True):
        assert statement.duration_ns is not None
        assert sleep_ns <= statement.duration_ns <= call.end_ns - call.start_ns


def test_postgres_logs_parse_and_bind_of_what_was_prepared(postgres_server: Postgres) -> None:
    """psycopg's threshold of 2: two executions of their own, then one Parse for the three others."""
    with client("psycopg", postgres_server, "prepared") as program:
        program.calls()
    kinds = Counter(each.kind for each in postgres_server.statements() if each.text == "SELECT $1::int * 2")
    assert kinds == {"parse": 3, "bind": 5, "execute": 5}


def test_a_refused_login_is_no_statement(postgres_server: Postgres) -> None:
    with client("psycopg", postgres_server, "password") as program:
        program.calls()
    refused = [each for each in postgres_server.statements() if each.kind == "refused"]
    assert [(each.text, each.error) for each in refused] == [("", "28P01")]


@pytest.mark.parametrize("mode", clients.PGBENCH_MODES)
def test_pgbench_sends_what_it_reports(postgres_server: Postgres, mode: str) -> None:
    """Its default transaction is BEGIN, three UPDATE, SELECT, INSERT, END."""
    clients.initialize_pgbench(postgres_server)
    before = len(postgres_server.statements())
    with clients.pgbench(postgres_server, mode, connections=2, transactions=23) as program:
        assert "number of transactions actually processed: 46/46" in program.output()
    statements = postgres_server.statements()[before:]
    kinds = Counter(each.kind for each in statements)
    wanted = "statement" if mode == "simple" else "execute"
    per_port = Counter(each.port for each in statements if each.kind == wanted)
    words = Counter(each.text.partition(" ")[0].rstrip(";") for each in statements if each.kind == wanted)
    own = {"BEGIN": 46, "UPDATE": 138, "INSERT": 46, "END": 46}
    assert {word: words[word] for word in own} == own
    assert 2 * 7 * 23 <= kinds[wanted] <= 2 * 7 * 23 + 3  # it looks at the tables first
    assert sorted(per_port.values())[-2:] == [7 * 23, 7 * 23]
    assert kinds["parse"] == {"simple": 0, "extended": 2 * 7 * 23, "prepared": 2 * 7}[mode]


def test_psql_sends_a_file_statement_by_statement(postgres_server: Postgres) -> None:
    script = "SELECT 1;\nSELECT 2 \\; SELECT 3;\nSELEC 4;\nSELECT 'one;\ntwo';\n"
    with clients.psql(postgres_server, script) as program:
        assert program.output() == "1\n2\n3\none;\ntwo\n"
    assert [(each.kind, each.text, each.error) for each in postgres_server.statements()] == [
        ("statement", "SELECT 1;", ""),
        ("statement", "SELECT 2 ; SELECT 3;", ""),
        ("error", "SELEC 4;", "42601"),
        ("statement", "SELECT 'one;\ntwo';", ""),
    ]


def test_postgres_speaks_tls_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to SSLRequest is S, and what follows are TLS records (22: handshake)."""
    monkeypatch.setenv("PGSSLMODE", "require")
    with postgres(tls=True) as server:
        with relay(server.port) as between, client("psycopg", server, "simple", port=between.port) as program:
            calls = program.calls()
        assert [each.text for each in begun(server.statements())] == [call.text for call in calls]
    (chunks,) = between.conversations
    assert chunks[:2] == [(0, bytes.fromhex("0000000804d2162f")), (1, b"S")]
    assert chunks[2][1][0] == 22
    assert not any(b"SELECT" in data for _, data in chunks)


def test_mariadb_logs_the_queries_that_were_sent(mariadb_server: MariaDB) -> None:
    with client("pymysql", mariadb_server) as program:
        calls = program.calls()
    queries = [each for each in mariadb_server.statements() if each.kind == "query"]
    assert len(queries) == 51
    assert [
        (each.port, each.text, each.error, each.rows)
        for each in sorted(queries, key=lambda each: each.session)
    ] == [(call.port, call.text[:TEXT_BYTES], call.error, call.rows) for call in calls]


def test_mariadb_logs_the_commands_that_were_sent(mariadb_server: MariaDB) -> None:
    """Its text of an execution has the values in it, of a failed preparation there is none."""
    with client("mariadb", mariadb_server) as program:
        calls = program.calls()
    statements = mariadb_server.statements()
    told = [each for each in statements if each.kind in ("query", "prepare", "execute", "bulk_execute")]
    assert len(told) == len(calls) == 42
    for call, statement in zip(calls, sorted(told, key=lambda each: each.session), strict=True):
        assert (statement.port, statement.error) == (call.port, call.error)
        if statement.kind == "prepare" and call.error:
            assert statement.text == ""
        elif statement.kind == "execute":
            assert re.fullmatch(re.escape(call.text).replace(r"\?", ".+"), statement.text, re.DOTALL)
        else:
            assert statement.text == call.text
    others = {"close stmt": 8, "long data": 5, "fetch": 3, "init db": 2, "change user": 2, "reset stmt": 1}
    once = {"bulk_execute": 1, "ping": 1, "statistics": 1, "set option": 1, "reset connection": 1}
    kinds = Counter(each.kind for each in statements)
    assert {kind: kinds[kind] for kind in {**others, **once}} == {**others, **once}


def test_mariadb_logs_what_a_client_sent_before_it_had_answers(mariadb_server: MariaDB) -> None:
    with client("node", mariadb_server) as program:
        calls = program.calls()
    statements = mariadb_server.statements()
    told = sorted(
        (each for each in statements if each.kind in ("query", "execute")), key=lambda each: each.session
    )
    executed = [each.text for each in told if each.kind == "execute"]
    assert executed == [
        "SELECT seq FROM seq_1_to_5 WHERE seq > 1",
        "SELECT seq FROM seq_1_to_5 WHERE seq > 2",
        "SELECT 'text' AS other",
    ]
    # The client tells a call when it has its answer, and answers come in the order of the queries.
    assert [(each.port, each.error, each.rows) for each in told] == [
        (call.port, call.error, call.rows) for call in calls
    ]
    assert [each.text for each in told if each.kind == "query"] == [
        call.text[:TEXT_BYTES] for call in calls if call.feature != "prepared"
    ]
    kinds = Counter(each.kind for each in statements)
    assert (kinds["prepare"], kinds["close stmt"]) == (2, 1)


def test_mariadb_compresses_for_who_asks(mariadb_server: MariaDB) -> None:
    """100 rows of 900 bytes go through the relay as a fiftieth of that."""
    with relay(mariadb_server.port) as between:
        with client("mariadb", mariadb_server, "compressed", port=between.port) as program:
            assert sum(call.rows for call in program.calls()) == 102
    (chunks,) = between.conversations
    assert 500 < sum(len(data) for _, data in chunks) < 90_000 / 10


def test_redis_shows_what_was_sent(redis_server: Redis) -> None:
    with client("redis", redis_server) as program:
        calls = program.calls()
    statements = redis_server.statements()
    assert len(calls) == 177

    def texts(told: Sequence[Call | Statement]) -> dict[int, list[str]]:
        return {port: [text for text, _ in pairs] for port, pairs in by_port(told).items()}

    assert texts([each for each in statements if each.kind != "lua"]) == texts(calls)
    assert [each.text for each in statements if each.kind == "lua"] == ["SET s:1 value", "GET s:1"]
    # ERR: INCR of a text alone and within EXEC, two wrong numbers of words, an unknown command
    assert redis_server.errors() == {"WRONGTYPE": 2, "ERR": 5, "NOSCRIPT": 1, "MINE": 1}
    assert Counter(call.error for call in calls if call.error) == {
        "WRONGTYPE": 2,
        "ERR": 1,
        "NOSCRIPT": 1,
        "MINE": 1,
    }


def test_redis_benchmark_sends_what_it_should(redis_server: Redis) -> None:
    with clients.redis_benchmark(redis_server, requests=1008, clients=2, pipeline=16) as program:
        assert '"SET"' in program.output()
    kinds = Counter(each.kind for each in redis_server.statements())
    assert (kinds["set"], kinds["get"]) == (1008, 1008)


@pytest.mark.parametrize(
    ("start", "name", "feature"),
    [
        (postgres, "psycopg", "simple"),
        (postgres, "asyncpg", "prepared"),
        (mariadb, "pymysql", "query"),
        (mariadb, "mariadb", "prepare"),
        (mariadb, "node", "without_eof"),
        (redis, "redis", "resp2"),
    ],
)
def test_clients_use_the_unix_socket(start: Start, name: str, feature: str) -> None:
    with start() as server:
        with client(name, server, feature, unix=True) as program:
            calls = program.calls()
        statements = server.statements()
    assert {call.port for call in calls} == {each.port for each in statements} == {0}
    texts = {each.text for each in statements}
    assert all(call.text in texts for call in calls if "?" not in call.text)


@pytest.mark.parametrize("start", STARTS)
def test_databases_find_their_own_ports(start: Start) -> None:
    with start(log=False) as one, start(log=False) as other:
        assert one.port != other.port
        assert one.folder != other.folder
        assert Path(f"/proc/{one.pid}").exists() and os.path.exists(other.socket)
