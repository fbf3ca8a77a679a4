# SPDX-License-Identifier: Apache-2.0
"""The same spans from either kind of hook; what moves through io_uring, where the kernel can show it.

Those marked `kprobes` need a kernel that has them: `make test-vm` runs them on a second one.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.backend import KPROBE_PMU
from benchmarks import servers
from benchmarks.agent import agent
from benchmarks.spans import CLIENT, SERVER
from tests import io_uring
from tests.end_to_end.test_lifecycle import wait_until
from tests.end_to_end.test_servers import connected, read_responses

pytestmark = pytest.mark.kernel

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.kprobes
@pytest.mark.parametrize("how", ["", "vectors"])
@pytest.mark.parametrize("backend", ["auto", "kprobe"])
def test_requests_through_io_uring_are_spans(trace, tmp_path: Path, how: str, backend: str):
    with (
        io_uring.server(tmp_path, how) as server,
        trace([server.pid], EBPF_OTLP_TRACER_CAPTURE_BACKEND=backend) as traced,
    ):
        for i in range(3):
            with connected(server.port) as sock:
                for j in range(4):
                    sock.sendall(GET % b"u/%d/%d" % (i, j))
                    read_responses(sock, 1)
        traced.wait_for(12)
    spans = traced.of(SERVER)
    assert [s["url.path"] for s in spans] == [f"/u/{i}/{j}" for i in range(3) for j in range(4)]
    assert {s["http.response.status_code"] for s in spans} == {200}
    assert {s["http.response.body.size"] for s in spans} == {5}


@pytest.mark.skipif(KPROBE_PMU.exists(), reason="this kernel has kprobes: the test above holds there")
def test_without_kprobes_a_process_with_io_uring_is_named(tmp_path: Path):
    with (
        io_uring.server(tmp_path) as server,
        agent([server.pid], exporters=["none"], folder=tmp_path) as running,
    ):
        with connected(server.port) as sock:
            sock.sendall(GET % b"unseen")
            read_responses(sock, 1)
        wait_until(
            lambda: running.counters().total("ebpf_otlp_tracer_processes_unseen") == 1,
            lambda: f"a process that cannot be seen: {running.said}",
        )
    assert f"pid {server.pid} uses io_uring" in running.said
    assert "lost: 1 processes use io_uring" in running.said


@pytest.mark.kprobes
def test_the_kprobe_backend_gives_the_same_spans(trace):
    """nginx before a Python service: read, writev, sendfile, recv and send, and the links between them."""
    with (
        servers.python_threads() as service,
        servers.nginx(proxy_to=service.port) as proxy,
        trace([*service.pids, *proxy.pids], EBPF_OTLP_TRACER_CAPTURE_BACKEND="kprobe") as traced,
    ):
        serving = service.pids
        with connected(proxy.port) as sock:
            for i in range(5):
                sock.sendall(GET % b"products/%d" % i)
                read_responses(sock, 1)
        traced.wait_for(15)
    assert len(traced.of(SERVER)) == 10 and len(traced.of(CLIENT)) == 5
    by_id = {span.span_id: span for span in traced.spans}
    inner = traced.of(SERVER, serving)
    assert len(inner) == 5
    for span in inner:
        outgoing = by_id[span.parent_id]
        assert outgoing.kind == CLIENT and by_id[outgoing.parent_id].kind == SERVER


def test_capture_names_what_this_kernel_has_not(tmp_path: Path):
    from tests.end_to_end.test_bad_conditions import run_agent

    if KPROBE_PMU.exists():
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = run_agent("--port", str(listener.getsockname()[1]), "--capture", "kprobe")
    assert ended.returncode == 1
    assert "no kprobes" in ended.stderr and "--capture auto" in ended.stderr
    assert "Traceback" not in ended.stderr
