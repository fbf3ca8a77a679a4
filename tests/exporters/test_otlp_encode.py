# SPDX-License-Identifier: Apache-2.0
"""Spans as OTLP against `opentelemetry-proto`: the same batch built with its classes, byte by byte."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from agent.spans import SCHEMA_URL, SCOPE_NAME, AttributeValue, Resource, RowBatch
from exporters.otlp_encode import JsonEnvelope, ProtobufEnvelope, ResourceCache, RowEncoder
from tests.exporters.batches import CLIENT, CLOCK_OFFSET_NS, KEYS, S, attribute_list, batch_of, random_spans

RESOURCES = [
    Resource({"service.name": "shop", "process.pid": 4711, "process.command_args": ["python", "-m", "shop"]}),
    Resource({"service.name": "späth", "container.id": "", "host.load": 0.5, "flag": True}),
    Resource({}),
]


def encoder(**limits: Any) -> RowEncoder:
    return RowEncoder(ProtobufEnvelope("1.2.3"), **({"rows_max": 8192} | limits))


def json_encoder(**limits: Any) -> RowEncoder:
    return RowEncoder(JsonEnvelope("1.2.3"), **({"rows_max": 8192} | limits))


def any_value(value: AttributeValue) -> AnyValue:
    out = AnyValue()
    if isinstance(value, bool):
        out.bool_value = value
    elif isinstance(value, int):
        out.int_value = value
    elif isinstance(value, float):
        out.double_value = value
    elif isinstance(value, str):
        out.string_value = value
    else:
        out.array_value.values.extend(any_value(item) for item in value)
        out.array_value.SetInParent()
    return out


def new_scope(groups: Any, scopes: str, resource: Resource) -> Any:
    """The one scope of a new ResourceSpans or ResourceLogs."""
    group = groups.add(schema_url=SCHEMA_URL)
    group.resource.SetInParent()
    for key, value in resource.attributes.items():
        group.resource.attributes.append(KeyValue(key=key, value=any_value(value)))
    scope = getattr(group, scopes).add(schema_url=SCHEMA_URL)
    scope.scope.name, scope.scope.version = SCOPE_NAME, "1.2.3"
    return scope


def expected(spans: list[S], resources: list[Resource]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for number, resource in enumerate(resources):
        mine = [span for span in spans if span.resource == number]
        if not mine:
            continue
        scope = new_scope(request.resource_spans, "scope_spans", resource)
        for span in mine:
            out = scope.spans.add(
                trace_id=span.trace.to_bytes(16, "big"),
                span_id=span.span.to_bytes(8, "big"),
                parent_span_id=span.parent.to_bytes(8, "big") if span.parent else b"",
                trace_state=span.state,
                flags=span.flags | 0x100 | (0x200 if span.remote else 0),
                name=span.name,
                kind=span.kind,
                start_time_unix_nano=span.start_ns + CLOCK_OFFSET_NS,
                end_time_unix_nano=span.start_ns + span.duration_ns + CLOCK_OFFSET_NS,
            )
            for key, value in span.attributes.items():
                out.attributes.append(KeyValue(key=key, value=any_value(value)))
            if span.error:
                out.status.code = 2
    return request


def parse_json(text: bytes) -> ExportTraceServiceRequest:
    return json_format.ParseDict(ids_in_base64(json.loads(text)), ExportTraceServiceRequest())


def ids_in_base64(value: Any) -> Any:
    """OTLP JSON has ids in hex where protobuf's JSON has base64."""
    if isinstance(value, list):
        return [ids_in_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else ids_in_base64(item)
        for key, item in value.items()
    }


def spans_in(bodies: list[Any]) -> list[Any]:
    requests = [ExportTraceServiceRequest.FromString(bytes(body.data)) for body in bodies]
    return [
        span
        for request in requests
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_equal_protobufs_own_bytes(seed: int) -> None:
    rng = random.Random(seed)
    spans = random_spans(rng, rng.choice((1, 2, 60)), len(RESOURCES))
    (body,) = encoder().encode(batch_of(spans, RESOURCES))
    assert body.items == len(spans)
    assert bytes(body.data) == expected(spans, RESOURCES).SerializeToString(deterministic=True)


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_as_json_are_the_same_message(seed: int) -> None:
    rng = random.Random(seed)
    spans = random_spans(rng, rng.choice((1, 2, 60)), len(RESOURCES))
    (body,) = json_encoder().encode(batch_of(spans, RESOURCES))
    assert body.items == len(spans)
    assert parse_json(bytes(body.data)) == expected(spans, RESOURCES)


def test_json_writes_ids_in_hex_enums_as_numbers_and_64_bit_integers_as_strings() -> None:
    span = S(trace=0xABC, span=0x12, parent=0x13, remote=True, error=True, attributes={"client.port": 80})
    (body,) = json_encoder().encode(batch_of([span]))
    (out,) = json.loads(bytes(body.data))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert out == {
        "traceId": "0" * 29 + "abc",
        "spanId": "0" * 14 + "12",
        "parentSpanId": "0" * 14 + "13",
        "flags": 0x301,
        "name": "GET",
        "kind": 2,
        "startTimeUnixNano": "1700000001000000000",
        "endTimeUnixNano": "1700000001001500000",
        "attributes": [{"key": "client.port", "value": {"intValue": "80"}}],
        "status": {"code": 2},
    }


def test_json_body_has_no_raw_control_characters() -> None:
    text = "".join(map(chr, range(0x20))) + '"\\\x7f'
    (body,) = json_encoder(line_end=b"\n").encode(batch_of([S(name=text, attributes={"url.path": text})]))
    assert min(bytes(body.data)[:-1]) >= 0x20
    assert parse_json(bytes(body.data)).resource_spans[0].scope_spans[0].spans[0].name == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.1, 1e-320])
