# SPDX-License-Identifier: Apache-2.0
"""Metrics as OTLP against `opentelemetry-proto`, and the temporalities."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from agent.spans import SCHEMA_URL, SCOPE_NAME, Metric, MetricBatch, Point, Resource
from exporters.otlp_metrics import MetricEncoder
from tests.exporters.test_otlp_encode import any_value

SHOP, STORE = Resource({"service.name": "shop"}), Resource({"service.name": "store", "n": 1})
BOUNDS = (0.005, 0.01, 1.0)


def histogram(*points: Point) -> Metric:
    return Metric("http.server.request.duration", "s", "Duration", "histogram", points, BOUNDS)


def counter(*points: Point) -> Metric:
    return Metric("spans", "{span}", "", "sum", points)


def seen(count: int, total: float, buckets: list[int], start: int = 5, **attributes: Any) -> Point:
    return Point(attributes, start, count=count, sum=total, min=0.001, max=2.0, buckets=buckets)


def batch(time_ns: int, *metrics: Metric) -> MetricBatch:
    return MetricBatch(time_ns, [(SHOP, list(metrics))])


def random_metrics(rng: random.Random) -> list[Metric]:
    out = []
    for i in range(rng.randrange(1, 6)):
        kind = rng.choice(("sum", "gauge", "updown", "histogram"))
        points = []
        for n in range(rng.randrange(1, 4)):
            attributes = {
                "a": rng.choice(("", "späth")),
                "n": n,
                "f": rng.random(),
                "b": True,
                "l": ["x", ""],
            }
            if kind == "histogram":
                counts = [rng.randrange(5) for _ in range(4)]
                points.append(seen(sum(counts), rng.random(), counts, rng.getrandbits(60), **attributes))
            else:
                sign = -1 if kind == "updown" else 1
                value = rng.choice((0, 7, 2**62, 1.5)) * sign
                points.append(Point(attributes, rng.choice((0, rng.getrandbits(60))), value))
        bounds = BOUNDS if kind == "histogram" else ()
        out.append(Metric(f"m{i}", rng.choice(("", "s")), "text", kind, points, bounds))
    return out


def expected(batch: MetricBatch) -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    for resource, metrics in batch.metrics:
        group = request.resource_metrics.add(schema_url=SCHEMA_URL)
        group.resource.SetInParent()
        for key, value in resource.attributes.items():
            group.resource.attributes.append(KeyValue(key=key, value=any_value(value)))
        scope = group.scope_metrics.add(schema_url=SCHEMA_URL)
        scope.scope.name, scope.scope.version = SCOPE_NAME, "1"
        for metric in metrics:
            out = scope.metrics.add(name=metric.name, unit=metric.unit, description=metric.description)
            data = getattr(out, {"updown": "sum"}.get(metric.kind, metric.kind))
            if metric.kind != "gauge":
                data.aggregation_temporality = 2
            if metric.kind == "sum":
                data.is_monotonic = True
            for point in metric.points:
                times = {"start_time_unix_nano": point.start_unix_ns, "time_unix_nano": batch.time_unix_ns}
                if metric.kind == "histogram":
                    o = data.data_points.add(count=point.count, sum=point.sum, **times)
                    o.bucket_counts.extend(point.buckets)
                    o.explicit_bounds.extend(metric.bounds)
                    if point.count:
                        o.min, o.max = point.min, point.max
                else:
                    o = data.data_points.add(**times)
                    setattr(o, "as_int" if isinstance(point.value, int) else "as_double", point.value)
                for key, value in point.attributes.items():
                    o.attributes.append(KeyValue(key=key, value=any_value(value)))
    return request


def points_of(encoder: MetricEncoder, batch: MetricBatch) -> list[Any]:
    """Data points of the first metric, with its temporality."""
    out = []
    for body in encoder.encode(batch):
        message = ExportMetricsServiceRequest.FromString(bytes(body.data))
        for metric in message.resource_metrics[0].scope_metrics[0].metrics:
            data = getattr(metric, metric.WhichOneof("data") or "")
            out += [(getattr(data, "aggregation_temporality", 0), point) for point in data.data_points]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_random_metrics_equal_protobufs_own_bytes(seed: int) -> None:
    rng = random.Random(seed)
    metrics = MetricBatch(10**18, [(SHOP, random_metrics(rng)), (STORE, random_metrics(rng))])
    (body,) = MetricEncoder("1").encode(metrics)
    assert body.data == expected(metrics).SerializeToString(deterministic=True)
    assert body.items == sum(len(metric.points) for _, group in metrics.metrics for metric in group)


@pytest.mark.parametrize("seed", range(20))
def test_random_metrics_as_json_are_the_same_message(seed: int) -> None:
    rng = random.Random(seed)
    metrics = MetricBatch(10**18, [(SHOP, random_metrics(rng)), (STORE, random_metrics(rng))])
    (body,) = MetricEncoder("1", json=True).encode(metrics)
    assert json_format.Parse(body.data, ExportMetricsServiceRequest()) == expected(metrics)


def test_delta_is_the_change_since_the_last_export_without_min_and_max() -> None:
    encoder = MetricEncoder("1", temporality="delta")
    ((temporality, first),) = points_of(encoder, batch(100, histogram(seen(3, 1.5, [1, 0, 2, 0]))))
    assert (temporality, first.count, first.start_time_unix_nano, first.HasField("min")) == (1, 3, 5, True)
    ((_, second),) = points_of(encoder, batch(200, histogram(seen(5, 1.75, [1, 1, 2, 1]))))
    assert (second.count, second.sum, list(second.bucket_counts)) == (2, 0.25, [0, 1, 0, 1])
    assert (second.start_time_unix_nano, second.time_unix_nano) == (100, 200)
    assert not second.HasField("min")


def test_delta_leaves_out_what_did_not_change() -> None:
    encoder = MetricEncoder("1", temporality="delta")
    points_of(encoder, batch(100, histogram(seen(3, 1.5, [3, 0, 0, 0]))))
    assert encoder.encode(batch(200, histogram(seen(3, 1.5, [3, 0, 0, 0])))) == []


def test_delta_after_a_reset_starts_anew() -> None:
    encoder = MetricEncoder("1", temporality="delta")
    points_of(encoder, batch(100, counter(Point({}, 5, 10))))
    ((_, point),) = points_of(encoder, batch(200, counter(Point({}, 150, 4))))
    assert (point.as_int, point.start_time_unix_nano) == (4, 150)
    ((_, point),) = points_of(encoder, batch(300, counter(Point({}, 150, 9))))
    assert (point.as_int, point.start_time_unix_nano) == (5, 200)


def test_delta_tells_series_and_resources_apart() -> None:
    encoder = MetricEncoder("1", temporality="delta")
    points_of(encoder, batch(100, counter(Point({"l": ["a"]}, 5, 10), Point({"l": ["b"]}, 5, 20))))
    points = points_of(encoder, batch(200, counter(Point({"l": ["a"]}, 5, 11), Point({"l": ["b"]}, 5, 22))))
    assert [point.as_int for _, point in points] == [1, 2]
    other = MetricBatch(300, [(STORE, [counter(Point({"l": ["a"]}, 5, 30))])])
    assert [point.as_int for _, point in points_of(encoder, other)] == [30]


@pytest.mark.parametrize(
    ("preference", "kind", "expected"),
    [
        ("cumulative", "sum", 2),
        ("cumulative", "histogram", 2),
        ("delta", "sum", 1),
        ("delta", "histogram", 1),
        ("delta", "updown", 2),
        ("lowmemory", "sum", 2),
        ("lowmemory", "histogram", 1),
        ("lowmemory", "updown", 2),
        ("delta", "gauge", 0),
    ],
)
def test_temporality_by_preference_and_kind(preference: str, kind: str, expected: int) -> None:
    point = Point({}, 5, value=1, count=1, buckets=[1, 0, 0, 0] if kind == "histogram" else ())
    metric = Metric("m", "", "", kind, [point], BOUNDS if kind == "histogram" else ())
    assert [t for t, _ in points_of(MetricEncoder("1", temporality=preference), batch(9, metric))] == [
        expected
    ]


def test_state_is_kept_for_the_series_of_the_last_export_only() -> None:
    encoder = MetricEncoder("1", temporality="delta")
    for n in range(100):
        encoder.encode(batch(n, counter(Point({"n": n}, 5, 1))))
    assert len(encoder._deltas._last) == 1


@pytest.mark.parametrize("json", [False, True])
def test_requests_are_split_between_resources_and_the_too_large_counted(json: bool) -> None:
    resources = [Resource({"service.name": f"s{i}"}) for i in range(10)]
    metrics = [(resource, [counter(Point({}, 5, 1))]) for resource in resources]
    metrics.append((SHOP, [counter(Point({"x": "y" * 5000}, 5, 1))]))
    encoder = MetricEncoder("1", json=json, bytes_max=1500)
    bodies = encoder.encode(MetricBatch(9, metrics))
    assert max(len(body.data) for body in bodies) <= 1500
    assert 1 < len(bodies) < 10
    assert (sum(body.items for body in bodies), encoder.too_large) == (10, 1)


def test_nothing_to_say_is_no_request() -> None:
    assert MetricEncoder("1").encode(MetricBatch(9)) == []
    assert MetricEncoder("1").encode(batch(9, counter())) == []
