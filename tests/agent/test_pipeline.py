# SPDX-License-Identifier: Apache-2.0
"""The data path after the ring: spans get their process and their time, metrics and messages their turn."""

import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from agent.core._core import lib

from agent.engine import FINDING_ROW
from tests.agent.pipelines import Rig, rig
from tests.exporters.batches import Arena, attribute_list


def tell(r: Rig, tgid: int, service: str) -> None:
    r.keeper.send("process", tgid=tgid, attributes={"service.name": service, "process.pid": tgid})
    r.pipeline.read_messages()


def test_23_requests_of_two_processes_are_23_spans_with_their_services() -> None:
    with rig() as r:
        tell(r, 100, "shop")
        tell(r, 200, "cart")
        for i in range(23):
            r.exchange(100 if i % 3 else 200)
        r.feed()
        assert r.pipeline.export_spans() == 23
        assert [span[0] for span in r.exporter.spans].count("cart") == 8
        assert r.pipeline.spans == {"cart": 8, "shop": 15}
        service, name, attributes, start = r.exporter.spans[0]
        assert (service, name) == ("cart", "GET /a")
        assert attributes["http.response.status_code"] == 200
        boot = time.time_ns() - time.monotonic_ns()
        assert (
            boot + 10**9 <= start + 10**6 and start < boot + 2 * 10**9
        )  # events begin at 1,000 ms after boot


def test_no_spans_no_batch() -> None:
    with rig() as r:
        assert r.pipeline.export_spans() == 0
        assert r.exporter.spans == []


def find(r: Rig, *findings: tuple[int, int, dict[str, str]]) -> None:
    """(tgid, finding, attributes): the next that the core gives, in place of its own."""
    rows, arena = np.zeros(len(findings), FINDING_ROW), Arena()
    ids = {key: number for number, key in r.pipeline.engine.keys.items()}
    for row, (tgid, finding, attributes) in zip(rows, findings, strict=True):
        row["tgid"], row["finding"], row["ktime_ns"] = tgid, finding, 1_500_000_000
        row["attributes_offset"], row["attributes_size"] = arena.add(attribute_list(attributes, ids))
    batches = [(rows, memoryview(bytes(arena.data)))]
    empty = (rows[:0], memoryview(b""))
    r.pipeline.engine.take_findings = lambda: batches.pop() if batches else empty  # type: ignore[method-assign]


def test_findings_of_two_processes_are_log_records_with_their_services() -> None:
    with rig() as r:
        tell(r, 100, "shop")
        tell(r, 200, "cart")
        slow, hot = lib.FINDING_SLOW_STATEMENT, lib.FINDING_HOT_KEY
        find(r, (200, hot, {"url.path": "/k"}), (100, slow, {}), (200, slow, {}))
        assert r.pipeline.export_batches() == 3
        boot = time.time_ns() - time.monotonic_ns()
        assert [(service, name, attributes) for service, name, attributes, _ in r.exporter.logs] == [
            ("cart", "hot_key", {"url.path": "/k"}),
            ("shop", "slow_statement", {}),
            ("cart", "slow_statement", {}),
        ]
        assert abs(r.exporter.logs[0][3] - boot - 1_500_000_000) < 10**6
        assert (r.exporter.spans, r.pipeline.export_batches()) == ([], 0)


def test_the_core_has_no_findings_without_a_detector() -> None:
    with rig() as r:
        r.exchange(100)
        r.feed()
        assert (r.pipeline.export_findings(), r.exporter.logs) == (0, [])
        rows, arena = r.pipeline.engine.take_findings()
        assert (rows.dtype, len(rows), len(arena)) == (FINDING_ROW, 0, 0)


def test_findings_leave_in_the_turn_of_spans_and_at_the_end() -> None:
    with rig() as r:
        find(r, (100, lib.FINDING_HOT_KEY, {}))
        r.pipeline.step(time.monotonic())
        assert len(r.exporter.logs) == 1
        find(r, (100, lib.FINDING_HOT_KEY, {}))
        r.exchange(100)
        r.feed()
        assert r.pipeline.export_batches() == 2
        find(r, (100, lib.FINDING_HOT_KEY, {}))
        r.pipeline.drain(0.0)
        assert (len(r.exporter.logs), len(r.exporter.spans)) == (3, 1)


