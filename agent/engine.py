# SPDX-License-Identifier: Apache-2.0
"""The C core as Python sees it: made from the configuration, read as numpy arrays over its own memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent.core._core import ffi, lib
from agent.layouts import dtype_of
from agent.spans import Finding, keys_of

SPAN_ROW = dtype_of(ffi, "struct span_row")
FINDING_ROW = dtype_of(ffi, "struct finding_row")
SERIES_ROW = dtype_of(ffi, "struct series_row")
LEDGER_ROW = dtype_of(ffi, "struct ledger_row")
LEDGER_CLASSES = (
    "parsed",
    "truncated",
    "lost",
    "unknown",
    "late",
    "encrypted",
    "declined",
    "shed",
)  # enum ledger_class
assert len(LEDGER_CLASSES) == lib.LEDGER_CLASSES
GAP_CAUSES = ("lost", "unhooked", "shed", "truncated", "invalid", "overlap")  # enum gap_cause
assert len(GAP_CAUSES) == lib.GAP_CAUSES
PROTOCOLS = tuple(ffi.string(lib.protocol_name(number)).decode() for number in range(lib.PROTOCOL_COUNT))
FINDINGS = tuple(
    Finding(ffi.string(lib.finding_name(number)).decode(), ffi.string(lib.finding_sentence(number)).decode())
    for number in range(lib.FINDING_COUNT)
)

QUERY_TEXT = {
    "off": lib.QUERY_TEXT_OFF,
    "sanitized": lib.QUERY_TEXT_SANITIZED,
    "parameterized": lib.QUERY_TEXT_PARAMETERIZED,
}
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Engine:
    """One core. Arrays that it returns are valid until the next call of the same method."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """options: values by name of the option table (agent/config.py)."""
        self._core = _new(options)
        self.keys = keys_of(lib, ffi, _captured_keys(options))
        self._spans = ffi.new("struct span_batch *")
        self._findings = ffi.new("struct finding_batch *")
        self._series = ffi.new("struct series_batch *")
        self._stats = ffi.new("struct core_stats *")
        self._counters = ffi.new("struct kernel_counters *")
        self._ledger = np.empty(options["capture.processes_max"] + 1, LEDGER_ROW)

    def map(self, ring: int, ring_bytes: int, demands: int, counters: int, cpus: int) -> None:
        """Maps the kernel's ring and arrays by their descriptors, which may be closed afterwards."""
        _check("ring buffer", lib.core_map_ring(self._core, ring, ring_bytes))
        _check("demand array", lib.core_map_demands(self._core, demands))
        _check("counter array", lib.core_map_counters(self._core, counters, cpus))

    def poll(self, now_ns: int, drain: bool = False) -> int:
        """Reads the ring; the number of events. Without the GIL, so exporters' threads run meanwhile."""
        return int(lib.core_poll(self._core, now_ns, drain))

    def feed(self, records: bytes, now_ns: int, drain: bool = False) -> int:
        """The same for recorded events."""
        return int(lib.core_feed(self._core, records, len(records), now_ns, drain))

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the ring: after a poll only when the span batch is full."""
        return int(lib.core_waiting_bytes(self._core))

    @property
    def held_s(self) -> float:
        """Seconds until events that are held back for sorting are due; 0: none is."""
        return float(lib.core_held(self._core) / NS_PER_S)

    def take_spans(self) -> tuple[np.ndarray, memoryview]:
        """Rows of finished spans and the arena they point into, without a copy."""
        batch = self._spans
        lib.core_take_spans(self._core, batch)
        return _array(batch.rows, batch.count, SPAN_ROW), _arena(batch)

    def take_findings(self) -> tuple[np.ndarray, memoryview]:
        """The same of findings."""
        batch = self._findings
        lib.core_take_findings(self._core, batch)
        return _array(batch.rows, batch.count, FINDING_ROW), _arena(batch)

    def series(self) -> tuple[np.ndarray, memoryview]:
        """All duration series, cumulative."""
        batch = self._series
        lib.core_series(self._core, batch)
        return _array(batch.rows, batch.count, SERIES_ROW), _arena(batch)

    def ledger(self) -> np.ndarray:
        """The completeness ledger by process, cumulative."""
        rows = ffi.cast("struct ledger_row *", self._ledger.ctypes.data)
        return self._ledger[: lib.core_ledger(self._core, rows, len(self._ledger))]

    def stats(self) -> dict[str, int]:
        """struct core_stats."""
        lib.core_stats(self._core, self._stats)
        return _fields(self._stats)

    def kernel_counters(self) -> dict[str, int]:
        """struct kernel_counters, summed over CPUs."""
        lib.core_kernel_counters(self._core, self._counters)
        return _fields(self._counters)

    def process_gone(self, tgid: int) -> None:
        """It ended: what waits on its Unix sockets becomes spans with the next polls."""
        lib.core_process_gone(self._core, tgid)

    def forget(self, tgids: Sequence[int]) -> None:
        """Drops series, routes and ledger rows of processes that have ended."""
        lib.core_forget(self._core, list(tgids), len(tgids))


def metric_bounds(metric: int) -> tuple[float, ...]:
    """Bucket bounds of a duration metric, in seconds."""
    bounds = ffi.new("double **")
    count = lib.metric_bounds(metric, ffi.cast("const double **", bounds))
    return tuple(bounds[0][0:count])


def sampler(options: Mapping[str, Any]) -> tuple[float, bool]:
    """Share of root traces kept, and whether a parent's sampled flag decides for its children."""
    name = options["traces.sampler"]
    parent_based = name.startswith("parentbased_")
    kind = name.removeprefix("parentbased_")
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind, options["traces.sampler_ratio"])
    return float(ratio), parent_based


