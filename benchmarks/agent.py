# SPDX-License-Identifier: Apache-2.0
"""The agent under test: how it is started, known to be ready, asked for its counters, and ended.

All that the benchmarks take from the agent's outside (command line, the word `ready`, names of metrics)
stands in this file. BENCHMARKS_AGENT replaces the command, for a fake or an installed agent.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.patience import patience
from benchmarks.processes import Child, ProcessError, free_port

READY = re.compile(r"\bready\b")
READY_TIMEOUT_S = patience(30.0)
SETTLE_S = patience(10.0)
STOP_TIMEOUT_S = patience(20.0)  # export.shutdown_timeout_s, and time to detach

# Names of the self-metrics (agent/self_metrics.py), as /metrics shows them.
CHUNKS = "ebpf_otlp_tracer_chunks_total"  # by class: where each chunk of the ledger went
BYTES = "ebpf_otlp_tracer_bytes_total"  # the same in bytes
KERNEL_CHUNKS = "ebpf_otlp_tracer_kernel_chunks_total"  # what the kernel side counted
SPANS = "ebpf_otlp_tracer_spans_total"
LOST = "lost"

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class AgentMissing(RuntimeError):
    """There is no agent to start."""


@dataclass(frozen=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Counters:
    """The agent's own counters at one moment."""

    samples: Sequence[Sample] = field(repr=False)

    def total(self, name: str, **labels: str) -> int | None:
        """Sum of the samples with this name and these labels; None when there is no such metric."""
        found = [sample for sample in self.samples if sample.name == name]
        if not found:
            return None
        wanted = labels.items()
        return int(sum(sample.value for sample in found if wanted <= sample.labels.items()))

    def by(self, name: str, label: str) -> dict[str, int]:
        """Sums by one label."""
        sums: dict[str, int] = {}
        for sample in self.samples:
            if sample.name == name:
                key = sample.labels.get(label, "")
                sums[key] = sums.get(key, 0) + int(sample.value)
        return sums


def parse_metrics(text: str) -> Counters:
    """Prometheus text format, as far as counters and gauges need it."""
    samples = []
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match:
            samples.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return Counters(samples)


def command() -> list[str]:
    """How to start the agent: BENCHMARKS_AGENT, the command beside this interpreter, or the package."""
    given = os.environ.get("BENCHMARKS_AGENT")
    if given:
        return shlex.split(given)
    installed = Path(sys.executable).with_name("ebpf-otlp-tracer")
    if installed.exists():
        return [str(installed)]
    if (Path(__file__).resolve().parent.parent / "agent" / "__main__.py").exists():
        return [sys.executable, "-m", "agent"]
    raise AgentMissing(
        f"no agent to measure: {installed} does not exist\n"
        "hint: make build, then .venv/bin/python -m benchmarks ...; or set BENCHMARKS_AGENT"
    )


class Agent:
    """A running agent."""

    def __init__(self, child: Child, listen: str, echo: IO[str] | None, started_ns: int) -> None:
        self.child = child
        self.started_ns = started_ns
        self.ready_ns = 0
        self._listen = listen
        self._echo = echo
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Keeper and pipeline (and the loader, while it works)."""
        return self.child.pids

    @property
    def roles(self) -> dict[str, tuple[int, ...]]:
        """Its processes by what they do: the keeper is the one we started, the pipeline its child."""
        pids = self.pids
        return {"keeper": pids[:1], "pipeline": pids[1:]}

    @property
    def said(self) -> str:
        """What it wrote on standard error."""
        return "\n".join(self._lines)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when it says `ready`; raises with what it said when it ends before, or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(0.05):
            if not self.child.running:
                self._reader.join(1)
                raise ProcessError(
                    f"the agent ended with status {self.child.process.returncode}:\n{self.said}"
                )
            if time.monotonic() > deadline:
                raise ProcessError(f"the agent is not ready after {timeout_s:g} s:\n{self.said}")

    def counters(self) -> Counters:
        """Its /metrics, now. Empty when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self._listen}/metrics", timeout=patience(5)) as answer:
                return parse_metrics(answer.read().decode())
        except OSError:
            return Counters([])

    def settled(self) -> Counters:
        """The counters once they stand still: what was under way has been counted."""
        deadline, last = time.monotonic() + SETTLE_S, self.counters()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = self.counters()
            if now.by(CHUNKS, "class") == last.by(CHUNKS, "class"):
                return now
            last = now
        return last

    def stop(self) -> int:
        """Asks it to drain (as Ctrl-C does) and waits. Its exit status."""
        status = self.child.stop(signal.SIGINT, STOP_TIMEOUT_S)
        self._reader.join(2)
        return status

    def _read(self) -> None:
        assert self.child.process.stderr is not None
        for raw in self.child.process.stderr:
            line = raw.decode(errors="replace").rstrip("\n")
            self._lines.append(line)
            if self._echo is not None:
                print(line, file=self._echo, flush=True)
            if not self._ready.is_set() and READY.search(line):
                self.ready_ns = time.monotonic_ns()
                self._ready.set()


@contextmanager
def agent(
    pids: Sequence[int],
    *,
    exporters: Sequence[str],
    env: Mapping[str, str] | None = None,
    folder: Path,
    cpus: Sequence[int] = (),
    wait: bool = True,
    terminal: bool = False,
) -> Iterator[Agent]:
    """The agent, tracing `pids` and their children, for the time of the block.

    env: more environment, such as OTEL_EXPORTER_OTLP_ENDPOINT and EBPF_OTLP_TRACER_* options.
    terminal: what it prints goes to our own output; else into `folder`/agent.log.
    wait: begin the block when it is ready.
    """
    listen = f"127.0.0.1:{free_port()}"
    arguments = [*command(), "run"]
    for pid in pids:
        arguments += ["--pid", str(pid)]
    for exporter in exporters:
        arguments += ["--exporter", exporter]
    environment = {"EBPF_OTLP_TRACER_SELF_LISTEN": listen, "PYTHONUNBUFFERED": "1", **(env or {})}
    started_ns = time.monotonic_ns()
    child = Child(
        arguments,
        log=folder / "agent.log",
        env=environment,
        stdout=sys.stdout.buffer if terminal else None,
        stderr=subprocess.PIPE,
        cpus=cpus,
    )
    running = Agent(child, listen, sys.stderr if terminal else None, started_ns)
    try:
        if wait:
            running.wait_ready()
        yield running
    finally:
        running.stop()


def needs_root() -> str | None:
    """What to say to a user who cannot load BPF programs; None for root."""
    if os.geteuid() == 0:
        return None
    return (
        "this loads BPF programs, which needs root\n"
        f"hint: sudo {sys.executable} -m benchmarks {' '.join(sys.argv[1:])}"
    )
