# SPDX-License-Identifier: Apache-2.0
"""What is said at the end: spans and requests by service, what became of every byte, what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.self_metrics import Ledger, Sample

COLUMNS = ("service", "requests", "spans", "orphans")


def summary(samples: Iterable[Sample], duration_s: float) -> str:
    """A few aligned lines, from the same figures that /metrics shows."""
    samples = list(samples)
    services: dict[str, dict[str, int]] = {}
    totals = {name: [0, 0] for name in Ledger.CLASSES}
    plain: dict[str, int] = {}
    exported: dict[str, dict[str, int]] = {}
    gaps: dict[str, int] = {}
    for figure, labels, value in samples:
        group, _, key = figure.source.partition(".")
        if group == "ledger" and key in COLUMNS:
            services.setdefault(labels["service"], {})[key] = int(value)
        elif figure.source in ("ledger.chunks", "ledger.bytes"):
            totals[labels["class"]][key == "bytes"] += int(value)
        elif figure.source == "ledger.gaps":
            gaps[labels["cause"]] = gaps.get(labels["cause"], 0) + int(value)
        elif figure.source == "exporter.spans":
            by_reason = exported.setdefault(labels["otel.component.type"], {})
            by_reason[labels.get("error.type", "")] = by_reason.get(labels.get("error.type", ""), 0) + int(
                value
            )
        else:
            plain[figure.source] = int(value)
    rows = [
        (name, *(f"{counts.get(column, 0):,}" for column in COLUMNS[1:]))
        for name, counts in sorted(services.items(), key=lambda item: (-item[1].get("spans", 0), item[0]))
    ]
    total = ["total"] + [f"{sum(s.get(c, 0) for s in services.values()):,}" for c in COLUMNS[1:]]
    lines = [f"traced for {_duration(duration_s)}", ""]
    lines += (
        _table(COLUMNS, [*rows, tuple(total)] if len(rows) != 1 else rows) if rows else ["no requests seen"]
    )
    lines += [
        "",
        *_ledger_lines(totals, plain),
        *_loss_lines(plain),
        *_gap_lines(gaps),
        *_export_lines(exported),
    ]
    return "\n".join(lines) + "\n"


def _ledger_lines(totals: Mapping[str, Sequence[int]], plain: Mapping[str, int]) -> list[str]:
    rows = [
        (name, f"{chunks:,}", _size(size))
        for name, (chunks, size) in totals.items()
        if chunks or size or name == "lost"
    ]
    rows.append(
        ("seen by the kernel", f"{plain.get('kernel.chunks', 0):,}", _size(plain.get("kernel.bytes", 0)))
    )
    lines = _table(("reads and writes", "count", "bytes"), rows)
    difference = plain.get("ledger.difference_chunks", 0)
    if difference:
        why = "lost with a pipeline that crashed" if plain.get("keeper.restarts") else "still in flight"
        lines.append(f"not accounted for: {difference:,} ({why})")
    return lines


# Figures that must be zero for "nothing was lost", with what to do about each.
LOSSES = {
    "kernel.unsent_chunks": "reads or writes did not fit into the ring: raise capture.ring_bytes",
    "kernel.shed_chunks": "reads or writes were left out under pressure, by whole connections",
    "kernel.unsent_events": "connection events did not fit into the ring: raise capture.ring_bytes",
    "kernel.connections_refused": "connections were not traced: raise capture.connections_max",
    "kernel.gap_bytes": "bytes moved by calls that are not hooked",
    "core.events_malformed": "kernel records were malformed",
    "core.connections_evicted": "connections were forgotten: raise core.connections_max",
    "core.requests_dropped": "requests gave no span: their answer was lost, or core.pending_max reached",
    "core.spans_refused": "spans did not fit into a batch: raise core.batch_spans_max",
}


def _loss_lines(plain: Mapping[str, int]) -> list[str]:
    found = [f"lost: {plain[source]:,} {text}" for source, text in LOSSES.items() if plain.get(source)]
    whole = not plain.get("ledger.difference_chunks") and not found
    return ["", *found, *(["nothing was lost"] if whole else [])]


def _gap_lines(gaps: Mapping[str, int]) -> list[str]:
    """Not all of them cost a span: a body that was not copied whole is a gap too."""
    parts = [f"{count:,} {cause}" for cause, count in gaps.items() if count]
    return [f"gaps in streams: {', '.join(parts)}"] if parts else []


def _export_lines(exported: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = []
    for component, by_reason in exported.items():
        dropped = [f"{count:,} {reason}" for reason, count in by_reason.items() if reason and count]
        lines.append(
            f"exported: {by_reason.get('', 0):,} spans by {component.removesuffix('_span_exporter')}"
            + (f"; dropped: {', '.join(dropped)}" if dropped else "")
        )
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return lines


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
