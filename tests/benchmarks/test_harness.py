# SPDX-License-Identifier: Apache-2.0
"""CPU and memory readings, order of windows, statistics, verdicts and goals, on known data."""

from __future__ import annotations

import json
import math
import mmap
import os
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import Estimate, Figure, Goal, Report, estimate, verdict


def spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_cpu_time_of_a_thread_that_has_ended_is_counted() -> None:
    before = harness.cpu_ns([os.getpid()])
    thread = threading.Thread(target=spin, args=(0.1,))
    thread.start()
    thread.join()
    assert 0.1 <= (harness.cpu_ns([os.getpid()]) - before) / 1e9 < 0.2


def test_cpu_time_of_a_process_that_is_gone_is_nothing() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert harness.cpu_ns([child]) == 0


def test_private_memory_grows_by_what_is_written() -> None:
    before = harness.memory([os.getpid()]).private
    with mmap.mmap(-1, 32 << 20) as block:
        for at in range(0, len(block), 4096):
            block[at] = 1
        after = harness.memory([os.getpid()]).private
    assert 31 << 20 <= after - before <= 34 << 20


def test_a_process_without_bpf_maps_has_none() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:  # ends with its input
        assert harness.bpf_maps([other.pid]) == []


def test_each_block_has_two_effect_pairs_and_one_null_pair_of_neighbours() -> None:
    slots = harness.interleaved(5, seed=3)
    assert len(slots) == 30
    for at in range(0, 30, 2):
        left, right = slots[at : at + 2]
        assert left.pair == right.pair and left.kind == right.kind
        assert left.sign + right.sign == 0
        assert (left.arm, right.arm) == ("off", "off") if left.kind == "null" else left.arm != right.arm
        assert all(
            slot.sign == (1 if slot.arm == "on" else -1) for slot in (left, right) if slot.kind == "effect"
        )
    assert Counter(slot.kind for slot in slots) == {"effect": 20, "null": 10}


def test_effect_windows_of_a_block_are_a_b_b_a_or_b_a_a_b() -> None:
    slots = harness.interleaved(20, seed=1)
    seen = set()
    for at in range(0, len(slots), 6):
        seen.add(tuple(slot.arm for slot in slots[at : at + 6] if slot.kind == "effect"))
    assert seen == {("off", "on", "on", "off"), ("on", "off", "off", "on")}


def test_order_of_windows_is_the_seed_s() -> None:
    assert harness.interleaved(4, seed=7) == harness.interleaved(4, seed=7)
    assert harness.interleaved(4, seed=7) != harness.interleaved(4, seed=8)


def test_each_block_of_arms_holds_the_first_twice() -> None:
    for block in harness.shuffled(("bare", "sdk", "agent"), 6, seed=2):
        assert Counter(block) == {"bare": 1, "bare again": 1, "sdk": 1, "agent": 1}


def test_the_interval_holds_the_true_median_about_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        found = estimate(rng.normal(3.0, 1.0, 25).tolist())
        inside += found.low <= 3.0 <= found.high
    assert inside >= 88


def test_few_values_give_their_range_and_none_gives_nan() -> None:
    assert estimate([2.0, 4.0]) == Estimate(3.0, 2.0, 4.0, 2)
    assert math.isnan(estimate([]).median)


def test_ratios_are_symmetric() -> None:
    found = harness.ratio_estimate([(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
    assert found.median == pytest.approx(1.0)
    assert found.low == pytest.approx(1 / found.high)


@pytest.mark.parametrize(
    ("effect", "null", "said"),
    [
        (Estimate(5, 4, 6, 20), Estimate(0, -1, 1, 10), "more"),
        (Estimate(-5, -6, -4, 20), Estimate(0, -1, 1, 10), "less"),
        (Estimate(0.5, -0.2, 1.2, 20), Estimate(0, -1, 1, 10), "no difference resolved"),
        (Estimate(0.5, 0.2, 0.8, 20), Estimate(0, -1, 1, 10), "within the null band"),
        (Estimate(5, 4, 6, 2), Estimate(0, -1, 1, 10), "too few windows to say"),
        (Estimate(5, 4, 6, 20), Estimate(0, 0, 0, 1), "too few windows to say"),
    ],
)
def test_verdict(effect: Estimate, null: Estimate, said: str) -> None:
    assert verdict(effect, null) == said


LOWER = Goal("cost", "Cost", "us", reach=5, dream=3)
HIGHER = Goal("complete", "Complete", "%", reach=99, dream=100, better="higher")


@pytest.mark.parametrize(
    ("figure", "outcome"),
    [
        (Figure(LOWER, Estimate(2, 1, 3, 9)), "dream"),
        (Figure(LOWER, Estimate(2, 1, 4, 9)), "dream?"),
        (Figure(LOWER, Estimate(4, 3.5, 5, 9)), "reached"),
        (Figure(LOWER, Estimate(4, 2, 6, 9)), "reached?"),
        (Figure(LOWER, Estimate(7, 6, 8, 9)), "not reached"),
        (Figure(LOWER, Estimate(7, 4, 8, 9)), "not reached?"),
        (Figure(LOWER, Estimate(2, 1, 3, 2), resolved=False), "dream?"),
        (Figure(LOWER, None), "not measured"),
        (Figure(HIGHER, Estimate(100, 100, 100, 1)), "dream"),
        (Figure(HIGHER, Estimate(99.5, 99.5, 99.5, 1)), "reached"),
        (Figure(HIGHER, Estimate(98, 98, 98, 1)), "not reached"),
    ],
)
def test_outcome(figure: Figure, outcome: str) -> None:
    assert figure.outcome == outcome


def test_every_goal_of_the_issue_has_a_budget() -> None:
    bounds = {name: (goal.reach, goal.dream) for name, goal in harness.goals().items()}
    assert bounds == {
        "agent_cpu": (5, 3),
        "server_cpu": (3, 1.8),
        "private_memory": (60, 45),
        "first_span": (3, 1.5),
        "span_delay": (1, 0.3),
        "completeness": (100, 100),
        "ledger": (0.1, 0),
        "bystander_getpid": (3, 0),
        "bystander_read": (3, 0),
        "scale_memory": (40, 25),
        "statements_found": (99.9, 100),
        "statements_invented": (0, 0),
        "statements_duration": (50, 10),
        "statements_core": (2, 0.7),
        "statements_flood": (0, 100),
        "statements_large": (1, 1),
    }


def test_a_report_is_written_with_its_raw_windows_and_printed_aligned(tmp_path: Path) -> None:
    report = Report(
        "cost", {"seed": 1}, figures=[Figure(LOWER, Estimate(2.0, 1.0, 3.0, 9), "so many windows")]
    )
    report.windows.append({"arm": "off", "requests": np.int64(7)})
    report.warn("the machine was busy")
    report.warn("the machine was busy")
    report.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["figures"][0]["outcome"] == "dream"
    assert read["windows"] == [{"arm": "off", "requests": 7}]
    assert read["warnings"] == ["the machine was busy"]
    assert read["machine"]["cores"] == os.cpu_count()
    text = report.text()
    assert "2.00 us" in text and "1.00 to 3.00" in text and "warning: the machine was busy" in text


def test_columns_are_aligned() -> None:
    assert harness.table([["a", "bb"], ["ccc", "d"]]) == "a    bb\n---  --\nccc  d"