def test_doubles_that_json_cannot_write(value: float) -> None:
    batch = batch_of([S(attributes={"http.route": value})])
    (body,) = json_encoder().encode(batch)
    (attribute,) = parse_json(bytes(body.data)).resource_spans[0].scope_spans[0].spans[0].attributes
    assert struct.pack("<d", attribute.value.double_value) == struct.pack("<d", value)


@pytest.mark.parametrize(
    ("span", "flags"),
    [
        (S(), 0x101),
        (S(parent=7), 0x101),
        (S(parent=7, remote=True), 0x301),
        (S(parent=7, remote=True, flags=0), 0x300),
    ],
)
def test_flags_say_whether_the_parent_came_off_the_wire(span: S, flags: int) -> None:
    assert spans_in(encoder().encode(batch_of([span])))[0].flags == flags


def test_root_has_no_parent_field_and_success_no_status() -> None:
    (span,) = spans_in(encoder().encode(batch_of([S()])))
    assert span.parent_span_id == b""
    assert not span.HasField("status")


@pytest.mark.parametrize("make", [encoder, json_encoder])
def test_requests_hold_at_most_rows_max(make: Any) -> None:
    spans = random_spans(random.Random(1), 23, 3)
    bodies = make(rows_max=5).encode(batch_of(spans, RESOURCES))
    assert [body.items for body in bodies] == [5, 5, 5, 5, 3]
    if make is encoder:
        assert sorted(s.span_id for s in spans_in(bodies)) == sorted(s.span.to_bytes(8, "big") for s in spans)


@pytest.mark.parametrize("make", [encoder, json_encoder])
@pytest.mark.parametrize("limit", [1200, 2000, 5000, 20_000])
def test_requests_stay_under_the_byte_limit_and_lose_nothing(make: Any, limit: int) -> None:
    spans = [S(span=i + 1, resource=i % 3, attributes={"url.path": "p" * (i % 50)}) for i in range(101)]
    bodies = make(bytes_max=limit).encode(batch_of(spans, RESOURCES))
    assert max(len(body.data) for body in bodies) <= limit
    assert sum(body.items for body in bodies) == 101
    whole = make().encode(batch_of(spans, RESOURCES))[0].data
    if make is encoder:
        assert {s.span_id for s in spans_in(bodies)} == {s.to_bytes(8, "big") for s in range(1, 102)}
        assert len(bodies) <= 3 * len(whole) / (limit - 500) + 1
    else:
        assert sum(len(parse_json(bytes(b.data)).resource_spans) for b in bodies) >= 3


@pytest.mark.parametrize("make", [encoder, json_encoder])
def test_a_span_that_fits_no_request_is_dropped_and_counted(make: Any) -> None:
    spans = [S(span=1), S(span=2, attributes={"url.path": "p" * 5000}), S(span=3)]
    encode = make(bytes_max=3000)
    assert sum(body.items for body in encode.encode(batch_of(spans))) == 2
    assert (encode.too_large, encode.skipped) == (1, 0)


def test_the_limit_is_exact() -> None:
    """A limit of the encoded size itself still takes it all: the estimate is never more than 12 bytes off."""
    batch = batch_of(random_spans(random.Random(3), 50, 1), RESOURCES[:1])
    size = len(encoder().encode(batch)[0].data)
    assert len(encoder(bytes_max=size + 12).encode(batch)) == 1
    assert len(encoder(bytes_max=size - 1).encode(batch)) == 2


def corrupt(field: str, value: int) -> Any:
    def change(batch: RowBatch) -> None:
        batch.rows[1][field] = value

    return change


def with_list(data: bytes) -> Any:
    def change(batch: RowBatch) -> None:
        offset = len(batch.arena)
        batch.arena = memoryview(bytes(batch.arena) + data)
        batch.rows[1]["attributes_offset"], batch.rows[1]["attributes_size"] = offset, len(data)

    return change


def _resource(number: int) -> Any:
    def change(batch: RowBatch) -> None:
        batch.resource[1] = number

    return change


