# SPDX-License-Identifier: Apache-2.0
"""The agent's own figures: each one name, one unit, one sentence, and where it comes from.

One table makes /metrics (Prometheus), the agent's own OTLP metrics and the documentation. Names are those
of OTLP; Prometheus gets them by the OpenTelemetry rule (dots become underscores, unit and _total are
added).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent.spans import Metric, Point

if TYPE_CHECKING:
    import numpy as np

    from agent.engine import Engine
    from agent.resources import ResourceTable
    from exporters import Exporter

OWN = "ebpf_otlp_tracer."


@dataclass(frozen=True)
class Figure:
    """source: `group.key`. Groups: kernel (struct kernel_counters), core (struct core_stats), keeper and
    pipeline (the two processes), exporter (stats() of each), ledger."""

    name: str
    unit: str
    kind: str  # "sum" (only grows), "gauge", "updown"
    help: str
    source: str


# A table: one figure, one line.
# fmt: off
FIGURES: tuple[Figure, ...] = (
    # The completeness ledger: where every chunk and byte went that the kernel counted.
    Figure(OWN + "chunks", "{chunk}", "sum", "Reads and writes by service and by what became of them.", "ledger.chunks"),
    Figure(OWN + "bytes", "By", "sum", "Their bytes.", "ledger.bytes"),
    Figure(OWN + "ledger.difference", "{chunk}", "gauge", "Chunks that the kernel counted and the ledger does not; 0 when nothing is in flight.", "ledger.difference_chunks"),
    Figure(OWN + "ledger.byte_difference", "By", "gauge", "The same in bytes.", "ledger.difference_bytes"),
    Figure(OWN + "spans", "{span}", "sum", "Spans given to the exporters, by service.", "ledger.spans"),
    Figure(OWN + "requests", "{request}", "sum", "Requests seen, by service.", "ledger.requests"),
    Figure(OWN + "orphans", "{message}", "sum", "Responses without a request and requests whose answer was never seen, by service.", "ledger.orphans"),
    Figure(OWN + "gaps", "{gap}", "sum", "Holes in streams that could not be passed over, by service, protocol and cause.", "ledger.gaps"),
    # The kernel side.
    Figure(OWN + "kernel.chunks", "{chunk}", "sum", "Calls that moved bytes on traced TCP sockets.", "kernel.chunks"),
    Figure(OWN + "kernel.bytes", "By", "sum", "Their bytes.", "kernel.bytes"),
    Figure(OWN + "kernel.sent.chunks", "{chunk}", "sum", "Chunks with a record in the ring.", "kernel.sent_chunks"),
    Figure(OWN + "kernel.sent.bytes", "By", "sum", "Their bytes.", "kernel.sent_bytes"),
    Figure(OWN + "kernel.quiet.chunks", "{chunk}", "sum", "Chunks passed over on demand of the core: bodies.", "kernel.quiet_chunks"),
    Figure(OWN + "kernel.quiet.bytes", "By", "sum", "Their bytes.", "kernel.quiet_bytes"),
    Figure(OWN + "kernel.unknown.chunks", "{chunk}", "sum", "Chunks of no known protocol, counted only.", "kernel.unknown_chunks"),
    Figure(OWN + "kernel.unknown.bytes", "By", "sum", "Their bytes.", "kernel.unknown_bytes"),
    Figure(OWN + "kernel.encrypted.chunks", "{chunk}", "sum", "Chunks of TLS records, counted only.", "kernel.encrypted_chunks"),
    Figure(OWN + "kernel.encrypted.bytes", "By", "sum", "Their bytes.", "kernel.encrypted_bytes"),
    Figure(OWN + "kernel.unsent.chunks", "{chunk}", "sum", "Chunks that the full ring refused.", "kernel.unsent_chunks"),
    Figure(OWN + "kernel.unsent.bytes", "By", "sum", "Their bytes.", "kernel.unsent_bytes"),
    Figure(OWN + "kernel.shed.chunks", "{chunk}", "sum", "Chunks left out under pressure, by whole connections.", "kernel.shed_chunks"),
    Figure(OWN + "kernel.shed.bytes", "By", "sum", "Their bytes.", "kernel.shed_bytes"),
    Figure(OWN + "kernel.unsent.events", "{event}", "sum", "Open, fin and close records that the full ring refused.", "kernel.unsent_events"),
    Figure(OWN + "kernel.captured.bytes", "By", "sum", "Payload copied into the ring.", "kernel.captured_bytes"),
    Figure(OWN + "kernel.gap.bytes", "By", "sum", "Bytes moved by calls that are not hooked.", "kernel.gap_bytes"),
    Figure(OWN + "kernel.overlaps", "{chunk}", "sum", "Chunks whose position is a guess: two threads at once.", "kernel.overlaps"),
    Figure(OWN + "kernel.connections", "{connection}", "sum", "Sockets first seen.", "kernel.connections"),
    Figure(OWN + "kernel.unix_connections", "{connection}", "sum", "Of these, Unix sockets.", "kernel.unix_connections"),
    Figure(OWN + "kernel.connections.refused", "{connection}", "sum", "Sockets not traced: capture.connections_max, capture.unix_connections_max.", "kernel.connections_refused"),
    Figure(OWN + "kernel.ends.missed", "{connection}", "sum", "Sockets whose end showed only by the next one at their address.", "kernel.ends_missed"),
    Figure(OWN + "kernel.threads.refused", "{call}", "sum", "Sends timed at their exit: capture.threads_max.", "kernel.threads_refused"),
    Figure(OWN + "kernel.faults", "{chunk}", "sum", "Chunks whose memory could not be read.", "kernel.faults"),
    Figure(OWN + "kernel.process_events.lost", "{event}", "sum", "Process events that the full process ring refused.", "kernel.process_events_lost"),
    # The core.
    Figure(OWN + "core.events", "{event}", "sum", "Records read from the ring.", "core.events"),
    Figure(OWN + "core.events.malformed", "{event}", "sum", "Records with impossible sizes, dropped.", "core.events_malformed"),
    Figure(OWN + "core.events.late", "{event}", "sum", "Records that came after later ones had been processed: core.hold_ms.", "core.events_late"),
    Figure(OWN + "core.events.unknown_connection", "{event}", "sum", "Chunks whose connection's open record was lost.", "core.events_unknown_connection"),
    Figure(OWN + "core.connections", "{connection}", "updown", "Connections that the core keeps now.", "core.connections"),
    Figure(OWN + "core.connections.evicted", "{connection}", "sum", "Connections forgotten: core.connections_max.", "core.connections_evicted"),
    Figure(OWN + "core.connections.expired", "{connection}", "sum", "Connections forgotten: core.idle_timeout_s.", "core.connections_expired"),
    Figure(OWN + "core.processes.refused", "{event}", "sum", "Records of processes without a row of their own: capture.processes_max.", "core.processes_refused"),
    Figure(OWN + "core.buffered", "By", "updown", "Bytes held back for incomplete messages now.", "core.buffered_bytes"),
    Figure(OWN + "core.buffers.refused", "{buffer}", "sum", "Streams that wanted more than core.stream_bytes_max or core.buffer_bytes_max.", "core.buffers_refused"),
    Figure(OWN + "core.messages.invalid", "{message}", "sum", "Messages that the parser refused.", "core.messages_invalid"),
    Figure(OWN + "core.resyncs", "{resync}", "sum", "Searches for the next message after a gap or an invalid one.", "core.resyncs"),
    Figure(OWN + "core.responses.unmatched", "{message}", "sum", "Responses without a request.", "core.responses_unmatched"),
    Figure(OWN + "core.requests.unanswered", "{request}", "sum", "Requests closed, reset or timed out; they are spans.", "core.requests_unanswered"),
    Figure(OWN + "core.requests.void", "{request}", "sum", "Database requests that the server passed over after an error: no span.", "core.requests_void"),
    Figure(OWN + "core.statements.read", "{statement}", "sum", "SQL texts that were read; those that came again are found.", "core.statements_read"),
    Figure(OWN + "core.statements.found", "{statement}", "sum", "SQL texts that were there already.", "core.statements_found"),
    Figure(OWN + "core.statements.refused", "{statement}", "sum", "SQL texts without room (core.statement_bytes_max): spans without text.", "core.statements_refused"),
    Figure(OWN + "core.statements.forgotten", "{statement}", "sum", "Prepared statements above what one connection may have.", "core.statements_forgotten"),
    Figure(OWN + "core.requests.dropped", "{request}", "sum", "Requests without a span: lost track of, core.pending_max, core.buffer_bytes_max.", "core.requests_dropped"),
    Figure(OWN + "core.spans", "{span}", "sum", "Spans made.", "core.spans"),
    Figure(OWN + "core.spans.unsampled", "{span}", "sum", "Spans left out by the sampler.", "core.spans_unsampled"),
    Figure(OWN + "core.spans.refused", "{span}", "sum", "Spans dropped because the batch was full: core.batch_spans_max.", "core.spans_refused"),
    Figure(OWN + "core.attributes.left_out", "{attribute}", "sum", "Attributes left out for want of room.", "core.attributes_left_out"),
    Figure(OWN + "core.links.connection", "{link}", "sum", "Parents found at the other end of the connection.", "core.links_connection"),
    Figure(OWN + "core.links.thread", "{link}", "sum", "Parents found on the thread.", "core.links_thread"),
    Figure(OWN + "core.links.traceparent", "{link}", "sum", "Parents read off the wire.", "core.links_traceparent"),
    Figure(OWN + "core.links.ambiguous", "{link}", "sum", "Two or more candidates, so no parent.", "core.links_ambiguous"),
    Figure(OWN + "core.series.overflow", "{span}", "sum", "Spans counted in the overflow series: core.series_max.", "core.series_overflow"),
    Figure(OWN + "core.findings", "{finding}", "sum", "Things found worth telling; by process and kind they are ebpf_otlp_tracer.findings.", "core.findings"),
    Figure(OWN + "core.findings.left_out", "{finding}", "sum", "Of these, without a log record: core.findings_per_second_max, or nobody took them.", "core.findings_left_out"),
    Figure(OWN + "core.memory", "By", "updown", "Memory of the core now.", "core.memory_bytes"),
    # The two processes.
    Figure(OWN + "process.cpu.time", "s", "sum", "CPU time, by process of the agent.", "process.cpu_s"),
    Figure(OWN + "process.memory.private", "By", "updown", "Private memory, by process of the agent.", "process.private_bytes"),
    Figure(OWN + "uptime", "s", "gauge", "Time since the keeper started.", "keeper.uptime_s"),
    Figure(OWN + "processes", "{process}", "updown", "Processes traced now.", "keeper.processes"),
    Figure(OWN + "processes.unseen", "{process}", "updown", "Of these, those that use io_uring, which this kernel cannot show.", "keeper.unseen"),
    Figure(OWN + "shed.share", "1", "gauge", "Share of connections that is left out now, under pressure: to correct rates by.", "keeper.shed_share"),
    Figure(OWN + "pipeline.restarts", "{restart}", "sum", "Pipelines started after the first one ended.", "keeper.restarts"),
    Figure(OWN + "messages.malformed", "{message}", "sum", "Messages of the pipeline that the keeper refused.", "keeper.malformed"),
    Figure(OWN + "messages.refused", "{message}", "sum", "Messages to the keeper that found no room.", "pipeline.messages_refused"),
    Figure(OWN + "pipeline.polls", "{poll}", "sum", "Looks at the ring.", "pipeline.polls"),
    Figure(OWN + "pipeline.batches", "{batch}", "sum", "Span batches given to the exporters.", "pipeline.batches"),
    # Exporters, by the names of the semantic conventions where there are any.
    Figure("otel.sdk.exporter.span.exported", "{span}", "sum", "Spans that left, and with error.type those that did not.", "exporter.spans"),
    Figure("otel.sdk.exporter.metric_data_point.exported", "{data_point}", "sum", "The same for metric points.", "exporter.points"),
    Figure("otel.sdk.exporter.log.exported", "{log_record}", "sum", "The same for log records.", "exporter.logs"),
    Figure(OWN + "exporter.queue.size", "By", "updown", "Encoded bytes that wait.", "exporter.queue_bytes"),
    Figure(OWN + "exporter.requests", "{request}", "sum", "Requests that were made.", "exporter.requests"),
    Figure(OWN + "exporter.failures", "{request}", "sum", "Requests or writes that failed; they may have been tried again.", "exporter.failures"),
    Figure(OWN + "exporter.sent.bytes", "By", "sum", "Bytes sent or written.", "exporter.sent_bytes"),
)
# fmt: on
BY_SOURCE = {figure.source: figure for figure in FIGURES}

COMPONENT_TYPES = {"otlp": "otlp_http_span_exporter"}  # others: our own words, as the conventions allow
NOUNS = ("spans", "points", "logs")  # what exporters count
UNIT_WORDS = {"By": "bytes", "s": "seconds"}


class Sample(NamedTuple):
    figure: Figure
    labels: dict[str, str]
    value: int | float


class Ledger:
    """The completeness ledger by service, over all processes there ever were."""

    CLASSES = (
        "parsed",
        "truncated",
        "lost",
        "unknown",
        "late",
        "encrypted",
        "declined",
        "shed",
    )  # enum ledger_class
    PLAIN = ("spans", "requests", "orphans")
    GAPS = ("lost", "unhooked", "shed", "truncated", "invalid", "overlap")  # enum gap_cause

    def __init__(self, earlier: Mapping[str, int], protocols: Sequence[str] = ()) -> None:
        """earlier: `totals` of the pipelines before this one, which nobody can tell apart by service now.

        protocols: their names, by number.
        """
        self._protocols = protocols
        self._past: dict[str, dict[str, int]] = {}  # of processes that were forgotten
        keys = [f"{what}.{name}" for what in ("chunks", "bytes") for name in self.CLASSES]
        self._earlier = {key: earlier.get(key, 0) for key in keys}

    @property
    def earlier(self) -> Mapping[str, int]:
        return self._earlier

    def by_service(self, rows: np.ndarray, resources: ResourceTable) -> dict[str, dict[str, int]]:
        """service -> "chunks.parsed", "bytes.parsed", …, "requests", …, "gaps.http1.lost", … -> count."""
        totals = {service: dict(counts) for service, counts in self._past.items()}
        self._add(totals, rows, resources)
        return totals

    def keep(self, rows: np.ndarray, resources: ResourceTable) -> None:
        """These rows are about to be forgotten by the core."""
        self._add(self._past, rows, resources)

    def totals(self, rows: np.ndarray) -> dict[str, int]:
        """The same over all services, chunks and bytes by class: cheap enough for every second."""
        totals = dict(self._earlier)
        for counts in self._past.values():
            for key in totals:
                totals[key] += counts.get(key, 0)
        for what in ("chunks", "bytes"):
            for name, count in zip(self.CLASSES, rows[what].sum(axis=0).tolist(), strict=True):
                totals[f"{what}.{name}"] += count
        return totals

    def _add(self, totals: dict[str, dict[str, int]], rows: np.ndarray, resources: ResourceTable) -> None:
        for row in rows:
            counts = totals.setdefault(resources.of(int(row["tgid"])).service_name, {})
            for i, name in enumerate(self.CLASSES):
                for what in ("chunks", "bytes"):
                    key = f"{what}.{name}"
                    counts[key] = counts.get(key, 0) + int(row[what][i])
            for key in self.PLAIN:
                counts[key] = counts.get(key, 0) + int(row[key])
            for protocol, cause in zip(*row["gaps"].nonzero(), strict=True):
                key = f"gaps.{self._protocols[protocol]}.{self.GAPS[cause]}"
                counts[key] = counts.get(key, 0) + int(row["gaps"][protocol][cause])


# The kernel's own counts of what it sent no record of, in the classes of the ledger.
KERNEL_CLASSES = {
    "quiet": "parsed",
    "unknown": "unknown",
    "encrypted": "encrypted",
    "unsent": "lost",
    "shed": "shed",
}


def ledger_samples(
    services: Mapping[str, Mapping[str, int]],
    earlier: Mapping[str, int],
    kernel: Mapping[str, int],
    spans: Mapping[str, int],
) -> Iterator[Sample]:
    """Every chunk and byte in one class.

    No service have what the kernel side passed over and what pipelines counted that have ended: the label
    `service` is empty and `part` says which.
    """
    for what in ("chunks", "bytes"):
        parts = [
            *(
                (kind, service, "", counts[f"{what}.{kind}"])
                for service, counts in services.items()
                for kind in Ledger.CLASSES
            ),
            *((kind, "", part, kernel[f"{part}_{what}"]) for part, kind in KERNEL_CLASSES.items()),
            *((kind, "", "earlier", earlier[f"{what}.{kind}"]) for kind in Ledger.CLASSES),
        ]
        for kind, service, part, count in parts:
            if count or not part:
                labels = {"class": kind, "service": service, **({"part": part} if part else {})}
                yield _ledger_sample(what, labels, count)
        yield _ledger_sample(f"difference_{what}", {}, kernel[what] - sum(count for *_, count in parts))
    for service, count in spans.items():
        yield _ledger_sample("spans", {"service": service}, count)
    for service, counts in services.items():
        for key in ("requests", "orphans"):
            yield _ledger_sample(key, {"service": service}, counts[key])
        for key, count in counts.items():
            if key.startswith("gaps."):
                _, protocol, cause = key.split(".")
                yield _ledger_sample(
                    "gaps", {"service": service, "protocol": protocol, "cause": cause}, count
                )


def _ledger_sample(key: str, labels: dict[str, str], value: int) -> Sample:
    return Sample(BY_SOURCE[f"ledger.{key}"], labels, value)


def group_samples(group: str, values: Mapping[str, int | float]) -> Iterator[Sample]:
    """The figures of one group that `values` has."""
    for key, value in values.items():
        figure = BY_SOURCE.get(f"{group}.{key}")
        if figure is not None:
            yield Sample(figure, {}, value)


def process_samples(process: str, values: Mapping[str, int | float]) -> Iterator[Sample]:
    """CPU time and memory of one of the agent's processes."""
    for key in ("cpu_s", "private_bytes"):
        if key in values:
            yield Sample(BY_SOURCE[f"process.{key}"], {"process": process}, values[key])


