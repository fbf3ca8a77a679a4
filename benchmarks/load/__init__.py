# SPDX-License-Identifier: Apache-2.0
"""Runs the load generator (load.c) and reads its result.

result = load.run(port, rate=10_000, seconds=5, connections=50)
result.answered, result.latency_us["p50"], result.ids()
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import build
from benchmarks.processes import Child, ProcessError

SOURCE = Path(__file__).with_name("load.c")
START_S = 12.0  # opening the connections, writing the records

# `struct record` of load.c.
RECORD = np.dtype(
    [
        ("id", "u8"),
        ("intended_ns", "i8"),
        ("sent_ns", "i8"),
        ("done_ns", "i8"),
        ("status", "u4"),
        ("connection", "u4"),
    ]
)


@dataclass(frozen=True)
class LoadResult:
    """What the load generator saw.

    Times are CLOCK_MONOTONIC (`time.monotonic_ns`); latencies run from the due time.
    answered + failed + unsent = requests. records: one row per request that was sent, in order.
    late: requests that left more than 1 ms after they were due.
    """

    loop: str
    requests: int
    sent: int
    answered: int
    failed: int
    unsent: int
    offered_per_s: float
    achieved_per_s: float
    first_id: int
    start_ns: int
    end_ns: int
    connections: int
    bytes_sent: int
    bytes_received: int
    late: int
    cpu_s: float
    latency_us: dict[str, float]
    lateness_us: dict[str, float]
    statuses: dict[int, int]
    records: np.ndarray = field(repr=False)

    def ids(self) -> set[int]:
        """The ids of the requests that were answered."""
        return set(self.records["id"][self.records["done_ns"] > 0].tolist())

    def between(self, start_ns: int, end_ns: int) -> np.ndarray:
        """The records of requests that were answered in a stretch of time."""
        done = self.records["done_ns"]
        return self.records[(done >= start_ns) & (done < end_ns)]

    def summary(self) -> dict[str, Any]:
        """The figures without the records, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "records"}


class Load:
    """A load under way. `wait` gives its result."""

    def __init__(self, child: Child, records: Path, timeout_s: float) -> None:
        self.child = child
        self._records = records
        self._timeout_s = timeout_s

    def wait(self) -> LoadResult:
        try:
            output, _ = self.child.process.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            self.child.stop()
            raise ProcessError(f"the load generator did not end within {self._timeout_s:g} s") from None
        if self.child.process.returncode != 0:
            raise ProcessError(
                self.child.log.read_text(errors="replace").strip() or "the load generator failed"
            )
        result = json.loads(output)
        result["statuses"] = {int(status): count for status, count in result["statuses"].items()}
        return LoadResult(**result, records=np.fromfile(self._records, RECORD))


@contextmanager
def running(
    port: int,
    *,
    rate: float = 1000,
    seconds: float = 5,
    requests: int = 0,
    connections: int = 50,
    pipeline: int = 1,
    close: bool = False,
    prefix: str = "/r/",
    host: str = "localhost",
    headers: Sequence[str] = (),
    first_id: int | None = None,
    cpus: Sequence[int] = (),
) -> Iterator[Load]:
    """Starts a load on 127.0.0.1:port and gives it while it runs; ends it with the block.

    rate: requests per second; 0 is the closed loop, as fast as answers come.
    requests: exactly so many, in place of `seconds`.
    first_id: ids count up from here; the default is random, so that no two loads share an id.
    """
    if first_id is None:
        first_id = (secrets.randbits(31) | 1 << 30) << 32
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-load-") as folder:
        records = Path(folder) / "records"
        command: list[str | Path] = [build.c_program(SOURCE), "--port", str(port), "--rate", str(rate)]
        command += ["--seconds", str(seconds), "--connections", str(connections), "--pipeline", str(pipeline)]
        command += ["--prefix", prefix, "--host", host, "--first-id", str(first_id), "--records", records]
        command += ["--requests", str(requests)] if requests else []
        command += ["--close"] if close else []
        for header in headers:
            command += ["--header", header]
        child = Child(command, log=Path(folder) / "log", stdout=subprocess.PIPE, cpus=cpus)
        expected_s = requests / rate if requests and rate else seconds
        try:
            yield Load(child, records, expected_s * 1.5 + START_S)
        finally:
            if child.running:
                child.stop()


def run(port: int, **options: Any) -> LoadResult:
    """One load, to its end. Options as in `running`."""
    with running(port, **options) as load:
        return load.wait()