def _new(options: Mapping[str, Any]) -> Any:
    keep: list[Any] = []  # strings live until core_new() has copied them

    def strings(values: Sequence[str]) -> Any:
        keep.extend(ffi.new("char[]", value.encode()) for value in values)
        array = ffi.new("const char *[]", keep[len(keep) - len(values) :] if values else 1)
        keep.append(array)
        return array

    ratio, parent_based = sampler(options)
    config = ffi.new("struct core_config *")
    config.connections_max = options["core.connections_max"]
    config.pending_max = options["core.pending_max"]
    config.stream_bytes_max = options["core.stream_bytes_max"]
    config.buffer_bytes_max = options["core.buffer_bytes_max"]
    config.processes_max = options["capture.processes_max"]
    config.batch_spans_max = options["core.batch_spans_max"]
    config.statement_bytes_max = options["core.statement_bytes_max"]
    config.series_max = options["core.series_max"]
    config.costly_commands = options["findings.costly_commands"]
    config.hot_keys = options["findings.hot_keys"]
    config.n_plus_one_min = options["findings.n_plus_one"]
    config.duplicate_reads_min = options["findings.duplicate_reads"]
    config.slow_statement_ns = int(options["findings.slow_ms"] * NS_PER_MS)
    config.idle_in_transaction_ns = int(options["findings.idle_in_transaction_s"] * NS_PER_S)
    config.findings_per_second_max = options["core.findings_per_second_max"]
    config.hold_ns = int(options["core.hold_ms"] * NS_PER_MS)
    config.request_timeout_ns = int(options["core.request_timeout_s"] * NS_PER_S)
    config.idle_timeout_ns = int(options["core.idle_timeout_s"] * NS_PER_S)
    config.id_seed = struct.unpack("=QQ", os.urandom(16))
    config.sampler_ratio = ratio
    config.sampler_parent_based = parent_based
    protocol = config.protocol
    protocol.route_heuristic = options["http.route"] == "heuristic"
    protocol.routes_max = options["http.routes_max"]
    protocol.database_servers = options["database.server_spans"]
    protocol.query_text = QUERY_TEXT[options["database.query_text"]]
    for field, values in (
        ("redact", options["http.redact_query_keys"]),
        ("method", options["http.known_methods"]),
        ("request_header", [name.lower() for name in options["http.request_headers"]]),
        ("response_header", [name.lower() for name in options["http.response_headers"]]),
    ):
        setattr(protocol, f"{field}_count", len(values))
        setattr(protocol, f"{field}_keys" if field == "redact" else f"{field}s", strings(values))
    core = lib.core_new(config)
    if core == ffi.NULL:
        raise MemoryError("the core could not be made: lower core.connections_max or core.batch_spans_max")
    return ffi.gc(core, lib.core_free)


def _captured_keys(options: Mapping[str, Any]) -> list[str]:
    """In the order of key ids: KEY_CAPTURED + index (agent/core/options.h)."""
    return [f"http.request.header.{name.lower()}" for name in options["http.request_headers"]] + [
        f"http.response.header.{name.lower()}" for name in options["http.response_headers"]
    ]


def _array(rows: Any, count: int, dtype: np.dtype) -> np.ndarray:
    if count == 0:
        return np.empty(0, dtype)
    return np.frombuffer(ffi.buffer(rows, count * dtype.itemsize), dtype)


def _arena(batch: Any) -> memoryview:
    return memoryview(ffi.buffer(batch.arena, batch.arena_size)) if batch.arena_size else memoryview(b"")


def _fields(structure: Any) -> dict[str, int]:
    names = (name for name, _ in ffi.typeof(structure).item.fields if not name.startswith("padding"))
    return {name: int(getattr(structure, name)) for name in names}


def _check(what: str, error: int) -> None:
    if error:
        raise OSError(-error, f"cannot map the {what}: {os.strerror(-error)}")
