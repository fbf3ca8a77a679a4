# SPDX-License-Identifier: Apache-2.0
"""Database clients that do a known sequence of calls, each a process of its own, and say what they did.

    with client("psycopg", server, "simple", "pipeline") as program:
        program.pid              # it waits: here it can be traced from its start
        program.calls()          # goes, ends, and tells each call with its own clock

Without features a client does all that it has, in a fixed order. Every run sends the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import build
from benchmarks.databases.postgres import binary
from benchmarks.databases.server import Database
from benchmarks.patience import patience
from benchmarks.processes import Child, ProcessError

HERE = Path(__file__).resolve().parent
RUN_TIMEOUT_S = patience(60.0)
PYTHON_CLIENTS = ("psycopg", "asyncpg", "pymysql", "redis")
PGBENCH_MODES = ("simple", "extended", "prepared")


@dataclass(frozen=True)
class Call:
    """One statement or command as the client saw it.

    text: what it sent. start_ns, end_ns: CLOCK_MONOTONIC, before it was sent and when its outcome was known.
    error: SQLSTATE, MySQL's number or Redis' first word; empty: it went well. port: the client's; 0: Unix.
    """

    feature: str
    text: str
    start_ns: int
    end_ns: int
    rows: int
    error: str
    port: int


class Client:
    """A client that waits for a line before it begins."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.pid

    def output(self, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Lets it go, waits for its end, and gives what it printed; raises when it failed."""
        try:
            output, _ = self._child.process.communicate(b"go\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self._child.name} has not ended after {timeout_s:g} s") from None
        if self._child.process.returncode != 0:
            self._child.check()
        return str(output.decode())

    def calls(self, timeout_s: float = RUN_TIMEOUT_S) -> list[Call]:
        return [Call(**json.loads(line)) for line in self.output(timeout_s).splitlines()]


@contextmanager
def client(
    name: str, server: Database, *features: str, port: int = 0, unix: bool = False, cpus: Sequence[int] = ()
) -> Iterator[Client]:
    """psycopg, asyncpg, pymysql, mariadb (in C, on MariaDB's library) or redis, on the server.

    port: another one that leads there. unix: over the server's Unix socket.
    """
    program: list[str | Path]
    if name == "mariadb":
        program = [build.c_program(HERE / "mariadb_client.c", "-lmariadb")]
    else:
        program = [sys.executable, "-m", f"benchmarks.clients.{name}_client"]
    target = [str(server.socket) if unix else "127.0.0.1", str(port or server.port)]
    with _waiting([*program, *target, *features], name, cpus) as waiting:
        yield waiting


@contextmanager
def pgbench(
    server: Database, mode: str, *, connections: int = 2, transactions: int = 200, script: str = ""
) -> Iterator[Client]:
    """pgbench in one of its modes; `initialize_pgbench` first. script: SQL of a transaction of our own."""
    options = ["-n", "-M", mode, "-c", str(connections), "-t", str(transactions)]
    target = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "postgres"]
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-pgbench-") as folder:
        if script:
            file = Path(folder) / "transaction.sql"
            file.write_text(script)
            options += ["-f", str(file)]
        with _waiting([*_AFTER_A_LINE, binary("pgbench"), *options, *target], "pgbench") as waiting:
            yield waiting


def initialize_pgbench(server: Database) -> None:
    target = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "postgres"]
    subprocess.run([binary("pgbench"), "-i", "-q", "-s", "1", *target], check=True, capture_output=True)


@contextmanager
def psql(server: Database, script: str) -> Iterator[Client]:
    """`psql -f`: statement by statement, each a simple query, errors passed over."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        target = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-d", "postgres"]
        command = [*_AFTER_A_LINE, binary("psql"), "-X", "-q", "-A", "-t", *target, "-f", file.name]
        with _waiting(command, "psql") as waiting:
            yield waiting


@contextmanager
def redis_benchmark(
    server: Database, *, requests: int = 1000, clients: int = 2, pipeline: int = 16, tests: str = "set,get"
) -> Iterator[Client]:
    """redis-benchmark; it sends `requests` of each of its tests, and CONFIG GET twice before."""
    options = ["-n", str(requests), "-c", str(clients), "-P", str(pipeline), "-t", tests, "--csv"]
    command = [*_AFTER_A_LINE, "redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), *options]
    with _waiting(command, "redis-benchmark") as waiting:
        yield waiting


# The shell becomes the program: its pid is known before it runs.
_AFTER_A_LINE: list[str | Path] = ["sh", "-c", 'read -r _ && exec "$0" "$@"']


@contextmanager
def _waiting(command: Sequence[str | Path], name: str, cpus: Sequence[int] = ()) -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-client-") as folder:
        log = Path(folder) / "output.log"
        pipe = subprocess.PIPE
        child = Child(command, log=log, stdin=pipe, stdout=pipe, cpus=cpus)
        child.name = name
        try:
            yield Client(child)
        finally:
            child.stop()
