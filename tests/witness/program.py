# SPDX-License-Identifier: Apache-2.0
"""Builds the witness (witness.c) and runs it.

with Witness(calls=1000, seed=1) as witness:
    ...  select witness.pid ...
    told = witness.run()
told.chunks, told.bytes, told.of("tcp", "in")
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SOURCE = Path(__file__).with_name("witness.c")
FOLDER = Path(__file__).parents[2] / "build" / "witness"
C_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread")
RUN_TIMEOUT_S = 150.0


def program() -> Path:
    """The compiled witness; its name carries the hash of its source, so that a stale one is never run."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"no C compiler {compiler!r} to build {SOURCE}\nhint: apt install gcc libc6-dev")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join((compiler, *C_FLAGS)).encode()).hexdigest()[:12]
    target = FOLDER / f"witness-{digest}"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        subprocess.run([compiler, *C_FLAGS, "-o", str(fresh), str(SOURCE)], check=True)
        fresh.rename(target)
    return target


@dataclass(frozen=True)
class Told:
    """What the witness says it did. chunks and bytes: over everything that moved bytes."""

    raw: dict[str, Any]

    @property
    def chunks(self) -> int:
        return int(self.raw["chunks"])

    @property
    def bytes(self) -> int:
        return int(self.raw["bytes"])

    def of(self, transport: str, direction: str) -> tuple[int, int]:
        """(chunks, bytes) of a transport ("tcp", "udp", "unix") in a direction ("in", "out")."""
        kinds = self.raw["log"][transport][direction].values()
        return sum(each["chunks"] for each in kinds), sum(each["bytes"] for each in kinds)

    def __str__(self) -> str:
        """One line for each kind that was called."""
        lines = []
        for transport, directions in self.raw["log"].items():
            for direction, kinds in directions.items():
                lines += [
                    f"{transport:<5}{direction:<4}{kind:<12}{each['calls']:>9} calls {each['moved']:>9} moved"
                    f" {each['chunks']:>9} chunks {each['bytes']:>14} bytes"
                    for kind, each in kinds.items()
                    if each["calls"]
                ]
        rest = {key: value for key, value in self.raw.items() if key != "log"}
        return "\n".join([*lines, str(rest)])


class Witness:
    """A witness that waits until it is told to run, so that it can be selected before its first call."""

    def __init__(self, *, calls: int, seed: int, kinds: str = "all", payload: str = "mixed") -> None:
        self.process = subprocess.Popen(
            [program(), str(calls), str(seed), kinds, payload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.process.wait()
            raise RuntimeError(f"the witness said {line!r} instead of 'ready'; its reason stands above")
        self.pid = self.process.pid

    def run(self) -> Told:
        """Lets it make its calls, and returns its log when it has ended."""
        out, _ = self.process.communicate("go\n", timeout=RUN_TIMEOUT_S)
        if self.process.returncode != 0:
            raise RuntimeError(f"the witness ended with status {self.process.returncode}")
        return Told(json.loads(out))

    def __enter__(self) -> Witness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
