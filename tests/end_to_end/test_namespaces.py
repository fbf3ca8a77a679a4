# SPDX-License-Identifier: Apache-2.0
"""Processes in other network, pid and mount namespaces, traced from the host: found, named, told apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from benchmarks.agent import command
from benchmarks.processes import free_port
from benchmarks.spans import CLIENT, SERVER, read_spans
from tests.end_to_end.namespaces import (
    IN_PID_NAMESPACE,
    Network,
    bridged,
    client,
    forward,
    join,
    network,
    networks,
    new_root,
    server,
)
from tests.end_to_end.test_lifecycle import GET, ask, selecting, wait_until
from tests.end_to_end.test_servers import connected

pytestmark = pytest.mark.kernel

ANY = "0.0.0.0"
PATHS = [f"/n/{i}" for i in range(7)]


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def method(span) -> str | None:
    return span["ebpf_otlp_tracer.parent.method"]


def check_pairs(spans, paths=PATHS, *, linked: bool = True) -> None:
    """Each path once at each end, and the client's span is the parent of the server's."""
    incoming = [s for s in spans if s.kind == SERVER]
    outgoing = [s for s in spans if s.kind == CLIENT]
    assert sorted(s["url.path"] for s in incoming) == sorted(paths)
    assert sorted(s["url.full"].partition("//")[2].partition("/")[2] for s in outgoing) == sorted(
        path[1:] for path in paths
    )
    assert len(spans) == 2 * len(paths)
    by_id = {s.span_id: s for s in spans}
    for span in incoming:
        if not linked:
            assert (span.parent_id, method(span)) == ("", None)
            continue
        parent = by_id[span.parent_id]
        assert (parent.kind, parent.trace_id, method(span)) == (CLIENT, span.trace_id, "connection")
        assert parent["url.full"].endswith(span["url.path"])


# Found from the host.


@pytest.mark.parametrize("selector", ["--pid", "--port"])
def test_a_server_in_another_network_namespace_is_traced_from_the_host(tmp_path, selector):
    port = free_port()
    with networks(2) as (a, b):
        join(a, b)
        with server(a, ANY, port) as service, client(b, a.address, port, 4001) as asker:
            value = service.pid if selector == "--pid" else port
            with selecting(tmp_path, selector, str(value)) as (file, said, _):
                assert f"({service.pid})" in next(line for line in said if "ready: " in line)
                asker.ask(*PATHS)
                wait_until(lambda: file.exists() and len(read_spans(file)) == 7, "7 spans")
    spans = read_spans(file)
    assert [s["url.path"] for s in spans] == PATHS
    assert {s.kind for s in spans} == {SERVER}
    assert {(s["network.peer.address"], s["network.peer.port"]) for s in spans} == {(b.address, 4001)}
    assert {s.resource["process.pid"] for s in spans} == {service.pid}


@pytest.mark.parametrize("address", ["127.0.0.1", "::"])
def test_a_server_that_starts_later_in_another_network_namespace_is_found_by_its_port(tmp_path, address):
    """From its first request on, and nobody else: another server listens there on another port."""
    port = free_port()
    here = "::1" if address == "::" else address
    with network() as a, selecting(tmp_path, "--port", str(port)) as (file, said, _):
        assert any(f"--port {port}: nobody listens" in line for line in said)
        with server(a, address) as other, server(a, address, port) as service:
            with client(a, here, other.port) as asker:
                asker.ask("/other")
            with client(a, here, port) as asker:
                asker.ask("/first")
            wait_until(lambda: file.exists() and read_spans(file), "a span")
    (span,) = read_spans(file)
    assert span["url.path"] == "/first"
    assert span["network.peer.address"] == here
    assert span.resource["process.pid"] == service.pid


def test_a_port_is_found_in_every_network_namespace_that_has_it(tmp_path):
    """Each namespace has its own table of listening sockets, ours too."""
    port = free_port()
    with networks(2) as spaces, ExitStack() as stack:
        services = [stack.enter_context(server(where, "127.0.0.1", port)) for where in (None, *spaces)]
        with selecting(tmp_path, "--port", str(port)) as (file, said, _):
            ready = next(line for line in said if "ready: " in line)
            assert all(f"({service.pid})" in ready for service in services)
            for i, where in enumerate((None, *spaces)):
                with client(where, "127.0.0.1", port) as asker:
                    asker.ask(f"/{i}")
            wait_until(lambda: file.exists() and len(read_spans(file)) == 3, "3 spans")
    assert [(s["url.path"], s.resource["process.pid"]) for s in read_spans(file)] == [
        (f"/{i}", service.pid) for i, service in enumerate(services)
    ]


# Told apart, and brought together.


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_equal_loopback_connections_of_two_namespaces_are_told_apart(trace, loopback):
    """The same addresses, ports and even sequence numbers at the same time; only the namespaces differ."""
    with networks(2) as spaces, ExitStack() as stack:
        services = [stack.enter_context(server(where, loopback, 8080)) for where in spaces]
        clients = [stack.enter_context(client(where, loopback, 8080, 4001, 1_000_000)) for where in spaces]
        with trace([peer.pid for peer in (*services, *clients)]) as traced:
            for i, (service, asker) in enumerate(zip(services, clients, strict=True)):
                asker.tell(f"/hold/{i}")
                assert service.child.first_line() == "held"
            for i, (service, asker) in enumerate(zip(services, clients, strict=True)):
                service.tell()
                assert asker.child.first_line() == f"200 /hold/{i}"
            traced.wait_for(4)
    check_pairs(traced.spans, ["/hold/0", "/hold/1"])
    for i, (service, asker) in enumerate(zip(services, clients, strict=True)):
        spans = [s for s in traced.spans if (s["url.path"] or s["url.full"]).endswith(f"/hold/{i}")]
        pids = {s.kind: s.resource["process.pid"] for s in spans}
        assert pids == {SERVER: service.pid, CLIENT: asker.pid}
    assert {s["network.peer.port"] for s in traced.of(SERVER)} == {4001}
    assert len({s.trace_id for s in traced.spans}) == 2


def test_a_request_seen_at_both_ends_is_one_client_and_one_server_span(trace):
    """Whichever way it took. The server's sockets are IPv6, those of its IPv4 clients are not."""
    with networks(4) as (a, b, c, switch), ExitStack() as stack:
        join(a, b)
        bridged(switch, c, d := stack.enter_context(network()))
        ways = {  # from where, to which server, by which addresses
            "loopback": (a, a, "127.0.0.1", "127.0.0.1"),
            "loopback6": (a, a, "::1", "::1"),
            "own-address": (a, a, a.address, a.address),
            "veth": (b, a, b.address, a.address),
            "veth6": (b, a, b.address6, a.address6),
            "bridge": (d, c, d.address, c.address),
        }
        services = [stack.enter_context(server(where, "::", 8080, "fork")) for where in (a, c)]
        askers = {
            way: stack.enter_context(client(here, address, 8080, 4001 + i))
            for i, (way, (here, _, _, address)) in enumerate(ways.items())
        }
        with trace([peer.pid for peer in (*services, *askers.values())]) as traced:
            for way, asker in askers.items():
                asker.ask(*(f"/{way}{path}" for path in PATHS))
            traced.wait_for(14 * len(ways))
    check_pairs(traced.spans, [f"/{way}{path}" for way in ways for path in PATHS])
    for i, (way, (_, _, source, target)) in enumerate(ways.items()):
        spans = [s for s in traced.spans if f"/{way}/" in (s["url.path"] or s["url.full"])]
        peers = {(s.kind, s["network.peer.address"], s["network.peer.port"]) for s in spans}
        assert peers == {(SERVER, source, 4001 + i), (CLIENT, target, 8080)}, way


