# SPDX-License-Identifier: Apache-2.0
"""READ THIS FIRST. The data path, in order: kernel events in, exported spans, findings and metrics out.

    ring buffer     bpf/events.h -> agent/core/core.c       Engine.poll: no Python per event
    connection, stream, message, span                       agent/core/*.c
    resources       agent/resources.py                      which process, by the keeper's records
    metrics         agent/metrics.py, agent/self_metrics.py
    export          exporters/

`python -m agent.pipeline --config-fd N --socket-fd N` is started by the keeper, as root. It opens, imports
and maps what needs a right while the kernel programs are compiled, gives up every privilege
(agent/sandbox.py), and only then looks at a byte of what strangers sent.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import exporters
from agent import __version__, messages, sandbox
from agent.clock import Clock
from agent.core._core import lib
from agent.engine import FINDINGS, PROTOCOLS, Engine
from agent.errors import AgentError
from agent.log import Log, capture_logging, write_stderr
from agent.metrics import process_metrics
from agent.own_process import OwnProcess
from agent.resources import ResourceTable, agent_resource
from agent.self_metrics import Ledger, Sample, all_samples, otlp_metrics, prometheus_text
from agent.spans import LogBatch, MetricBatch, Resource, SpanBatch
from agent.status import AGENT, StatusServer
from agent.summary import figures, summary

HELD_WAIT_MIN_S = 0.02  # under load something is always held: not a poll for each of them
THREAD_STACK_BYTES = 256 * 1024
TICK_S = 0.25
STATS_S = 1.0
DRAIN_ROUNDS_MAX = 1000  # of a full batch each; the kernel side is detached by then
RECORD_WAIT_S = 0.1  # once for a process that nobody tells of; the keeper needs a millisecond, or its turn


class Pipeline:
    """One core, its exporters, and the loop around them."""

    def __init__(
        self,
        options: Mapping[str, Any],
        engine: Engine,
        channel: messages.Channel,
        ring: int,
        listener: socket.socket | None,
        setup: Mapping[str, Any],
    ) -> None:
        """setup: the fields of that message (agent/messages.py)."""
        self.engine = engine
        self.resources = ResourceTable(options["capture.processes_max"])
        self.own = agent_resource(setup["host"])
        self.exporters: Sequence[exporters.Exporter] = ()
        self.ledger = Ledger(setup["earlier_ledger"], PROTOCOLS)
        self.spans: dict[str, int] = {}
        self.clock = Clock()
        self.stop_timeout_s: float | None = None
        self._options = options
        self._earlier_spans: dict[str, int] = setup["earlier_spans"]
        self._started_s: float = setup["started_s"]
        self._start_unix_ns = time.time_ns()
        self._channel = channel
        self._process = OwnProcess()
        self._keeper_figures: dict[str, int | float] = {}
        self._counts: dict[str, int | float] = {"polls": 0, "batches": 0}
        self._export_s = options["export.interval_ms"] / 1000
        self._metrics_s = options["export.metric_interval_ms"] / 1000
        self._poll_s: float = options["core.poll_ms"] / 1000
        now = time.monotonic()
        self._next_spans, self._next_metrics = now, now + self._metrics_s
        self._next_tick = self._next_stats = now
        self._records = select.epoll()
        self._records.register(channel, select.EPOLLIN)
        self._epoll = select.epoll()
        self._epoll.register(ring, select.EPOLLIN | select.EPOLLET)  # once per wake-up of the kernel side
        self._epoll.register(channel, select.EPOLLIN)
        self._capture: Mapping[str, Any] = setup["capture"]
        self._pids = {"keeper": os.getppid(), "pipeline": os.getpid()}
        pages = {
            "/metrics": self._metrics_page,
            "/status": self._status_page,
            "/healthz": lambda: ("text/plain", "ok\n"),
        }
        self._status = StatusServer(listener, self._epoll, pages) if listener else None

    def run(self) -> None:
        """Until the keeper says stop, or is gone."""
        while self.stop_timeout_s is None:
            for fd, _ in self._epoll.poll(self._wait_s()):
                if fd == self._channel.fileno():
                    self.read_messages()
                elif self._status:
                    self._status.handle(fd)
            self.step(time.monotonic())

    def step(self, now: float) -> None:
        """One turn: events to spans, spans to exporters, and what is due by the clock."""
        self._counts["polls"] += 1
        self.engine.poll(time.monotonic_ns())
        if (now >= self._next_spans or self.engine.waiting_bytes) and self.export_batches():
            self._next_spans = now + self._export_s
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            for exporter in self.exporters:
                exporter.tick(now)
            if self._status:
                self._status.tick(now)
        if now >= self._next_metrics:
            self._next_metrics = now + self._metrics_s
            self.export_metrics()
        if now >= self._next_stats:
            self._next_stats = now + STATS_S
            ledger = self.ledger.totals(self.engine.ledger())
            self._channel.offer("stats", spans=self._spans_so_far(), ledger=ledger)

    def export_batches(self) -> int:
        """What the core has finished. Returns how many rows it was."""
        return self.export_spans() + self.export_findings()

    def export_spans(self) -> int:
        """Takes the finished spans, says whose they are, hands them on. Returns how many."""
        rows, arena = self.engine.take_spans()
        if len(rows) == 0:
            return 0
        resources, index = self._owners(rows["tgid"])
        batch = SpanBatch(rows, arena, resources, index, self.clock.offset_ns(), self.engine.keys)
        for resource, count in zip(resources, np.bincount(index).tolist(), strict=True):
            self.spans[resource.service_name] = self.spans.get(resource.service_name, 0) + count
        for exporter in self.exporters:
            exporter.export_spans(batch)
        self._counts["batches"] += 1
        return len(rows)

    def export_findings(self) -> int:
        """The same for findings, which leave as log records."""
        rows, arena = self.engine.take_findings()
        if len(rows) == 0:
            return 0
        owners, offset_ns = self._owners(rows["tgid"]), self.clock.offset_ns()
        batch = LogBatch(rows, arena, *owners, offset_ns, self.engine.keys, time.time_ns(), FINDINGS)
        for exporter in self.exporters:
            exporter.export_logs(batch)
        return len(rows)

    def _owners(self, tgids: np.ndarray) -> tuple[list[Resource], np.ndarray]:
        """The resources of these rows, and which row has which."""
        self._await_records(tgids)
        return self.resources.of_rows(tgids)

    def _await_records(self, tgids: np.ndarray) -> None:
        """The kernel side follows a child, or who listens on a port, by itself: the first request may be
        answered before the keeper has said who that is."""
        deadline = time.monotonic() + RECORD_WAIT_S
        while self.stop_timeout_s is None and self.resources.lacks(tgids):
            if not self._records.poll(max(0.0, deadline - time.monotonic())):
                return
            self.read_messages()

    def export_metrics(self) -> None:
        """Every series and the agent's own figures; then forgets processes that ended."""
        batch = MetricBatch(time.time_ns())
        offset_ns = self.clock.offset_ns()
        batch.metrics = process_metrics(self.engine, self.resources, self.own, offset_ns, self._start_unix_ns)
        if self._options["self.telemetry"]:
            batch.metrics.append((self.own, otlp_metrics(self.samples(), self._start_unix_ns)))
        for exporter in self.exporters:
            exporter.export_metrics(batch)
        ended = self.resources.to_forget()
        if ended:
            rows = self.engine.ledger()
            self.ledger.keep(rows[np.isin(rows["tgid"], ended)], self.resources)
            self.engine.forget(ended)
            self.resources.forget(ended)

    def read_messages(self) -> None:
        """What the keeper says. Its end of the socket closed: it is gone, and so are the kernel programs."""
        while True:
            try:
                message = self._channel.receive(wait_s=0)
            except TimeoutError:
                return
            if message is None:
                self.stop_timeout_s = 0.0
                return
            match message.name:
                case "process":
                    self.resources.put(message.fields["tgid"], message.fields["attributes"])
                case "gone":
                    self.resources.gone(message.fields["tgid"])
                    self.engine.process_gone(message.fields["tgid"])
                case "keeper":
                    self._keeper_figures = message.fields["figures"]
                case "stop":
                    self.stop_timeout_s = message.fields["timeout_s"]
                    return

    def drain(self, timeout_s: float) -> None:
        """What is in the ring and in the core becomes spans; exporters get the rest of the time to send."""
        deadline = time.monotonic() + timeout_s
        for _ in range(DRAIN_ROUNDS_MAX):
            events = self.engine.poll(time.monotonic_ns(), drain=True)
            if not self.export_batches() and not events:
                break
        self.export_metrics()
        for exporter in self.exporters:
            exporter.flush(max(0.0, deadline - time.monotonic()))
        for exporter in self.exporters:
            exporter.close()

    def samples(self) -> list[Sample]:
        """The agent's own figures, now."""
        services = self.ledger.by_service(self.engine.ledger(), self.resources)
        counts = {**self._counts, **self._process.figures(), "messages_refused": self._channel.refused}
        uptime = {"uptime_s": time.monotonic() - self._started_s}
        keeper = {**self._keeper_figures, **uptime}
        spans = self._spans_so_far()
        return all_samples(self.engine, services, self.ledger.earlier, spans, keeper, counts, self.exporters)

    def summary(self) -> str:
        return summary(self.samples(), time.monotonic() - self._started_s)

    def _spans_so_far(self) -> dict[str, int]:
        names = self._earlier_spans.keys() | self.spans.keys()
        return {name: self._earlier_spans.get(name, 0) + self.spans.get(name, 0) for name in sorted(names)}

    def _metrics_page(self) -> tuple[str, str]:
        return "text/plain; version=0.0.4; charset=utf-8", prometheus_text(self.samples())

    def _status_page(self) -> tuple[str, str]:
        """What `ebpf-otlp-tracer status` shows (agent/status_view.py)."""
        shed_share = self._keeper_figures.get("shed_share", 0.0)
        shown = {
            "agent": AGENT,
            "version": __version__,
            "pids": self._pids,
            "capture": {**self._capture, "shed_share": shed_share},
            **figures(self.samples(), time.monotonic() - self._started_s),
        }
        return "application/json", json.dumps(shown) + "\n"

    def _wait_s(self) -> float:
        held_s = self.engine.held_s
        return min(self._poll_s, max(held_s, HELD_WAIT_MIN_S)) if held_s > 0 else self._poll_s


