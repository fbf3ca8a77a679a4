# SPDX-License-Identifier: Apache-2.0
"""MetricBatch -> bodies of OTLP metric requests, protobuf or JSON, in the temporality the receiver wants.

    ExportMetricsServiceRequest
      resource_metrics 1 { resource 1, scope_metrics 2 { scope 1, metrics 2, schema_url 3 }, schema_url 3 }

Python runs per point here: at most some thousand, once per metric interval.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from agent.spans import SCHEMA_URL, SCOPE_NAME, Metric, MetricBatch, Point, Resource
from exporters.otlp_encode import (
    REQUEST_BYTES_MAX,
    Body,
    ResourceCache,
    json_attributes,
    json_bytes,
    json_double,
)
from exporters.protobuf import (
    attributes_field,
    bytes_field,
    double_field,
    fixed64_field,
    packed_field,
    text_field,
    varint_field,
)

TEMPORALITIES = ("cumulative", "delta", "lowmemory")
DELTA, CUMULATIVE = 1, 2  # AggregationTemporality

# Which kinds are sent as deltas. Our sums are read from counters kept elsewhere, as asynchronous
# instruments are, so `lowmemory` leaves them cumulative:
# https://opentelemetry.io/docs/specs/otel/metrics/sdk_exporters/otlp/
_DELTA_KINDS = {
    "cumulative": frozenset[str](),
    "delta": frozenset(("sum", "histogram")),
    "lowmemory": frozenset(("histogram",)),
}


class MetricEncoder:
    """Snapshots -> request bodies of at most `bytes_max` bytes, split between resources.

    too_large: points of a resource that alone exceeds bytes_max.
    """

    def __init__(
        self,
        version: str,
        *,
        json: bool = False,
        temporality: str = "cumulative",
        bytes_max: int = REQUEST_BYTES_MAX,
    ) -> None:
        self.bytes_max, self.too_large = bytes_max, 0
        self._json = json
        self._deltas = _Deltas(_DELTA_KINDS[temporality])
        scope = {"name": SCOPE_NAME, "version": version}
        if json:
            self._scope = json_bytes(scope)
            self._schema = json_bytes(SCHEMA_URL)
            self._resource = ResourceCache(
                lambda resource: json_bytes({"attributes": json_attributes(resource.attributes)})
            )
        else:
            self._scope = bytes_field(1, text_field(1, scope["name"]) + text_field(2, scope["version"]))
            self._schema = text_field(3, SCHEMA_URL)
            self._resource = ResourceCache(
                lambda resource: bytes_field(1, attributes_field(1, resource.attributes))
            )

    def encode(self, batch: MetricBatch) -> list[Body]:
        head, between, tail = (b'{"resourceMetrics":[', b",", b"]}") if self._json else (b"", b"", b"")
        bodies: list[Body] = []
        parts: list[bytes] = []
        points = used = 0
        for resource, metrics in self._deltas.apply(batch):
            part = self._resource_metrics(resource, metrics, batch.time_unix_ns)
            count = sum(len(metric.points) for metric in metrics)
            fixed = len(head) + len(tail)
            if fixed + len(part) > self.bytes_max:
                self.too_large += count
                continue
            if parts and fixed + used + len(part) > self.bytes_max:
                bodies.append(Body(head + between.join(parts) + tail, points))
                parts, points, used = [], 0, 0
            parts.append(part)
            used += len(part) + len(between)
            points += count
        if parts:
            bodies.append(Body(head + between.join(parts) + tail, points))
        self._deltas.commit()
        return bodies

    def _resource_metrics(self, resource: Resource, metrics: list[Metric], now_ns: int) -> bytes:
        if self._json:
            encoded = b",".join(
                json_bytes(_json_metric(metric, now_ns, self._temporality(metric))) for metric in metrics
            )
            return (
                b'{"resource":%b,"scopeMetrics":[{"scope":%b,"metrics":[%b],"schemaUrl":%b}],"schemaUrl":%b}'
                % (self._resource(resource), self._scope, encoded, self._schema, self._schema)
            )
        encoded = b"".join(
            bytes_field(2, _metric(metric, now_ns, self._temporality(metric))) for metric in metrics
        )
        scope_metrics = bytes_field(2, self._scope + encoded + self._schema)
        return bytes_field(1, self._resource(resource) + scope_metrics + self._schema)

    def _temporality(self, metric: Metric) -> int:
        return DELTA if metric.kind in self._deltas.kinds else CUMULATIVE


class _Deltas:
    """Cumulative points -> what happened since the last snapshot; remembers the points of that one only."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self._last: dict[Hashable, Point] = {}
        self._next: dict[Hashable, Point] = {}
        self._time_ns = self._next_time_ns = 0

    def apply(self, batch: MetricBatch) -> list[tuple[Resource, list[Metric]]]:
        """The batch without empty metrics and resources; of delta kinds, without unchanged points."""
        self._next, self._next_time_ns = {}, batch.time_unix_ns
        out = []
        for resource, metrics in batch.metrics:
            kept = []
            for metric in metrics:
                if metric.kind in self.kinds:
                    changed = [self._change(resource, metric, point) for point in metric.points]
                    metric = replace(metric, points=[point for point in changed if point])
                if metric.points:
                    kept.append(metric)
            if kept:
                out.append((resource, kept))
        return out

    def commit(self) -> None:
        self._last, self._time_ns = self._next, self._next_time_ns

    def _change(self, resource: Resource, metric: Metric, point: Point) -> Point | None:
        attributes = tuple(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in sorted(point.attributes.items())
        )
        key = (resource, metric.name, attributes)
        self._next[key] = point
        last = self._last.get(key)
        if last is None or last.start_unix_ns != point.start_unix_ns or _shrank(last, point):
            return point if point.count or point.value else None
        if (last.count, last.value) == (point.count, point.value):
            return None
        return replace(
            point,
            start_unix_ns=self._time_ns,
            value=point.value - last.value,
            count=point.count - last.count,
            sum=point.sum - last.sum,
            buckets=[now - then for now, then in zip(point.buckets, last.buckets, strict=True)],
            # The least and greatest of an interval cannot be told from those since the start.
            min=float("nan"),
            max=float("nan"),
        )


