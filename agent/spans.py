# SPDX-License-Identifier: Apache-2.0
"""What the stages after the core speak: batches of spans and findings, metrics, and their resources."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

AttributeValue = str | int | float | bool | list[str]

_HEADER = struct.Struct("=HHI")
_TEXT, _INT, _DOUBLE, _BOOL, _TEXTS = 1, 2, 3, 4, 5


def read_attributes(
    arena: memoryview, offset: int, size: int, keys: Mapping[int, str]
) -> Iterator[tuple[str, AttributeValue]]:
    """The attributes of one list (`agent/core/attributes.h`), in the order they were written.

    For people and tests: the encoders read the same bytes in C.
    """
    end = offset + size
    while offset + _HEADER.size <= end:
        key, kind, length = _HEADER.unpack_from(arena, offset)
        offset += _HEADER.size
        value = bytes(arena[offset : offset + length])
        offset += (length + 7) & ~7
        yield keys.get(key, f"unknown.{key}"), _value(kind, value)


def _value(kind: int, value: bytes) -> AttributeValue:
    if kind == _TEXT:
        return value.decode()
    if kind == _INT:
        return int.from_bytes(value, "little", signed=True)
    if kind == _DOUBLE:
        return float(struct.unpack("<d", value)[0])
    if kind == _BOOL:
        return value[0] != 0
    texts, at = [], 0
    while at < len(value):
        (length,) = struct.unpack_from("<I", value, at)
        texts.append(value[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return texts


@dataclass(frozen=True, eq=False)
class Resource:
    """Who produced spans: the attributes of one process. Compared and cached by identity."""

    attributes: Mapping[str, AttributeValue]

    @property
    def service_name(self) -> str:
        return str(self.attributes.get("service.name", "unknown_service"))


@dataclass
class RowBatch:
    """n rows, n >= 1: one structured array and one arena, valid until the core is polled again.

    rows: as the class below says (agent/core/span.h), shape (n,).
    arena: the bytes that the rows' offsets point into.
    resource: int32 (n,), index into `resources`.
    clock_offset_ns: Unix ns = ktime ns + clock_offset_ns.
    keys: attribute key id -> key.
    """

    rows: np.ndarray
    arena: memoryview
    resources: Sequence[Resource]
    resource: np.ndarray
    clock_offset_ns: int
    keys: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.rows)

    def attributes(self, i: int) -> dict[str, AttributeValue]:
        row = self.rows[i]
        return dict(
            read_attributes(self.arena, int(row["attributes_offset"]), int(row["attributes_size"]), self.keys)
        )


@dataclass
class SpanBatch(RowBatch):
    """Spans. rows: `struct span_row`."""

    def name(self, i: int) -> str:
        row = self.rows[i]
        start = int(row["name_offset"])
        return bytes(self.arena[start : start + int(row["name_size"])]).decode()


class Finding(NamedTuple):
    """A kind of finding (FINDINGS in agent/core/span.h). sentence: the body of its log records."""

    name: str
    sentence: str


@dataclass
class LogBatch(RowBatch):
    """Findings, which leave as log records. rows: `struct finding_row`.

    observed_unix_ns: when they were taken from the core.
    findings: by number.
    """

    observed_unix_ns: int
    findings: Sequence[Finding]

    def finding(self, i: int) -> Finding:
        return self.findings[int(self.rows[i]["finding"])]


@dataclass(frozen=True)
class Point:
    """One value of a metric at one resource. Histogram: buckets has len(bounds) + 1 counts."""

    attributes: Mapping[str, AttributeValue]
    start_unix_ns: int
    value: int | float = 0
    count: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0
    buckets: Sequence[int] = ()


@dataclass(frozen=True)
class Metric:
    """One instrument with its points. kind: "sum" (monotonic), "gauge", "updown" or "histogram".

    Values are cumulative since each point's start_unix_ns.
    """

    name: str
    unit: str
    description: str
    kind: str
    points: Sequence[Point]
    bounds: Sequence[float] = ()


@dataclass
class MetricBatch:
    """All metrics at one moment, by resource."""

    time_unix_ns: int
    metrics: list[tuple[Resource, list[Metric]]] = field(default_factory=list)


SCOPE_NAME = "ebpf-otlp-tracer"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"


def keys_of(lib: Any, ffi: Any, captured: Sequence[str] = ()) -> dict[int, str]:
    """Attribute key id -> key, from the core's own table (`agent/core/attributes.h`)."""
    keys = {i: ffi.string(lib.attribute_name(i)).decode() for i in range(1, lib.KEY_COUNT)}
    keys.update({lib.KEY_CAPTURED + i: name for i, name in enumerate(captured)})
    return keys
