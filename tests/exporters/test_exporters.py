# SPDX-License-Identifier: Apache-2.0
"""Names to exporters in two phases, what each imports, and the lane for the SDK's exporters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import exporters
from agent.errors import ConfigError
from exporters import open_exporters, open_prepared, prepare
from exporters.sdk import SPAN_BYTES, Converter, SdkExporter, check
from tests.exporters.batches import CLIENT, F, S, batch_of, log_batch_of, random_spans
from tests.exporters.collector import Collector

OPTIONS = {
    "export.request_spans_max": 8192,
    "export.queue_bytes": 16 << 20,
    "console.color": "auto",
}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def kinds(names: list[str], environ: dict[str, str]) -> list[str]:
    prepared = prepare(names, OPTIONS, environ, "1")
    close(prepared.fds)
    return [settings["kind"] for settings in prepared.settings]


def test_console_is_the_default_and_otlp_joins_it_when_an_endpoint_is_set() -> None:
    assert kinds([], {}) == ["console"]
    assert kinds([], {ENDPOINT: "http://c"}) == ["console", "otlp"]
    assert kinds(["none"], {ENDPOINT: "http://c"}) == []
    assert kinds(["otlp", "console", "otlp"], {}) == ["otlp", "console"]


@pytest.mark.parametrize("name", ["", "consol", "jsonl", "jsonl:", "otlp:x", "console:x", "sdk:", "none:1"])
def test_unknown_names_are_errors_that_list_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown exporter {name}") as error:
        prepare([name], OPTIONS, {}, "1")
    assert "known: console, jsonl:PATH, otlp, sdk:NAME, none" in error.value.hint


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(ConfigError) as error:
        prepare(["consle"], OPTIONS, {}, "1")
    assert error.value.hint.startswith("did you mean console? ")


def test_nothing_stays_open_after_an_error(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        prepare([f"jsonl:{tmp_path}/t", "console", "otlp"], OPTIONS, {ENDPOINT: "nonsense"}, "1")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_settings_pass_through_json_and_descriptors_by_number(tmp_path: Path) -> None:
    with Collector() as collector:
        names = [f"jsonl:{tmp_path}/t", "otlp"]
        prepared = prepare(names, OPTIONS, {ENDPOINT: collector.url}, "1.2.3")
        settings = json.loads(json.dumps(prepared.settings))
        passed = [os.dup(fd) for fd in prepared.fds]  # as SCM_RIGHTS does
        close(prepared.fds)
        opened = open_prepared(settings, passed)
        assert [exporter.name for exporter in opened] == ["jsonl", "otlp"]
        for exporter in opened:
            exporter.export_spans(batch_of([S(), S()]))
            exporter.export_logs(log_batch_of([F()]))
            exporter.tick(0.0)
            assert exporter.flush(10)
            assert (exporter.stats()["sent_spans"], exporter.stats()["sent_logs"]) == (2, 1)
            exporter.close()
    for name in ("t", "t.logs"):
        assert len((tmp_path / name).read_text().splitlines()) == 1
    assert sorted(received.path for received in collector.received) == ["/v1/logs", "/v1/traces"]


@pytest.mark.parametrize(
    ("choice", "environ", "color"),
    [
        ("auto", {}, False),  # pytest's output is no terminal
        ("always", {}, True),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {}, False),
    ],
)
def test_console_colour(
    choice: str, environ: dict[str, str], color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: False)
    prepared = prepare(["console"], OPTIONS | {"console.color": choice}, environ, "1")
    close(prepared.fds)
    assert prepared.settings[0]["color"] is color


@pytest.mark.parametrize(
    ("environ", "color"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_console_colour_on_a_terminal(
    environ: dict[str, str], color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: True)
    prepared = prepare(["console"], OPTIONS, environ, "1")
    close(prepared.fds)
    assert prepared.settings[0]["color"] is color


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        (["console"], set[str]()),
        (["jsonl:/dev/null"], set[str]()),
        (["otlp"], {"urllib3", "ssl"}),
    ],
)
def test_what_is_not_used_is_not_imported(names: list[str], allowed: set[str]) -> None:
    """In a process of its own: batch in, span out, then what is loaded."""
    program = f"""