# Imported by the standard library or the exporters in the middle of their work, which would be too late.
LATER_IMPORTS = ("encodings.idna", "unicodedata", "email.utils", "ssl")
EXPORTER_MODULES = {
    "console": "exporters.console",
    "jsonl": "exporters.jsonl",
    "otlp": "exporters.otlp_http",
    "sdk": "exporters.sdk",
}


def _import_all(settings: Sequence[Mapping[str, Any]]) -> None:
    """Everything that will be needed: another user may be unable to read where it is installed."""
    for one in settings:
        module = importlib.import_module(EXPORTER_MODULES[one["kind"]])
        if one["kind"] == "sdk":
            module.load(one["name"])
    for name in LATER_IMPORTS[: None if any(one["kind"] in ("otlp", "sdk") for one in settings) else 2]:
        importlib.import_module(name)


def main(arguments: Sequence[str]) -> int:
    """The process: set up with privilege, drop it, run, drain."""
    # A terminal and a service manager signal the whole group; the keeper says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config_fd, socket_fd = (
        int(arguments[arguments.index(name) + 1]) for name in ("--config-fd", "--socket-fd")
    )
    keeper = os.getppid()
    options = messages.from_memfd(config_fd)
    os.close(config_fd)
    log = Log(options["log.level"], "pipeline")
    capture_logging(log)
    try:
        pipeline = _set_up(options, messages.Channel(socket.socket(fileno=socket_fd), "to_pipeline"), keeper)
    except AgentError as error:
        log.error(error.message, error.hint)
        return error.exit_code
    except MemoryError as error:
        what = f"the pipeline has no memory for its tables: {error}"
        log.error(what, "lower capture.processes_max, core.connections_max or core.batch_spans_max")
        return 1
    except OSError as error:
        log.error(f"the pipeline cannot start: {error.strerror or error}", "ebpf-otlp-tracer doctor")
        return 1
    if pipeline is None:
        return 0
    try:
        pipeline.run()
    except (BrokenPipeError, ConnectionResetError):  # the keeper is gone
        pipeline.stop_timeout_s = 0.0
    pipeline.drain(pipeline.stop_timeout_s or 0.0)
    write_stderr(pipeline.summary())
    return 0


def _set_up(options: Mapping[str, Any], channel: messages.Channel, keeper: int) -> Pipeline | None:
    """Ready to run, without privilege. None: the keeper gave up meanwhile."""
    prepared = exporters.prepare(options["exporters"], options, os.environ, __version__)
    _import_all(prepared.settings)
    threading.stack_size(THREAD_STACK_BYTES)
    engine = Engine(options)
    setup = channel.receive()
    if setup is None:
        return None
    fds = dict(zip(setup.fields["descriptors"], setup.descriptors, strict=True))
    ring_bytes, cpus = options["capture.ring_bytes"], setup.fields["cpus"]
    engine.map(fds["ring"], ring_bytes, fds["demands"], fds["counters"], cpus)
    os.close(fds["demands"])
    os.close(fds["counters"])
    listener = socket.socket(fileno=fds["listener"]) if "listener" in fds else None
    pipeline = Pipeline(options, engine, channel, fds["ring"], listener, setup.fields)
    sandbox.drop(options["self.user"], keeper, lib)
    pipeline.exporters = exporters.open_prepared(prepared.settings, prepared.fds)
    gc.collect()
    gc.freeze()
    channel.send("ready")
    return pipeline


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
