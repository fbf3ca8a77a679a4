# SPDX-License-Identifier: Apache-2.0
"""What was seen, what became of every byte and what was lost: as figures, and as a few aligned lines.

The pipeline says the lines at the end and answers the figures at /status, where `ebpf-otlp-tracer status`
takes them and makes the same lines: so both have the same words, and the figures are those of /metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy comes with it, which the command line does without
    from agent.self_metrics import Sample

COLUMNS = ("service", "requests", "spans", "orphans")
NAME_MAX = 48  # characters of a service's name

# Figures that must be zero for "nothing was lost", with what to do about each.
LOSSES = {
    "kernel.unsent_chunks": "reads or writes did not fit into the ring: raise capture.ring_bytes",
    "kernel.shed_chunks": "reads or writes were left out under pressure: raise capture.ring_bytes",
    "kernel.unsent_events": "connection events did not fit into the ring: raise capture.ring_bytes",
    "kernel.connections_refused": "connections were not traced: raise capture.connections_max",
    "kernel.gap_bytes": "bytes moved by calls that are not hooked",
    "keeper.unseen": "processes use io_uring, which needs a kernel with kprobes to be seen",
    "core.events_malformed": "kernel records were malformed",
    "core.connections_evicted": "connections were forgotten: raise core.connections_max",
    "core.requests_dropped": "requests gave no span: their answer was lost, or core.pending_max reached",
    "core.spans_refused": "spans did not fit into a batch: raise core.batch_spans_max",
}


def figures(samples: Iterable[Sample], duration_s: float) -> dict[str, Any]:
    """Everything that `lines` shows, from the same samples that /metrics shows. Fit for JSON.

    services: by name, most spans first. gaps: one object for each sample that is not zero, with its labels.
    """
    from agent.self_metrics import Ledger

    services: dict[str, dict[str, int]] = {}
    ledger = {name: {"chunks": 0, "bytes": 0} for name in Ledger.CLASSES}
    gaps: list[dict[str, Any]] = []
    exporters: dict[str, dict[str, Any]] = {}
    plain: dict[str, int] = {}
    for figure, labels, value in samples:
        group, _, key = figure.source.partition(".")
        if group == "ledger" and key in COLUMNS:
            services.setdefault(labels["service"], dict.fromkeys(COLUMNS[1:], 0))[key] = int(value)
        elif figure.source in ("ledger.chunks", "ledger.bytes"):
            ledger[labels["class"]][key] += int(value)
        elif figure.source == "ledger.gaps":
            gaps += [{**labels, "count": int(value)}] if value else []
        elif figure.source == "exporter.spans":
            name = labels["otel.component.type"].removesuffix("_span_exporter")
            counts = exporters.setdefault(name, {"spans": 0, "dropped": {}})
            reason = labels.get("error.type", "")
            if not reason:
                counts["spans"] += int(value)
            elif value:
                counts["dropped"][reason] = counts["dropped"].get(reason, 0) + int(value)
        else:
            plain[figure.source] = int(value)
    order = sorted(services.items(), key=lambda item: (-item[1]["spans"], item[0]))
    return {
        "uptime_s": duration_s,
        "processes": plain.get("keeper.processes", 0),
        "restarts": plain.get("keeper.restarts", 0),
        "services": dict(order),
        "ledger": ledger,
        "kernel": {what: plain.get(f"kernel.{what}", 0) for what in ("chunks", "bytes")},
        "difference": {what: plain.get(f"ledger.difference_{what}", 0) for what in ("chunks", "bytes")},
        "losses": [
            {"name": source, "count": plain[source], "text": text}
            for source, text in LOSSES.items()
            if plain.get(source)
        ],
        "gaps": gaps,
        "exporters": exporters,
    }


def summary(samples: Iterable[Sample], duration_s: float) -> str:
    """The words at the end of a run."""
    head = [f"traced for {duration(duration_s)}", ""]
    return "\n".join([*head, *lines(figures(samples, duration_s))]) + "\n"


def lines(shown: Mapping[str, Any], services_max: int | None = None) -> list[str]:
    """The tables, of what `figures` made. services_max: the rest stands in one row."""
    return [
        *_service_lines(shown["services"], services_max),
        "",
        *_ledger_lines(shown),
        "",
        *_loss_lines(shown),
        *_gap_lines(shown["gaps"]),
        *_export_lines(shown["exporters"]),
    ]


def _service_lines(services: Mapping[str, Mapping[str, int]], services_max: int | None) -> list[str]:
    if not services:
        return ["no requests seen"]
    named = list(services.items())
    if services_max is not None and len(named) > services_max:
        rest = [counts for _, counts in named[services_max:]]
        sums = {column: sum(counts[column] for counts in rest) for column in COLUMNS[1:]}
        named = [*named[:services_max], (f"{len(rest)} more", sums)]
    if len(named) > 1:
        totals = {column: sum(counts[column] for counts in services.values()) for column in COLUMNS[1:]}
        named.append(("total", totals))
    rows = [(_name(name), *(f"{counts[column]:,}" for column in COLUMNS[1:])) for name, counts in named]
    return _table(COLUMNS, rows)


def _ledger_lines(shown: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, f"{counts['chunks']:,}", _size(counts["bytes"]))
        for name, counts in shown["ledger"].items()
        if counts["chunks"] or counts["bytes"] or name == "lost"
    ]
    kernel = shown["kernel"]
    rows.append(("seen by the kernel", f"{kernel['chunks']:,}", _size(kernel["bytes"])))
    found = _table(("reads and writes", "count", "bytes"), rows)
    difference = shown["difference"]["chunks"]
    if difference:
        why = "lost with a pipeline that crashed" if shown["restarts"] else "still in flight"
        found.append(f"not accounted for: {difference:,} ({why})")
    return found


def _loss_lines(shown: Mapping[str, Any]) -> list[str]:
    found = [f"lost: {loss['count']:,} {loss['text']}" for loss in shown["losses"]]
    whole = not shown["difference"]["chunks"] and not found
    return [*found, *(["nothing was lost"] if whole else [])]


def _gap_lines(gaps: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for gap in gaps:
        where = ", ".join(_name(str(value)) for key, value in gap.items() if key != "count" and value)
        found.append(
            f"gaps: {gap['count']:,} holes in streams cost a message" + (f" ({where})" * bool(where))
        )
    return found


def _export_lines(exporters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for name, counts in exporters.items():
        dropped = [f"{count:,} {reason}" for reason, count in counts["dropped"].items()]
        text = f"exported: {counts['spans']:,} spans by {name}"
        found.append(text + (f"; dropped: {', '.join(dropped)}" if dropped else ""))
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    found = []
    for row in [header, *rows]:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        found.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return found


def _name(text: str) -> str:
    """A process chose it: no control characters, and not longer than a line."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe if len(safe) <= NAME_MAX else safe[: NAME_MAX - 1] + "…"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """`8.3 s`, `7 min 1 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