def exporter_samples(exporters: Iterable[Exporter]) -> Iterator[Sample]:
    """sent_<things> and dropped_<things>_<reason> become one figure, told apart by error.type."""
    for number, exporter in enumerate(exporters):
        kind = COMPONENT_TYPES.get(exporter.name, f"{exporter.name.partition(':')[0]}_span_exporter")
        labels = {"otel.component.name": f"{kind}/{number}", "otel.component.type": kind}
        for key, value in exporter.stats().items():
            outcome, _, rest = key.partition("_")
            noun, _, reason = rest.partition("_")
            if outcome == "sent" and noun in NOUNS:
                yield Sample(BY_SOURCE[f"exporter.{noun}"], labels, value)
            elif outcome == "dropped" and noun in NOUNS:
                yield Sample(BY_SOURCE[f"exporter.{noun}"], {**labels, "error.type": reason}, value)
            elif f"exporter.{key}" in BY_SOURCE:
                yield Sample(BY_SOURCE[f"exporter.{key}"], labels, value)


def all_samples(
    engine: Engine,
    services: Mapping[str, Mapping[str, int]],
    earlier: Mapping[str, int],
    spans: Mapping[str, int],
    keeper: Mapping[str, int | float],
    pipeline: Mapping[str, int | float],
    exporters: Sequence[Exporter],
) -> list[Sample]:
    """Every figure at this moment."""
    kernel = engine.kernel_counters()
    return [
        *ledger_samples(services, earlier, kernel, spans),
        *group_samples("kernel", kernel),
        *group_samples("core", engine.stats()),
        *group_samples("keeper", keeper),
        *group_samples("pipeline", pipeline),
        *process_samples("keeper", keeper),
        *process_samples("pipeline", pipeline),
        *exporter_samples(exporters),
    ]


