# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need the running kernel; the records are read by agent/records.py.

Without the privilege to load programs the tests are skipped; where CI is set they fail instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from agent import kernel
from agent.errors import AgentError
from agent.records import (  # noqa: F401 (the tests take them from here)
    AGAIN,
    CHUNK,
    CLOSE,
    CONTINUED,
    ENCRYPTED,
    HEADER,
    HTTP1,
    IN,
    LATE,
    OPEN,
    OUT,
    OVERLAP,
    RESET,
    UNKNOWN,
    UNREADABLE,
    Event,
    parse,
)
from benchmarks.patience import patience

DEADLINE_S = patience(10.0)


def ended(events: list[Event]) -> set[int]:
    """Connections seen from their beginning that have ended; none that an earlier test left behind."""
    opened = {event.conn_id for event in events if event.kind == "open"}
    return {event.conn_id for event in events if event.kind == "close"} & opened


class Tracer:
    """A loaded and attached kernel side with a reader; the events of one test."""

    def __init__(self, loaded: kernel.Kernel) -> None:
        self.kernel = loaded
        self.ring = kernel.Ring(loaded.maps["events"], loaded.facts["constants"]["EVENTS_BYTES"])
        self.events: list[Event] = []
        self._before = loaded.counters()
        self.demands = None

    def read(self) -> list[Event]:
        """All events so far: also those behind a record that another CPU is still writing (an end of a
        connection, told in an interrupt), which a noisy host may hold up for long."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.events += [parse(record) for record in self.ring.records()]
            if self.ring._consumer[:8] == self.ring._producer[:8]:
                return self.events
            assert time.monotonic() < deadline, "a record is never finished"

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
    loaded.shed_none()  # an earlier test may have filled the ring up
    loaded.trace(os.getpid())
    yield each
    loaded.untrace(os.getpid())
    each.counted()
    each.ring.close()
