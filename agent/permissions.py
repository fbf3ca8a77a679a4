# SPDX-License-Identifier: Apache-2.0
"""What a run may need to be allowed, and why the kernel says no: the capabilities, and what else forbids.

Runs in the loader, the keeper, the command line and `doctor`: standard library only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path("/")
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
# Each needs one of its capabilities. Not CAP_SYS_RESOURCE: since Linux 5.11 maps are not counted as locked.
NEEDS = (
    ("load programs", ("CAP_BPF", "CAP_SYS_ADMIN")),
    ("attach to tracepoints", ("CAP_PERFMON", "CAP_SYS_ADMIN")),
    ("read who a process is", ("CAP_SYS_PTRACE",)),
    ("read tracefs and descriptors of others", ("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE")),
    ("give up the privileges of the pipeline", ("CAP_SETUID",)),
    ("give up its groups", ("CAP_SETGID",)),
)
NUMBERS = CAPABILITIES | {"CAP_DAC_OVERRIDE": 1}
PARANOID_ANY = 3  # distributions' own: from here on perf_event_open(2) is for privileged processes only


def holds(capability: str, root: Path = ROOT) -> bool:
    """Whether this process has the capability in effect."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", read(root / "proc/self/status"), re.MULTILINE)
    return bool(match and int(match[1], 16) >> NUMBERS[capability] & 1)


def missing_capabilities(root: Path = ROOT) -> list[str]:
    """The capabilities that a run needs and this process does not have, in the order of NEEDS."""
    return [names[0] for _, names in NEEDS if not any(holds(name, root) for name in names)]


def lockdown(root: Path = ROOT) -> str:
    """integrity, confidentiality, none; empty where the kernel has no such thing."""
    match = re.search(r"\[(\w+)\]", read(root / "sys/kernel/security/lockdown"))
    return match[1] if match else ""


def perf_event_paranoid(root: Path = ROOT) -> int | None:
    text = read(root / "proc/sys/kernel/perf_event_paranoid").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def why_refused(root: Path = ROOT) -> str:
    """The kernel answered EPERM or EACCES to bpf(2), perf_event_open(2) or mount(2): why, and what helps."""
    if lockdown(root) == "confidentiality":
        return (
            "this kernel is locked down (confidentiality), which forbids programs to read memory: boot with "
            "lockdown=integrity or none"
        )
    missing = missing_capabilities(root)
    if missing:
        return f"{', '.join(missing)} missing: {advice()}"
    paranoid = perf_event_paranoid(root)
    if paranoid is not None and paranoid >= PARANOID_ANY and not holds("CAP_SYS_ADMIN", root):
        return (
            f"kernel.perf_event_paranoid is {paranoid}, which on some distributions asks for CAP_SYS_ADMIN: "
            "add it, or sysctl kernel.perf_event_paranoid=2"
        )
    mode = f"; lockdown is {lockdown(root)}" if lockdown(root) not in ("", "none") else ""
    return (
        "every capability is there: a seccomp profile or a security module forbids it. In a container: "
        f"--privileged, or --security-opt seccomp=unconfined{mode}"
    )


def advice() -> str:
    """How to get capabilities."""
    if os.geteuid():
        return "run it with sudo"
    return "run it with --privileged, or with these capabilities added, if this is a container"


def read(path: Path) -> str:
    """The text of a file; nothing of one that cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
