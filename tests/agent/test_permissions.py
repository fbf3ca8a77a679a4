# SPDX-License-Identifier: Apache-2.0
"""Why the kernel says no: each reason against a file system made for it, and where the sentence comes out."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from agent import attach, doctor, loader, tracefs
from agent.errors import AgentError, PrivilegeError
from agent.permissions import missing_capabilities, why_refused

ALL = (1 << 41) - 1
SYS_ADMIN, SYS_RESOURCE, BPF, PERFMON = 1 << 21, 1 << 24, 1 << 39, 1 << 38


def machine(root: Path, held: int = ALL, lockdown: str = "", paranoid: int | None = 2) -> Path:
    for path, text in (
        ("proc/self/status", f"CapEff:\t{held:016x}\n"),
        ("proc/sys/kernel/perf_event_paranoid", "" if paranoid is None else f"{paranoid}\n"),
        ("sys/kernel/security/lockdown", lockdown),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lockdown": "none integrity [confidentiality]"}, ["confidentiality", "lockdown=integrity"]),
        ({"lockdown": "none integrity [confidentiality]", "held": 0}, ["confidentiality"]),
        ({"held": 0}, ["CAP_BPF", "CAP_PERFMON", "CAP_SETUID"]),
        ({"held": ALL & ~SYS_ADMIN & ~BPF}, ["CAP_BPF missing"]),
        ({"held": ALL & ~SYS_ADMIN, "paranoid": 3}, ["perf_event_paranoid is 3", "CAP_SYS_ADMIN", "sysctl"]),
        ({"held": ALL & ~SYS_ADMIN, "paranoid": 4}, ["perf_event_paranoid is 4"]),
        ({"held": ALL & ~SYS_ADMIN, "paranoid": 2}, ["seccomp"]),
        ({"held": ALL, "paranoid": 4}, ["seccomp"]),
        ({"lockdown": "none [integrity] confidentiality"}, ["seccomp", "lockdown is integrity"]),
        ({"paranoid": None}, ["seccomp"]),
    ],
)
def test_what_forbids_it_is_named(tmp_path: Path, given: dict[str, object], words: list[str]) -> None:
    said = why_refused(machine(tmp_path, **given))  # type: ignore[arg-type]
    assert all(word in said for word in words), said


def test_integrity_alone_forbids_nothing_and_sys_resource_is_not_needed(tmp_path: Path) -> None:
    root = machine(tmp_path, held=ALL & ~SYS_RESOURCE, lockdown="none [integrity] confidentiality")
    assert missing_capabilities(root) == []
    assert doctor.check_lockdown(root) == doctor.Row("lockdown", doctor.OK, "integrity")


@pytest.mark.parametrize(
    ("held", "paranoid", "expected"),
    [
        (0, 2, doctor.OK),
        (0, 3, doctor.FAIL),
        (0, 4, doctor.FAIL),
        (PERFMON, 3, doctor.WARN),
        (SYS_ADMIN, 4, doctor.OK),
    ],
)
def test_the_paranoia_of_distributions(tmp_path: Path, held: int, paranoid: int, expected: str) -> None:
    row = doctor.check_perf(machine(tmp_path, held=held, paranoid=paranoid))
    assert (row.status, str(paranoid) in row.found) == (expected, True)
    assert bool(row.hint) == (expected != doctor.OK)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_an_attachment_that_is_forbidden_is_explained(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def forbidden(program: int, name: str) -> int:
        raise OSError(number, f"perf_event_open of {name}: {os.strerror(number)}")

    monkeypatch.setitem(attach.ATTACH, "tracepoint", forbidden)
    monkeypatch.setattr(attach, "why_refused", lambda: "this kernel is locked down")
    with pytest.raises(PrivilegeError) as caught:
        attach.Attachments().add(0, "tracepoint", ["syscalls/sys_exit_read"])
    assert "cannot attach to syscalls/sys_exit_read: perf_event_open" in caught.value.message
    assert caught.value.hint == "this kernel is locked down"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "could not open bpf map: connections, error: Cannot allocate memory\n",
            AgentError,
            ["map connections", "65536 entries", "Cannot allocate memory", "lower capture.connections_max"],
        ),
        (
            "noise\ncould not open bpf map: traced, error: Argument list too long\nmore",
            AgentError,
            ["map traced", "8192 entries", "more than this kernel allows", "capture.processes_max"],
        ),
        (
            "could not open bpf map: works, error: Cannot allocate memory",
            AgentError,
            ["map works", "control group"],
        ),
        (
            "could not open bpf map: counters, error: Operation not permitted",
            PrivilegeError,
            ["map counters", "Operation not permitted"],
        ),
    ],
)
def test_a_map_that_bcc_could_not_make_is_named(said: str, kind: type[AgentError], words: list[str]) -> None:
    error = loader.refused_by_bcc(said, {"connections_max": 65536, "processes_max": 8192})
    assert type(error) is kind
    assert all(word in f"{error.message} {error.hint}" for word in words), (error.message, error.hint)


def test_other_words_of_bcc_are_no_map() -> None:
    assert loader.refused_by_bcc("agent.bpf.c:3: error: expected ';'", {}) is None


def test_maps_with_an_option_are_those_of_the_programs() -> None:
    text = loader.join_includes(loader.BPF_FOLDER / "agent.bpf.c")
    for name, option in loader.MAP_OPTIONS.items():
        constant = option.removeprefix("capture.").upper()
        assert f", {name}, {constant}, " in text


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [(errno.EPERM, PrivilegeError, "may not"), (errno.ENODEV, AgentError, "cannot")],
)
def test_a_tracefs_that_cannot_be_had_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, kind: type[AgentError], word: str
) -> None:
    def refused(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(tracefs, "PLACES", (tmp_path / "tracing", tmp_path / "debug"))
    monkeypatch.setattr(tracefs, "_own", None)
    monkeypatch.setattr(tracefs, "_libc", type("Libc", (), {"syscall": staticmethod(refused)}))
    with pytest.raises(kind) as caught:
        tracefs.tracefs()
    assert type(caught.value) is kind
    assert f"{word} be mounted: {os.strerror(number)}" in caught.value.message
    assert "mount -t tracefs" in caught.value.hint
