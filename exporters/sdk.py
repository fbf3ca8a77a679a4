# SPDX-License-Identifier: Apache-2.0
"""Any span exporter of OpenTelemetry's Python SDK, found by its entry point: the slow lane.

    --exporter sdk:zipkin_json       group opentelemetry_traces_exporter

Each span becomes a Python object here (some 20 us), so this is for destinations that OTLP does not reach.
The SDK is imported only when this is used. Its exporters block, so they run in a thread behind a queue.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from importlib.metadata import entry_points
from typing import Any

from agent.errors import ConfigError
from agent.spans import SCHEMA_URL, SCOPE_NAME, LogBatch, MetricBatch, Resource, SpanBatch
from exporters.say import Say

log = logging.getLogger(__name__)

GROUP = "opentelemetry_traces_exporter"
SPAN_BYTES = 2048  # what a span's objects take besides their text, for the bound of the queue
RESOURCES_MAX = 1024


def check(name: str) -> None:
    """Raises ConfigError when there is no such exporter. Imports nothing."""
    names = sorted({point.name for point in entry_points(group=GROUP)})
    if name not in names:
        raise ConfigError(
            f"sdk:{name}: no such exporter is installed",
            f"installed: {', '.join(names)}"
            if names
            else "install opentelemetry-sdk and the exporter's package",
        )


def load(name: str) -> Any:
    """An instance of the exporter: a `SpanExporter` that takes its settings from the environment."""
    try:
        return next(iter(entry_points(group=GROUP, name=name))).load()()
    except Exception as error:  # a stranger's constructor
        raise ConfigError(
            f"sdk:{name} cannot be used: {error}", "see the documentation of that exporter"
        ) from error


class SdkExporter:
    def __init__(self, name: str, exporter: Any, version: str, queue_bytes: int) -> None:
        self.name = f"sdk:{name}"
        self._exporter, self._queue_bytes = exporter, queue_bytes
        self._convert = Converter(version)
        self._queue: deque[tuple[list[Any], int]] = deque()
        self._bytes = 0
        self._busy = self._closing = False
        self._sent = self._full = self._failed = 0
        self._changed = threading.Condition()
        self._say = Say(log)
        self._thread = threading.Thread(target=self._run, name=f"export-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def export_spans(self, batch: SpanBatch) -> None:
        spans = self._convert(batch)
        size = SPAN_BYTES * len(spans) + int(batch.rows["attributes_size"].sum())
        with self._changed:
            self._queue.append((spans, size))
            self._bytes += size
            while self._bytes > self._queue_bytes and self._queue:
                oldest, size = self._queue.popleft()
                self._bytes -= size
                self._full += len(oldest)
                self._say.warn(
                    "full", f"{self.name}: queue full, the oldest are dropped: {self._full} spans so far"
                )
            self._changed.notify_all()

    def export_logs(self, batch: LogBatch) -> None:
        """Not sent: span exporters take spans."""

    def export_metrics(self, batch: MetricBatch) -> None:
        """Not sent either."""

    def tick(self, now: float) -> None:
        """Nothing: the exporter has its own thread."""

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s):
                return False
        return bool(self._exporter.force_flush(int(timeout_s * 1000)))

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._failed += sum(len(spans) for spans, _ in self._queue)
            self._queue.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(0.2)
        self._exporter.shutdown()

    def stats(self) -> dict[str, int]:
        with self._changed:
            return {
                "sent_spans": self._sent,
                "dropped_spans_queue_full": self._full,
                "dropped_spans_rejected": self._failed,
                "queue_bytes": self._bytes,
                "queue_requests": len(self._queue),
            }

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                spans, size = self._queue.popleft()
                self._bytes -= size
                self._busy = True
            try:
                sent = self._exporter.export(spans).name == "SUCCESS"
            except Exception as error:  # a stranger's code must not end the thread
                sent = False
                self._say.warn("failed", f"{self.name}: {type(error).__name__}: {error}")
            with self._changed:
                self._busy = False
                if sent:
                    self._sent += len(spans)
                else:
                    self._failed += len(spans)
                    self._say.warn(
                        "refused", f"{self.name}: {self._failed} spans could not be exported so far"
                    )
                self._changed.notify_all()


class Converter:
    """SpanBatch -> the SDK's ReadableSpans."""

    def __init__(self, version: str) -> None:
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._scope = InstrumentationScope(SCOPE_NAME, version, SCHEMA_URL)
        self._resources: dict[Resource, Any] = {}

    def __call__(self, batch: SpanBatch) -> list[Any]:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        kinds = {2: SpanKind.SERVER, 3: SpanKind.CLIENT}
        spans = []
        for i in range(len(batch)):
            row = batch.rows[i]
            trace_id = int.from_bytes(bytes(row["trace_id"]), "big")
            flags = TraceFlags(int(row["trace_flags"]))
            start = int(row["tracestate_offset"])
            state = bytes(batch.arena[start : start + int(row["tracestate_size"])]).decode()
            states = TraceState.from_header([state]) if state else TraceState()
            parent_id = int.from_bytes(bytes(row["parent_id"]), "big")
            parent = (
                SpanContext(trace_id, parent_id, bool(row["remote_parent"]), flags, states)
                if parent_id
                else None
            )
            spans.append(
                ReadableSpan(
                    name=batch.name(i),
                    context=SpanContext(
                        trace_id, int.from_bytes(bytes(row["span_id"]), "big"), False, flags, states
                    ),
                    parent=parent,
                    resource=self._resource(batch.resources[int(batch.resource[i])]),
                    attributes=batch.attributes(i),
                    kind=kinds.get(int(row["kind"]), SpanKind.INTERNAL),
                    instrumentation_scope=self._scope,
                    status=Status(StatusCode.ERROR if int(row["status"]) == 2 else StatusCode.UNSET),
                    start_time=int(row["start_ktime_ns"]) + batch.clock_offset_ns,
                    end_time=int(row["end_ktime_ns"]) + batch.clock_offset_ns,
                )
            )
        return spans

    def _resource(self, resource: Resource) -> Any:
        from opentelemetry.sdk.resources import Resource as SdkResource

        if resource not in self._resources:
            if len(self._resources) >= RESOURCES_MAX:
                del self._resources[next(iter(self._resources))]
            self._resources[resource] = SdkResource(dict(resource.attributes), SCHEMA_URL)
        return self._resources[resource]
