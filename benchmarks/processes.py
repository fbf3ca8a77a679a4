# SPDX-License-Identifier: Apache-2.0
"""Child processes of the benchmarks: they end with us, each by its own pid, and always within a time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from benchmarks.patience import patience

START_TIMEOUT_S = patience(10.0)
STOP_TIMEOUT_S = patience(5.0)


class ProcessError(RuntimeError):
    """A process did not start or did not end as it should. The message holds the end of its log."""


class Child:
    """A process that we started.

    log: file that takes its standard error, and its standard output unless `stdout` says otherwise.
    cpus: the processors it may run on; empty: any.
    It receives SIGTERM when the thread that started it dies, so nothing is left behind.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | None = None,
        cpus: Sequence[int] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        prefix = ["setpriv", "--pdeathsig", "TERM", "--"]
        if cpus:
            prefix = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *prefix]
        with log.open("ab") as log_file:
            self.process = subprocess.Popen(
                [*prefix, *map(str, command)],
                stdin=stdin,
                stdout=log_file if stdout is None else stdout,
                stderr=log_file if stderr is None else stderr,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                pass_fds=pass_fds,
                # Not our process group: Ctrl-C at the terminal reaches us, and we end our children in order.
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The process and its descendants, now; empty after its end."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return ()
        return (self.pid, *(member.pid for member in family))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        """Raises when the process has ended."""
        if not self.running:
            raise ProcessError(f"{self.name} ended with status {self.process.returncode}{self._tail()}")

    def first_line(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """The first line it prints (needs stdout=PIPE): our own servers print their port when they listen."""
        assert self.process.stdout is not None
        stream = self.process.stdout
        timer = _KillTimer(self.process, timeout_s)
        with timer:
            line = stream.readline()
        if not line.endswith(b"\n"):
            self.stop()
            raise ProcessError(f"{self.name} printed nothing within {timeout_s:g} s{self._tail()}")
        return str(line.decode().strip())

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Asks it to end, waits, and kills it and its descendants when it does not. Its exit status."""
        family = self.pids
        if self.running:
            self.process.send_signal(number)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout_s)
        # Descendants that outlived it, and still are the processes we saw (psutil compares start times).
        for pid in family[1:]:
            _end(pid, self.process.pid)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return int(self.process.returncode)

    def _tail(self) -> str:
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return ":\n" + "\n".join(text.splitlines()[-15:]) if text else " and said nothing"


class _KillTimer:
    """Ends a process that takes too long, so that reading from it cannot hang."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._timer = threading.Timer(seconds, process.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _end(pid: int, session: int) -> None:
    """Kills a descendant that outlived its parent. It must still be in the session that we made for it."""
    try:
        if os.getsid(pid) == session:
            process = psutil.Process(pid)
            process.wait(0.5)
    except psutil.TimeoutExpired:
        process.kill()
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass


def listener() -> socket.socket:
    """A listening loopback socket on a free port, to be handed to a server: no port is ever guessed."""
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot take a socket or tell their port. From below
    the range that the kernel takes ports of outgoing connections from: nobody else comes across it."""
    for port in random.sample(range(20000, 32000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ProcessError("no free port between 20000 and 32000")


def wait_connectable(port: int, child: Child, timeout_s: float = START_TIMEOUT_S) -> None:
    """Returns when 127.0.0.1:port accepts a connection; raises when the process ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            child.check()
            if time.monotonic() > deadline:
                child.stop()
                raise ProcessError(
                    f"{child.name} does not listen on port {port} after {timeout_s:g} s"
                ) from None
            os.sched_yield()
            time.sleep(0.005)  # between two attempts to connect, not instead of them


def wait_answers(port: int, child: Child, path: str = "/", timeout_s: float = START_TIMEOUT_S) -> None:
    """Returns when an HTTP request to 127.0.0.1:port gets any answer."""
    import http.client

    wait_connectable(port, child, timeout_s)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        child.stop()
        raise ProcessError(f"{child.name} on port {port} does not answer: {error}") from error
    finally:
        connection.close()
