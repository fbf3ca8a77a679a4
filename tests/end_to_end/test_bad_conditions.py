# SPDX-License-Identifier: Apache-2.0
"""What can be wrong around the agent: collectors, disks, interpreters, processes that change under it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import load, servers
from benchmarks.agent import CHUNKS, agent, command
from benchmarks.patience import patience
from benchmarks.sink import sink
from benchmarks.spans import SERVER
from tests.end_to_end.test_lifecycle import GET, ask, wait_until
from tests.end_to_end.test_servers import connected

pytestmark = pytest.mark.kernel

PYTHON = sys.executable  # of a virtual environment, which has no BCC


def run_agent(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), "run", *arguments],
        capture_output=True,
        text=True,
        timeout=patience(60),
        env={**os.environ, "EBPF_OTLP_TRACER_SELF_LISTEN": "", **env},
    )


def test_an_unreachable_collector_is_said_once_and_stops_nothing(trace):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "EBPF_OTLP_TRACER_EXPORT_SHUTDOWN_TIMEOUT_S": "1",
    }
    with servers.nginx() as server, trace(server.pids, exporters=["otlp"], **env) as traced:
        for i in range(23):
            ask(server.port, f"u/{i}")
        traced.wait_for(23)
        wait_until(lambda: str(port) in traced.agent.said, lambda: f"a word of {port}: {traced.agent.said}")
    assert len(traced.of(SERVER)) == 23
    assert traced.agent.said.count("cannot reach") <= 2
    assert "Traceback" not in traced.agent.said
    assert traced.agent.child.process.returncode == 0


def test_a_full_disk_is_said_and_counted(tmp_path: Path):
    with servers.nginx() as server:
        with agent(server.pids, exporters=["jsonl:/dev/full"], folder=tmp_path) as running:
            ask(server.port, "a")
            wait_until(lambda: "/dev/full" in running.said, lambda: f"a word of the file: {running.said}")
            counted = running.counters().total(
                "otel_sdk_exporter_span_exported_total", error_type="write_failed"
            )
    assert counted == 1
    assert "Traceback" not in running.said
    assert "no space left" in running.said


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--pid", "4194000"], 1, ["4194000", "ps"]),
        (["--port", "70000"], 2, ["70000"]),
        ([], 2, ["nothing is selected"]),
        (["--pid", "1", "--exporter", "consle"], 78, ["consle", "console"]),
        (["--pid", "1", "--set", "core.hold_mss=3"], 78, ["core.hold_mss", "core.hold_ms"]),
        (["--pid", "1", "--exporter", "jsonl:/nowhere/x"], 78, ["/nowhere/x"]),
        (
            ["--pid", "1", "--set", f"capture.loader_python={sys.executable}"],
            1,
            [sys.executable, "python3-bpfcc"],
        ),
    ],
)
def test_what_cannot_work_is_named_with_the_next_step(arguments, status, words):
    ended = run_agent(*arguments)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hint" in ended.stderr or status == 2
    for word in words:
        assert word in ended.stderr


def test_an_unknown_key_in_the_file_is_named_with_its_line_and_the_nearest(tmp_path: Path):
    file = tmp_path / "agent.yaml"
    file.write_text("select:\n  all: true\nhttp:\n  rout: unset\n")
    ended = run_agent("--config", str(file))
    assert ended.returncode == 78
    assert f"{file}:4" in ended.stderr
    assert "http.route" in ended.stderr


def test_exec_in_the_middle_of_a_connection(trace):
    """The program changes, the connection stays: requests before and after are spans of the same process."""
    second = (
        "import socket, sys\n"
        "c = socket.socket(fileno=int(sys.argv[1]))\n"
        "while c.recv(65536):\n"
        "    c.sendall(b'HTTP/1.1 202 Two\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
    )
    first = (
        "import os, socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept(); os.set_inheritable(c.fileno(), True)\n"
        "for _ in range(3):\n"
        "    c.recv(65536); c.sendall(b'HTTP/1.1 201 One\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1], str(c.fileno())])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", first, second], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        with trace([process.pid]) as traced, connected(port) as sock:
            for i in range(7):
                sock.sendall(GET % b"x/%d" % i)
                assert sock.recv(4096)
            traced.wait_for(7)
    finally:
        process.kill()
        process.communicate()
    spans = traced.of(SERVER)
    assert [s["url.path"] for s in spans] == [f"/x/{i}" for i in range(7)]
    assert [s["http.response.status_code"] for s in spans] == [201] * 3 + [202] * 4


@pytest.mark.slow
def test_100000_short_connections(tmp_path: Path):
    """Each with one request; every id that the client saw answered is one span, and nothing stays behind."""
    env = {"EBPF_OTLP_TRACER_SELF_TELEMETRY": "false"}
    with sink(record=True) as receiver, servers.nginx() as server:
        with agent(
            [server.pid], exporters=["otlp"], env={**receiver.environment, **env}, folder=tmp_path
        ) as running:
            result = load.run(server.port, rate=4000, requests=100_000, close=True, connections=50)
            receiver.wait_for_spans(len(result.ids()), timeout_s=patience(30))
            wait_until(
                lambda: running.counters().total("ebpf_otlp_tracer_core_connections") == 0,
                lambda: f"{running.counters().total('ebpf_otlp_tracer_core_connections')} connections left",
            )
            classes = running.counters().by(CHUNKS, "class")
            private = [psutil.Process(pid).memory_full_info().uss for pid in running.pids]
        seen = [request.id for request in receiver.requests_seen()]
    assert len(result.ids()) == 100_000
    assert len(seen) == len(set(seen)) == 100_000
    assert set(seen) == result.ids()
    assert classes["lost"] == 0
    assert sum(private) < 100 * 1024 * 1024
