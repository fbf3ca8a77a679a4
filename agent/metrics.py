# SPDX-License-Identifier: Apache-2.0
"""What the core counts of each process -> metrics: durations by the semantic conventions, and findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from agent.core._core import lib
from agent.engine import FINDINGS, Engine, metric_bounds
from agent.resources import ResourceTable
from agent.spans import Metric, Point, Resource, read_attributes


class Instrument(NamedTuple):
    name: str
    unit: str
    description: str


# https://opentelemetry.io/docs/specs/semconv/http/http-metrics/, by enum metric_id
INSTRUMENTS = {
    lib.METRIC_HTTP_SERVER_DURATION: Instrument(
        "http.server.request.duration", "s", "Duration of HTTP server requests."
    ),
    lib.METRIC_HTTP_CLIENT_DURATION: Instrument(
        "http.client.request.duration", "s", "Duration of HTTP client requests."
    ),
    # https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
    lib.METRIC_DB_CLIENT_DURATION: Instrument(
        "db.client.operation.duration", "s", "Duration of database client operations."
    ),
    lib.METRIC_DB_RETURNED_ROWS: Instrument(
        "db.client.response.returned_rows",
        "{row}",
        "The actual number of records returned by the database operation.",
    ),
}
BOUNDS = {metric: metric_bounds(metric) for metric in INSTRUMENTS}
FINDING_COUNTER = Instrument("ebpf_otlp_tracer.findings", "{finding}", "Things found worth telling, by kind.")
FINDING_NAME = "ebpf_otlp_tracer.finding.name"
OVERFLOW = {"otel.metric.overflow": True}


def process_metrics(
    engine: Engine, resources: ResourceTable, own: Resource, clock_offset_ns: int, start_unix_ns: int
) -> list[tuple[Resource, list[Metric]]]:
    """Everything there is of each process. What stands for all others belongs to `own`."""
    by_resource: dict[Resource, list[Metric]] = {}
    for resource, metric in (
        *_durations(engine, resources, own, clock_offset_ns),
        *_findings(engine, resources, own, start_unix_ns),
    ):
        by_resource.setdefault(resource, []).append(metric)
    return list(by_resource.items())


def _durations(
    engine: Engine, resources: ResourceTable, own: Resource, clock_offset_ns: int
) -> Iterator[tuple[Resource, Metric]]:
    """Every series as a histogram point."""
    rows, arena = engine.series()
    points: dict[tuple[Resource, int], list[Point]] = {}
    for row in rows:
        resource = own if row["overflow"] else resources.of(int(row["tgid"]))
        metric = int(row["metric"])
        attributes = dict(
            read_attributes(arena, int(row["attributes_offset"]), int(row["attributes_size"]), engine.keys)
        )
        points.setdefault((resource, metric), []).append(
            _point(row, {**attributes, **OVERFLOW} if row["overflow"] else attributes, clock_offset_ns)
        )
    for (resource, metric), of_metric in points.items():
        yield resource, Metric(*INSTRUMENTS[metric], "histogram", of_metric, BOUNDS[metric])


def _findings(
    engine: Engine, resources: ResourceTable, own: Resource, start_unix_ns: int
) -> Iterator[tuple[Resource, Metric]]:
    """Counts by kind, those without a log record too."""
    rows = engine.ledger()
    for row in rows[rows["findings"].any(axis=1)]:
        tgid = int(row["tgid"])
        points = [
            Point({FINDING_NAME: finding.name, **(OVERFLOW if tgid == 0 else {})}, start_unix_ns, count)
            for finding, count in zip(FINDINGS, row["findings"].tolist(), strict=True)
            if count
        ]
        yield resources.of(tgid) if tgid else own, Metric(*FINDING_COUNTER, "sum", points)


def _point(
    row: np.void, attributes: dict[str, str | int | float | bool | list[str]], offset_ns: int
) -> Point:
    return Point(
        attributes,
        start_unix_ns=int(row["start_ktime_ns"]) + offset_ns,
        count=int(row["count"]),
        sum=float(row["sum"]),
        min=float(row["min"]),
        max=float(row["max"]),
        buckets=row["buckets"][: len(BOUNDS[int(row["metric"])]) + 1].tolist(),
    )
