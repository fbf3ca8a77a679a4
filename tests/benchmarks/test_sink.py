# SPDX-License-Identifier: Apache-2.0
"""The counting receiver against requests that opentelemetry-proto, the second implementation, has built."""

from __future__ import annotations

import gzip
import http.client
import random
import socket
import time

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from benchmarks.sink import SERVER_SPAN, Sink, sink, spans_of


def request(seed: int, spans: int, first_id: int = 0) -> ExportTraceServiceRequest:
    """Random resources, scopes and attributes around `spans` spans, each with its own path."""
    rng = random.Random(seed)
    out = ExportTraceServiceRequest()
    left = spans
    while left:
        resource_spans: ResourceSpans = out.resource_spans.add(
            schema_url="https://opentelemetry.io/schemas/1.44.0"
        )
        resource_spans.resource.attributes.append(text("service.name", "n" * rng.randrange(300)))
        for _ in range(rng.randrange(3)):
            scope: ScopeSpans = resource_spans.scope_spans.add()
            scope.scope.name = "scope"
            for _ in range(min(left, rng.randrange(6))):
                left -= 1
                scope.spans.append(span(rng, first_id + left))
    return out


def span(rng: random.Random, number: int) -> Span:
    out = Span(trace_id=rng.randbytes(16), span_id=rng.randbytes(8), name="GET", kind=SERVER_SPAN)
    out.attributes.append(text("url.path", f"/r/{number:016x}"))
    out.attributes.append(text("user_agent.original", "x" * rng.choice([0, 5, 200, 20000])))
    out.events.add(name="exception", time_unix_nano=rng.getrandbits(60))
    out.start_time_unix_nano = rng.getrandbits(60)
    return out


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def post(receiver: Sink, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=5)
    fields = {"Content-Type": "application/x-protobuf"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("POST", path, body, fields)
    answer = connection.getresponse()
    out = answer.status, answer.read()
    connection.close()
    return out


def test_spans_are_counted_as_opentelemetry_proto_counts_them() -> None:
    with sink() as receiver:
        for seed, count in enumerate((1, 23, 0, 997)):
            status, body = post(receiver, "/v1/traces", request(seed, count).SerializeToString())
            assert status == 200
            ExportTraceServiceResponse.FromString(body)
        stats = receiver.stats()
    assert (stats.spans, stats.trace_requests, stats.refused) == (1021, 4, 0)


def test_gzip_bodies_are_counted_and_recorded() -> None:
    plain = request(5, 101).SerializeToString()
    with sink(record=True) as receiver:
        assert post(receiver, "/v1/traces", gzip.compress(plain), Content_Encoding="gzip")[0] == 200
        assert receiver.stats().spans == 101
        assert receiver.stats().bytes == len(gzip.compress(plain))
        (body,) = receiver.bodies()
    assert body.data == plain
    assert abs(time.monotonic_ns() - body.time_ns) < 10e9


def test_a_large_gzip_body_is_inflated_in_full() -> None:
    plain = request(6, 2003).SerializeToString()
    assert len(plain) > 8 << 20
    with sink() as receiver:
        assert post(receiver, "/v1/traces", gzip.compress(plain, 1), Content_Encoding="gzip")[0] == 200
        assert receiver.stats().spans == 2003


def test_recorded_spans_are_the_messages_that_were_sent() -> None:
    sent = request(7, 211, first_id=1 << 60)
    data = sent.SerializeToString()
    ours = [Span.FromString(each) for each in spans_of(data)]
    theirs = [each for r in sent.resource_spans for s in r.scope_spans for each in s.spans]
    assert ours == theirs
    with sink(record=True) as receiver:
        post(receiver, "/v1/traces", data)
        seen = list(receiver.requests_seen())
    assert [each.id for each in seen] == [(1 << 60) + number for number in reversed(range(211))]
    assert {each.kind for each in seen} == {SERVER_SPAN}


def test_a_cut_message_is_refused_at_every_length() -> None:
    data = request(8, 3).SerializeToString()
    whole = 0
    with sink() as receiver:
        for size in range(0, len(data), max(1, len(data) // 40)):
            try:
                ExportTraceServiceRequest.FromString(data[:size])
                whole += 1
                assert post(receiver, "/v1/traces", data[:size])[0] == 200
            except Exception:
                # The sink does not look inside spans, but a cut shows at the outermost length.
                assert post(receiver, "/v1/traces", data[:size])[0] == 400
    assert whole >= 1


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/nothing", {}, 404),
        ("/v1/traces", {"Content_Type": "application/json"}, 415),
        ("/v1/traces", {"Content_Encoding": "gzip"}, 400),
    ],
)
def test_what_it_cannot_count_is_refused_and_counted(path: str, headers: dict[str, str], status: int) -> None:
    with sink() as receiver:
        assert post(receiver, path, b"\xff\xff", **headers)[0] == status
        assert receiver.stats().refused == 1


def test_metrics_and_logs_are_taken_apart_from_spans() -> None:
    with sink(record=True) as receiver:
        post(receiver, "/v1/metrics", ExportMetricsServiceRequest().SerializeToString())
        post(receiver, "/v1/logs", b"")
        stats = receiver.stats()
        signals = [body.signal for body in receiver.bodies()]
    assert (stats.metric_requests, stats.log_requests, stats.spans) == (1, 1, 0)
    assert signals == ["metrics", "logs"]


def test_log_records_are_counted_as_opentelemetry_proto_counts_them() -> None:
    out = ExportLogsServiceRequest()
    for count in (3, 0, 7):
        scope = out.resource_logs.add().scope_logs.add()
        for number in range(count):
            scope.log_records.add(event_name="e", body=AnyValue(string_value="x" * number))
    data = out.SerializeToString()
    with sink() as receiver:
        assert post(receiver, "/v1/logs", gzip.compress(data), Content_Encoding="gzip")[0] == 200
        assert post(receiver, "/v1/logs", data[:-1])[0] == 400
        stats = receiver.stats()
    assert (stats.log_records, stats.log_requests, stats.refused, stats.spans) == (10, 1, 1, 0)


def test_requests_that_arrive_in_pieces_or_together_are_all_taken() -> None:
    body = request(9, 11).SerializeToString()
    head = b"POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf\r\ncontent-length: %d\r\n\r\n"
    message = head % len(body) + body
    with sink() as receiver, socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(message * 2 + message[:50])
        for byte in message[50:90]:
            connection.sendall(bytes([byte]))
        connection.sendall(message[90:])
        assert receiver.wait_for_spans(33).spans == 33


def test_waiting_for_spans_that_never_come_ends() -> None:
    with sink() as receiver:
        assert receiver.wait_for_spans(1, timeout_s=0.1).spans == 0