def _shrank(last: Point, point: Point) -> bool:
    return point.count < last.count or point.value < last.value or len(point.buckets) != len(last.buckets)


def _extremes(point: Point) -> bool:
    """Whether min and max are known."""
    return point.count > 0 and point.min == point.min


def _metric(metric: Metric, now_ns: int, temporality: int) -> bytes:
    """opentelemetry.proto.metrics.v1.Metric, without its length."""
    head = text_field(1, metric.name) + text_field(2, metric.description) + text_field(3, metric.unit)
    if metric.kind == "histogram":
        points = [_histogram_point(point, metric, now_ns) for point in metric.points]
        number, tail = 9, varint_field(2, temporality)
    else:
        points = [_number_point(point, now_ns) for point in metric.points]
        number = 5 if metric.kind == "gauge" else 7
        tail = b"" if metric.kind == "gauge" else varint_field(2, temporality)
        tail += varint_field(3, 1) if metric.kind == "sum" else b""
    return head + bytes_field(number, b"".join(bytes_field(1, point) for point in points) + tail)


def _times(point: Point, now_ns: int) -> bytes:
    return (fixed64_field(2, point.start_unix_ns) if point.start_unix_ns else b"") + fixed64_field(3, now_ns)


def _number_point(point: Point, now_ns: int) -> bytes:
    value = fixed64_field(6, point.value) if isinstance(point.value, int) else double_field(4, point.value)
    return _times(point, now_ns) + value + attributes_field(7, point.attributes)


def _histogram_point(point: Point, metric: Metric, now_ns: int) -> bytes:
    return (
        _times(point, now_ns)
        + (fixed64_field(4, point.count) if point.count else b"")
        + double_field(5, point.sum)
        + packed_field(6, "Q", point.buckets)
        + packed_field(7, "d", metric.bounds)
        + attributes_field(9, point.attributes)
        + (double_field(11, point.min) + double_field(12, point.max) if _extremes(point) else b"")
    )


def _json_metric(metric: Metric, now_ns: int, temporality: int) -> dict[str, Any]:
    data: dict[str, Any] = {"dataPoints": [_json_point(point, metric, now_ns) for point in metric.points]}
    if metric.kind != "gauge":
        data["aggregationTemporality"] = temporality
    if metric.kind == "sum":
        data["isMonotonic"] = True
    name = metric.kind if metric.kind in ("gauge", "histogram") else "sum"
    return {"name": metric.name, "description": metric.description, "unit": metric.unit, name: data}


def _json_point(point: Point, metric: Metric, now_ns: int) -> dict[str, Any]:
    out: dict[str, Any] = {"attributes": json_attributes(point.attributes)}
    out["startTimeUnixNano"], out["timeUnixNano"] = str(point.start_unix_ns), str(now_ns)
    if metric.kind != "histogram":
        value = point.value
        out |= {"asInt": str(value)} if isinstance(value, int) else {"asDouble": json_double(value)}
        return out
    out |= {"count": str(point.count), "sum": json_double(point.sum)}
    out |= {"bucketCounts": [str(count) for count in point.buckets], "explicitBounds": list(metric.bounds)}
    if _extremes(point):
        out |= {"min": json_double(point.min), "max": json_double(point.max)}
    return out
