# SPDX-License-Identifier: Apache-2.0
"""Runs the counting OTLP receiver (sink.c) and reads what it kept.

with sink(record=True) as receiver:
    ...  export to receiver.endpoint ...
    receiver.wait_for_spans(23)
    receiver.stats().spans, list(receiver.bodies())
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import build
from benchmarks.processes import Child

SOURCE = Path(__file__).with_name("sink.c")
KINDS = {1: "traces", 2: "metrics", 3: "logs"}

_BODY_HEADER = struct.Struct("=qIIQ")  # `struct body_header` of sink.c
_SPANS_PATH = (1, 2, 2)  # resource_spans, scope_spans, spans
_SPAN_KIND_FIELD = 6  # Span.kind, opentelemetry/proto/trace/v1/trace.proto
SERVER_SPAN = 2


@dataclass(frozen=True)
class SinkStats:
    """What was received. bytes: of bodies, as sent. Times: CLOCK_MONOTONIC, 0 before the first span."""

    requests: int
    trace_requests: int
    metric_requests: int
    log_requests: int
    spans: int
    log_records: int
    bytes: int
    refused: int
    first_span_ns: int
    last_span_ns: int


@dataclass(frozen=True)
class Body:
    """One export request: when it was whole (CLOCK_MONOTONIC), its signal, and its protobuf bytes."""

    time_ns: int
    signal: str
    data: bytes


@dataclass(frozen=True)
class SeenRequest:
    """A span that names a request of the load generator."""

    id: int
    time_ns: int
    kind: int


class Sink:
    """A running receiver."""

    def __init__(self, port: int, child: Child, record: Path | None) -> None:
        self.port = port
        self.child = child
        self._record = record

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT, with protocol http/protobuf."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }

    def stats(self) -> SinkStats:
        with urllib.request.urlopen(f"{self.endpoint}/stats", timeout=5) as answer:
            return SinkStats(**json.load(answer))

    def wait_for_spans(self, count: int, timeout_s: float = 10.0, quiet_s: float = 0.0) -> SinkStats:
        """Waits until `count` spans are there and, with quiet_s, none came for that time. The last counts."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            quiet = time.monotonic_ns() - stats.last_span_ns >= quiet_s * 1e9
            if (stats.spans >= count and quiet) or time.monotonic() >= deadline:
                return stats
            time.sleep(0.02)

    def bodies(self) -> Iterator[Body]:
        """What was recorded so far, in the order it came (needs record=True)."""
        if self._record is None:
            raise ValueError("the sink keeps no bodies: start it with record=True")
        with self._record.open("rb") as file:
            while len(header := file.read(_BODY_HEADER.size)) == _BODY_HEADER.size:
                time_ns, kind, compressed, size = _BODY_HEADER.unpack(header)
                data = file.read(size)
                yield Body(time_ns, KINDS[kind], gzip.decompress(data) if compressed else data)

    def requests_seen(self, prefix: str = "/r/") -> Iterator[SeenRequest]:
        """The load generator's requests among the recorded spans, one per span that names one."""
        target = re.compile(re.escape(prefix.encode()) + rb"([0-9a-f]{16})(?![0-9a-f])")
        for body in self.bodies():
            if body.signal != "traces":
                continue
            for span in spans_of(body.data):
                found = target.search(span)
                if found is not None:
                    yield SeenRequest(int(found[1], 16), body.time_ns, kind_of(span))


@contextmanager
def sink(*, record: bool = False, port: int = 0, cpus: Sequence[int] = ()) -> Iterator[Sink]:
    """A receiver on loopback for the time of the block.

    record: keep every body (in a temporary file) for `bodies` and `requests_seen`.
    port: 0 is any free port.
    """
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-sink-") as folder:
        kept = Path(folder) / "bodies" if record else None
        command: list[str | Path] = [build.c_program(SOURCE, "-lz"), "--port", str(port)]
        command += ["--record", kept] if kept else []
        child = Child(command, log=Path(folder) / "log", stdout=subprocess.PIPE, cpus=cpus)
        try:
            yield Sink(int(child.first_line()), child, kept)
        finally:
            child.stop()


def spans_of(body: bytes) -> Iterator[bytes]:
    """The serialized Span messages of an ExportTraceServiceRequest, in order.

    A walk over the lengths only, several times cheaper than decoding; tested against opentelemetry-proto.
    """
    for resource_spans in _messages(body, _SPANS_PATH[0]):
        for scope_spans in _messages(resource_spans, _SPANS_PATH[1]):
            yield from _messages(scope_spans, _SPANS_PATH[2])


def kind_of(span: bytes) -> int:
    """Span.kind of a serialized span; 0 when it is not there."""
    for number, value in _fields(span):
        if number == _SPAN_KIND_FIELD and isinstance(value, int):
            return value
    return 0


def _messages(data: bytes, number: int) -> Iterator[bytes]:
    return (value for field, value in _fields(data) if field == number and isinstance(value, bytes))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protobuf message (https://protobuf.dev/programming-guides/encoding/)."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif wire_type == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
            yield tag >> 3, int.from_bytes(data[at : at + size], "little")
            at += size
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}: not a protobuf message")
    if at != end:
        raise ValueError(f"a field ends at byte {at} of {end}: the message is cut")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
