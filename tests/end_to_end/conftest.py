# SPDX-License-Identifier: Apache-2.0
"""Real servers, real clients, the real agent; spans are read from the file that it wrote."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agent import Agent
from benchmarks.agent import agent as run_agent
from benchmarks.patience import patience
from benchmarks.spans import Span, read_spans


@dataclass
class Traced:
    """A run of the agent. `spans` is filled when it has drained."""

    agent: Agent
    file: Path
    spans: list[Span] = field(default_factory=list)

    def now(self) -> list[Span]:
        return read_spans(self.file)

    def wait_for(self, count: int, timeout_s: float = patience(10)) -> list[Span]:
        """The spans, as soon as there are `count`."""
        deadline = time.monotonic() + timeout_s
        while len(spans := self.now()) < count:
            assert time.monotonic() < deadline, (
                f"{len(spans)} of {count} spans after {timeout_s} s\n{self.agent.said}"
            )
            time.sleep(0.02)
        return spans

    def of(self, kind: int, pids: Sequence[int] = ()) -> list[Span]:
        return [s for s in self.spans if s.kind == kind and (not pids or s.resource["process.pid"] in pids)]


Trace = Callable[..., Any]


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    """trace(pids, **environment): the agent for the time of a block; afterwards `.spans`, and no loss."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("end to end tests need root")
        pytest.skip("needs root")

    @contextmanager
    def run(
        pids: Sequence[int], *, exact: bool = True, exporters: Sequence[str] = (), **env: str
    ) -> Iterator[Traced]:
        file = tmp_path / f"spans-{time.monotonic_ns()}.jsonl"
        with run_agent(pids, exporters=[f"jsonl:{file}", *exporters], env=env, folder=tmp_path) as agent:
            traced = Traced(agent, file)
            yield traced
            counters = agent.counters()
        traced.spans = read_spans(file)
        if exact:
            assert counters.total("ebpf_otlp_tracer_chunks_total", **{"class": "lost"}) in (0, None), (
                agent.said
            )

    yield run
