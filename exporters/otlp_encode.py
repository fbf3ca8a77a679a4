# SPDX-License-Identifier: Apache-2.0
"""Batches of rows -> bodies of OTLP trace and log requests, protobuf or JSON; rows are written by `encode.c`.

    ExportTraceServiceRequest / TracesData      ExportLogsServiceRequest / LogsData
      resource_spans 1                            resource_logs 1    one per resource, in order of first use
        resource 1                                  resource 1       encoded once per resource
        scope_spans 2                               scope_logs 2
          scope 1                                     scope 1        this agent
          spans 2                                     log_records 2  C, all of the resource in one call
          schema_url 3                                schema_url 3
        schema_url 3                                schema_url 3

Python runs per resource and request here, never per row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from agent.spans import SCHEMA_URL, SCOPE_NAME, AttributeValue, LogBatch, Resource, RowBatch
from exporters import protobuf
from exporters._encode import ffi, lib

MIB = 1024 * 1024
REQUEST_BYTES_MAX = 64 * MIB  # OTLP: larger requests must not be sent; before compression
RESOURCES_MAX = 1024  # encoded resources kept; about 1 KiB each


@dataclass(slots=True)
class Body:
    """One encoded request and the spans, points or log records in it."""

    data: bytes | memoryview
    items: int


def json_attributes(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    """Repeated KeyValue in OTLP JSON."""
    return [{"key": key, "value": json_value(value)} for key, value in attributes.items()]


def json_value(value: AttributeValue) -> dict[str, Any]:
    """AnyValue in OTLP JSON: 64-bit integers are strings."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": json_double(value)}
    return {"arrayValue": {"values": [json_value(item) for item in value]}}


def json_double(value: float) -> float | str:
    """JSON has no literals for these three; protobuf's mapping spells them as strings."""
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class ResourceCache:
    """Encoded resources by identity: the least recently used one goes first."""

    def __init__(self, encode: Callable[[Resource], bytes], maximum: int = RESOURCES_MAX) -> None:
        self._encode, self._maximum = encode, maximum
        self._encoded: dict[Resource, bytes] = {}

    def __call__(self, resource: Resource) -> bytes:
        encoded = self._encoded.pop(resource, None)
        if encoded is None:
            encoded = self._encode(resource)
            if len(self._encoded) >= self._maximum:
                del self._encoded[next(iter(self._encoded))]
        self._encoded[resource] = encoded
        return encoded

    def __len__(self) -> int:
        return len(self._encoded)


class ProtobufEnvelope:
    """What stands around the rows of one resource, and around a request: the same for spans and logs."""

    encoding = lib.ENCODING_PROTOBUF
    content_type = "application/x-protobuf"
    request_head, request_tail, between, row_tail = b"", b"", b"", 0

    def __init__(self, version: str) -> None:
        scope = protobuf.text_field(1, SCOPE_NAME) + protobuf.text_field(2, version)
        self._scope = protobuf.bytes_field(1, scope)
        self.tail = protobuf.text_field(3, SCHEMA_URL) * 2
        self._resource = ResourceCache(
            lambda resource: protobuf.bytes_field(1, protobuf.attributes_field(1, resource.attributes))
        )

    def overhead(self, resource: Resource) -> int:
        """Bytes around the rows of a resource, at most."""
        return len(self._resource(resource)) + len(self._scope) + len(self.tail) + 12

    def head(self, resource: Resource, rows_size: int) -> bytes:
        encoded, schema = self._resource(resource), len(self.tail) // 2
        scope_rows = b"\x12" + protobuf.varint(len(self._scope) + rows_size + schema)
        size = len(encoded) + len(scope_rows) + len(self._scope) + rows_size + 2 * schema
        return b"\x0a" + protobuf.varint(size) + encoded + scope_rows + self._scope


class JsonEnvelope:
    """The same in OTLP JSON. C ends every row with a comma: the last one of a resource is overwritten."""

    encoding = lib.ENCODING_JSON
    content_type = "application/json"
    request_tail, between, row_tail = b"]}", b",", 1

    def __init__(self, version: str, signal: str = "traces") -> None:
        group, rows = {"traces": (b"Spans", b"spans"), "logs": (b"Logs", b"logRecords")}[signal]
        self.request_head = b'{"resource%b":[' % group
        self._names = group, rows
        self._scope = json_bytes({"name": SCOPE_NAME, "version": version})
        schema = json_bytes(SCHEMA_URL)
        self.tail = b'],"schemaUrl":' + schema + b'}],"schemaUrl":' + schema + b"}"
        self._resource = ResourceCache(
            lambda resource: json_bytes({"attributes": json_attributes(resource.attributes)})
        )

    def overhead(self, resource: Resource) -> int:
        return len(self._resource(resource)) + len(self._scope) + len(self.tail) + 64

    def head(self, resource: Resource, rows_size: int) -> bytes:
        group, rows = self._names
        parts = (self._resource(resource), group, self._scope, rows)
        return b'{"resource":%b,"scope%b":[{"scope":%b,"%b":[' % parts


@dataclass(slots=True)
class _Part:
    """Rows lo..hi of the sorted batch, all of one resource."""

    resource: Resource
    lo: int
    hi: int


