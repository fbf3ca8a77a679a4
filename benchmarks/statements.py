# SPDX-License-Identifier: Apache-2.0
"""Database statements against the truth: the servers' logs, the clients' clocks; and what they cost.

python -m benchmarks statements [--profile smoke|short] [--only PART...] [--json FILE]

truth     real clients, traced; each statement of the server's own log has one span of its text, and no span
          has none. Texts are compared as tests/sql_reference.py makes them safe.
clock     the duration of each span beside that of the client's own clock around the call
core      recorded conversations through the core alone: CPU per statement, parse to span
flood     redis-benchmark -P 16 at its full speed: the server's count of commands, the spans, and the ledger
large     a result of 100 MB: which share of its bytes reached user space
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import agent as agents
from benchmarks import clients, command, databases, harness
from benchmarks.agent import Agent, Counters, agent
from benchmarks.clients import Call, Client, client
from benchmarks.databases import Database, Statement, mariadb, postgres, redis
from benchmarks.harness import Estimate, Figure, Report, estimate
from benchmarks.patience import patience
from benchmarks.spans import Span, read_spans

LONG = 8192  # SQL_MAX of agent/core/statements.h
NS_PER_US = 1000


@dataclass(frozen=True)
class Profile:
    """flood_requests: of each of redis-benchmark's tests. large_rows: of 1,000 bytes."""

    rounds: int
    flood_requests: int
    large_rows: int


PROFILES = {"smoke": Profile(1, 20_000, 20_000), "short": Profile(5, 500_000, 100_000)}

# How each program is asked to run, and against which server.
Waiting = Callable[[Database], AbstractContextManager[Client]]
POSTGRES: dict[str, Waiting] = {
    "psycopg": lambda server: client("psycopg", server),
    "asyncpg": lambda server: client("asyncpg", server),
    **{
        f"pgbench -M {mode}": lambda server, mode=mode: clients.pgbench(server, mode)  # type: ignore[misc]
        for mode in clients.PGBENCH_MODES
    },
}
MARIADB: dict[str, Waiting] = {
    "pymysql": lambda server: client("pymysql", server),
    "mariadb": lambda server: client("mariadb", server),
    "node": lambda server: client("node", server),
}
REDIS: dict[str, Waiting] = {"redis": lambda server: client("redis", server)}


@dataclass
class Run:
    """What a traced client did: the spans of it, and what it printed."""

    spans: list[Span]
    output: str
    counters: Counters


@contextmanager
def traced(pid: int, folder: Path, **environment: str) -> Iterator[tuple[Agent, Path]]:
    """With a process that sleeps beside it: an agent ends, counters and all, with the last that it traces."""
    file = folder / f"spans-{time.monotonic_ns()}.jsonl"
    sleeper = subprocess.Popen(["sleep", "infinity"])
    try:
        with agent(
            [pid, sleeper.pid], exporters=[f"jsonl:{file}"], env=environment, folder=folder
        ) as running:
            yield running, file
    finally:
        sleeper.kill()
        sleeper.wait()


def run_traced(waiting: AbstractContextManager[Client], folder: Path, **environment: str) -> Run:
    """Lets the client go with the agent on it, from its first connection on."""
    with waiting as program:
        with traced(program.pid, folder, **environment) as (tracer, file):
            output = program.output()
            counters = tracer.settled()
        return Run(read_spans(file), output, counters)


# ---------------------------------------------------------------- the truth

Told = tuple[str, str]  # a text that can be compared, an error


def safe(text: str, dialect: str) -> str:
    """A statement as both sides can be compared: without literals. One that may not be told is empty."""
    from tests.sql_reference import sanitized  # the second implementation, which the tests hold the first to

    if len(text) > LONG:  # the span has the beginning, which ends within a literal
        text = text[:LONG] + "'"
    read = sanitized(text, dialect, "literal" if dialect == "postgresql" else "escapes") or ""
    return read.replace("NULL", "?")  # MariaDB's log has the values where the statement has placeholders


def of_sql(statements: Sequence[Statement], dialect: str) -> list[Told]:
    """What of a log is a statement, or failed, not the steps to one. Of several in one query MariaDB
    logs the first with the whole text, and each later one with what is left of it."""
    spoken = {"statement", "execute", "query", "bulk_execute", "init db"}
    logged, before = [], ""
    for each in sorted(statements, key=lambda each: (each.session, each.number)):
        rest = each.kind == "query" and bool(each.text) and before.endswith("; " + each.text)
        if (each.kind in spoken or each.error) and not rest:
            logged.append((safe(each.text, dialect), each.error or ""))
        before = each.text
    return logged