def redirect(router: Network, target: str, *, masquerade: bool) -> None:
    """Port 80 of the router is port 8080 of the target; masquerade: whose clients then see the router."""
    iptables = shutil.which("iptables", path="/usr/sbin:/sbin:/usr/bin") or pytest.skip("needs iptables")
    nat = [iptables, "-t", "nat", "-A"]
    to = ["-j", "DNAT", "--to-destination", f"{target}:8080"]
    router.run(*nat, "PREROUTING", "-p", "tcp", "--dport", "80", *to)
    if masquerade:
        router.run(*nat, "POSTROUTING", "-m", "conntrack", "--ctstate", "DNAT", "-j", "MASQUERADE")


@pytest.mark.parametrize("masquerade", [False, True])
def test_behind_a_port_forward_there_are_two_spans_and_no_wrong_link(trace, masquerade):
    """Its ends name the connection differently: which belong together is not certain, so it is not said.

    Beside it the same client and server talk to each other directly, which is linked as ever.
    """
    with networks(3) as (a, b, router):
        bridged(router, a, b)
        forward(router)
        redirect(router, a.address, masquerade=masquerade)
        with (
            server(a, ANY, 8080) as service,
            client(b, router.address, 80, 4001) as through,
            client(b, a.address, 8080, 4002) as direct,
            trace([service.pid, through.pid, direct.pid]) as traced,
        ):
            for path in PATHS[:3]:
                through.ask(path)
            through.child.stop()  # the server takes one connection at a time
            direct.ask(*PATHS[3:])
            traced.wait_for(14)
    by_pid = {
        pid: [s for s in traced.spans if s.resource["process.pid"] == pid]
        for pid in (through.pid, direct.pid)
    }
    incoming = traced.of(SERVER)
    assert [s["url.path"] for s in incoming] == PATHS
    assert (len(by_pid[through.pid]), len(by_pid[direct.pid])) == (3, 4)
    check_pairs([*by_pid[through.pid], *incoming[:3]], PATHS[:3], linked=False)
    check_pairs([*by_pid[direct.pid], *incoming[3:]], PATHS[3:])
    forwarded = {(s["network.peer.address"], s["network.peer.port"]) for s in by_pid[through.pid]}
    assert forwarded == {(router.address, 80)}
    assert {s["network.peer.address"] for s in incoming[:3]} == {router.address if masquerade else b.address}


