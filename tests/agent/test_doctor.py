# SPDX-License-Identifier: Apache-2.0
"""Each check against a file system made for it: what it finds, and the step that it names."""

from __future__ import annotations

import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import doctor
from agent.config_load import load
from agent.permissions import NEEDS


def status(root: Path, capabilities: int) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")
    return root


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ((1 << 41) - 1, []),
        (0, ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID"]),
        (1 << 21 | 1 << 19 | 1 << 1 | 1 << 7 | 1 << 6, []),  # SYS_ADMIN, as before Linux 5.8
        (1 << 39 | 1 << 38 | 1 << 2 | 1 << 7 | 1 << 6, ["CAP_SYS_PTRACE"]),
    ],
)
def test_capabilities_that_are_missing_are_named(tmp_path: Path, held: int, missing: list[str]) -> None:
    root = status(tmp_path, held)
    assert doctor.missing_capabilities(root) == missing
    row = doctor.check_privileges(root)
    assert row.status == (doctor.FAIL if missing else doctor.OK)
    assert all(name in row.found for name in missing)


@pytest.mark.parametrize(("namespace", "inside"), [("4026531836", False), ("4026532222", True), ("", False)])
def test_a_pid_namespace_of_our_own_is_a_failure(tmp_path: Path, namespace: str, inside: bool) -> None:
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("CapEff:\t000001ffffffffff\n")
    if namespace:  # else it may not be read
        (tmp_path / "proc/self/ns/pid").symlink_to(f"pid:[{namespace}]")
    row = doctor.check_privileges(tmp_path)
    assert row.status == (doctor.FAIL if inside else doctor.OK)
    assert ("hostPID" in row.hint) == inside


def test_nothing_is_held_where_it_cannot_be_seen(tmp_path: Path) -> None:
    assert len(doctor.missing_capabilities(tmp_path)) == len(NEEDS)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.1.0-21-amd64", doctor.OK),
        ("5.8.0", doctor.OK),
        ("5.4.0-100-generic", doctor.FAIL),
        ("odd", doctor.FAIL),
    ],
)
def test_kernel_release(release: str, expected: str) -> None:
    row = doctor.check_kernel(release)
    assert (row.status, release in row.found) == (expected, True)


def test_btf_that_is_not_there(tmp_path: Path) -> None:
    row = doctor.check_btf(tmp_path)
    assert row.status == doctor.FAIL and "CONFIG_DEBUG_INFO_BTF" in row.hint


def test_btf_that_is_not_btf(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/btf").mkdir(parents=True)
    (tmp_path / "sys/kernel/btf/vmlinux").write_bytes(b"not BTF")
    assert doctor.check_btf(tmp_path).status in (doctor.FAIL, doctor.WARN)


@pytest.mark.parametrize(
    ("made", "expected", "word"),
    [
        ("sys/kernel/tracing/events/syscalls", doctor.OK, ""),
        ("sys/kernel/debug/tracing/events/syscalls", doctor.OK, ""),
        ("sys/kernel/tracing/events/sched", doctor.OK, ""),
        ("sys/kernel/tracing", doctor.WARN, "mount -t tracefs"),
    ],
)
def test_tracefs(tmp_path: Path, made: str, expected: str, word: str) -> None:
    (tmp_path / made).mkdir(parents=True)
    row = doctor.check_tracefs(tmp_path)
    assert (row.status, word in row.hint) == (expected, True)


RECVFROM = "sys/kernel/tracing/events/syscalls/sys_exit_recvfrom"
PMU = "sys/bus/event_source/devices/kprobe/type"


def kernel_with(root: Path, *paths: str) -> Path:
    for path in ("sys/kernel/tracing/events/sched", *paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("8\n")
    return root


@pytest.mark.parametrize(
    ("has", "tracepoints", "kprobes", "capture", "word"),
    [
        ((RECVFROM,), doctor.OK, doctor.INFO, doctor.OK, "auto is tracepoint here: "),
        ((RECVFROM, PMU), doctor.OK, doctor.OK, doctor.OK, "auto: system calls by tracepoints, and kprobes"),
        ((PMU,), doctor.WARN, doctor.OK, doctor.OK, "auto is kprobe here: kprobes"),
        ((), doctor.WARN, doctor.INFO, doctor.FAIL, "neither"),
    ],
)
def test_what_would_see_the_bytes(
    tmp_path: Path, has: tuple[str, ...], tracepoints: str, kprobes: str, capture: str, word: str
) -> None:
    root = kernel_with(tmp_path, *has)
    assert doctor.check_syscall_tracepoints(root).status == tracepoints
    assert doctor.check_kprobes(root).status == kprobes
    row = doctor.check_capture("auto", root)
    assert (row.status, word in row.found) == (capture, True), row
    hints = [doctor.check_syscall_tracepoints(root), doctor.check_kprobes(root), row]
    assert all(row.hint for row in hints if row.status != doctor.OK)


def test_hooks_that_are_asked_for_and_not_there(tmp_path: Path) -> None:
    row = doctor.check_capture("kprobe", kernel_with(tmp_path, RECVFROM))
    assert row.status == doctor.FAIL and "--capture kprobe" in row.found and "CONFIG_KPROBES" in row.hint


def test_hooks_are_not_known_without_tracefs_or_the_right_to_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "mount -t tracefs" in doctor.check_syscall_tracepoints(tmp_path).hint
    assert doctor.check_capture("auto", tmp_path).status == doctor.WARN

    def forbidden(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", forbidden)
    for row in (
        doctor.check_tracefs(tmp_path),
        doctor.check_syscall_tracepoints(tmp_path),
        doctor.check_capture("auto", tmp_path),
    ):
        assert (row.status, row.hint) == (doctor.WARN, "run doctor with sudo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none [integrity] confidentiality\n", doctor.OK),
        ("none integrity [confidentiality]\n", doctor.FAIL),
        ("[none] integrity confidentiality\n", doctor.OK),
        (None, doctor.OK),
    ],
)
def test_lockdown(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "sys/kernel/security").mkdir(parents=True)
        (tmp_path / "sys/kernel/security/lockdown").write_text(text)
    assert doctor.check_lockdown(tmp_path).status == expected


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("cgroup.controllers", "version 2"),
        ("unified/cgroup.controllers", "version 1, with"),
        ("cpu/tasks", "version 1"),
    ],
)
def test_cgroup_version(tmp_path: Path, made: str, found: str) -> None:
    path = tmp_path / "sys/fs/cgroup" / made
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert doctor.check_cgroup(tmp_path).found.startswith(found)
    assert doctor.check_cgroup(tmp_path / "none").status == doctor.WARN


