# SPDX-License-Identifier: Apache-2.0
"""The sums of `cost` and `compare` on known windows, the reading of /metrics, a run with the fake agent."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import __main__, agent, compare, cost, harness

METRICS = """\
# HELP ebpf_otlp_tracer_chunks_total Chunks by where they went.
# TYPE ebpf_otlp_tracer_chunks_total counter
ebpf_otlp_tracer_chunks_total{class="parsed",service="nginx"} 40
ebpf_otlp_tracer_chunks_total{class="parsed",service="a \\"b\\", c"} 2
ebpf_otlp_tracer_chunks_total{class="lost",service="nginx"} 1e3
ebpf_otlp_tracer_kernel_chunks_total 1042
"""


def test_metrics_are_summed_by_label_and_an_absent_one_is_none() -> None:
    counters = agent.parse_metrics(METRICS)
    assert counters.by(agent.CHUNKS, "class") == {"parsed": 42, "lost": 1000}
    assert counters.total(agent.CHUNKS) == 1042
    assert counters.total(agent.CHUNKS, **{"class": "parsed", "service": 'a \\"b\\", c'}) == 2
    assert counters.total(agent.KERNEL_CHUNKS) == 1042
    assert counters.total(agent.SPANS) is None


def test_differences_are_on_minus_off_within_each_pair() -> None:
    windows = [
        {"pair": 0, "kind": "effect", "sign": -1, "v": 10.0},
        {"pair": 0, "kind": "effect", "sign": 1, "v": 13.0},
        {"pair": 1, "kind": "effect", "sign": 1, "v": 14.0},
        {"pair": 1, "kind": "effect", "sign": -1, "v": 12.0},
        {"pair": 2, "kind": "null", "sign": 1, "v": 11.0},
        {"pair": 2, "kind": "null", "sign": -1, "v": 10.5},
    ]
    assert cost.differences(windows, "effect", lambda w: float(w["v"])) == [3.0, 2.0]
    assert cost.differences(windows, "null", lambda w: float(w["v"])) == [0.5]


def test_completeness_names_what_is_missing_twice_and_invented() -> None:
    found = cost.completeness_of(answered={1, 2, 3, 4}, sent={1, 2, 3, 4, 5}, seen=[1, 2, 2, 5, 9])
    assert found == cost.Completeness(answered=4, seen=4, missing=2, duplicates=1, invented=1)
    assert found.percent == 50.0


def test_one_missing_request_of_a_million_is_not_rounded_away() -> None:
    found = cost.Completeness(answered=1_000_000, seen=999_999, missing=1, duplicates=0, invented=0)
    value = harness.Estimate(found.percent, found.percent, found.percent, 1)
    figure = harness.Figure(harness.goals()["completeness"], value)
    assert figure.outcome == "not reached"


def test_compared_arms_are_taken_against_the_bare_one_of_their_block() -> None:
    def window(arm: str, block: int, cpu_us: float) -> dict[str, object]:
        zeros = dict.fromkeys(("agent_us", "memory_mib", "agent_mib", "p50", "p99", "spans", "answered"), 0)
        return {"arm": arm, "block": block, "cpu_us": cpu_us, **zeros}

    windows = []
    for block in range(4):
        drift = 100.0 * block
        values = {"bare": 500.0, "bare again": 501.0, "sdk": 900.0, "agent": 510.0}
        windows += [window(arm, block, drift + value) for arm, value in values.items()]
    assert compare.added(windows, "sdk", "cpu_us").median == 400.0
    assert compare.added(windows, "agent", "cpu_us").median == 10.0
    shown = compare.tables(windows)
    assert any(
        "+400.0 [+400.0, +400.0]" in cell for row in shown["Added, 95% intervals over blocks"] for cell in row
    )


def test_an_unknown_benchmark_is_named_and_the_known_ones_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["cots"]) == 2
    said = capsys.readouterr().err
    assert "'cots'" in said and "demo" in said and "compare" in said


def test_no_agent_to_start_is_told_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BENCHMARKS_AGENT", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(agent, "__file__", str(tmp_path / "benchmarks" / "agent.py"))
    with pytest.raises(agent.AgentMissing, match="make build"):
        agent.command()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the fake agent watches packets, which needs root")
def test_cost_runs_whole_with_a_fake_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCHMARKS_AGENT", f"{sys.executable} {Path(__file__).with_name('fake_agent.py')}")
    monkeypatch.setitem(cost.PROFILES, "smoke", cost.Profile(0.3, 2, 500, 1, 0.2, 1, 1))
    file = tmp_path / "cost.json"
    # The fake cannot follow a saturated nginx for longer than the limit's part asks.
    parts = [word for name in cost.PARTS if name != "saturated" for word in ("--only", name)]
    assert cost.main(["--profile", "smoke", *parts, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    figures = {figure["goal"]["name"]: figure for figure in report["figures"]}
    assert set(figures) == {goal for goals, _ in cost.PARTS.values() for goal in goals}
    assert figures["completeness"]["value"]["median"] == 100.0
    assert all(figure["outcome"] != "not measured" for figure in figures.values())
    assert len(report["windows"]) == 6
