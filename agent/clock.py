# SPDX-License-Identifier: Apache-2.0
"""Kernel time to wall-clock time: what to add to a ktime (CLOCK_MONOTONIC, ns) to get Unix ns.

The wall clock is slewed (NTP) and set (an administrator, a resumed machine), so the difference is read
again for each batch. It is not followed to the nanosecond: reading two clocks one after the other is off
by the time between, and the spans of one trace would jitter against each other by it. The offset in use
stays until the clocks are a millisecond away from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_NS = 1_000_000
READINGS = 3


class Clock:
    def __init__(
        self,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._unix_ns = unix_ns
        self._offset_ns = self._measure()

    def offset_ns(self) -> int:
        """Unix ns = ktime ns + this."""
        measured = self._measure()
        if abs(measured - self._offset_ns) >= STEP_NS:
            self._offset_ns = measured
        return self._offset_ns

    def _measure(self) -> int:
        """The best of a few readings: the one whose bracket, monotonic before and after, is narrowest."""
        best_width, best_offset = -1, 0
        for _ in range(READINGS):
            before = self._monotonic_ns()
            unix = self._unix_ns()
            after = self._monotonic_ns()
            if best_width < 0 or after - before < best_width:
                best_width, best_offset = after - before, unix - (before + after) // 2
        return best_offset