GOOD = attribute_list({"url.path": "/12345678", "client.port": 1})
BROKEN = {
    "name outside": corrupt("name_offset", 2**32 - 1),
    "name too long": corrupt("name_size", 2**32 - 1),
    "state outside": corrupt("tracestate_size", 2**31),
    "attributes outside": corrupt("attributes_offset", 2**32 - 8),
    "attributes too long": corrupt("attributes_size", 2**32 - 8),
    "half a header": with_list(GOOD + b"\x01\x00\x01"),
    "value longer than the list": with_list(struct.pack("<HHI", 8, 1, 2**32 - 1) + bytes(8)),
    "padding missing": with_list(struct.pack("<HHI", 8, 1, 3) + b"abc"),
    "unknown key": with_list(struct.pack("<HHI", 2, 1, 0)),
    "key above all": with_list(struct.pack("<HHI", 65535, 1, 0)),
    "key 0": with_list(struct.pack("<HHI", 0, 1, 0)),
    "unknown type": with_list(struct.pack("<HHI", 8, 6, 0)),
    "short integer": with_list(struct.pack("<HHI", 8, 2, 4) + bytes(8)),
    "long double": with_list(struct.pack("<HHI", 8, 3, 16) + bytes(16)),
    "short bool": with_list(struct.pack("<HHI", 8, 4, 1) + bytes(8)),
    "text of a list too long": with_list(struct.pack("<HHII", 8, 5, 8, 5) + b"abcd"),
    "half a length in a list": with_list(struct.pack("<HHI", 8, 5, 2) + bytes(8)),
    "no such resource": _resource(3),
    "negative resource": _resource(-1),
}


@pytest.mark.parametrize("make", [encoder, json_encoder])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_row_is_skipped_and_counted(what: str, make: Any) -> None:
    batch = batch_of([S(span=1), S(span=2), S(span=3)])
    BROKEN[what](batch)
    encode = make()
    (body,) = encode.encode(batch)
    assert (body.items, encode.skipped, encode.too_large) == (2, 1, 0)
    request = (
        ExportTraceServiceRequest.FromString(bytes(body.data))
        if make is encoder
        else parse_json(bytes(body.data))
    )
    spans = request.resource_spans[0].scope_spans[0].spans
    assert [int.from_bytes(span.span_id, "big") for span in spans] == [1, 3]


@pytest.mark.parametrize("make", [encoder, json_encoder])
def test_only_broken_rows_make_no_request(make: Any) -> None:
    batch = batch_of([S()])
    batch.rows["name_size"] = 2**32 - 1
    assert make().encode(batch) == []


@pytest.mark.parametrize("make", [encoder, json_encoder])
@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_never_read_out_of_bounds(make: Any, seed: int) -> None:
    """Rows and arena with random bytes: what is encoded parses. (Under ASan this looks for over-reads.)"""
    batch = batch_of(random_spans(random.Random(seed), 200, 1))
    check_damaged(batch, make(), np.random.default_rng(seed))


def check_damaged(batch: RowBatch, encode: RowEncoder, rng: np.random.Generator) -> None:
    arena = np.frombuffer(bytearray(batch.arena), np.uint8).copy()
    names = [name for name in batch.rows.dtype.names or () if "offset" in name or "size" in name]
    for _ in range(60):
        row = batch.rows[rng.integers(len(batch))]
        row[rng.choice(names)] = rng.choice([0, 8, len(arena), len(arena) - 4, int(rng.integers(2**32))])
        arena[rng.integers(len(arena))] = rng.integers(32)  # ASCII, so that texts stay UTF-8 where they were
    batch.arena = memoryview(arena.tobytes())
    bodies = encode.encode(batch)
    assert sum(body.items for body in bodies) + encode.skipped == len(batch)
    if isinstance(encode.envelope, JsonEnvelope):
        for body in bodies:
            json.loads(bytes(body.data).decode("utf-8", "replace"))


def test_resources_are_encoded_once_and_kept_within_bounds() -> None:
    made: list[Resource] = []

    def encode(resource: Resource) -> bytes:
        made.append(resource)
        return b"x"

    cache, resources = ResourceCache(encode, maximum=2), [Resource({}) for _ in range(3)]
    for i in (0, 1, 0, 0, 2, 0, 1):
        cache(resources[i])
    assert len(cache) == 2
    assert made == [resources[0], resources[1], resources[2], resources[1]]


def test_new_keys_make_a_new_encoder() -> None:
    encode = encoder()
    encode.encode(batch_of([S(attributes={"url.path": "/"})]))
    keys = {8: "other.key"}
    (span,) = spans_in(encode.encode(batch_of([S(attributes={"other.key": "/"})], keys=keys)))
    assert span.attributes[0].key == "other.key"
    (span,) = spans_in(encode.encode(batch_of([S(attributes={KEYS[8]: "/"}, kind=CLIENT)])))
    assert span.attributes[0].key == "url.path"


def test_the_body_outlives_the_batch() -> None:
    batch = batch_of([S(name="first")])
    arena = bytearray(batch.arena)
    batch.arena = memoryview(arena)
    (body,) = encoder().encode(batch)
    arena[:] = bytes(len(arena))
    batch.rows[:] = np.zeros_like(batch.rows)
    assert spans_in([body])[0].name == "first"
