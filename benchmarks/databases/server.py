# SPDX-License-Identifier: Apache-2.0
"""What the three database servers have in common: a process without privileges, a folder, a truth to read."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.patience import patience
from benchmarks.processes import START_TIMEOUT_S, Child, ProcessError

LOG_TIMEOUT_S = patience(10.0)
T = TypeVar("T")


@dataclass(frozen=True)
class Statement:
    """One thing that a server says it was asked to do.

    port: the client's; 0 over a Unix socket. session: the server's own number of the connection.
    number: its place among the session's, from 0. kind: the server's word for it, in lower case.
    error: SQLSTATE, MariaDB's number or Redis' first word; empty: it went well. None: not logged.
    """

    port: int
    session: int
    number: int
    kind: str
    text: str
    error: str | None = ""
    duration_ns: int | None = None
    rows: int | None = None


@dataclass
class Database:
    """A running server. folder: its data, socket and logs, deleted with it."""

    name: str
    port: int
    child: Child
    folder: Path
    socket: Path

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """All its processes, now: PostgreSQL has one per connection."""
        return self.child.pids

    def statements(self) -> list[Statement]:
        """All that was asked so far, session by session, without what we asked ourselves."""
        raise NotImplementedError


@contextmanager
def folder_of(user: str) -> Iterator[Path]:
    """A temporary folder that the user owns and everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-database-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, *_account(user))
        yield folder


def as_user(user: str, end_signal: str) -> list[str]:
    """The prefix of a command that runs as the user if we are root. Its end with us is asked for once more,
    since the kernel forgets it when a process changes its user."""
    if os.geteuid() != 0:
        return []
    uid, gid = _account(user)
    drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]
    return [*drop, "setpriv", "--pdeathsig", end_signal, "--"]


def _account(user: str) -> tuple[int, int]:
    """Of the package's user, or nobody's where the server was installed without one."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def program(name: str, package: str, *folders: str) -> str:
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise ProcessError(f"{name} is not installed\nhint: apt install {package}")
    return found


def run(command: Sequence[str | Path], text: str | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [*map(str, command)], input=text, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise ProcessError(f"{Path(command[0]).name} ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def wait_for(condition: Callable[[], T | None], child: Child, what: str, timeout_s: float) -> T:
    """What the condition gives, once it gives something; raises when the server ends first, or the time."""
    deadline = time.monotonic() + timeout_s
    while (found := condition()) is None:
        child.check()
        if time.monotonic() > deadline:
            raise ProcessError(f"{child.name}: not within {timeout_s:g} s: {what}")
        time.sleep(0.005)  # between two looks, not instead of them
    return found
