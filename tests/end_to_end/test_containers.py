# SPDX-License-Identifier: Apache-2.0
"""Real containers on a bridge of their own, traced from the host: found, named, linked, and forgotten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.enrichment.process import read_process
from benchmarks.agent import Agent
from benchmarks.agent import agent as run_agent
from benchmarks.processes import free_port
from benchmarks.spans import CLIENT, SERVER, Span, read_spans
from tests.end_to_end.namespaces import client
from tests.end_to_end.podman import Container, Podman, hierarchies, podman
from tests.end_to_end.test_lifecycle import selecting, wait_until
from tests.end_to_end.test_namespaces import PATHS, check_pairs

pytestmark = pytest.mark.kernel


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A directory of the host, of which the image has another one with the same path."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps({"name": "outside"}))
    return folder


@pytest.fixture
def engine(tmp_path: Path, workdir: Path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    package = json.dumps({"name": "inside", "version": "1.2.3"}).encode()
    with podman(tmp_path, {f"{str(workdir)[1:]}/package.json": package}) as running:
        yield running


def ask(engine: Podman, server: Container, port: int, *paths: str) -> None:
    """Requests from where the bridge is: from its own address, which the containers see as the gateway."""
    with client(engine.network, server.address, port) as asker:
        asker.ask(*paths)


def spans_in(file: Path, count: int) -> list[Span]:
    wait_until(lambda: file.exists() and len(read_spans(file)) >= count, lambda: f"{count} spans in {file}")
    return read_spans(file)


@pytest.mark.parametrize("selector", ["--container", "--port"])
@pytest.mark.parametrize("when", ["before", "later"])
def test_a_container_is_traced_from_the_host(tmp_path, engine, workdir, selector, when):
    """From its first request on, if it starts after the agent. Another one of the image is left alone."""
    port = free_port()
    server = engine.serve(port, options=(f"--workdir={workdir}",))
    other = engine.serve(port + 1)
    other.start()
    if when == "before":
        server.start()
    value = server.id[:12] if selector == "--container" else str(port)
    with selecting(tmp_path, selector, value) as (file, said, _):
        if when == "later":
            assert any(f"{selector} {value}: no" in line for line in said)
            server.start()
        else:
            assert "inside (" in next(line for line in said if "ready: " in line)
        ask(engine, other, port + 1, "/other")
        ask(engine, server, port, *PATHS)
        spans_in(file, 7)
        (pid,) = server.pids
        gateway = server.inspected["NetworkSettings"]["Gateway"]
    spans = read_spans(file)
    assert [(s.kind, s["url.path"]) for s in spans] == [(SERVER, path) for path in PATHS]
    assert {s["network.peer.address"] for s in spans} == {gateway}
    (resource,) = [s.resource for s in spans[:1]]
    assert all(s.resource == resource for s in spans)
    assert resource["container.id"] == server.inspected["Id"]
    assert resource["process.pid"] == pid
    assert (resource["service.name"], resource["service.version"]) == ("inside", "1.2.3")
    assert resource["process.executable.path"] == "/usr/bin/node"


def test_two_containers_of_one_image_are_one_client_and_one_server_span_linked(tmp_path, engine):
    server = engine.serve(8080)
    server.start()
    pipe = tmp_path / "paths"
    os.mkfifo(pipe)
    options = (f"--volume={pipe}:/paths", "--env=PEER_INPUT=/paths")
    asker = engine.create("ask", server.address, 8080, options=options)
    asker.start()
    selectors = [argument for c in (server, asker) for argument in ("--container", c.id[:16])]
    with selecting(tmp_path, *selectors) as (file, _, __):
        pipe.write_text("\n".join([*PATHS, ""]))
        spans_in(file, 14)
    spans = read_spans(file)
    check_pairs(spans)
    ids = {(s.kind, s.resource["container.id"]) for s in spans}
    assert ids == {(SERVER, server.id), (CLIENT, asker.id)}
    assert {s["network.peer.address"] for s in spans if s.kind == CLIENT} == {server.address}


def test_a_container_without_a_control_group_is_known_by_its_mounts(engine):
    """As rootless podman has them with control groups of version 1. runc makes none such: it is moved."""
    server = engine.serve(8080)
    server.start()
    (pid,) = server.pids
    for top in hierarchies():
        (top / "cgroup.procs").write_text(str(pid))
    assert server.id not in Path(f"/proc/{pid}/cgroup").read_text()
    process = read_process(pid)
    assert process is not None and process.container_id == server.id
    monitor = read_process(process.ppid)
    assert monitor is not None and (monitor.comm, monitor.container_id) == ("conmon", "")


def open_files(running: Agent) -> dict[int, int]:
    """How many descriptors each process of the agent has."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in running.pids}


def test_a_container_that_ends_leaves_nothing_behind(tmp_path, engine):
    """The agent forgets it, and holds nothing of it: no descriptor, no process, no control group.

    Twice, as another container with the same port is another one.
    """
    port = free_port()
    file = tmp_path / "spans.jsonl"
    env = {"EBPF_OTLP_TRACER_SELECT_PORT": str(port)}
    ids = []
    with run_agent([], exporters=[f"jsonl:{file}"], env=env, folder=tmp_path) as running:
        before = open_files(running)
        for i in range(2):
            server = engine.serve(port, "fork")
            server.start()
            ids.append(server.id)
            with client(engine.network, server.address, port) as asker:
                asker.ask(f"/{i}")
                spans_in(file, i + 1)
                until(running, "processes", 2)  # the listener, and its child on this connection
                pids, cgroups = server.pids, server.cgroups
                assert len(pids) == 2 and cgroups
            # Of a connection that is cut the kernel keeps the socket for minutes, unacknowledged.
            until(running, "core_connections", 0)
            server.remove()
            until(running, "processes", 0)
            # Our last question for its counters may still be open.
            wait_until(
                lambda: all(n <= before.get(pid, 0) for pid, n in open_files(running).items()),
                lambda: f"no more descriptors than {before}: {open_files(running)}",
            )
            assert not any(path.exists() for path in cgroups)
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert [s.resource["container.id"] for s in read_spans(file)] == ids


def until(running: Agent, name: str, count: int) -> None:
    """Waits until the agent says that it holds so many."""
    metric = f"ebpf_otlp_tracer_{name}"

    def now() -> int | None:
        return running.counters().total(metric)

    wait_until(lambda: now() == count, lambda: f"{count} {name}, there are {now()}")
