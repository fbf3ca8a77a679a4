# SPDX-License-Identifier: Apache-2.0
"""Findings as OTLP log records against `opentelemetry-proto`: the same batch built with its classes.

What rows of both kinds share (limits, resources, keys) is tested with spans, in test_otlp_encode.py.
"""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from exporters._encode import lib
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from agent.engine import FINDINGS
from agent.spans import Resource
from exporters.otlp_encode import JsonEnvelope, ProtobufEnvelope, RowEncoder
from tests.exporters.batches import (
    CLOCK_OFFSET_NS,
    OBSERVED_NS,
    F,
    S,
    attribute_list,
    batch_of,
    log_batch_of,
    random_findings,
)
from tests.exporters.test_otlp_encode import (
    RESOURCES,
    any_value,
    check_damaged,
    corrupt,
    ids_in_base64,
    new_scope,
    with_list,
)


def encoder(**limits: Any) -> RowEncoder:
    return RowEncoder(ProtobufEnvelope("1.2.3"), **({"rows_max": 8192} | limits))


def json_encoder(**limits: Any) -> RowEncoder:
    return RowEncoder(JsonEnvelope("1.2.3", "logs"), **({"rows_max": 8192} | limits))


def expected(findings: list[F], resources: list[Resource]) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    for number, resource in enumerate(resources):
        mine = [finding for finding in findings if finding.resource == number]
        if not mine:
            continue
        scope = new_scope(request.resource_logs, "scope_logs", resource)
        for finding in mine:
            severity = SeverityNumber.Name(finding.severity).removeprefix("SEVERITY_NUMBER_")
            out = scope.log_records.add(
                time_unix_nano=finding.time_ns + CLOCK_OFFSET_NS,
                observed_time_unix_nano=OBSERVED_NS,
                severity_number=finding.severity,
                severity_text=severity if finding.severity else "",
                flags=finding.flags,
                trace_id=finding.trace.to_bytes(16, "big") if finding.trace else b"",
                span_id=finding.span.to_bytes(8, "big") if finding.trace and finding.span else b"",
                event_name="ebpf_otlp_tracer.finding." + FINDINGS[finding.finding].name,
            )
            out.body.string_value = FINDINGS[finding.finding].sentence
            for key, value in finding.attributes.items():
                out.attributes.append(KeyValue(key=key, value=any_value(value)))
    return request


def parse_json(text: bytes) -> ExportLogsServiceRequest:
    return json_format.ParseDict(ids_in_base64(json.loads(text)), ExportLogsServiceRequest())


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_equal_protobufs_own_bytes(seed: int) -> None:
    rng = random.Random(seed)
    findings = random_findings(rng, rng.choice((1, 2, 60)), len(RESOURCES))
    (body,) = encoder().encode(log_batch_of(findings, RESOURCES))
    assert body.items == len(findings)
    assert bytes(body.data) == expected(findings, RESOURCES).SerializeToString(deterministic=True)


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_as_json_are_the_same_message(seed: int) -> None:
    rng = random.Random(seed)
    findings = random_findings(rng, rng.choice((1, 2, 60)), len(RESOURCES))
    (body,) = json_encoder().encode(log_batch_of(findings, RESOURCES))
    assert body.items == len(findings)
    assert parse_json(bytes(body.data)) == expected(findings, RESOURCES)


def test_json_writes_ids_in_hex_and_64_bit_integers_as_strings() -> None:
    spans = ["00f067aa0ba902b7", "b7ad6b7169203331"]
    finding = F(lib.FINDING_N_PLUS_ONE, {"ebpf_otlp_tracer.finding.span_ids": spans}, trace=0xABC, span=0x12)
    (body,) = json_encoder().encode(log_batch_of([finding]))
    (out,) = json.loads(bytes(body.data))["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    values = [{"stringValue": span} for span in spans]
    assert out == {
        "timeUnixNano": "1700000001000000000",
        "observedTimeUnixNano": "1800000000000000000",
        "severityNumber": 13,
        "severityText": "WARN",
        "body": {"stringValue": "One request ran the same statement again and again."},
        "attributes": [
            {"key": "ebpf_otlp_tracer.finding.span_ids", "value": {"arrayValue": {"values": values}}}
        ],
        "flags": 1,
        "traceId": "0" * 29 + "abc",
        "spanId": "0" * 14 + "12",
        "eventName": "ebpf_otlp_tracer.finding.n_plus_one",
    }


def test_a_span_without_its_trace_is_not_named() -> None:
    (body,) = json_encoder().encode(log_batch_of([F(trace=0, span=7), F(trace=7, span=0)]))
    first, second = json.loads(bytes(body.data))["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert {"traceId", "spanId"} & first.keys() == set()
    assert {"traceId", "spanId"} & second.keys() == {"traceId"}


@pytest.mark.parametrize("make", [encoder, json_encoder])
def test_limits_hold_for_log_records(make: Any) -> None:
    findings = [F(span=i + 1, resource=i % 3, attributes={"url.path": "p" * (i % 50)}) for i in range(101)]
    encode = make(rows_max=7, bytes_max=2000)
    bodies = encode.encode(log_batch_of([*findings, F(attributes={"url.path": "p" * 3000})], RESOURCES))
    assert max(len(body.data) for body in bodies) <= 2000
    assert max(body.items for body in bodies) <= 7
    assert (sum(body.items for body in bodies), encode.too_large, encode.skipped) == (101, 1, 0)


BROKEN = {
    "no such finding": corrupt("finding", lib.FINDING_COUNT),
    "finding above all": corrupt("finding", 65535),
    "no such severity": corrupt("severity", 25),
    "attributes outside": corrupt("attributes_offset", 2**32 - 8),
    "attributes too long": corrupt("attributes_size", 2**32 - 8),
    "half a header": with_list(attribute_list({"client.port": 1}) + b"\x01\x00\x01"),
    "unknown key": with_list(struct.pack("<HHI", 2, 1, 0)),
    "half a length in a list": with_list(struct.pack("<HHI", 8, 5, 2) + bytes(8)),
}


@pytest.mark.parametrize("make", [encoder, json_encoder])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_row_is_skipped_and_counted(what: str, make: Any) -> None:
    batch = log_batch_of([F(span=1), F(span=2), F(span=3)])
    BROKEN[what](batch)
    encode = make()
    (body,) = encode.encode(batch)
    assert (body.items, encode.skipped, encode.too_large) == (2, 1, 0)
    text = bytes(body.data)
    request = ExportLogsServiceRequest.FromString(text) if make is encoder else parse_json(text)
    records = request.resource_logs[0].scope_logs[0].log_records
    assert [int.from_bytes(record.span_id, "big") for record in records] == [1, 3]


@pytest.mark.parametrize("make", [encoder, json_encoder])
@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_never_read_out_of_bounds(make: Any, seed: int) -> None:
    """Rows and arena with random bytes: what is encoded parses. (Under ASan this looks for over-reads.)"""
    rng = np.random.default_rng(seed)
    batch = log_batch_of(random_findings(random.Random(seed), 200, 1))
    for _ in range(20):
        batch.rows[rng.integers(200)]["finding"] = rng.integers(2**16)
        batch.rows[rng.integers(200)]["severity"] = rng.integers(2**8)
    check_damaged(batch, make(), rng)


def test_one_encoder_takes_spans_and_findings_in_turn() -> None:
    """The kind of rows is the batch's, not the encoder's."""
    encode = encoder()
    first = bytes(encode.encode(log_batch_of([F()]))[0].data)
    encode.encode(batch_of([S()]))
    assert bytes(encode.encode(log_batch_of([F()]))[0].data) == first