def test_headers_that_are_not_installed(tmp_path: Path) -> None:
    row = doctor.check_headers(tmp_path)
    assert row.status == doctor.FAIL
    assert "apt install linux-libc-dev" in row.hint and "dnf install kernel-headers" in row.hint


def python(tmp_path: Path, body: str) -> str:
    """An interpreter of our making."""
    path = tmp_path / "python3"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "expected", "word"),
    [
        ("echo 0.26.0", doctor.OK, "0.26.0 in "),
        ("echo 'AttributeError: module bcc has no BPF' >&2; exit 1", doctor.FAIL, "bcc of PyPI"),
        ("echo 'ModuleNotFoundError: bcc' >&2; exit 1", doctor.FAIL, "not in "),
    ],
)
def test_bcc_of_a_configured_interpreter(tmp_path: Path, body: str, expected: str, word: str) -> None:
    row = doctor.check_bcc(python(tmp_path, body))
    assert (row.status, word in row.found) == (expected, True)
    assert expected == doctor.OK or (
        "apt install python3-bpfcc" in row.hint and "capture.loader_python" in row.hint
    )


def test_an_interpreter_that_does_not_exist() -> None:
    row = doctor.check_bcc("/nonexistent/python")
    assert row.status == doctor.FAIL and "/nonexistent/python" in row.found


def test_interpreters_are_tried_once_each() -> None:
    found = doctor.bcc_candidates("")
    assert sys.executable in found and len(set(found)) == len(found)
    assert doctor.bcc_candidates("/x") == ["/x"]


# The receiver.


class Receiver(http.server.BaseHTTPRequestHandler):
    answer = 200
    seen: list[tuple[str, str, bytes]] = []  # noqa: RUF012 (shared on purpose, and emptied by the fixture)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Receiver.seen.append((self.path, self.headers["Content-Type"], body))
        self.send_response(Receiver.answer)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "expected", "word"),
    [
        (200, doctor.OK, ""),
        (401, doctor.FAIL, "OTEL_EXPORTER_OTLP_HEADERS"),
        (404, doctor.FAIL, "base"),
        (500, doctor.FAIL, "log of the receiver"),
    ],
)
def test_an_empty_export_is_sent(receiver: str, answer: int, expected: str, word: str) -> None:
    Receiver.answer = answer
    row = doctor.check_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver}, ("otlp",))
    assert (row.status, word in row.hint) == (expected, True)
    assert f"{receiver}/v1/traces: {answer}" in row.found
    assert Receiver.seen == [("/v1/traces", "application/x-protobuf", b"")]


def test_nobody_at_the_endpoint() -> None:
    with socket.socket() as held:  # bound and not listening: refused, and nobody else can take the port
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        row = doctor.check_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": url}, ("otlp",))
    assert row.status == doctor.FAIL and url in row.found and "4318" in row.hint


def test_an_endpoint_that_is_no_url() -> None:
    row = doctor.check_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, ("otlp",))
    assert row.status == doctor.FAIL and "collector:4318" in row.found


def test_an_endpoint_that_is_not_used() -> None:
    assert doctor.check_endpoint({}, ("console",)).status == doctor.INFO


# All of it.


def test_a_check_that_breaks_is_one_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> doctor.Row:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "check_cgroup", breaks)
    monkeypatch.setattr(doctor, "check_bcc", breaks)
    rows = {row.name: row for row in doctor.diagnose(load(None, {}), {})}
    assert len(rows) == 16
    assert rows["cgroup"].found == "could not be checked: ZeroDivisionError: by zero"
    assert all(row.hint for row in rows.values() if row.status in (doctor.WARN, doctor.FAIL))


def test_an_empty_file_system_fails_with_a_hint_for_every_row(tmp_path: Path) -> None:
    rows = [
        doctor.check_privileges(tmp_path),
        doctor.check_btf(tmp_path),
        doctor.check_tracefs(tmp_path),
        doctor.check_perf(tmp_path),
        doctor.check_headers(tmp_path),
    ]
    assert doctor.failing(rows)
    assert all(row.hint for row in rows)


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for what root has")
@pytest.mark.kernel
def test_this_machine() -> None:
    assert doctor.check_bpf().status == doctor.OK
    assert doctor.check_btf().status == doctor.OK
