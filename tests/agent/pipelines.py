# SPDX-License-Identifier: Apache-2.0
"""Pipelines without a kernel: the real loop and core, fed with events made by hand, exporting into a list."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent import messages
from agent.engine import Engine
from agent.pipeline import Pipeline
from agent.spans import LogBatch, MetricBatch, SpanBatch
from agent.status import listen
from tests.agent.fake_keeper import options
from tests.core.harness import Core

SETUP = {
    "host": {"host.name": "h"},
    "earlier_spans": {},
    "earlier_ledger": {},
    "started_s": time.monotonic(),
    "capture": {"backend": "tracepoint", "sees": "system calls", "off": []},
}


@dataclass
class ListExporter:
    """Keeps what outlives the batch. kind is the name that figures show."""

    name: str = "list"
    spans: list[tuple[str, str, dict[str, Any], int]] = field(default_factory=list)
    logs: list[tuple[str, str, dict[str, Any], int]] = field(default_factory=list)
    metrics: list[MetricBatch] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def export_spans(self, batch: SpanBatch) -> None:
        for i in range(len(batch)):
            service = batch.resources[batch.resource[i]].service_name
            start = int(batch.rows[i]["start_ktime_ns"]) + batch.clock_offset_ns
            self.spans.append((service, batch.name(i), batch.attributes(i), start))

    def export_logs(self, batch: LogBatch) -> None:
        for i in range(len(batch)):
            service = batch.resources[batch.resource[i]].service_name
            time_ns = int(batch.rows[i]["ktime_ns"]) + batch.clock_offset_ns
            self.logs.append((service, batch.finding(i).name, batch.attributes(i), time_ns))

    def export_metrics(self, batch: MetricBatch) -> None:
        self.metrics.append(batch)

    def tick(self, now: float) -> None:
        self.calls.append("tick")

    def flush(self, timeout_s: float) -> bool:
        self.calls.append("flush")
        return True

    def close(self) -> None:
        self.calls.append("close")

    def stats(self) -> dict[str, int]:
        return {"sent_spans": len(self.spans), "dropped_spans_queue_full": 2, "queue_bytes": 5}


@dataclass
class Rig:
    pipeline: Pipeline
    keeper: messages.Channel
    exporter: ListExporter
    events: Core
    listener: socket.socket

    def feed(self, drain: bool = True) -> None:
        """Gives the events recorded so far to the core."""
        data = bytes(self.events.records)
        self.events.records.clear()
        assert self.pipeline.engine.feed(data, self.events.now_ms * 1_000_000, drain) >= 0

    def exchange(self, tgid: int, path: str = "/a", status: int = 200) -> None:
        """One request that a process served, on a connection of its own."""
        connection = self.events.open(tgid=tgid)
        connection.receive(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        connection.send(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        connection.close()


@contextmanager
def rig(**changed: Any) -> Iterator[Rig]:
    given = options(**changed)
    keeper, theirs = messages.pair()
    ring = os.eventfd(0)
    listener = listen("127.0.0.1:0")
    channel = messages.Channel(theirs, "to_pipeline")
    pipeline = Pipeline(given, Engine(given), channel, ring, listener, SETUP)
    exporter = ListExporter()
    pipeline.exporters = [exporter]
    yield Rig(pipeline, keeper, exporter, Core(), listener)
    keeper.close()
    channel.close()
    listener.close()
    os.close(ring)
