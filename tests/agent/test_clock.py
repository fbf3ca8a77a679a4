# SPDX-License-Identifier: Apache-2.0
"""The offset between the clocks: measured well, calm below a millisecond, true above."""

import itertools
import time

from agent.clock import STEP_NS, Clock

UNIX = 1_800_000_000_000_000_000


class Clocks:
    """Two clocks that stand still, but for what each reading takes (ns, repeated)."""

    def __init__(self, *costs: int) -> None:
        self.now, self.difference = 5_000_000_000, UNIX
        self.costs, self.reads = costs or (10,), 0

    def _pass(self) -> None:
        self.now += self.costs[self.reads % len(self.costs)]
        self.reads += 1

    def monotonic_ns(self) -> int:
        self._pass()
        return self.now

    def unix_ns(self) -> int:
        self._pass()
        return self.now + self.difference


def test_real_clocks() -> None:
    offset = Clock().offset_ns()
    assert abs(time.monotonic_ns() + offset - time.time_ns()) < 50_000_000


def test_narrowest_bracket_is_taken() -> None:
    # Three readings of three clocks each; the first and the last are interrupted.
    clocks = Clocks(10, 10, 900_000, 10, 10, 10, 10, 10, 900_000)
    assert abs(Clock(clocks.monotonic_ns, clocks.unix_ns).offset_ns() - UNIX) <= 10


def test_jitter_and_slewing_below_a_step_are_not_followed() -> None:
    clocks = Clocks()
    clock = Clock(clocks.monotonic_ns, clocks.unix_ns)
    first = clock.offset_ns()
    clocks.difference += STEP_NS - 1
    assert clock.offset_ns() == first


def test_a_clock_that_was_set_is_followed_at_once_in_both_directions() -> None:
    for step in (STEP_NS, -STEP_NS, 3600 * 1_000_000_000, -3600 * 1_000_000_000):
        clocks = Clocks()
        clock = Clock(clocks.monotonic_ns, clocks.unix_ns)
        first = clock.offset_ns()
        clocks.difference += step
        assert clock.offset_ns() == first + step


def test_spans_of_one_trace_never_jump_by_less_than_a_step() -> None:
    clocks = Clocks()
    clock = Clock(clocks.monotonic_ns, clocks.unix_ns)
    offsets = []
    for _ in range(100):
        clocks.difference += 70_000  # slewed: 7 ms in all
        offsets.append(clock.offset_ns())
    jumps = [b - a for a, b in itertools.pairwise(offsets) if b != a]
    assert 5 <= len(jumps) <= 7
    assert all(abs(jump) >= STEP_NS for jump in jumps)
