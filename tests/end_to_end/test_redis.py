# SPDX-License-Identifier: Apache-2.0
"""Real clients of a real Redis: as many spans as commands, with names, errors and times as both ends tell."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.clients import client, redis_benchmark
from benchmarks.databases import redis
from benchmarks.databases.redis import Redis
from benchmarks.patience import patience
from benchmarks.processes import free_port
from benchmarks.spans import CLIENT, SERVER

pytestmark = pytest.mark.kernel

# What the client does beside the calls that it tells of.
UNTOLD = Counter(
    {
        ("DEBUG", ""): 6,
        ("MONITOR", ""): 1,
        ("NO_SUCH_COMMAND", "ERR"): 1,
        ("GET", "ERR"): 1,
        ("SUBSCRIBE", "ERR"): 1,
    }
)


def name_of(text: str) -> str:
    return text.split(" ")[0].upper()


def first_word(span) -> str:
    return span["db.operation.name"].split(" ")[0]


@pytest.mark.parametrize("unix", [False, True])
def test_redis_py_does_all_that_it_can(trace, unix):
    with redis() as server, client("redis", server, unix=unix) as program:
        with trace([program.pid]) as traced:
            calls = program.calls()
            traced.wait_for(len(calls) + UNTOLD.total())
        logged = server.statements()
        refused = server.errors()
    spans = traced.of(CLIENT)
    assert len(spans) == len(traced.spans)
    told = Counter((name_of(call.text), call.error) for call in calls)
    assert Counter((first_word(s), s["db.response.status_code"] or "") for s in spans) == told + UNTOLD
    # MONITOR hides what is for administrators and what is refused before it runs.
    seen = Counter(name_of(s.text) for s in logged if s.kind != "lua")
    assert not seen - Counter(map(first_word, spans))
    assert Counter(s["db.response.status_code"] for s in spans if s.status) <= Counter(refused)
    assert {s["db.namespace"] for s in spans} == {"0", "3"}
    assert {s["db.system.name"] for s in spans} == {"redis"}


def test_each_span_lies_within_its_call(trace):
    with redis() as server, client("redis", server, "resp2", "scripts") as program:
        with trace([program.pid]) as traced:
            calls = program.calls()
            traced.wait_for(len(calls))
    spans = traced.of(CLIENT)
    assert [first_word(s) for s in spans] == [name_of(call.text) for call in calls]
    offsets = {round((s.start_ns - call.start_ns) / 1e9) for s, call in zip(spans, calls, strict=True)}
    assert len(offsets) == 1, "of the wall clock to the monotonic one"
    for span, call in zip(spans, calls, strict=True):
        assert span.end_ns - span.start_ns <= call.end_ns - call.start_ns


# Selects database 7 and says so; then, for each line, asks and prints the answer.
CONNECTED = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
stream = connection.makefile("rb")
connection.sendall(b"*2\\r\\n$6\\r\\nSELECT\\r\\n$1\\r\\n7\\r\\n")
print(stream.readline(), flush=True)
for line in sys.stdin:
    words = line.split()
    parts = [b"$%d\\r\\n%b\\r\\n" % (len(word), word.encode()) for word in words]
    connection.sendall(b"*%d\\r\\n" % len(words) + b"".join(parts))
    print(stream.readline(), flush=True)
"""


