# SPDX-License-Identifier: Apache-2.0
"""The agent's own life: what starts later, what it follows, crashes, overload, and the way out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import servers
from benchmarks.agent import Agent, Counters, agent, command
from benchmarks.patience import patience
from benchmarks.spans import CLIENT, SERVER, read_spans
from tests.end_to_end.test_servers import connected, read_responses

pytestmark = pytest.mark.kernel

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


def wait_until(condition, what, timeout_s: float = patience(15.0)):
    """What the condition gives, once it gives something. what: a text, or a function that makes one."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        late = time.monotonic() > deadline
        assert not late, f"not within {timeout_s} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def selecting(tmp_path: Path, *selectors: str):
    """The agent with selectors of our own instead of process ids."""
    file = tmp_path / "spans.jsonl"
    process = subprocess.Popen(
        [*command(), "run", *selectors, "--exporter", f"jsonl:{file}", "--set", "self.listen="],
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reader.start()
    try:
        wait_until(lambda: any("ready: " in line for line in said), lambda: f"ready: {said}")
        yield file, said, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        reader.join(5)


def ask(port: int, path: str) -> None:
    with connected(port) as sock:
        sock.sendall(GET % path.encode())
        read_responses(sock, 1)


def test_a_process_that_starts_later_is_traced_from_its_first_request_by_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    with selecting(tmp_path, "--port", str(port)) as (file, said, _):
        assert any(str(port) in line for line in said), said
        server = subprocess.Popen([sys.executable, "-c", script, str(port)])
        try:
            wait_until(lambda: servers.is_listening(port), "the server listens")
            ask(port, "first")
            wait_until(lambda: file.exists() and read_spans(file), "a span")
        finally:
            server.kill()
            server.wait()
    assert [s["url.path"] for s in read_spans(file)] == ["/first"]


def test_a_process_that_starts_later_is_traced_by_service_name(tmp_path):
    with selecting(tmp_path, "--service", "late-shop") as (file, _, __):
        with servers.python_threads(
            env={"OTEL_SERVICE_NAME": "late-shop", "OTEL_RESOURCE_ATTRIBUTES": "team=red"}
        ) as server:
            ask(server.port, "r/1")
            wait_until(lambda: file.exists() and read_spans(file), "a span")
        with servers.python_threads() as other:
            ask(other.port, "r/2")
    (span,) = read_spans(file)
    assert span["url.path"] == "/r/1"
    assert (span.service, span.resource["team"]) == ("late-shop", "red")


def test_children_of_a_traced_process_are_followed(trace):
    """A parent that forks after the agent came: the child serves."""
    script = (
        "import http.server, os, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_GET(self):\n"
        "        self.send_response(204); self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "sys.stdin.readline()\n"
        "s = http.server.HTTPServer(('127.0.0.1', 0), H)\n"
        "if os.fork() == 0:\n"
        "    print(s.server_address[1], os.getpid(), flush=True); s.serve_forever()\n"
        "os.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = 0
    try:
        with trace([parent.pid]) as traced:
            parent.stdin.write("go\n")
            parent.stdin.flush()
            port, child = map(int, parent.stdout.readline().split())
            for i in range(7):
                with connected(port) as sock:
                    sock.sendall(GET % b"c/%d" % i)
                    assert b"204" in sock.recv(4096)
            traced.wait_for(7)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        parent.communicate()
    assert [s["url.path"] for s in traced.of(SERVER)] == [f"/c/{i}" for i in range(7)]
    assert {s.resource["process.pid"] for s in traced.spans} == {child}


def test_what_was_not_selected_is_not_traced(trace):
    with servers.python_threads() as chosen, servers.python_threads() as other, trace(chosen.pids) as traced:
        ask(other.port, "r/other")
        ask(chosen.port, "r/chosen")
        ask(other.port, "r/other")
    assert [s["url.path"] for s in traced.spans] == ["/r/chosen"]


def pipeline_of(running: Agent) -> int:
    return wait_until(lambda: running.roles["pipeline"], "a pipeline")[0]


def test_a_killed_pipeline_is_replaced_and_old_connections_go_on(trace):
    with servers.nginx() as server, connected(server.port) as sock, trace(server.pids, exact=False) as traced:
        sock.sendall(GET % b"one")
        read_responses(sock, 1)
        traced.wait_for(1)
        first = pipeline_of(traced.agent)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: [p for p in traced.agent.roles["pipeline"] if p != first], "another pipeline")
        sock.sendall(GET % b"meanwhile")  # its announcement goes to the new one
        read_responses(sock, 1)
        for i in range(3):
            sock.sendall(GET % b"after/%d" % i)
            read_responses(sock, 1)
        traced.wait_for(4)
    paths = [s["url.path"] for s in traced.spans]
    assert paths[0] == "/one"
    assert paths[-3:] == [f"/after/{i}" for i in range(3)]
    assert len(paths) == len(set(paths))


def test_a_killed_keeper_takes_everything_with_it_and_disturbs_nobody(tmp_path):
    with servers.nginx(access_log=True) as server:
        with agent(server.pids, exporters=[f"jsonl:{tmp_path / 's.jsonl'}"], folder=tmp_path) as running:
            ask(server.port, "before")
            family = [psutil.Process(pid) for pid in running.pids]
            os.kill(running.pids[0], signal.SIGKILL)
            wait_until(
                lambda: not any(p.is_running() and p.status() != "zombie" for p in family),
                "the pipeline ends",
            )
            for i in range(11):
                ask(server.port, f"after/{i}")
        assert len(server.requests(count=12)) == 12


def test_the_pipeline_holds_no_privilege(trace):
    with servers.nginx() as server, trace(server.pids) as traced:
        status = Path(f"/proc/{pipeline_of(traced.agent)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["65534"] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")


def difference(counters: Counters) -> int | None:
    return counters.total("ebpf_otlp_tracer_ledger_difference_chunks")


def test_the_ledger_equals_what_the_kernel_counted(trace):
    with servers.nginx() as server, trace(server.pids) as traced:
        for i in range(211):
            ask(server.port, f"l/{i}")
        traced.wait_for(211)
        counters = traced.agent.counters()
        kernel = counters.total("ebpf_otlp_tracer_kernel_chunks_total")
        classes = counters.by("ebpf_otlp_tracer_chunks_total", "class")
    assert kernel == 2 * 211
    assert sum(classes.values()) == kernel
    assert classes["parsed"] == kernel


def test_status_shows_the_figures_of_metrics_to_anybody(trace, tmp_path):
    """Asked by another user, without privilege, by the configuration that the agent itself has."""
    with servers.nginx() as server, trace(server.pids) as traced:
        for i in range(17):
            ask(server.port, f"s/{i}")
        traced.wait_for(17)
        listen = f"EBPF_OTLP_TRACER_SELF_LISTEN={traced.agent._listen}"
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
        verb = [*as_nobody, "env", listen, *command(), "status"]
        # the keeper's figures come once a second
        wait_until(lambda: json.loads(run_text(*verb, "--json"))["processes"], "the keeper's figures")
        counters, shown = traced.agent.counters(), json.loads(run_text(*verb, "--json"))
        text, pids = run_text(*verb), traced.agent.pids
    assert shown["services"] == {"nginx": {"requests": 17, "spans": 17, "orphans": 0}}
    for what in ("chunks", "bytes"):
        by_class = counters.by(f"ebpf_otlp_tracer_{what}_total", "class")
        assert {name: counts[what] for name, counts in shown["ledger"].items()} == by_class
        assert shown["kernel"][what] == counters.total(f"ebpf_otlp_tracer_kernel_{what}_total")
    assert shown["kernel"]["chunks"] == 2 * 17
    exported = counters.total("otel_sdk_exporter_span_exported_total")
    assert shown["exporters"] == {"jsonl": {"spans": exported, "dropped": {}}}
    assert exported == 17
    assert list(shown["pids"].values()) == list(pids)
    assert shown["processes"] == counters.total("ebpf_otlp_tracer_processes")
    assert (shown["losses"], shown["gaps"], shown["capture"]["shed_share"]) == ([], [], 0)
    # The tables are those of the summary at the end: from the services on, but for what the drain added.
    assert text.partition("\n\n")[2].rstrip() in traced.agent.said
    assert len(text.splitlines()) < 24


def run_text(*arguments: str) -> str:
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_over_the_limit_the_reported_loss_is_the_true_loss(trace):
    """Nobody reads a small ring for a while: most is lost, and said to be, to the chunk."""
    env = {"EBPF_OTLP_TRACER_CAPTURE_RING_BYTES": "65536", "EBPF_OTLP_TRACER_CAPTURE_SHED": "false"}
    with (
        servers.nginx() as server,
        trace(server.pids, exact=False, **env) as traced,
        connected(server.port) as sock,
    ):
        pipeline = pipeline_of(traced.agent)
        os.kill(pipeline, signal.SIGSTOP)
        for i in range(1499):
            sock.sendall(GET % b"o/%d" % i)
            read_responses(sock, 1)
        os.kill(pipeline, signal.SIGCONT)
        wait_until(traced.now, "the pipeline reads again")
        for i in range(7):
            sock.sendall(GET % b"after/%d" % i)
            read_responses(sock, 1)

        def classes() -> dict[str, int]:
            return traced.agent.counters().by("ebpf_otlp_tracer_chunks_total", "class")

        wait_until(
            lambda: sum(classes().values()) == 2 * 1506, lambda: f"every chunk in the ledger: {classes()}"
        )
        seen = classes()
    paths = [s["url.path"] for s in traced.spans]
    assert len(paths) == len(set(paths)) < 1499
    assert seen["lost"] > 1000
    # A span is of two chunks that came; what came and is in no span lies beside a hole.
    assert 2 * len(paths) <= seen["parsed"] <= 2 * len(paths) + 4
    assert seen["lost"] + seen["parsed"] == 2 * 1506
    assert paths[-6:] == [f"/after/{i}" for i in range(1, 7)]


def test_ctrl_c_drains_and_says_what_was_seen(tmp_path):
    with servers.nginx() as server:
        with agent(server.pids, exporters=[f"jsonl:{tmp_path / 's.jsonl'}"], folder=tmp_path) as running:
            for i in range(13):
                ask(server.port, f"d/{i}")
        assert running.child.process.returncode == 0
        said = running.said
    assert len(read_spans(tmp_path / "s.jsonl")) == 13
    assert "nginx" in said
    assert "13" in said.split("ready", 1)[1]
    assert "Traceback" not in said


def test_spans_of_an_instrumented_client_keep_their_trace(trace):
    """The application's own traceparent decides, on both ends."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with servers.python_threads() as service, servers.nginx(proxy_to=service.port) as front:
        with trace([*front.pids, *service.pids]) as traced:
            subprocess.run(
                ["curl", "-sS", "-o", "/dev/null", "-H", f"traceparent: {parent}", f"{front.url}/r/1"],
                check=True,
            )
    assert {s.trace_id for s in traced.spans} == {parent.split("-")[1]}
    root = next(s for s in traced.spans if s.kind == SERVER and s.service == "nginx")
    hop = next(s for s in traced.spans if s.kind == CLIENT)
    leaf = next(s for s in traced.spans if s.kind == SERVER and s.service != "nginx")
    assert (root.parent_id, hop.parent_id, leaf.parent_id) == (
        parent.split("-")[2],
        root.span_id,
        hop.span_id,
    )


def test_a_container_is_selected_by_a_prefix_of_its_id(tmp_path):
    """A control group with a container's path is all that tells a container from the host's side."""
    container = "0123456789abcdef" * 4
    root = next(
        p
        for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"))
        if (p / "cgroup.procs").exists()
    )
    group = root / f"docker-{container}.scope"
    group.mkdir()
    try:
        with servers.python_threads() as inside, servers.python_threads() as outside:
            (group / "cgroup.procs").write_text(str(inside.pid))
            with selecting(tmp_path, "--container", container[:12]) as (file, _, __):
                ask(outside.port, "r/outside")
                ask(inside.port, "r/inside")
                wait_until(lambda: file.exists() and read_spans(file), "a span")
        (span,) = read_spans(file)
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()
    assert span["url.path"] == "/r/inside"
    assert span.resource["container.id"] == container
