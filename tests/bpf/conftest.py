# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need the running kernel, and a plain Python reader of the data ring.

Without the privilege to load programs the tests are skipped; where CI is set they fail instead.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from agent import kernel
from agent.errors import AgentError
from benchmarks.patience import patience

HEADER = struct.Struct("=BBBBIQQ")
OPEN = struct.Struct("=II16s16sHHBBHI4x")
CHUNK = struct.Struct("=QIIIHHIIIIQ")
CLOSE = struct.Struct("=QQIIQQIIIIQQI4x")
IN, OUT = 0, 1
CONTINUED, UNREADABLE, OVERLAP, RESET = 1, 2, 4, 8
LATE, AGAIN = 1, 2
ENCRYPTED, UNKNOWN, HTTP1 = 1, 2, 3
DEADLINE_S = patience(10.0)


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
    kind, *rest = HEADER.unpack_from(record)
    event = Event({1: "open", 2: "chunk", 3: "fin", 4: "close"}[kind], *rest)
    body = record[HEADER.size :]
    if event.kind == "open":
        event.tgid, event.netns, here, there, port, peer, *rest = OPEN.unpack_from(body)
        event.local, event.remote = (here, port), (there, peer)
        event.role, event.transport, path_size, event.peer_tgid = rest
        event.path = body[OPEN.size :]
        assert len(event.path) == path_size
    elif event.kind == "chunk":
        event.pos, event.size, event.tgid, event.offset, head, tail, quiet, *rest = CHUNK.unpack_from(body)
        *unsent, event.shed, quiet_bytes = rest
        payload = body[CHUNK.size :]
        assert len(payload) == head + tail, "a record carries no unused bytes"
        assert event.offset + head + tail <= event.size
        event.head, event.tail = payload[:head], payload[head:]
        event.quiet, event.unsent = (quiet, quiet_bytes), (unsent[IN], unsent[OUT])
    else:
        values = CLOSE.unpack_from(body)
        names = ("bytes", "chunks", "unsent_bytes", "unsent_chunks", "quiet_chunks", "quiet_bytes")
        event.shed = values[-1]
        event.totals = {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(names)}
    return event


class Tracer:
    """A loaded and attached kernel side with a reader; the events of one test."""

    def __init__(self, loaded: kernel.Kernel) -> None:
        self.kernel = loaded
        self.ring = kernel.Ring(loaded.maps["events"], loaded.facts["constants"]["EVENTS_BYTES"])
        self.events: list[Event] = []
        self._before = loaded.counters()
        self.demands = None

    def read(self) -> list[Event]:
        """All events so far."""
        self.events += [parse(record) for record in self.ring.records()]
        return self.events

    def wait(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        """All events, once the condition holds of them."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self.read()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s; events: {self.events}"
            time.sleep(0.002)
        return self.events

    def of(self, kind: str, direction: int | None = None, conn_id: int | None = None) -> list[Event]:
        """Events so far of a kind, direction and connection."""
        return [
            e
            for e in self.read()
            if e.kind == kind
            and (direction is None or e.direction == direction)
            and (conn_id is None or e.conn_id == conn_id)
        ]

    def counted(self) -> dict[str, int]:
        """Kernel counters since the test began, after checking that they add up."""
        now = self.kernel.counters()
        delta = {name: value - self._before[name] for name, value in now.items()}
        accounts = ("sent", "quiet", "unknown", "encrypted", "unsent", "shed")
        for unit in ("chunks", "bytes"):
            assert delta[unit] == sum(delta[f"{account}_{unit}"] for account in accounts), delta
        return delta


def load(**settings: int) -> kernel.Kernel:
    """The kernel side, attached; without privilege the test is skipped, or fails where CI is set."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("loading kernel programs needs root")
    try:
        loaded = kernel.load(kernel.Settings(**settings))
        loaded.attach()
    except AgentError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error.message} ({error.hint})")
    return loaded


@pytest.fixture(scope="session")
def loaded() -> Iterator[kernel.Kernel]:
    """One kernel side for all tests with the default configuration."""
    with load() as each:
        yield each


@pytest.fixture
def tracer(loaded: kernel.Kernel) -> Iterator[Tracer]:
    """Traces the test's own process, and nothing else, while the test runs; the ring starts empty."""
    each = Tracer(loaded)
    for _ in each.ring.records():
        pass
    loaded.trace(os.getpid())
    yield each
    loaded.untrace(os.getpid())
    each.counted()
    each.ring.close()