def test_a_connection_that_was_there_before(trace):
    with redis() as server:
        command = [sys.executable, "-c", CONNECTED, str(server.port)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            assert "OK" in process.stdout.readline()
            with trace([process.pid]) as traced:
                for line in ("SET a 1", "INCR a", "LPUSH a x", "SELECT 3", "INCR b"):
                    print(line, file=process.stdin, flush=True)
                    process.stdout.readline()
                traced.wait_for(5)
            process.stdin.close()
    found = [(s.name, s["db.namespace"], s["db.response.status_code"]) for s in traced.of(CLIENT)]
    assert found == [
        ("SET", None, None),
        ("INCR", None, None),
        ("LPUSH", None, "WRONGTYPE"),
        ("SELECT", "3", None),
        ("INCR", "3", None),
    ]


# For each line of its input sends it, and prints the first line of the answer.
TYPED = """
import socket, sys
sys.stdin.readline()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
stream = connection.makefile("rb")
for line in sys.argv[2:]:
    connection.sendall(line.encode() + b"\\r\\n")
    print(stream.readline(), flush=True)
"""


@contextmanager
def typed(port: int, *lines: str) -> Iterator[subprocess.Popen[str]]:
    """A client that sends these lines, each when the one before was answered, as soon as it is let go."""
    command, pipe = [sys.executable, "-c", TYPED, str(port), *lines], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_connection_that_begins_with_an_inline_command(trace):
    lines = ["PING", "AUTH me s3cret", "select 2", "SET a 1", "LPUSH a x"]
    with redis() as server, typed(server.port, *lines) as process:
        with trace([process.pid]) as traced:
            answers = process.communicate("go\n", timeout=patience(10))[0]
        logged = server.statements()
    assert "PONG" in answers and "WRONGTYPE" in answers
    found = [(s.name, s["db.namespace"], s["db.response.status_code"]) for s in traced.of(CLIENT)]
    assert [name for name, _, _ in found] == ["PING", "AUTH", "SELECT", "SET", "LPUSH"]
    assert found[0][1:] == ("0", None) and found[1][2] and found[4][1:] == ("2", "WRONGTYPE")
    assert "s3cret" not in traced.file.read_text()
    seen = Counter(name_of(s.text) for s in logged)
    assert seen["PING"] and not seen - Counter(name for name, _, _ in found)


@contextmanager
def cluster() -> Iterator[list[Redis]]:
    """Two nodes, each with half of the slots.

    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
    """
    buses = [str(free_port()) for _ in range(2)]
    options = [("--cluster-enabled", "yes", "--cluster-port", bus) for bus in buses]
    with redis(log=False, options=options[0]) as first, redis(log=False, options=options[1]) as second:
        nodes = [first, second]
        for node, slots in zip(nodes, (("0", "8191"), ("8192", "16383")), strict=True):
            assert node.command("CLUSTER", "ADDSLOTSRANGE", *slots) == "OK"
        assert first.command("CLUSTER", "MEET", "127.0.0.1", str(second.port), buses[1]) == "OK"
        for node in nodes:
            deadline = time.monotonic() + patience(30)
            while "cluster_state:ok" not in node.command("CLUSTER", "INFO"):
                assert time.monotonic() < deadline, "the nodes did not find each other"
                time.sleep(0.05)
        yield nodes


def test_a_redirection_is_an_outcome(trace):
    with cluster() as (first, second), typed(first.port, "PING", "GET foo", "GET bar") as process:
        answered = first.command("CLUSTER", "SETSLOT", "5061", "MIGRATING", second.command("CLUSTER", "MYID"))
        assert answered == "OK", "the slot of bar"
        with trace([process.pid]) as traced:
            answers = process.communicate("go\n", timeout=patience(10))[0]
    assert f"-MOVED 12182 127.0.0.1:{second.port}" in answers
    assert f"-ASK 5061 127.0.0.1:{second.port}" in answers
    found = [(s.name, s["db.response.status_code"], s["error.type"]) for s in traced.of(CLIENT)]
    assert found == [("PING", None, None), ("GET", "MOVED", "MOVED"), ("GET", "ASK", "ASK")]


# What answers PING as NATS does, with its INFO before the answer or before the question.
NATS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
if sys.argv[1] == "first":
    connection.sendall(b'INFO {"server_id":"x"}\\r\\n')
for line in connection.makefile("rb"):
    connection.sendall(b"PONG\\r\\n" if line == b"PING\\r\\n" else b"-ERR 'Unknown Protocol Operation'\\r\\n")
"""


@pytest.mark.parametrize("info", ["first", "never"])
def test_nats_also_begins_with_ping(trace, info):
    command = [sys.executable, "-c", NATS, info]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with typed(port, "PING", "PING", "SUB a", "PING") as process:
            option = {"EBPF_OTLP_TRACER_DATABASE_SERVER_SPANS": "true"}
            with trace([process.pid, server.pid], **option) as traced:
                answers = process.communicate("go\n", timeout=patience(10))[0]
        server.wait(patience(10))
    assert answers.count("PONG") >= 2
    assert traced.spans == []


@pytest.mark.parametrize("pipeline", [1, 16, 500])
def test_redis_benchmark_pipelines(trace, pipeline):
    with redis() as server, redis_benchmark(server, requests=1000, clients=2, pipeline=pipeline) as program:
        with trace([program.pid]) as traced:
            program.output()
        logged = server.statements()
    counts = Counter(s.name for s in traced.of(CLIENT))
    wanted = Counter(statement.text.split(" ")[0].upper() for statement in logged)
    assert {name: counts[name] for name in wanted} == wanted
    assert counts["CONFIG GET"] == 2 * 1
    sizes = {s["db.operation.batch.size"] for s in traced.spans if s.name in ("SET", "GET")}
    assert max(size or 1 for size in sizes) == pipeline


# After a line: COUNT commands in one pipeline, SET and GET in turn, or one SET of COUNT bytes.
DEEP = """
import sys, redis
port, what, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
client = redis.Redis(port=port, socket_timeout=None)
if what == "value":
    client.set("key", "v" * count)
else:
    pipeline = client.pipeline(transaction=False)
    for i in range(count // 2):
        pipeline.set(f"key:{i}", "value")
        pipeline.get(f"key:{i}")
    assert len(pipeline.execute()) == count
"""


@contextmanager
def deep(server, what: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """It waits; to go on with communicate()."""
    command = [sys.executable, "-c", DEEP, str(server.port), what, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("commands", "options"),
    [
        (20_000, {}),
        # So many wait that the memory for them may not do, nor the ring for 5 MB at once.
        (
            100_000,
            {
                "EBPF_OTLP_TRACER_CAPTURE_RING_BYTES": str(16 << 20),
                "EBPF_OTLP_TRACER_CORE_BUFFER_BYTES_MAX": str(64 << 20),
            },
        ),
    ],
)
def test_a_deep_pipeline_has_a_span_for_each_command(trace, commands, options):
    with redis(log=False) as server, deep(server, "pipeline", commands) as process:
        with trace([process.pid], **options) as traced:
            process.communicate("go\n", timeout=patience(60))
            assert process.returncode == 0
    spans = [s for s in traced.of(CLIENT) if s.name in ("SET", "GET")]
    assert Counter(s.name for s in spans) == {"SET": commands // 2, "GET": commands // 2}
    assert {s["db.operation.batch.size"] for s in spans} == {commands}


def test_a_large_value_is_not_copied(trace):
    size = 64 << 20
    with redis(log=False) as server, deep(server, "value", size) as process:
        sleeper = subprocess.Popen(["sleep", "infinity"])  # with the last process the agent would end
        try:
            with trace([process.pid, sleeper.pid]) as traced:
                process.communicate("go\n", timeout=patience(60))
                copied = traced.agent.counters().total("ebpf_otlp_tracer_kernel_captured_bytes_total")
        finally:
            sleeper.kill()
            sleeper.wait()
    assert [s.name for s in traced.of(CLIENT)].count("SET") == 1
    assert copied < size / 100


def test_the_server_is_traced_only_when_it_is_wanted(trace):
    for wanted, kinds in (("false", set()), ("true", {SERVER})):
        with redis(log=False) as server:
            option = {"EBPF_OTLP_TRACER_DATABASE_SERVER_SPANS": wanted}
            with trace(server.pids, **option) as traced:
                server.command("SET", "a", "1")
                server.command("GET", "a")
        assert {s.kind for s in traced.spans} == kinds
