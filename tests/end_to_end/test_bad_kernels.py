# SPDX-License-Identifier: Apache-2.0
"""What can be wrong below the agent: type information, rights, tracefs, memory, hooks that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import btf, loader
from benchmarks import servers
from benchmarks.agent import agent, command
from benchmarks.spans import SERVER
from tests.bpf.test_self_test import python_with
from tests.end_to_end.test_lifecycle import ask

pytestmark = pytest.mark.kernel

MIB = 1024 * 1024


def run_agent(*arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """A run that is expected to end by itself. before: what starts it."""
    options = ["--pid", str(os.getpid()), "--exporter", "none", "--set", "self.listen="]
    return subprocess.run(
        [*(before or []), *command(), "run", *options, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def with_loader(folder: Path, patch: str) -> list[str]:
    return ["--set", f"capture.loader_python={python_with(folder, patch)}"]


def assert_refused(ended: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr and "ready" not in ended.stderr
    assert "hint" in ended.stderr
    assert [word for word in words if word not in ended.stderr] == [], ended.stderr
    assert len(ended.stderr.splitlines()) <= 2, ended.stderr


# Type information.


def btf_file(folder: Path, kind: str) -> str:
    path, whole = folder / "vmlinux", Path(btf.VMLINUX).read_bytes()
    made = {
        "truncated": whole[: len(whole) // 2],
        "a header": whole[:24],
        "empty": b"",
        "another format": b"\x7fELF" + bytes(4096),
    }
    if kind in made:
        path.write_bytes(made[kind])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["No such file", "CONFIG_DEBUG_INFO_BTF"]),
        ("truncated", ["not whole"]),
        ("a header", ["not whole"]),
        ("empty", ["not whole"]),
        ("another format", ["not whole"]),
    ],
)
def test_type_information_that_cannot_be_read(tmp_path: Path, kind: str, words: list[str]) -> None:
    path = btf_file(tmp_path, kind)
    patch = f"loader.btf.read.__defaults__ = ((), (), {path!r})"
    assert_refused(run_agent(*with_loader(tmp_path, patch)), 1, path, *words)


def test_type_information_that_may_not_be_read(tmp_path: Path) -> None:
    """As somebody without rights: root reads everything."""
    path = btf_file(tmp_path, "empty")
    os.chmod(path, 0)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        os.chmod(folder, 0o755)
    code = (
        f"from agent import btf\ntry: btf.offsets([], {path!r})\nexcept btf.BtfError as e: print(e, e.hint)"
    )
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    out = subprocess.run([*as_nobody, sys.executable, "-c", code], capture_output=True, text=True)
    assert "Permission denied" in out.stdout and "run as root" in out.stdout, out


def test_a_field_that_this_kernel_has_not(tmp_path: Path) -> None:
    patch = (
        "real = loader.fields_read\n"
        "loader.fields_read = lambda text: [*real(text), ('tcp_sock', 'copied_sequence')]\n"
    )
    assert_refused(
        run_agent(*with_loader(tmp_path, patch)), 1, "no field tcp_sock.copied_sequence", "uname -r"
    )


# Rights.


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
        ("-sys_ptrace", "CAP_SYS_PTRACE"),
        ("-all", "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SETUID, CAP_SETGID"),
    ],
)
def test_a_missing_capability_is_named(dropped: str, named: str) -> None:
    ended = run_agent(before=["setpriv", f"--bounding-set={dropped}"])
    assert_refused(ended, 77, f"{named} missing", "--privileged")


@pytest.mark.parametrize("dropped", ["-sys_admin", "-bpf,-perfmon", "-sys_resource"])
def test_capabilities_that_another_one_covers_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: str
) -> None:
    before = f"setpriv --bounding-set={dropped}"
    monkeypatch.setenv("BENCHMARKS_AGENT", f"{before} {' '.join(command())}")
    with servers.nginx() as server:
        with agent(server.pids, exporters=["none"], folder=tmp_path) as running:
            for i in range(5):
                ask(server.port, f"c/{i}")
            said = wait_for_spans(running, 5)
    assert "is off" not in said


def wait_for_spans(running, count: int) -> str:
    deadline = time.monotonic() + 10
    while running.counters().total("ebpf_otlp_tracer_spans_total") != count:
        assert time.monotonic() < deadline, running.said
        time.sleep(0.05)
    return running.said


@pytest.mark.parametrize("refused", ["1", "13"])
def test_a_system_call_that_is_forbidden_is_explained(tmp_path: Path, refused: str) -> None:
    """bpf(2) says EPERM or EACCES though every capability is there, as in a locked down kernel."""
    patch = (
        "import ctypes\n"
        "class Libc:\n"
        "    def __init__(self, *_, **__): pass\n"
        f"    def syscall(self, *_): ctypes.set_errno({refused}); return -1\n"
        "real = ctypes.CDLL\n"
        "loader.ctypes.CDLL = lambda name, **rest: Libc() if name is None else real(name, **rest)\n"
        "loader.why_refused = lambda: 'this kernel is locked down (confidentiality)'\n"
    )
    ended = run_agent(*with_loader(tmp_path, patch))
    assert_refused(ended, 77, "cannot make the ring buffer events", "locked down (confidentiality)")


# tracefs.


def in_a_mount_namespace(first: str) -> list[str]:
    """What runs a command where the mounts are our own, after `first`."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{first}; exec "$@"', "sh"]