# Who it is.


@pytest.mark.parametrize("selector", ["--pid", "--port"])
def test_in_a_pid_namespace_the_pids_are_the_hosts_and_children_are_followed(tmp_path, selector):
    port = free_port()
    with server(None, "127.0.0.1", port, "fork", wrapper=IN_PID_NAMESPACE) as service:
        inside = Path(f"/proc/{service.pid}/status").read_text().partition("NSpid:")[2].split("\n")[0]
        assert inside.split() == [str(service.pid), "1"]
        value = service.pid if selector == "--pid" else port
        with selecting(tmp_path, selector, str(value)) as (file, _, __), connected(port) as sock:
            for i in range(3):
                sock.sendall(GET % b"p/%d" % i)
                assert b"200" in sock.recv(4096)
            (child,) = psutil.Process(service.pid).children()
            wait_until(lambda: file.exists() and len(read_spans(file)) == 3, "3 spans")
    spans = read_spans(file)
    assert [s["url.path"] for s in spans] == ["/p/0", "/p/1", "/p/2"]
    resources = {(s.resource["process.pid"], s.resource["process.parent_pid"]) for s in spans}
    assert resources == {(child.pid, service.pid)}


def test_in_a_pid_namespace_of_its_own_the_agent_does_not_start():
    """Its number 1 is the kernel's number of somebody else, who was not selected."""
    run = [*IN_PID_NAMESPACE, *command(), "run", "--pid", "1", "--exporter", "none"]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (77, "")
    assert "hostPID: true" in ended.stderr and "--pid=host" in ended.stderr


@pytest.mark.parametrize("selector", ["--pid", "--service"])
def test_under_another_root_the_name_comes_from_the_targets_files(tmp_path, selector):
    """The host has a file of the same path, which says something else."""
    folder = tmp_path / "app"
    root = new_root(tmp_path / "root")
    for where, name in ((folder, "outside"), (root / folder.relative_to("/"), "inside")):
        where.mkdir(parents=True)
        (where / "package.json").write_text(json.dumps({"name": name, "version": "1.2.3"}))
    wrapper = ["unshare", "--mount", f"--root={root}", f"--wd={folder}"]
    with server(None, wrapper=wrapper, program=["/usr/bin/node", "server.js"]) as service:
        value = service.pid if selector == "--pid" else "insid?"
        with selecting(tmp_path, selector, str(value)) as (file, _, __):
            ask(service.port, "x")
            wait_until(lambda: file.exists() and read_spans(file), "a span")
    (span,) = read_spans(file)
    assert (span.service, span.resource["service.version"]) == ("inside", "1.2.3")
    assert span.resource["process.pid"] == service.pid