class RowEncoder:
    """Batches of one signal -> request bodies of at most `rows_max` rows and `bytes_max` bytes.

    skipped: rows that could not be read (encode.h says when). too_large: rows that alone exceed bytes_max.
    """

    def __init__(
        self,
        envelope: ProtobufEnvelope | JsonEnvelope,
        rows_max: int,
        bytes_max: int = REQUEST_BYTES_MAX,
        line_end: bytes = b"",
    ) -> None:
        self.envelope, self.rows_max, self.bytes_max = envelope, rows_max, bytes_max
        self.skipped = self.too_large = 0
        self._request_tail = envelope.request_tail + line_end
        self._keys: Mapping[int, str] | None = None
        self._encoder: Any = None

    def encode(self, batch: RowBatch) -> list[Body]:
        """Nothing returned refers to the batch's memory."""
        order = np.argsort(batch.resource, kind="stable").astype(np.uint32)
        rows, kept = self._view(batch, order)
        sizes = np.zeros(len(order), np.uint64)
        lib.rows_measure(self._encoder, self.envelope.encoding, rows, ffi.from_buffer("uint64_t[]", sizes))
        resource = batch.resource[order]
        good = (sizes > 0) & (resource >= 0) & (resource < len(batch.resources))
        if not good.all():
            self.skipped += int(len(good) - good.sum())
            order, sizes, resource = order[good], sizes[good], resource[good]
            rows, kept = self._view(batch, order)
        ends = np.zeros(len(sizes) + 1, np.int64)  # rows i to k take ends[k] - ends[i] bytes
        ends[1:] = np.cumsum(sizes)
        bodies = [
            self._write(parts, rows, sizes, ends) for parts in self._cut(batch.resources, resource, ends)
        ]
        del kept
        return bodies

    def _view(self, batch: RowBatch, order: np.ndarray) -> tuple[Any, list[Any]]:
        """A `struct rows` over the batch, and what must live as long as it."""
        if self._keys is not batch.keys:
            self._encoder, self._keys = _new_encoder(batch.keys), batch.keys
        kind, row, observed_ns = lib.ROW_SPAN, "struct span_row[]", 0
        if isinstance(batch, LogBatch):
            kind, row, observed_ns = lib.ROW_FINDING, "struct finding_row[]", batch.observed_unix_ns
        kept = [
            ffi.from_buffer(row, np.ascontiguousarray(batch.rows)),
            ffi.from_buffer("uint32_t[]", order),
            ffi.from_buffer("uint8_t[]", batch.arena),
        ]
        fields = (kind, kept[0], len(batch.rows), kept[1], len(order), kept[2], len(batch.arena))
        return ffi.new("struct rows *", (*fields, batch.clock_offset_ns, observed_ns)), kept

    def _cut(self, resources: Any, resource: np.ndarray, ends: np.ndarray) -> list[list[_Part]]:
        """The sorted rows as requests; a row that fits no request is left out and counted."""
        requests: list[list[_Part]] = []
        parts: list[_Part] = []
        fixed = len(self.envelope.request_head) + len(self._request_tail)
        used_rows, used_bytes = 0, fixed
        borders = [0, *(np.flatnonzero(np.diff(resource)) + 1).tolist(), len(resource)]
        for lo, group_end in pairwise(borders):
            if lo == group_end:
                continue
            owner = resources[int(resource[lo])]
            overhead = self.envelope.overhead(owner)
            while lo < group_end:
                room = self.bytes_max - used_bytes - overhead
                fits = int(np.searchsorted(ends, int(ends[lo]) + room, "right")) - 1 if room > 0 else lo
                hi = min(group_end, lo + self.rows_max - used_rows, fits)
                if hi > lo:
                    parts.append(_Part(owner, lo, hi))
                    used_rows += hi - lo
                    used_bytes += overhead + int(ends[hi] - ends[lo])
                    lo = hi
                elif parts:
                    requests.append(parts)
                    parts, used_rows, used_bytes = [], 0, fixed
                else:
                    self.too_large += 1
                    lo += 1
        return [*requests, parts] if parts else requests

    def _write(self, parts: list[_Part], rows: Any, sizes: np.ndarray, ends: np.ndarray) -> Body:
        envelope = self.envelope
        pieces: list[bytes | _Part] = [envelope.request_head]
        total = len(envelope.request_head)
        for part in parts:
            rows_size = int(ends[part.hi] - ends[part.lo]) - envelope.row_tail
            head = (envelope.between if part is not parts[0] else b"") + envelope.head(
                part.resource, rows_size
            )
            pieces += [head, part, envelope.tail]
            total += len(head) + rows_size + len(envelope.tail)
        pieces.append(self._request_tail)
        total += len(self._request_tail)

        # Not bytearray(total): it would clear what is written next, 2% of the whole cost.
        out = np.empty(total, np.uint8)
        view, at = memoryview(out.data), 0
        target, size_of = ffi.from_buffer("uint8_t[]", out), ffi.from_buffer("uint64_t[]", sizes)
        for piece in pieces:
            if isinstance(piece, bytes):
                view[at : at + len(piece)] = piece
                at += len(piece)
                continue
            window = ffi.new("struct rows *", rows[0])
            window.order, window.n = rows.order + piece.lo, piece.hi - piece.lo
            written = lib.rows_write(
                self._encoder, envelope.encoding, window, size_of + piece.lo, target + at, total - at
            )
            at += written - envelope.row_tail
        assert at == total
        return Body(view.toreadonly(), sum(part.hi - part.lo for part in parts))


def _new_encoder(keys: Mapping[int, str]) -> Any:
    ids = ffi.new("uint16_t[]", list(keys))
    texts = [ffi.new("char[]", key.encode()) for key in keys.values()]
    encoder = lib.encoder_new(ids, ffi.new("char *[]", texts), len(texts))
    if encoder == ffi.NULL:
        raise MemoryError("encoder of attribute keys")
    return ffi.gc(encoder, lib.encoder_free)