def test_the_record_of_a_process_may_come_after_its_first_finding() -> None:
    with rig() as r:
        find(r, (100, lib.FINDING_HOT_KEY, {}))
        record = {"service.name": "shop", "process.pid": 100}
        r.keeper.send("process", tgid=100, attributes=record)
        r.pipeline.export_findings()
        assert r.exporter.logs[0][0] == "shop"


def test_process_nobody_told_of_keeps_its_spans() -> None:
    with rig() as r:
        r.exchange(4711)
        r.feed()
        r.pipeline.export_spans()
        assert r.exporter.spans[0][0] == "unknown_service"
        assert dict(r.pipeline.resources.of(4711).attributes)["process.pid"] == 4711


def test_the_record_of_a_child_may_come_after_its_first_answer() -> None:
    with rig() as r:
        r.exchange(100)
        r.feed()
        record = {"service.name": "shop", "process.pid": 100}
        late = threading.Timer(0.02, r.keeper.send, ["process"], {"tgid": 100, "attributes": record})
        late.start()
        r.pipeline.export_spans()
        late.join()
        assert r.exporter.spans[0][0] == "shop"


def test_process_that_becomes_another_program_gets_its_new_name() -> None:
    with rig() as r:
        tell(r, 100, "bash")
        tell(r, 100, "shop")
        r.exchange(100)
        r.feed()
        r.pipeline.export_spans()
        assert r.exporter.spans[0][0] == "shop"


def test_process_that_ended_is_exported_a_last_time_and_its_ledger_kept() -> None:
    with rig() as r:
        tell(r, 100, "shop")
        r.exchange(100)
        r.feed()
        r.keeper.send("gone", tgid=100)
        r.pipeline.read_messages()
        for _ in range(2):
            r.pipeline.export_metrics()
        assert len(r.pipeline.resources) == 0
        assert len(r.pipeline.engine.ledger()) == 0
        assert all(batch.metrics[0][0].service_name == "shop" for batch in r.exporter.metrics)
        requests = [s.value for s in r.pipeline.samples() if s.figure.source == "ledger.requests"]
        assert requests == [1]
        r.pipeline.export_metrics()
        assert [resource.service_name for resource, _ in r.exporter.metrics[2].metrics] == [
            "ebpf-otlp-tracer"
        ]


def test_tgid_used_again_is_not_forgotten() -> None:
    with rig() as r:
        tell(r, 100, "shop")
        r.keeper.send("gone", tgid=100)
        tell(r, 100, "cart")
        for _ in range(3):
            r.pipeline.export_metrics()
        assert r.pipeline.resources.of(100).service_name == "cart"


def test_ledger_is_whole_over_pipelines() -> None:
    with rig() as r:
        r.exchange(100)
        r.feed()
        totals = r.pipeline.ledger.totals(r.pipeline.engine.ledger())
        assert totals["chunks.parsed"] == 2
        assert totals["bytes.parsed"] > 40
        assert set(totals) == {f"{w}.{c}" for w in ("chunks", "bytes") for c in r.pipeline.ledger.CLASSES}


def test_loop_answers_stop_and_status_pages_then_drains() -> None:
    with rig(core__poll_ms=5.0) as r:
        r.exchange(100)
        r.feed()
        thread = threading.Thread(target=r.pipeline.run)
        thread.start()
        base = f"http://127.0.0.1:{r.listener.getsockname()[1]}"
        with urllib.request.urlopen(f"{base}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
        with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert (
                'ebpf_otlp_tracer_chunks_total{class="parsed",service="unknown_service"} 2'
                in answer.read().decode()
            )
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"{base}/no", timeout=10)
        assert (missing.value.code, missing.value.read()) == (404, b"there are /metrics, /status, /healthz\n")
        stats = r.keeper.receive(wait_s=10)
        assert stats is not None and stats.name == "stats"
        r.keeper.send("stop", timeout_s=1.5)
        thread.join(10)
        assert r.pipeline.stop_timeout_s == 1.5
        r.exchange(100)
        r.feed()
        r.pipeline.drain(1.5)
        assert len(r.exporter.spans) == 2
        assert r.exporter.calls[-2:] == ["flush", "close"]
        said = r.pipeline.summary()
        assert "unknown_service" in said and "exported: 2 spans by list; dropped: 2 queue_full" in said


def test_end_of_the_keeper_ends_the_loop() -> None:
    with rig(core__poll_ms=5.0) as r:
        r.keeper.close()
        r.pipeline.read_messages()
        assert r.pipeline.stop_timeout_s == 0.0
