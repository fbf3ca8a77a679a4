# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections open and idle, and new ones on top: every request a span, nothing left behind.

The large version is `python -m benchmarks scale`; here is what must hold whatever the size.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.agent import agent
from benchmarks.sink import sink

OPEN, SHORT = 5_000, 2_000


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing needs root")
def test_thousands_of_connections_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    with (
        sink(record=True) as receiver,
        scale.server(2, tmp_path) as (child, port),
        scale.clients(port, 2) as load,
    ):
        with agent([child.pid], exporters=["otlp"], env=receiver.environment, folder=tmp_path) as tracer:
            load.open(OPEN)
            receiver.wait_for_spans(OPEN)
            held = scale.Held.now(tracer)
            assert (held.core_connections, held.kernel_connections) == (OPEN, OPEN)
            load.short(SHORT)
            load.close()
            scale.wait_gone(tracer)
            left = scale.Held.now(tracer)
            assert (left.core_connections, left.kernel_connections) == (0, 0)
            assert left.maps <= held.maps
            assert scale.losses(tracer.counters()) == {}
            numbers = load.numbers()
            assert len(numbers) == OPEN + SHORT
            found = scale.exported(receiver, numbers)
    assert (found.seen, found.missing, found.duplicates, found.invented) == (OPEN + SHORT, 0, 0, 0)