@pytest.mark.parametrize(
    "first",
    [
        "umount /sys/kernel/tracing",
        "mount -o remount,ro,bind /sys/kernel/tracing",
        "umount /sys/kernel/tracing; mount -t tmpfs -o ro none /sys/kernel/tracing",
    ],
)
def test_tracefs_that_is_not_mounted_or_read_only_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    script = tmp_path / "agent"
    script.write_text(f'#!/bin/sh -e\n{first}\nexec {" ".join(command())} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("BENCHMARKS_AGENT", f"unshare --mount --propagation private {script}")
    mounts = Path("/proc/self/mountinfo").read_text()
    with servers.nginx() as server:
        with agent(server.pids, exporters=["none"], folder=tmp_path) as running:
            for i in range(5):
                ask(server.port, f"t/{i}")
            said = wait_for_spans(running, 5)
    assert "is off" not in said
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_tracefs_that_may_not_be_mounted_is_a_sentence(tmp_path: Path) -> None:
    drop = ["setpriv", "--bounding-set=-sys_admin"]
    ended = run_agent(before=[*in_a_mount_namespace("umount /sys/kernel/tracing"), *drop])
    assert_refused(ended, 77, "tracefs is not mounted", "may not be mounted", "mount -t tracefs")


# Memory.


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("capture.connections_max", 1 << 31, "map connections"),
        ("capture.unix_connections_max", 1 << 31, "map unix_connections"),
        ("capture.threads_max", 1 << 31, "map threads"),
        ("capture.ring_bytes", 1 << 32, "ring buffer events"),
    ],
)
def test_a_map_that_is_too_large_names_its_option(option: str, value: int, named: str) -> None:
    ended = run_agent("--set", f"{option}={value}")
    assert_refused(ended, 1, f"cannot make the {named} of {value}", option)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group for memory, of the version that this machine has."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        if (root / "memory.limit_in_bytes").exists() or "memory" in _text(root / "cgroup.subtree_control"):
            break
    else:
        pytest.skip("no memory controller")
    group = root / f"ebpf-otlp-tracer-test-{os.getpid()}"
    group.mkdir()
    yield group
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def limited(group: Path, size: int) -> list[str]:
    names = ("memory.limit_in_bytes", "memory.max")
    next(group / name for name in names if (group / name).exists()).write_text(str(size))
    return ["sh", "-ec", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]


def test_no_memory_for_the_tables_of_the_pipeline_is_said() -> None:
    """It makes them before the kernel programs are loaded."""
    assert_refused(
        run_agent("--set", f"capture.processes_max={1 << 31}"), 1, "memory", "capture.processes_max"
    )


def test_no_memory_for_a_map_is_said_with_its_size_and_option(memory_group: Path) -> None:
    """The loader alone: a pipeline that starts meanwhile may be what the kernel ends."""
    size = 512 * MIB
    code = (
        "from agent import kernel, errors\n"
        f"try: kernel.load(kernel.Settings(ring_bytes={size}))\n"
        "except errors.AgentError as e: print(e.message, '|', e.hint)\n"
    )
    out = subprocess.run(
        [*limited(memory_group, 400 * MIB), sys.executable, "-c", code], capture_output=True, text=True
    )
    assert f"cannot make the ring buffer events of {size} bytes: Cannot allocate memory" in out.stdout, out
    assert "lower capture.ring_bytes" in out.stdout


def test_no_memory_to_compile_is_said(memory_group: Path) -> None:
    ended = run_agent(before=limited(memory_group, 75 * MIB))
    assert_refused(ended, 1, "was killed", "memory is short", "control group")


# Hooks that are missing.


def without(*calls: str) -> str:
    """The hooks of these calls get names that no kernel has."""
    return f"""
for name, targets in loader.TARGETS.items():
    loader.TARGETS[name] = tuple(t + '_of_tomorrow' if t in {calls!r} else t for t in targets)
"""


def test_a_hook_that_is_missing_switches_off_its_own_and_nothing_else(trace, tmp_path: Path) -> None:
    python = python_with(tmp_path, without("readv", "sendfile64"))
    env = {"EBPF_OTLP_TRACER_CAPTURE_LOADER_PYTHON": python}
    with servers.nginx() as server, trace(server.pids, **env) as traced:
        for i in range(7):
            ask(server.port, f"h/{i}")
        traced.wait_for(7)
        said = traced.agent.said
    assert len(traced.of(SERVER)) == 7
    (ready,) = (line for line in said.splitlines() if "ready" in line)
    assert "sys_exit_readv_of_tomorrow is off (this kernel has no tracepoint" in ready
    assert ready.count(" is off ") == 4, "the exit of readv; of sendfile64 its entry and both its exits"
    assert "not seen:" in ready


def test_without_any_hook_there_is_nothing_to_trace(tmp_path: Path) -> None:
    patch = without(*loader.TARGETS["exit_receive"], *loader.SENDS)
    ended = run_agent(*with_loader(tmp_path, patch))
    assert_refused(ended, 1, "nothing can be traced", "no tracepoint", "more hooks are off", "doctor")
