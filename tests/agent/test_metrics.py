# SPDX-License-Identifier: Apache-2.0
"""Duration series as metrics of the semantic conventions, and findings by kind."""

import numpy as np
import pytest
from agent.core._core import lib

from agent.engine import LEDGER_ROW
from tests.agent.pipelines import Rig, rig


def tell(r: Rig, tgid: int, service: str) -> None:
    r.keeper.send("process", tgid=tgid, attributes={"service.name": service, "process.pid": tgid})
    r.pipeline.read_messages()


def test_series_become_histograms_by_the_conventions() -> None:
    with rig() as r:
        tell(r, 100, "shop")
        for status in (200, 200, 500):
            r.exchange(100, status=status)
        r.feed()
        r.pipeline.export_metrics()
        by_service = {resource.service_name: metrics for resource, metrics in r.exporter.metrics[0].metrics}
        (duration,) = by_service["shop"]
        assert (duration.name, duration.unit, duration.kind) == (
            "http.server.request.duration",
            "s",
            "histogram",
        )
        assert duration.description == "Duration of HTTP server requests."
        stable = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
        assert tuple(duration.bounds) == stable
        counts = {point.attributes["http.response.status_code"]: point for point in duration.points}
        assert {status: point.count for status, point in counts.items()} == {200: 2, 500: 1}
        assert sum(counts[200].buckets) == 2 and len(counts[200].buckets) == 15
        assert counts[200].sum == pytest.approx(0.002)
        assert counts[500].attributes["error.type"] == "500"
        assert "ebpf-otlp-tracer" in by_service


def test_series_over_the_cap_are_counted_together() -> None:
    with rig(core__series_max=16) as r:
        tell(r, 100, "shop")
        for i in range(40):
            r.exchange(100, path=f"/{chr(97 + i % 26)}{'x' * (i // 26)}")
        r.feed()
        r.pipeline.export_metrics()
        points = [
            p
            for _, ms in r.exporter.metrics[0].metrics
            for m in ms
            if m.kind == "histogram"
            for p in m.points
        ]
        assert sum(point.count for point in points) == 40
        assert any(point.attributes.get("otel.metric.overflow") is True for point in points)


def count_findings(r: Rig, counts: dict[int, dict[int, int]]) -> None:
    """tgid -> finding -> count, as the ledger has it."""
    rows = np.zeros(len(counts), LEDGER_ROW)
    for row, (tgid, of_process) in zip(rows, counts.items(), strict=True):
        row["tgid"] = tgid
        for finding, count in of_process.items():
            row["findings"][finding] = count
    r.pipeline.engine.ledger = lambda: rows  # type: ignore[method-assign]


def test_findings_are_counted_by_process_and_kind() -> None:
    with rig(self__telemetry=False) as r:
        tell(r, 100, "shop")
        tell(r, 200, "cart")
        slow, hot = lib.FINDING_SLOW_STATEMENT, lib.FINDING_HOT_KEY
        count_findings(r, {100: {slow: 3, hot: 1}, 200: {hot: 2}, 300: {}, 0: {slow: 5}})
        r.exchange(100)
        r.feed()
        r.pipeline.export_metrics()
        by_service = {resource.service_name: metrics for resource, metrics in r.exporter.metrics[0].metrics}
        assert set(by_service) == {"shop", "cart", "ebpf-otlp-tracer"}
        duration, findings = by_service["shop"]
        assert duration.name == "http.server.request.duration"
        assert (findings.name, findings.unit, findings.kind) == (
            "ebpf_otlp_tracer.findings",
            "{finding}",
            "sum",
        )
        name = "ebpf_otlp_tracer.finding.name"
        points = {
            service: [(point.attributes, point.value) for point in metrics[-1].points]
            for service, metrics in by_service.items()
        }
        assert points == {
            "shop": [({name: "slow_statement"}, 3), ({name: "hot_key"}, 1)],
            "cart": [({name: "hot_key"}, 2)],
            "ebpf-otlp-tracer": [({name: "slow_statement", "otel.metric.overflow": True}, 5)],
        }


def test_no_findings_no_metric() -> None:
    with rig(self__telemetry=False) as r:
        tell(r, 100, "shop")
        r.exchange(100)
        r.feed()
        r.pipeline.export_metrics()
        ((_, metrics),) = r.exporter.metrics[0].metrics
        assert [metric.name for metric in metrics] == ["http.server.request.duration"]
