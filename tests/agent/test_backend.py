# SPDX-License-Identifier: Apache-2.0
"""Which hooks are chosen by --capture, on kernels that have them and on kernels that have not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import backend
from agent.errors import AgentError


def host(folder: Path, syscalls: bool, kprobes: bool) -> tuple[Path, Path]:
    """(tracefs, the file that tells of kprobes) of a made-up kernel."""
    if syscalls:
        (folder / backend.SYSCALL_EVENTS).mkdir(parents=True)
    pmu = folder / "type"
    if kprobes:
        pmu.write_text("8\n")
    return folder, pmu


@pytest.mark.parametrize(
    "wanted, syscalls, kprobes, name, compiled",
    [
        ("auto", True, False, "tracepoint", (True, False, False)),
        ("auto", True, True, "auto", (True, True, False)),
        ("auto", False, True, "kprobe", (False, True, True)),
        ("tracepoint", True, True, "tracepoint", (True, False, False)),
        ("kprobe", True, True, "kprobe", (False, True, True)),
    ],
)
def test_choice(tmp_path: Path, wanted, syscalls, kprobes, name, compiled) -> None:
    chosen = backend.choose(wanted, *host(tmp_path, syscalls, kprobes))
    assert chosen.name == name
    assert (chosen.syscalls, chosen.kprobes, chosen.kprobes_for_all) == compiled
    assert chosen.sees


@pytest.mark.parametrize(
    "wanted, syscalls, kprobes, word",
    [
        ("kprobe", True, False, "--capture kprobe"),
        ("tracepoint", False, True, "--capture tracepoint"),
        ("auto", False, False, "neither"),
    ],
)
def test_what_this_kernel_cannot_do_is_named(tmp_path: Path, wanted, syscalls, kprobes, word) -> None:
    with pytest.raises(AgentError, match=word) as caught:
        backend.choose(wanted, *host(tmp_path, syscalls, kprobes))
    assert caught.value.hint
