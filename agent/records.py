# SPDX-License-Identifier: Apache-2.0
"""The records of the data ring in plain Python: for few of them, as each is Python's work.

The self-test at the start and the tests of the kernel programs read them so; the pipeline's reader is the
core (agent/core/ring.c). The layouts are those of bpf/events.h, compared by tests/bpf/test_events_layout.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

HEADER = struct.Struct("=BBBBIQQ")
OPEN = struct.Struct("=II16s16sHHBBHI4x")
CHUNK = struct.Struct("=QIIIHHIIIIQ")
CLOSE = struct.Struct("=QQIIQQIIIIQQI4x")
KINDS = {1: "open", 2: "chunk", 3: "fin", 4: "close"}
IN, OUT = 0, 1
CONTINUED, UNREADABLE, OVERLAP, RESET = 1, 2, 4, 8
LATE, AGAIN = 1, 2
ENCRYPTED, UNKNOWN, HTTP1 = 1, 2, 3
ROLES = ("unknown", "client", "server")


@dataclass
class Event:
    """One record of the data ring; the fields that its kind does not have are zero."""

    kind: str
    flags: int
    direction: int
    protocol: int
    tid: int
    ktime_ns: int
    conn_id: int
    tgid: int = 0
    local: tuple[bytes, int] = (b"", 0)
    remote: tuple[bytes, int] = (b"", 0)
    netns: int = 0
    role: int = 0
    transport: int = 0
    path: bytes = b""
    peer_tgid: int = 0
    pos: int = 0
    size: int = 0
    offset: int = 0
    head: bytes = b""
    tail: bytes = b""
    quiet: tuple[int, int] = (0, 0)
    unsent: tuple[int, int] = (0, 0)
    shed: int = 0
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)


def parse(record: bytes) -> Event:
    """Raises ValueError for a record that cannot be."""
    try:
        return _parse(record)
    except (struct.error, KeyError) as error:
        raise ValueError(f"a record of {len(record)} bytes, kind {record[:1].hex()}: {error}") from error


def _parse(record: bytes) -> Event:
    kind, *rest = HEADER.unpack_from(record)
    event = Event(KINDS[kind], *rest)
    body = record[HEADER.size :]
    if event.kind == "open":
        event.tgid, event.netns, here, there, port, peer, *rest = OPEN.unpack_from(body)
        event.local, event.remote = (here, port), (there, peer)
        event.role, event.transport, path_size, event.peer_tgid = rest
        event.path = body[OPEN.size :]
        _check(len(event.path) == path_size, "a path that is not as long as it says")
    elif event.kind == "chunk":
        event.pos, event.size, event.tgid, event.offset, head, tail, quiet, *rest = CHUNK.unpack_from(body)
        *unsent, event.shed, quiet_bytes = rest
        payload = body[CHUNK.size :]
        _check(len(payload) == head + tail, "a record carries no unused bytes")
        _check(event.offset + head + tail <= event.size, "more bytes than the call moved")
        event.head, event.tail = payload[:head], payload[head:]
        event.quiet, event.unsent = (quiet, quiet_bytes), (unsent[IN], unsent[OUT])
    else:
        values = CLOSE.unpack_from(body)
        names = ("bytes", "chunks", "unsent_bytes", "unsent_chunks", "quiet_chunks", "quiet_bytes")
        event.shed = values[-1]
        event.totals = {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(names)}
    return event


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