def spans_of_sql(spans: Sequence[Span], dialect: str) -> list[Told]:
    """But for logins that were refused, which MariaDB does not log as statements."""
    asked = [span for span in spans if span["db.operation.name"] != "Connect"]
    return [(safe(str(span["db.query.text"] or ""), dialect), span["error.type"] or "") for span in asked]


def of_redis(statements: Sequence[Statement]) -> list[Told]:
    """MONITOR shows what was run, script by script too, and nothing that is for administrators."""
    return [(each.text.partition(" ")[0].upper(), "") for each in statements if each.kind != "lua"]


def spans_of_redis(spans: Sequence[Span], shown: Sequence[Told]) -> list[Told]:
    """Those of commands that MONITOR shows. ERR tells of what is refused before it is run, which it does not
    show, and of what fails while it is run, which it does: those count that the others leave to be found."""
    names: dict[bool, list[Told]] = {False: [], True: []}
    for span in spans:
        name = str(span["db.operation.name"]).partition(" ")[0]
        names[span["db.response.status_code"] == "ERR"].append((name, ""))
    open_ones = Counter(shown) - Counter(names[False])
    failed = list((Counter(names[True]) & open_ones).elements())
    return [name for name in names[False] + failed if name in set(shown)]


@dataclass
class Comparison:
    program: str
    logged: int
    found: int
    invented: int
    missing: list[str]

    def row(self) -> list[str]:
        example = "; ".join(self.missing[:2])
        return [self.program, str(self.logged), str(self.found), str(self.invented), example[:100]]


def compare(program: str, logged: Sequence[Told], spans: Sequence[Told]) -> Comparison:
    """Which of the log have a span of their own, and how many spans have none of the log. Where the log has
    no text, or not all of it (a login, what could not be prepared, a long one), the outcome is compared."""
    truth = Counter(text for text, _ in logged if text)
    found = Counter(text for text, _ in spans)
    missing, invented = truth - found, found - truth
    nameless = Counter(error for text, error in logged if not text)
    errors = Counter(error for text, error in spans if invented[text])
    missing += Counter({f"error {error}": count for error, count in (nameless - errors).items()})
    told = (nameless & errors).total()
    return Comparison(
        program, len(logged), len(logged) - missing.total(), invented.total() - told, list(missing.elements())
    )


def compare_all(folder: Path) -> list[Comparison]:
    """Each program against a server of its own."""
    results = []
    for programs, start, dialect in ((POSTGRES, postgres, "postgresql"), (MARIADB, mariadb, "mariadb")):
        for name, waiting in programs.items():
            with start() as server:
                if name.startswith("pgbench"):
                    clients.initialize_pgbench(server)
                before = len(server.statements())
                run = run_traced(waiting(server), folder)
                logged = of_sql(server.statements()[before:], dialect)
                results.append(compare(name, logged, spans_of_sql(run.spans, dialect)))
    for name, waiting in REDIS.items():
        with redis() as server:
            run = run_traced(waiting(server), folder)
            logged = of_redis(server.statements())
            results.append(compare(name, logged, spans_of_redis(run.spans, logged)))
    return results


def truth(profile: Profile, report: Report, folder: Path) -> None:
    results = compare_all(folder)
    logged, found = sum(r.logged for r in results), sum(r.found for r in results)
    invented = sum(r.invented for r in results)
    share = 100.0 * found / max(1, logged)
    goals = harness.goals()
    note = f"{found:,} of {logged:,}"
    report.figures.append(Figure(goals["statements_found"], Estimate(share, share, share, 1), note))
    report.figures.append(Figure(goals["statements_invented"], Estimate(invented, invented, invented, 1)))
    report.tables["Statements"] = [
        ["client", "logged", "found", "invented", "missing"],
        *(r.row() for r in results),
    ]


# ---------------------------------------------------------------- clocks


def paired(calls: Sequence[Call], spans: Sequence[Span]) -> list[tuple[Call, Span]]:
    """Calls and spans of one connection that does one thing after the other: both are in order."""
    return list(zip(calls, spans, strict=False)) if len(calls) == len(spans) else []


def clock(profile: Profile, report: Report, folder: Path) -> None:
    goal, rows = harness.goals()["statements_duration"], [["client", "calls", "median us", "90% us"]]
    medians = []
    features: dict[str, tuple[Callable[..., AbstractContextManager[Database]], str]]
    features = {"psycopg": (postgres, "extended"), "pymysql": (mariadb, "query"), "redis": (redis, "resp2")}
    for name, (start, feature) in features.items():
        errors: list[float] = []
        for _ in range(profile.rounds):
            with start(log=False) as server:
                run = run_traced(client(name, server, feature), folder)
            calls = [Call(**json.loads(line)) for line in run.output.splitlines()]
            for call, span in paired(calls, run.spans):
                errors.append(abs((call.end_ns - call.start_ns) - (span.end_ns - span.start_ns)) / NS_PER_US)
        if not errors:
            report.warn(f"clock: {name}: calls and spans are not as many")
            continue
        medians += errors
        tenths = statistics.quantiles(errors, n=10)
        rows.append([name, str(len(errors)), f"{statistics.median(errors):.1f}", f"{tenths[-1]:.1f}"])
    report.figures.append(Figure(goal, estimate(medians), "the client's own work is in its clock"))
    report.tables["Durations, the client's clock less the span's"] = rows