def prometheus_name(figure: Figure) -> str:
    """https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/"""
    name = figure.name.replace(".", "_")
    unit = UNIT_WORDS.get(figure.unit, "")
    if unit and not name.endswith(unit):
        name += f"_{unit}"
    return f"{name}_total" if figure.kind == "sum" else name


def prometheus_text(samples: Iterable[Sample]) -> str:
    """The text exposition format 0.0.4, the samples of a figure together."""
    by_figure: dict[Figure, list[Sample]] = {}
    for sample in samples:
        by_figure.setdefault(sample.figure, []).append(sample)
    lines = []
    for figure, of_figure in by_figure.items():
        name = prometheus_name(figure)
        lines.append(f"# HELP {name} {figure.help}")
        lines.append(f"# TYPE {name} {'counter' if figure.kind == 'sum' else 'gauge'}")
        for sample in of_figure:
            labels = ",".join(f'{k.replace(".", "_")}="{_escaped(v)}"' for k, v in sample.labels.items())
            lines.append(f"{name}{{{labels}}} {sample.value}" if labels else f"{name} {sample.value}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def otlp_metrics(samples: Iterable[Sample], start_unix_ns: int) -> list[Metric]:
    """The same as metrics of one resource."""
    points: dict[Figure, list[Point]] = {}
    for sample in samples:
        points.setdefault(sample.figure, []).append(Point(sample.labels, start_unix_ns, sample.value))
    return [Metric(f.name, f.unit, f.help, f.kind, of_figure) for f, of_figure in points.items()]