import logging, sys, exporters
logging.disable()  # a failed try may be said at any moment
from tests.exporters.batches import S, batch_of
opened = exporters.open_exporters({names!r}, {OPTIONS!r}, {{"{ENDPOINT}": "http://127.0.0.1:9"}}, "1")
opened[0].export_spans(batch_of([S()]))
heavy = {{"opentelemetry", "google", "urllib3", "ssl", "grpc", "requests", "bcc", "agent.config"}}
print(" ".join(sorted(heavy & set(sys.modules))), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) == allowed


def test_exporters_import_nothing_of_the_agent_but_spans_and_errors() -> None:
    folder = Path(exporters.__file__).parent
    imports = {
        line.split()[1]
        for file in folder.glob("*.py")
        for line in map(str.strip, file.read_text().splitlines())
        if line.startswith(("from agent", "import agent"))
    }
    assert imports <= {"agent.spans", "agent.errors", "agent.layouts"}


# ---- the SDK's exporters


class Fake:
    def __init__(self, *results: str) -> None:
        self.results, self.spans, self.down = list(results), list[Any](), False

    def export(self, spans: Any) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self.results.pop(0) if self.results else "SUCCESS"
        if result == "raise":
            raise RuntimeError("boom")
        self.spans += spans
        return SpanExportResult[result]

    def force_flush(self, timeout_millis: int) -> bool:
        return True

    def shutdown(self) -> None:
        self.down = True


def test_rows_become_the_sdks_spans() -> None:
    import random

    spans = random_spans(random.Random(5), 50, 1)
    for span, out in zip(spans, Converter("1")(batch_of(spans)), strict=True):
        assert (out.name, out.context.trace_id, out.context.span_id) == (span.name, span.trace, span.span)
        assert (out.parent.span_id if out.parent else 0) == span.parent
        assert not out.parent or out.parent.is_remote == span.remote
        assert out.context.trace_state.to_header() == span.state
        assert {
            k: list(v) if isinstance(v, tuple) else v for k, v in out.attributes.items()
        } == span.attributes
        assert out.kind.name == ("CLIENT" if span.kind == CLIENT else "SERVER")
        assert out.status.is_ok != span.error
        assert out.end_time - out.start_time == span.duration_ns
        assert out.resource.attributes["service.name"] == "shop"


def test_the_sdk_lane_exports_in_its_thread_and_counts() -> None:
    fake = Fake("SUCCESS", "FAILURE", "raise")
    exporter = SdkExporter("fake", fake, "1", 1 << 20)
    for _ in range(4):
        exporter.export_spans(batch_of([S(), S()]))
        exporter.export_logs(log_batch_of([F()]))  # which it has no use for
    exporter.start()
    assert exporter.flush(10)
    stats = exporter.stats()
    assert (stats["sent_spans"], stats["dropped_spans_rejected"], len(fake.spans)) == (4, 4, 6)
    exporter.close()
    assert fake.down


def test_the_sdk_lane_drops_the_oldest() -> None:
    exporter = SdkExporter("fake", Fake(), "1", 5 * SPAN_BYTES)
    for _ in range(4):
        exporter.export_spans(batch_of([S(), S()]))
    assert exporter.stats()["dropped_spans_queue_full"] == 4


def test_sdk_exporters_are_found_by_entry_point() -> None:
    (exporter,) = open_exporters(["sdk:console"], OPTIONS, {}, "1")
    exporter.export_spans(batch_of([S("GET /sdk")]))
    assert exporter.flush(10)
    assert exporter.stats()["sent_spans"] == 1
    exporter.close()


def test_an_sdk_exporter_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="sdk:nothing: no such exporter is installed") as error:
        check("nothing")
    assert "console" in error.value.hint