# ---------------------------------------------------------------- cost of the core


def core(profile: Profile, report: Report, folder: Path) -> None:
    from tests.core import speed

    rows = [["conversation", "statements", "us per statement"]]
    worst: list[float] = []
    for name, count, seconds in speed.measure(profile.rounds):
        rows.append([name, str(count), f"{seconds * 1e6:.2f}"])
        worst.append(seconds * 1e6)
    report.figures.append(
        Figure(harness.goals()["statements_core"], estimate(worst), "median of conversations")
    )
    report.tables["Core"] = rows


# ---------------------------------------------------------------- flood and size


def flood(profile: Profile, report: Report, folder: Path) -> None:
    with redis(log=False) as server:
        waiting = clients.redis_benchmark(server, requests=profile.flood_requests, clients=10, pipeline=16)
        with waiting as program, traced(program.pid, folder) as (tracer, _):
            before = commands_of(server)
            program.output(timeout_s=patience(120.0))
            counters = tracer.settled()
            asked = commands_of(server) - before
    spans = counters.total(agents.SPANS) or 0
    classes = counters.by(agents.CHUNKS, "class")
    kernel = counters.total(agents.KERNEL_CHUNKS)
    share = 100.0 * spans / max(1, asked)
    note = f"{spans:,} of {asked:,}; chunks: kernel {kernel:,}, classes {sum(classes.values()):,}"
    report.figures.append(Figure(harness.goals()["statements_flood"], Estimate(share, share, share, 1), note))
    report.tables["Flood: chunks by class"] = [list(classes), [str(value) for value in classes.values()]]
    if kernel != sum(classes.values()):
        report.warn(f"flood: {kernel} chunks are not {sum(classes.values())}: the ledger is wrong")


def commands_of(server: Database) -> int:
    """Commands of redis-benchmark that the server has run: it begins with CONFIG GET."""
    assert isinstance(server, databases.Redis)
    lines = server.command("INFO", "commandstats").splitlines()
    calls = (
        line.partition("calls=")[2].partition(",")[0]
        for line in lines
        if line.startswith(("cmdstat_get:", "cmdstat_set:", "cmdstat_config|get:"))
    )
    return sum(map(int, calls))


def large(profile: Profile, report: Report, folder: Path) -> None:
    series = f"generate_series(1, {profile.large_rows})"
    script = (
        f"SELECT repeat('y', 1000) FROM {series};\nCOPY (SELECT repeat('x', 1000) FROM {series}) TO STDOUT;"
    )
    with postgres(log=False) as server, clients.psql(server, script) as program:
        with traced(program.pid, folder) as (tracer, file):
            size = len(program.output(timeout_s=patience(120.0)))
            counters = tracer.settled()
        spans = read_spans(file)
    copied = counters.total("ebpf_otlp_tracer_kernel_captured_bytes_total") or 0
    share = 100.0 * copied / size
    told = ", ".join(f"{span.name}: {span['db.response.returned_rows']}" for span in spans)
    note = f"{copied:,} of {size:,}; rows told: {told}"
    report.figures.append(Figure(harness.goals()["statements_large"], Estimate(share, share, share, 1), note))


# ---------------------------------------------------------------- the run

PARTS: dict[str, tuple[str, Callable[[Profile, Report, Path], None]]] = {
    "truth": ("statements_found", truth),
    "clock": ("statements_duration", clock),
    "core": ("statements_core", core),
    "flood": ("statements_flood", flood),
    "large": ("statements_large", large),
}


def run(profile: Profile, parts: Sequence[str]) -> Report:
    report = Report("statements", asdict(profile))
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-statements-") as name:
        for part in parts:
            print(part, file=sys.stderr, flush=True)
            PARTS[part][1](profile, report, Path(name))
    return report


def main(arguments: list[str]) -> int:
    parser = command.parser("statements", __doc__, PROFILES)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be given again")
    options: argparse.Namespace = parser.parse_args(arguments)
    return command.measure(
        options, PROFILES[options.profile], (), lambda p: run(p, options.only or list(PARTS))
    )
