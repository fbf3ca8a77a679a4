# SPDX-License-Identifier: Apache-2.0
"""Which hooks see the bytes on this host, and what each of them cannot see.

`tracepoint`: the system calls, one by one. Cheapest, stable, no kprobes needed.
`kprobe`: the kernel's own functions, where every way of moving bytes comes together.
`auto`: tracepoints, and kprobes for processes that use io_uring, where this kernel has them.

Standard library only: the keeper and `doctor` use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError

CHOICES = ("auto", "tracepoint", "kprobe")
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
SYSCALL_EVENTS = "events/syscalls/sys_exit_recvfrom"


@dataclass(frozen=True)
class Backend:
    """syscalls, kprobes: which programs are compiled; kprobes_for_all: not only for io_uring."""

    name: str
    syscalls: bool
    kprobes: bool
    kprobes_for_all: bool
    sees: str  # one sentence: what it sees, and what it cannot


def choose(wanted: str, tracefs: Path, kprobe_pmu: Path = KPROBE_PMU) -> Backend:
    """What `wanted` (one of CHOICES) means here. Raises AgentError where this kernel cannot do it."""
    kprobes = kprobe_pmu.exists()
    syscalls = (tracefs / SYSCALL_EVENTS).exists()
    if wanted == "kprobe" and not kprobes:
        raise AgentError(
            f"--capture kprobe: this kernel has no kprobes ({kprobe_pmu} is missing)",
            "use --capture auto or tracepoint; kprobes need CONFIG_KPROBES and CONFIG_KPROBE_EVENTS",
        )
    if wanted == "tracepoint" and not syscalls:
        raise AgentError(
            f"--capture tracepoint: this kernel has no system call tracepoints ({tracefs}/events/syscalls)",
            "use --capture auto or kprobe; they need CONFIG_FTRACE_SYSCALLS",
        )
    if not (syscalls or kprobes):
        raise AgentError(
            f"this kernel has neither system call tracepoints ({tracefs}/events/syscalls) nor kprobes",
            "one of CONFIG_FTRACE_SYSCALLS and CONFIG_KPROBES is needed: use a distribution's kernel",
        )
    if wanted == "kprobe" or not syscalls:
        sees = "kprobes: every way of moving bytes; 32-bit processes too"
        return Backend("kprobe", False, True, True, sees)
    if wanted == "auto" and kprobes:
        sees = "system calls by tracepoints, and kprobes for processes that use io_uring"
        return Backend("auto", True, True, False, sees)
    sees = "system calls by tracepoints; not what io_uring moves"
    return Backend("tracepoint", True, False, False, sees)
