# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that moves its bytes through io_uring, for the tests: compiled from server.c, run, ended."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("server.c")


@dataclass(frozen=True)
class Server:
    pid: int
    port: int


@contextmanager
def server(folder: Path, how: str = "") -> Iterator[Server]:
    """A running server; `how` is "" (RECV, SEND) or "vectors" (READV, WRITEV)."""
    program = folder / "io_uring_server"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    process = subprocess.Popen([program, *([how] if how else [])], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the server did not start: has this kernel io_uring?"
        yield Server(process.pid, int(line))
    finally:
        process.kill()
        process.communicate()
