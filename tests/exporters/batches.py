# SPDX-License-Identifier: Apache-2.0
"""Batches made by hand, in the layout of agent/core/span.h: from spans and findings that a test can read."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from exporters._encode import ffi, lib

from agent.engine import FINDINGS
from agent.layouts import dtype_of
from agent.spans import AttributeValue, LogBatch, Resource, SpanBatch

ROW = dtype_of(ffi, "struct span_row")
SERVER, CLIENT = 2, 3
FINDING_ROW = dtype_of(ffi, "struct finding_row")
OBSERVED_NS = 1_800_000_000_000_000_000
CLOCK_OFFSET_NS = 1_700_000_000_000_000_000

KEYS = {
    1: "http.request.method",
    3: "http.response.status_code",
    4: "http.route",
    7: "url.scheme",
    8: "url.path",
    10: "url.full",
    12: "error.type",
    17: "client.address",
    18: "client.port",
    19: "server.address",
    20: "server.port",
    24: "ebpf_otlp_tracer.finding.span_ids",
    1024: "http.request.header.x-späth",
    1025: 'http.request.header."quoted\\',
}
IDS = {key: number for number, key in KEYS.items()}


@dataclass
class S:
    """A span as a test writes it."""

    name: str = "GET"
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    resource: int = 0
    trace: int = 1
    span: int = 1
    parent: int = 0
    remote: bool = False
    kind: int = SERVER
    error: bool = False
    flags: int = 1
    state: str = ""
    start_ns: int = 1_000_000_000
    duration_ns: int = 1_500_000


@dataclass
class F:
    """A finding as a test writes it."""

    finding: int = lib.FINDING_SLOW_STATEMENT
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    resource: int = 0
    trace: int = 1
    span: int = 1
    severity: int = 13
    flags: int = 1
    time_ns: int = 1_000_000_000


class Arena:
    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, data: bytes) -> tuple[int, int]:
        """Offset and size."""
        self.data.extend(bytes(-len(self.data) % 8))
        self.data.extend(data)
        return len(self.data) - len(data), len(data)


def attribute_list(attributes: dict[str, AttributeValue], ids: dict[str, int] | None = None) -> bytes:
    """The bytes of agent/core/attributes.h."""
    out = b""
    for key, value in attributes.items():
        if isinstance(value, bool):
            kind, data = 4, struct.pack("<q", value)
        elif isinstance(value, int):
            kind, data = 2, struct.pack("<q", value)
        elif isinstance(value, float):
            kind, data = 3, struct.pack("<d", value)
        elif isinstance(value, str):
            kind, data = 1, value.encode()
        else:
            kind = 5
            data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in value)
        out += struct.pack("<HHI", (ids or IDS)[key], kind, len(data)) + data + bytes(-len(data) % 8)
    return out


def batch_of(
    spans: Sequence[S], resources: Sequence[Resource] | None = None, keys: dict[int, str] | None = None
) -> SpanBatch:
    rows, arena = np.zeros(len(spans), ROW), Arena()
    ids = {key: number for number, key in (keys or KEYS).items()}
    for row, span in zip(rows, spans, strict=True):
        row["trace_id"] = np.frombuffer(span.trace.to_bytes(16, "big"), np.uint8)
        row["span_id"] = np.frombuffer(span.span.to_bytes(8, "big"), np.uint8)
        row["parent_id"] = np.frombuffer(span.parent.to_bytes(8, "big"), np.uint8)
        row["start_ktime_ns"], row["end_ktime_ns"] = span.start_ns, span.start_ns + span.duration_ns
        row["attributes_offset"], row["attributes_size"] = arena.add(attribute_list(span.attributes, ids))
        row["name_offset"], row["name_size"] = arena.add(span.name.encode())
        row["tracestate_offset"], row["tracestate_size"] = arena.add(span.state.encode())
        row["kind"], row["status"] = span.kind, 2 if span.error else 0
        row["trace_flags"], row["remote_parent"] = span.flags, span.remote
    return SpanBatch(rows, *owned(spans, arena, resources), CLOCK_OFFSET_NS, keys or KEYS)


def log_batch_of(findings: Sequence[F], resources: Sequence[Resource] | None = None) -> LogBatch:
    rows, arena = np.zeros(len(findings), FINDING_ROW), Arena()
    for row, finding in zip(rows, findings, strict=True):
        row["trace_id"] = np.frombuffer(finding.trace.to_bytes(16, "big"), np.uint8)
        row["span_id"] = np.frombuffer(finding.span.to_bytes(8, "big"), np.uint8)
        row["ktime_ns"], row["finding"] = finding.time_ns, finding.finding
        row["severity"], row["trace_flags"] = finding.severity, finding.flags
        row["attributes_offset"], row["attributes_size"] = arena.add(attribute_list(finding.attributes))
    owners = owned(findings, arena, resources)
    return LogBatch(rows, *owners, CLOCK_OFFSET_NS, KEYS, OBSERVED_NS, FINDINGS)


def owned(
    rows: Sequence[S] | Sequence[F], arena: Arena, resources: Sequence[Resource] | None
) -> tuple[memoryview, Sequence[Resource], np.ndarray]:
    """What batches of both kinds have: arena, resources, and which row has which."""
    numbers = np.array([row.resource for row in rows], np.int32)
    return memoryview(bytes(arena.data)), resources or [Resource({"service.name": "shop"})], numbers


TEXTS = (
    "",
    "a",
    "/users/42",
    "späth",
    "日本語",
    "🦀" * 30,
    'quote " and \\',
    "\x00\x1f\x7f\n\t\r\b\f",
    "x" * 127,
    "y" * 128,
)


def random_value(rng: random.Random) -> AttributeValue:
    choice: list[Any] = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice((0, 1, -1, 127, 128, 200, 2**63 - 1, -(2**63), rng.getrandbits(40))),
        lambda: rng.choice((0.0, -0.0, 1.5, 1e300, -1e-300, float("inf"), float("-inf"), rng.random())),
        lambda: rng.random() < 0.5,
        lambda: [rng.choice(TEXTS) for _ in range(rng.randrange(4))],
        lambda: "z" * rng.choice((16_383, 16_384, 70_000)) if rng.random() < 0.1 else "short",
    ]
    return rng.choice(choice)()


def random_attributes(rng: random.Random) -> dict[str, AttributeValue]:
    return {key: random_value(rng) for key in rng.sample(list(IDS), rng.randrange(len(IDS) + 1))}


def random_findings(rng: random.Random, n: int, resources: int) -> list[F]:
    return [
        F(
            finding=rng.randrange(lib.FINDING_COUNT),
            attributes=random_attributes(rng),
            resource=rng.randrange(resources),
            trace=rng.choice((0, rng.getrandbits(128))),
            span=rng.choice((0, rng.getrandbits(64))),
            severity=rng.randrange(25),
            flags=rng.choice((0, 1, 3)),
            time_ns=rng.getrandbits(60),
        )
        for _ in range(n)
    ]


def random_spans(rng: random.Random, n: int, resources: int) -> list[S]:
    return [
        S(
            name=rng.choice(TEXTS),
            attributes=random_attributes(rng),
            resource=rng.randrange(resources),
            trace=rng.getrandbits(128),
            span=rng.getrandbits(64),
            parent=rng.choice((0, rng.getrandbits(64))),
            remote=rng.random() < 0.5,
            kind=rng.choice((SERVER, CLIENT)),
            error=rng.random() < 0.3,
            flags=rng.choice((0, 1, 3)),
            state=rng.choice(("", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")),
            start_ns=rng.getrandbits(60),
            duration_ns=rng.getrandbits(30),
        )
        for _ in range(n)
    ]
