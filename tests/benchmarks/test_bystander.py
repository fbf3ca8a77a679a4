# SPDX-License-Identifier: Apache-2.0
"""The sums of `bystander` on known windows, and the micro-benchmark itself."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import bystander, harness


def window(pair: int, kind: str, arm: str, sign: int, **ns: float) -> dict[str, Any]:
    named = {"getpid": ns["getpid"], "read /dev/zero": ns["read"]}
    return {"pair": pair, "kind": kind, "arm": arm, "sign": sign, "ns": named, "steal": 0.0, "foreign": 0}


def run_of(added: float, noise: float = 0.0) -> list[dict[str, Any]]:
    """Four pairs on a machine that gets 10% slower with each; a read is two getpids and `added` more."""
    windows = []
    for pair in range(4):
        base = 100.0 * 1.1**pair
        off, on = {"getpid": base, "read": 2 * base}, {"getpid": base, "read": 2 * base * (1 + added)}
        windows += [window(pair, "effect", "off", -1, **off), window(pair, "effect", "on", 1, **on)]
        again = {"getpid": base * (1 + noise), "read": 2 * base}
        windows += [window(10 + pair, "null", "off", -1, **off), window(10 + pair, "null", "off", 1, **again)]
    return windows


def test_percent_is_of_the_pairs_own_base_so_that_drift_cancels() -> None:
    percent = bystander.added_percent(run_of(0.05), "effect", "read /dev/zero")
    assert (percent.median, percent.low, percent.high) == pytest.approx((5.0, 5.0, 5.0))
    assert bystander.added_percent(run_of(0.05), "effect", "getpid").median == pytest.approx(0.0)


def test_nanoseconds_are_on_minus_off() -> None:
    assert bystander.added_ns(run_of(0.5), "effect", "read /dev/zero").low == pytest.approx(100.0)
    assert bystander.pairs_of(run_of(0.5), "effect", "read /dev/zero")[0] == pytest.approx((200.0, 300.0))


def test_null_pairs_show_what_nothing_looks_like() -> None:
    assert bystander.added_percent(run_of(0.0, noise=0.02), "null", "getpid").median == pytest.approx(2.0)


@pytest.mark.parametrize(("added", "outcome"), [(0.02, "reached"), (0.05, "not reached")])
def test_the_figure_is_the_read_and_the_getpid(added: float, outcome: str) -> None:
    figures = {figure.goal.name: figure for figure in bystander.figures_of(run_of(added))}
    assert set(figures) == {"bystander_getpid", "bystander_read"} <= set(harness.goals())
    assert figures["bystander_read"].outcome == outcome


def test_a_pair_in_which_somebody_else_traced_is_left_out() -> None:
    windows = run_of(0.05)
    windows[1]["foreign"], windows[1]["ns"]["read /dev/zero"] = 13, 1e6
    assert len(bystander.pairs_of(windows, "effect", "read /dev/zero")) == 3
    assert bystander.added_percent(windows, "effect", "read /dev/zero").high == pytest.approx(5.0)


def test_others_are_told_from_our_agent_by_the_number_of_programs() -> None:
    def counts(arm: str, before: int, begin: int, end: int) -> dict[str, Any]:
        return {"arm": arm, "before": before, "begin": begin, "end": end}

    windows = [
        counts("off", 0, 0, 0),
        counts("on", 0, 13, 13),
        counts("on", 0, 26, 26),  # another one started beside ours
        counts("on", 13, 26, 26),  # another one ran all the time
        counts("off", 0, 0, 13),
    ]
    bystander.find_foreign(windows)
    assert [window["foreign"] for window in windows] == [0, 0, 13, 13, 13]


def test_each_call_is_a_row() -> None:
    rows = bystander.table_of(run_of(0.05))
    assert [row[0] for row in rows[1:]] == ["getpid", "read /dev/zero"]
    assert "+5.0 [+5.0, +5.0]" in rows[2]


def test_the_micro_benchmark_measures_each_call_again_and_again() -> None:
    with bystander.running() as calls:
        first, second = calls.measure(0.05), calls.measure(0.05)
    assert set(bystander.GOALS.values()) < set(first) == set(second)
    assert all(value > 0 for value in (*first.values(), *second.values()))
