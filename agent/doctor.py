# SPDX-License-Identifier: Apache-2.0
"""What this machine has of what the agent needs, what is missing, and how to get it.

Every check is one function that answers one row; none changes anything, and none may fail the others.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import __version__
from agent.backend import KPROBE_PMU, SYSCALL_EVENTS, choose
from agent.errors import AgentError
from agent.permissions import (
    PARANOID_ANY,
    holds,
    lockdown,
    missing_capabilities,
    perf_event_paranoid,
    read,
)

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"
KERNEL_LEAST = (5, 8)  # ring buffer, CAP_BPF
ROOT = Path("/")
BCC_TIMEOUT_S = 30  # importing BCC loads LLVM from a cold disk


@dataclass(frozen=True)
class Row:
    """One finding. hint: what to do, where something is to be done."""

    name: str
    status: str
    found: str
    hint: str = ""


def package(debian: str, fedora: str) -> str:
    """How to install something, on the families of distributions that we know."""
    return f"Debian, Ubuntu: apt install {debian}; Fedora: dnf install {fedora}"


# Privileges, which `run` asks for as well.


PID_NAMESPACE = "pid:[4026531836]"  # of the host: PROC_PID_INIT_INO of include/linux/proc_ns.h
PID_NAMESPACE_HINT = "--pid=host for podman and docker, hostPID: true for Kubernetes"


def in_pid_namespace(root: Path = ROOT) -> bool:
    """Whether we have other numbers for processes than the kernel programs: we would trace strangers."""
    try:
        return os.readlink(root / "proc/self/ns/pid") != PID_NAMESPACE
    except OSError:
        return False


def check_privileges(root: Path = ROOT) -> Row:
    missing = missing_capabilities(root)
    who = f"uid {os.geteuid()}"
    if in_pid_namespace(root):
        return Row("privileges", FAIL, f"{who}, but not in the host's pid namespace", PID_NAMESPACE_HINT)
    if not missing:
        return Row("privileges", OK, f"{who}, every capability that is needed")
    return Row("privileges", FAIL, f"{who}, without {', '.join(missing)}", "run it with sudo")


# The kernel.


def kernel_release() -> str:
    return platform.release()


def has_btf(root: Path = ROOT) -> bool:
    return (root / "sys/kernel/btf/vmlinux").exists()


def check_kernel(release: str = "") -> Row:
    release = release or kernel_release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    found = f"Linux {release} {platform.machine()}"
    if version >= KERNEL_LEAST:
        return Row("kernel", OK, found)
    return Row(
        "kernel",
        FAIL,
        found,
        f"Linux {KERNEL_LEAST[0]}.{KERNEL_LEAST[1]} or newer is needed (BPF ring buffer)",
    )


def check_btf(root: Path = ROOT) -> Row:
    if not has_btf(root):
        hint = "take a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10, Fedora 31 and later)"
        return Row("BTF", FAIL, "no /sys/kernel/btf/vmlinux", hint)
    try:
        from agent import btf, loader

        text = loader.join_includes(loader.BPF_FOLDER / "agent.bpf.c")
        fields, optional = loader.fields_read(text), loader.fields_optional(text)
        btf.read(fields, optional, path=str(root / "sys/kernel/btf/vmlinux"))
    except AgentError as error:
        return Row("BTF", FAIL, error.message, error.hint)
    except (ImportError, OSError) as error:
        return Row(
            "BTF",
            WARN,
            f"present, but its fields could not be checked: {error}",
            "is the installation whole?",
        )
    return Row("BTF", OK, f"present, with all {len(fields)} fields that the programs read")


def tracefs_of(root: Path) -> Path | None:
    """Where tracefs is mounted; raises PermissionError for who may not look."""
    places = (root / "sys/kernel/tracing", root / "sys/kernel/debug/tracing")
    return next((place for place in places if (place / "events").is_dir()), None)


def check_tracefs(root: Path = ROOT) -> Row:
    try:
        place = tracefs_of(root)
    except PermissionError:
        return Row("tracefs", WARN, "/sys/kernel/tracing may not be read", "run doctor with sudo")
    if place is not None:
        return Row("tracefs", OK, f"/{place.relative_to(root)}")
    hint = "a run mounts it for itself, with CAP_SYS_ADMIN; or mount -t tracefs tracefs /sys/kernel/tracing"
    return Row("tracefs", WARN, "not mounted at /sys/kernel/tracing", hint)


# What sees the bytes.


def check_syscall_tracepoints(root: Path = ROOT) -> Row:
    name = "system call tracepoints"
    try:
        place = tracefs_of(root)
    except PermissionError:
        return Row(name, WARN, "tracefs may not be read", "run doctor with sudo")
    if place is None:
        return Row(
            name, WARN, "not known: tracefs is not mounted", "mount -t tracefs tracefs /sys/kernel/tracing"
        )
    if (place / SYSCALL_EVENTS).exists():
        return Row(name, OK, "in this kernel")
    return Row(
        name, WARN, "not in this kernel", "take a kernel with CONFIG_FTRACE_SYSCALLS=y; kprobes cost more"
    )


def check_kprobes(root: Path = ROOT) -> Row:
    """The PMU, by which they are attached: that functions can be traced (ftrace) does not make kprobes."""
    kind = read(root / KPROBE_PMU.relative_to("/")).strip()
    if kind:
        return Row("kprobes", OK, "in this kernel")
    hint = "io_uring is seen with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y only"
    return Row("kprobes", INFO, "not in this kernel", hint)


def check_capture(wanted: str, root: Path = ROOT) -> Row:
    """What `auto`, or what is configured, comes to on this host, and what that sees."""
    try:
        place = tracefs_of(root)
        if place is None:
            hint = "mount -t tracefs tracefs /sys/kernel/tracing"
            return Row("capture", WARN, f"{wanted}: not known, tracefs is not mounted", hint)
        chosen = choose(wanted, place, root / KPROBE_PMU.relative_to("/"))
    except PermissionError:
        return Row("capture", WARN, f"{wanted}: not known, tracefs may not be read", "run doctor with sudo")
    except AgentError as error:
        return Row("capture", FAIL, error.message, error.hint)
    means = "" if chosen.name == wanted else f" is {chosen.name} here"
    return Row("capture", OK, f"{wanted}{means}: {chosen.sees}")


BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}


def check_bpf() -> Row:
    """Creates an array of one entry, and lets it go."""
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        machines = ", ".join(BPF_SYSCALL)
        return Row("bpf(2)", FAIL, f"{platform.machine()} is not supported", f"supported: {machines}")
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(2, 4, 8, 1)  # BPF_MAP_TYPE_ARRAY, key, value, entries
    descriptor = libc.syscall(
        number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )  # BPF_MAP_CREATE
    if descriptor >= 0:
        os.close(descriptor)
        return Row("bpf(2)", OK, "a map can be created")
    error = ctypes.get_errno()
    hints = {
        1: "run it with sudo; in a container: --privileged, or cap-add and a seccomp profile that allow bpf",
        38: "take a kernel with CONFIG_BPF_SYSCALL=y",
    }
    return Row("bpf(2)", FAIL, f"BPF_MAP_CREATE: {os.strerror(error)}", hints.get(error, "see dmesg"))


def check_lockdown(root: Path = ROOT) -> Row:
    mode = lockdown(root)
    if mode == "confidentiality":
        hint = "boot with lockdown=integrity or none: confidentiality forbids programs to read memory"
        return Row("lockdown", FAIL, mode, hint)
    return Row("lockdown", OK, mode or "not in this kernel")


def check_perf(root: Path = ROOT) -> Row:
    level = perf_event_paranoid(root)
    if level is None:
        return Row("perf_event_paranoid", WARN, "no such setting", "take a kernel with CONFIG_PERF_EVENTS=y")
    if level >= PARANOID_ANY and not holds("CAP_SYS_ADMIN", root):
        if holds("CAP_PERFMON", root):
            hint = "if attaching is refused: some distributions ask for CAP_SYS_ADMIN from 3 on; add it"
            return Row("perf_event_paranoid", WARN, f"{level}, with CAP_PERFMON alone", hint)
        hint = "run it with sudo, or sysctl kernel.perf_event_paranoid=2"
        return Row("perf_event_paranoid", FAIL, str(level), hint)
    return Row("perf_event_paranoid", OK, f"{level} (does not bind root)")


def check_memlock(release: str = "") -> Row:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    numbers = re.match(r"(\d+)\.(\d+)", release or kernel_release())
    if numbers and (int(numbers[1]), int(numbers[2])) >= (5, 11):
        return Row("memlock", OK, f"{shown} (BPF memory is counted in the cgroup since 5.11)")
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return Row("memlock", OK, shown)
    return Row("memlock", FAIL, shown, "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)")


def check_cgroup(root: Path = ROOT) -> Row:
    base = root / "sys/fs/cgroup"
    if (base / "cgroup.controllers").exists():
        return Row("cgroup", OK, "version 2")
    if (base / "unified/cgroup.controllers").exists():
        return Row("cgroup", OK, "version 1, with version 2 at /sys/fs/cgroup/unified")
    if base.is_dir() and any(base.iterdir()):
        return Row("cgroup", OK, "version 1")
    return Row("cgroup", WARN, "none at /sys/fs/cgroup", "container ids may be missing; mount /sys/fs/cgroup")


# What is installed.


def bcc_candidates(configured: str) -> list[str]:
    """Interpreters that may have BCC, in the order a run tries them: the configured one alone, if any."""
    if configured:
        return [configured]
    names = ["/usr/bin/python3", shutil.which("python3") or "", sys.executable]
    return list(dict.fromkeys(name for name in names if name and Path(name).exists()))


def check_bcc(configured: str = "") -> Row:
    """BCC's Python module is the distribution's, for its own interpreter; PyPI's `bcc` is another project."""
    wrong = ""
    candidates = bcc_candidates(configured)
    for python in candidates:
        code = "import bcc; bcc.BPF; print(getattr(bcc, '__version__', ''))"
        try:
            done = subprocess.run(
                [python, "-I", "-c", code], capture_output=True, text=True, timeout=BCC_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            wrong = f"{python}: {error}"
            continue
        if done.returncode == 0:
            return Row("BCC", OK, f"{done.stdout.strip() or 'version unknown'} in {python}")
        if "AttributeError" in done.stderr:
            wrong = f"{python} has the bcc of PyPI, which is another project"
    hint = package("python3-bpfcc", "python3-bcc")
    if configured:
        hint += "; or correct capture.loader_python"
    return Row("BCC", FAIL, wrong or f"not in {', '.join(candidates) or 'any Python'}", hint)


def check_libbpf() -> Row:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        try:
            version = library.libbpf_version_string
        except AttributeError:
            return Row("libbpf", OK, name)
        version.restype = ctypes.c_char_p
        return Row("libbpf", OK, f"{version().decode()} ({name})")
    return Row("libbpf", FAIL, "libbpf.so.1 not found", package("libbpf1", "libbpf"))


def check_headers(root: Path = ROOT) -> Row:
    """The UAPI headers, which programs are compiled against; the kernel's own are not needed."""
    include = root / "usr/include"
    machine = include / f"{platform.machine()}-linux-gnu" / "asm/types.h"
    if (include / "linux/types.h").exists() and (machine.exists() or (include / "asm/types.h").exists()):
        return Row("UAPI headers", OK, "/usr/include/linux")
    return Row(
        "UAPI headers", FAIL, "no /usr/include/linux/types.h", package("linux-libc-dev", "kernel-headers")
    )


# The receiver.


def check_endpoint(environ: Mapping[str, str], exporters: Iterable[str]) -> Row:
    """Sends an export without spans: address, TLS, credentials and path are tried, and nothing is stored."""
    if "otlp" not in exporters:
        hint = "set OTEL_EXPORTER_OTLP_ENDPOINT to export to a collector"
        return Row("OTLP endpoint", INFO, "not used", hint)
    try:
        from exporters.otlp_http import HttpDestination, tls_context
        from exporters.otlp_settings import read_settings
        from exporters.sender import Unreachable
    except ImportError as error:
        return Row(
            "OTLP endpoint",
            FAIL,
            f"the exporter cannot be loaded: {error}",
            "install it again: pip install -e .",
        )
    try:
        settings = read_settings(environ).signals["traces"]
        destination = HttpDestination(settings, __version__, tls_context(settings))
    except AgentError as error:
        return Row("OTLP endpoint", FAIL, error.message, error.hint)
    url = settings.url
    try:
        status, text = _post(destination, b"{}" if settings.json else b"")
    except Unreachable as error:
        return Row(
            "OTLP endpoint",
            FAIL,
            f"{url}: {error}",
            "is the collector running, and is this its HTTP port (4318)?",
        )
    finally:
        destination.close()
    found = f"{url}: {status} {text}".rstrip()
    if 200 <= status < 300:
        return Row("OTLP endpoint", OK, f"{found}, an empty export was accepted")
    hints = {
        401: "set the credentials in OTEL_EXPORTER_OTLP_HEADERS",
        403: "set the credentials in OTEL_EXPORTER_OTLP_HEADERS",
        404: "OTEL_EXPORTER_OTLP_ENDPOINT is a base: /v1/traces is added to it",
        405: "is this an OTLP receiver?",
        415: "is this an OTLP/HTTP receiver? 4317 is the port of gRPC",
    }
    return Row("OTLP endpoint", FAIL, found, hints.get(status, "see the log of the receiver"))


def _post(destination: Any, body: bytes) -> tuple[int, str]:
    answer = destination.post(body, False)
    return answer.status, answer.text


# All of it.


def diagnose(config: Mapping[str, Any], environ: Mapping[str, str], root: Path = ROOT) -> list[Row]:
    """Every check, in the order in which a run would need them."""
    checks: tuple[tuple[str, Callable[[], Row]], ...] = (
        ("kernel", check_kernel),
        ("privileges", lambda: check_privileges(root)),
        ("bpf(2)", check_bpf),
        ("BTF", lambda: check_btf(root)),
        ("tracefs", lambda: check_tracefs(root)),
        ("system call tracepoints", lambda: check_syscall_tracepoints(root)),
        ("kprobes", lambda: check_kprobes(root)),
        ("capture", lambda: check_capture(str(config["capture.backend"]), root)),
        ("lockdown", lambda: check_lockdown(root)),
        ("perf_event_paranoid", lambda: check_perf(root)),
        ("memlock", check_memlock),
        ("cgroup", lambda: check_cgroup(root)),
        ("BCC", lambda: check_bcc(str(config["capture.loader_python"]))),
        ("libbpf", check_libbpf),
        ("UAPI headers", lambda: check_headers(root)),
        ("OTLP endpoint", lambda: check_endpoint(environ, config["exporters"])),
    )
    rows = []
    for name, check in checks:
        try:
            rows.append(check())
        except Exception as error:  # a check that breaks is a finding, and the other rows are still wanted
            rows.append(
                Row(
                    name, WARN, f"could not be checked: {type(error).__name__}: {error}", "please report this"
                )
            )
    return rows


def failing(rows: Iterable[Row]) -> bool:
    return any(row.status == FAIL for row in rows)
