# SPDX-License-Identifier: Apache-2.0
"""Drives the core with events made by hand: what the kernel side would send, byte by byte."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Any

from agent.core._core import ffi, lib

from agent.config import KNOWN_METHODS, REDACTED_KEYS
from agent.engine import GAP_CAUSES, PROTOCOLS
from agent.spans import keys_of, read_attributes

IN, OUT = lib.DIRECTION_IN, lib.DIRECTION_OUT
CLIENT, SERVER = lib.ROLE_CLIENT, lib.ROLE_SERVER
MS = 1_000_000


def address(text: str) -> bytes:
    ip = ipaddress.ip_address(text)
    return bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed


@dataclass
class Span:
    name: str
    kind: int
    status: int
    start: int
    end: int
    trace_id: str
    span_id: str
    parent_id: str
    link: int
    trace_flags: int
    remote_parent: int
    tracestate: str
    tgid: int
    attributes: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.attributes.get(key)


@dataclass
class Connection:
    """One end of a connection: keeps the positions that the kernel would report."""

    core: Core
    id: int
    tgid: int
    tid: int
    role: int
    pos: list[int]
    local: tuple[str, int]
    remote: tuple[str, int]
    protocol: int = lib.PROTOCOL_HTTP1
    unsent: list[int] = field(default_factory=lambda: [0, 0])
    shed: int = 0

    def chunk(
        self,
        direction: int,
        data: bytes,
        *,
        at: int | None = None,
        tid: int | None = None,
        head: int | None = None,
        offset: int = 0,
        tail: int = 0,
        size: int | None = None,
        flags: int = 0,
        quiet: tuple[int, int] = (0, 0),
        protocol: int | None = None,
        lost: bool = False,
    ) -> None:
        """One call that moved `data` (or `size` bytes of which nothing was captured)."""
        size = len(data) if size is None else size
        pos = self.pos[direction]
        self.pos[direction] += size
        if lost:
            self.unsent[direction] += 1
            return
        head = max(0, len(data) - offset - tail) if head is None else head
        payload = data[offset : offset + head] + (data[size - tail : size] if tail else b"")
        header = self.core.header(
            lib.EVENT_CHUNK,
            flags,
            direction,
            self.protocol if protocol is None else protocol,
            tid or self.tid,
            at,
            self.id,
        )
        told = (quiet[1], *self.unsent, self.shed, quiet[0])
        body = struct.pack("=QIIIHHIIIIQ", pos, size, self.tgid, offset, head, tail, *told)
        self.core.push(header + body + payload)

    def receive(self, data: bytes, **options: Any) -> None:
        self.chunk(IN, data, **options)

    def send(self, data: bytes, **options: Any) -> None:
        self.chunk(OUT, data, **options)

    def lose(self, direction: int, data: bytes) -> None:
        """The call happened, its record did not reach the ring."""
        self.chunk(direction, data, lost=True)

    def fin(self, direction: int, *, reset: bool = False, at: int | None = None) -> None:
        self._end(lib.EVENT_FIN, direction, reset, at)

    def close(self, *, reset: bool = False, at: int | None = None) -> None:
        self._end(lib.EVENT_CLOSE, 0, reset, at)

    def _end(self, kind: int, direction: int, reset: bool, at: int | None) -> None:
        flags = lib.CHUNK_RESET if reset else 0
        header = self.core.header(kind, flags, direction, self.protocol, self.tid, at, self.id)
        unsent, shed = struct.pack("=II", *self.unsent), struct.pack("=I4x", self.shed)
        totals = bytes(24 + 16) + unsent + bytes(8 + 16) + shed
        self.core.push(header + totals)


@dataclass
class Core:
    """A core without a kernel. Times are ms from 1,000; each event comes 1 ms after the one before."""

    options: dict[str, Any] = field(default_factory=dict)
    now_ms: int = 1000
    records: bytearray = field(default_factory=bytearray)
    connections: int = 0

    def __post_init__(self) -> None:
        config = ffi.new("struct core_config *")
        defaults: dict[str, Any] = {
            "connections_max": 1000,
            "pending_max": 1024,
            "stream_bytes_max": 128 * 1024,
            "buffer_bytes_max": 32 << 20,
            "processes_max": 64,
            "batch_spans_max": 8192,
            "series_max": 100,
            "statement_bytes_max": 1 << 20,
            "findings_per_second_max": 20,
            "costly_commands": 1,
            "hot_keys": 1,
            "n_plus_one_min": 10,
            "duplicate_reads_min": 5,
            "slow_statement_ns": 100 * MS,
            "idle_in_transaction_ns": 10_000 * MS,
            "hold_ns": 5 * MS,
            "request_timeout_ns": 300_000 * MS,
            "idle_timeout_ns": 900_000 * MS,
            "sampler_ratio": 1.0,
            "sampler_parent_based": 1,
            "id_seed": [1234, 5678],
        }
        protocol: dict[str, Any] = {
            "route_heuristic": 1,
            "routes_max": 100,
            "database_servers": 0,
            "query_text": lib.QUERY_TEXT_PARAMETERIZED,
        }
        lists = {
            "redact": REDACTED_KEYS,
            "method": KNOWN_METHODS,
            "request_header": (),
            "response_header": (),
        }
        names = {
            "redact": "redact_keys",
            "method": "methods",
            "request_header": "request_headers",
            "response_header": "response_headers",
        }
        for key, value in self.options.items():
            target = lists if key in lists else protocol if key in protocol else defaults
            target[key] = value
        for key, value in defaults.items():
            setattr(config, key, value)
        self.keep = []
        for key, value in protocol.items():
            setattr(config.protocol, key, value)
        for key, texts in lists.items():
            strings = [ffi.new("char[]", text.encode()) for text in texts]
            array = ffi.new("char *[]", strings)
            self.keep += [strings, array]
            setattr(config.protocol, f"{key}_count", len(texts))
            setattr(config.protocol, names[key], array)
        captured = [f"http.request.header.{n}" for n in lists["request_header"]]
        captured += [f"http.response.header.{n}" for n in lists["response_header"]]
        self.keys = keys_of(lib, ffi, captured)
        self.core = ffi.gc(lib.core_new(config), lib.core_free)
        assert self.core

    def header(
        self, kind: int, flags: int, direction: int, protocol: int, tid: int, at: int | None, conn: int
    ) -> bytes:
        if at is None:
            self.now_ms += 1
            at = self.now_ms
        return struct.pack("=BBBBIQQ", kind, flags, direction, protocol, tid, at * MS, conn)

    def push(self, record: bytes) -> None:
        self.records += struct.pack("=II", len(record), 0) + record + bytes(-len(record) % 8)

    def open(
        self,
        role: int = SERVER,
        *,
        tgid: int = 100,
        tid: int = 0,
        netns: int = 1,
        local: tuple[str, int] | None = None,
        remote: tuple[str, int] = ("127.0.0.1", 50000),
        late: bool = False,
        again: bool = False,
        pos: tuple[int, int] = (1000, 2000),
        announce: bool = True,
        unknown_role: bool = False,
        transport: int = lib.TRANSPORT_TCP,
        path: bytes = b"",
        peer_tgid: int = 0,
        protocol: int = lib.PROTOCOL_HTTP1,
    ) -> Connection:
        self.connections += 1
        local = local or ("127.0.0.1", 8080)
        conn = Connection(self, self.connections, tgid, tid or tgid, role, list(pos), local, remote, protocol)
        flags = (lib.OPEN_LATE if late else 0) | (lib.OPEN_AGAIN if again else 0)
        if announce:
            self.push(
                self.header(lib.EVENT_OPEN, flags, 0, 0, conn.tid, None, conn.id)
                + struct.pack(
                    "=II16s16sHHBBHI4x",
                    tgid,
                    netns,
                    address(local[0]),
                    address(remote[0]),
                    local[1],
                    remote[1],
                    0 if unknown_role else role,
                    transport,
                    len(path),
                    peer_tgid,
                )
                + path
            )
        return conn

    def pair(
        self,
        *,
        client_tgid: int = 200,
        server_tgid: int = 100,
        port: int = 40000,
        hosts: tuple[str, str] = ("127.0.0.1", "127.0.0.1"),
        netns: tuple[int, int] = (1, 1),
    ) -> tuple[Connection, Connection]:
        """Both ends of one connection: the same bytes have the same sequence numbers."""
        here, there = (hosts[0], port), (hosts[1], 8080)
        client = self.open(
            CLIENT, tgid=client_tgid, netns=netns[0], local=here, remote=there, pos=(7000, 3000)
        )
        server = self.open(
            SERVER, tgid=server_tgid, netns=netns[1], local=there, remote=here, pos=(3000, 7000)
        )
        return client, server

    def feed(self, *, drain: bool = True, now_ms: int | None = None) -> int:
        data = bytes(self.records)
        self.records.clear()
        return int(lib.core_feed(self.core, data, len(data), (now_ms or self.now_ms) * MS, drain))

    def spans(self, *, drain: bool = True) -> list[Span]:
        assert self.feed(drain=drain) >= 0
        out = ffi.new("struct span_batch *")
        lib.core_take_spans(self.core, out)
        arena = memoryview(ffi.buffer(out.arena, out.arena_size)) if out.arena_size else memoryview(b"")
        return [self._span(out.rows[i], arena) for i in range(out.count)]

    def _span(self, row: Any, arena: memoryview) -> Span:
        def text(offset: int, size: int) -> str:
            return bytes(arena[offset : offset + size]).decode()

        parent = bytes(row.parent_id)
        return Span(
            name=text(row.name_offset, row.name_size),
            kind=row.kind,
            status=row.status,
            start=row.start_ktime_ns // MS,
            end=row.end_ktime_ns // MS,
            trace_id=bytes(row.trace_id).hex(),
            span_id=bytes(row.span_id).hex(),
            parent_id=parent.hex() if any(parent) else "",
            link=row.link,
            trace_flags=row.trace_flags,
            remote_parent=row.remote_parent,
            tracestate=text(row.tracestate_offset, row.tracestate_size),
            tgid=row.tgid,
            attributes=dict(read_attributes(arena, row.attributes_offset, row.attributes_size, self.keys)),
        )

    def stats(self) -> Any:
        out = ffi.new("struct core_stats *")
        lib.core_stats(self.core, out)
        return out

    def ledger(self, tgid: int = 100) -> dict[str, Any]:
        rows = ffi.new("struct ledger_row[64]")
        names = ("parsed", "truncated", "lost", "unknown", "late", "encrypted", "declined")
        for i in range(lib.core_ledger(self.core, rows, 64)):
            if rows[i].tgid == tgid:
                row = rows[i]
                return {
                    "bytes": {n: row.bytes[k] for k, n in enumerate(names) if row.bytes[k]},
                    "chunks": {n: row.chunks[k] for k, n in enumerate(names) if row.chunks[k]},
                    "spans": row.spans,
                    "requests": row.requests,
                    "orphans": row.orphans,
                    "gaps": {
                        f"{PROTOCOLS[p]}.{cause}": row.gaps[p][k]
                        for p in range(lib.PROTOCOL_COUNT)
                        for k, cause in enumerate(GAP_CAUSES)
                        if row.gaps[p][k]
                    },
                }
        return {}

    def series(self) -> list[dict[str, Any]]:
        out = ffi.new("struct series_batch *")
        lib.core_series(self.core, out)
        arena = memoryview(ffi.buffer(out.arena, out.arena_size)) if out.arena_size else memoryview(b"")
        return [
            {
                "tgid": r.tgid,
                "metric": r.metric,
                "overflow": r.overflow,
                "count": r.count,
                "sum": r.sum,
                "min": r.min,
                "max": r.max,
                "buckets": list(r.buckets),
                "attributes": dict(read_attributes(arena, r.attributes_offset, r.attributes_size, self.keys)),
            }
            for r in (out.rows[i] for i in range(out.count))
        ]
