# SPDX-License-Identifier: Apache-2.0
"""The demo's sums on spans made by hand, and the whole demo with the fake agent."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.demo import CLIENT, SERVER, Request, SeenSpan

FRONT, SERVICE = 100, 200
SENT = [
    Request("GET", "/products/1", 200),
    Request("POST", "/orders", 201),
    Request("GET", "/products/1", 200),
]


def trees(requests: list[Request]) -> list[SeenSpan]:
    out = []
    for number, request in enumerate(requests):
        ids = [f"{number}{hop}" for hop in "abc"]
        out += [
            SeenSpan(f"t{number}", ids[0], "", SERVER, FRONT, "nginx", request),
            SeenSpan(f"t{number}", ids[1], ids[0], CLIENT, FRONT, "nginx", request),
            SeenSpan(f"t{number}", ids[2], ids[1], SERVER, SERVICE, "shop", request),
        ]
    return out


def test_whole_trees_of_every_request_are_exact() -> None:
    result = demo.check(SENT, trees(SENT), {FRONT}, {SERVICE})
    assert result.exact
    assert [row[1:] for row in result.rows] == [(3, 3, 0)] * 3


@pytest.mark.parametrize("missing", range(9))
def test_any_span_that_is_missing_is_noticed(missing: int) -> None:
    spans = trees(SENT)
    del spans[missing]
    result = demo.check(SENT, spans, {FRONT}, {SERVICE})
    assert not result.exact
    assert result.linked == 2


@pytest.mark.parametrize("wrong", range(9))
@pytest.mark.parametrize(
    "change",
    [{"parent_id": "zz"}, {"trace_id": "zz"}, {"request": Request("GET", "/products/1", 500)}, {"pid": 999}],
)
def test_any_span_that_is_wrong_is_noticed(wrong: int, change: dict[str, object]) -> None:
    spans = trees(SENT)
    spans[wrong] = replace(spans[wrong], **change)  # type: ignore[arg-type]
    assert not demo.check(SENT, spans, {FRONT}, {SERVICE}).exact


def test_a_span_too_many_is_noticed() -> None:
    spans = trees(SENT)
    assert not demo.check(SENT, [*spans, replace(spans[1], span_id="zz")], {FRONT}, {SERVICE}).exact


def test_nothing_sent_is_no_success() -> None:
    assert not demo.check([], [], {FRONT}, {SERVICE}).exact


def test_spans_are_read_from_otlp_json_lines_and_other_signals_passed_over(tmp_path: Path) -> None:
    def attributes(**values: str | int) -> list[dict[str, object]]:
        return [
            {
                "key": key.replace("__", "."),
                "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v},
            }
            for key, v in values.items()
        ]

    span = {"traceId": "aa", "spanId": "bb", "parentSpanId": "cc", "kind": 3}
    span["attributes"] = attributes(
        http__request__method="GET",
        url__full="http://localhost:1/search?q=x",
        http__response__status_code=200,
    )
    resource = {"attributes": attributes(service__name="nginx", process__pid=FRONT)}
    line = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps({"resourceMetrics": []}) + "\n")
    assert list(demo.read_spans(file)) == [
        SeenSpan("aa", "bb", "cc", CLIENT, FRONT, "nginx", Request("GET", "/search", 200))
    ]


needs_packets = pytest.mark.skipif(
    os.geteuid() != 0, reason="the fake agent watches packets, which needs root"
)


@pytest.fixture
def fake_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARKS_AGENT", f"{sys.executable} {Path(__file__).with_name('fake_agent.py')}")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


@needs_packets
@pytest.mark.usefixtures("fake_agent")
def test_the_demo_succeeds_when_every_request_was_seen(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert demo.main(["--seconds", "1", "--output", str(tmp_path / "traces.jsonl")]) == 0
    out = capfd.readouterr().out
    assert out.count("exact") == 3
    assert "lost on the way: none" in out
    assert str(tmp_path / "traces.jsonl") in out


@needs_packets
@pytest.mark.usefixtures("fake_agent")
def test_the_demo_fails_when_a_span_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_AGENT_DROP", "11")
    monkeypatch.setattr(demo, "SEEN_TIMEOUT_S", 0.5)
    assert demo.main(["--seconds", "1", "--output", str(tmp_path / "traces.jsonl")]) == 1
    assert "please report it" in capfd.readouterr().out


def test_without_root_the_demo_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert demo.main([]) == 77
    assert "hint: sudo" in capsys.readouterr().err
