# SPDX-License-Identifier: Apache-2.0
"""JSON lines: whole lines only, whatever the disk or the reader does."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.spans import MetricBatch
from exporters import open_exporters
from exporters.jsonl import JsonlExporter, logs_path, open_file
from tests.exporters import test_otlp_logs
from tests.exporters.batches import F, S, batch_of, log_batch_of
from tests.exporters.test_otlp_encode import RESOURCES, expected, parse_json


def exporter_to(path: Path | str, **options: Any) -> JsonlExporter:
    return JsonlExporter(open_file(str(path)), str(path), "1.2.3", 8192, **options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def spans_of(path: Path) -> int:
    return sum(
        len(s["spans"]) for line in lines_of(path) for r in line["resourceSpans"] for s in r["scopeSpans"]
    )


def test_each_line_is_one_traces_data(tmp_path: Path) -> None:
    exporter = exporter_to(tmp_path / "t.jsonl")
    spans = [S(span=i + 1, resource=i % 3, name="späth\n\u2028") for i in range(10)]
    exporter.export_spans(batch_of(spans, RESOURCES))
    exporter.export_spans(batch_of(spans[:1], RESOURCES))
    exporter.export_metrics(MetricBatch(1))
    first, second = (tmp_path / "t.jsonl").read_bytes().splitlines()
    assert parse_json(first) == expected(spans, RESOURCES)
    assert parse_json(second) == expected(spans[:1], RESOURCES)
    assert exporter.stats()["sent_spans"] == 11
    assert exporter.stats()["sent_bytes"] == (tmp_path / "t.jsonl").stat().st_size


def test_an_existing_file_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        exporter = exporter_to(tmp_path / "t")
        exporter.export_spans(batch_of([S()]))
        exporter.close()
    assert len(lines_of(tmp_path / "t")) == 2


def test_lines_stay_short_enough_for_the_collector(tmp_path: Path) -> None:
    exporter = exporter_to(tmp_path / "t")
    exporter.export_spans(batch_of([S(span=i + 1, attributes={"url.path": "/" * 2000}) for i in range(2000)]))
    sizes = [len(line) for line in (tmp_path / "t").read_bytes().splitlines(keepends=True)]
    assert max(sizes) <= 1 << 20
    assert (len(sizes), spans_of(tmp_path / "t")) == (5, 2000)


@pytest.mark.parametrize("path", ["/nowhere/t.jsonl", "/"])
def test_a_path_that_cannot_be_opened_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=f"jsonl:{path} cannot be written: "):
        open_file(path)


def test_full_disk_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    exporter = exporter_to("/dev/full")
    for _ in range(5):
        exporter.export_spans(batch_of([S(), S()]))
    stats = exporter.stats()
    assert (stats["sent_spans"], stats["dropped_spans_write_failed"], stats["failures"]) == (0, 10, 5)
    assert caplog.messages == ["/dev/full: no space left on device; 0 spans dropped before"]


def test_a_line_cut_by_the_end_of_the_disk_is_taken_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RLIMIT_FSIZE stands for the disk: the kernel writes what fits, then refuses."""
    path = tmp_path / "t"
    exporter = exporter_to(path)
    exporter.export_spans(batch_of([S()]))
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        exporter.export_spans(batch_of([S(), S()]))
        assert path.stat().st_size == size
        assert exporter.stats()["dropped_spans_write_failed"] == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    exporter.export_spans(batch_of([S(), S(), S()]))
    assert (len(lines_of(path)), spans_of(path)) == (2, 4)
    assert caplog.messages == [f"{path}: file too large; 0 spans dropped before"]


def test_short_writes_are_continued(tmp_path: Path) -> None:
    exporter = exporter_to(tmp_path / "t", write=lambda fd, data: os.write(fd, data[:7]))
    exporter.export_spans(batch_of([S()] * 5))
    assert spans_of(tmp_path / "t") == 5


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_an_error_in_any_part_of_a_line_leaves_whole_lines(tmp_path: Path, fails_at: int) -> None:
    calls = 0

    def write(fd: int, data: bytes | memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data[:200])

    exporter = exporter_to(tmp_path / "t", write=write)
    for _ in range(4):
        exporter.export_spans(batch_of([S()]))
    stats = exporter.stats()
    assert (spans_of(tmp_path / "t"), stats["sent_spans"], stats["dropped_spans_write_failed"]) == (3, 3, 1)


def test_a_pipe_with_a_slow_reader_gets_whole_lines_and_stops_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    reader = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    exporter = exporter_to(tmp_path / "p")
    for _ in range(200):
        exporter.export_spans(batch_of([S(attributes={"url.path": "/" * 9000})]))
    text = os.read(reader, 1 << 20)
    assert not text.endswith(b"\n")  # the pipe is full in mid-line
    assert exporter.flush(0)
    exporter.export_spans(batch_of([S()]))
    text += os.read(reader, 1 << 20)
    stats = exporter.stats()
    assert len([json.loads(line) for line in text.splitlines()]) == stats["sent_spans"]
    assert stats["sent_spans"] + stats["dropped_spans_write_failed"] == 201
    os.close(reader)


def test_a_pipe_that_nobody_reads_is_an_error_at_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(ConfigError) as error:
        open_file(str(tmp_path / "p"))
    assert error.value.hint == "start a reader first"


# ---- findings


def opened(path: Path | str) -> JsonlExporter:
    """By its name, as the command line does."""
    (exporter,) = open_exporters([f"jsonl:{path}"], {"export.request_spans_max": 8192}, {}, "1.2.3")
    assert isinstance(exporter, JsonlExporter)
    return exporter


def test_findings_have_a_file_of_their_own(tmp_path: Path) -> None:
    """https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/: one type of data in a file."""
    exporter = opened(tmp_path / "t.jsonl")
    findings = [F(span=i + 1, resource=i % 3, attributes={"url.path": "späth\n\u2028"}) for i in range(10)]
    exporter.export_logs(log_batch_of(findings, RESOURCES))
    exporter.export_spans(batch_of([S()]))
    exporter.export_logs(log_batch_of(findings[:1], RESOURCES))
    first, second = (tmp_path / "t.logs.jsonl").read_bytes().splitlines()
    assert test_otlp_logs.parse_json(first) == test_otlp_logs.expected(findings, RESOURCES)
    assert test_otlp_logs.parse_json(second) == test_otlp_logs.expected(findings[:1], RESOURCES)
    assert spans_of(tmp_path / "t.jsonl") == 1
    stats = exporter.stats()
    assert (stats["sent_spans"], stats["sent_logs"], stats["dropped_logs_no_file"]) == (1, 11, 0)
    assert stats["sent_bytes"] == sum(
        (tmp_path / f"t{end}").stat().st_size for end in (".jsonl", ".logs.jsonl")
    )
    exporter.close()


@pytest.mark.parametrize(
    ("path", "logs"), [("t.jsonl", "t.logs.jsonl"), ("t", "t.logs"), ("a.b/t.x.json", "a.b/t.x.logs.json")]
)
def test_where_findings_go(tmp_path: Path, path: str, logs: str) -> None:
    (tmp_path / "a.b").mkdir()
    assert logs_path(str(tmp_path / path), open_file(str(tmp_path / path))) == str(tmp_path / logs)


def test_a_device_or_pipe_has_no_place_for_findings(tmp_path: Path) -> None:
    before = sorted(os.listdir("/dev"))
    exporter = opened("/dev/null")
    exporter.export_logs(log_batch_of([F(), F()]))
    assert exporter.flush(0)
    exporter.close()
    assert sorted(os.listdir("/dev")) == before
    assert (exporter.stats()["dropped_logs_no_file"], exporter.stats().get("sent_logs", 0)) == (2, 0)


def test_a_full_disk_costs_findings_of_its_own_count(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    exporter = exporter_to(tmp_path / "t", logs=(open_file("/dev/full"), "/dev/full"))
    exporter.export_logs(log_batch_of([F(), F()]))
    exporter.export_spans(batch_of([S()]))
    stats = exporter.stats()
    assert (stats["sent_spans"], stats["dropped_logs_write_failed"], stats["failures"]) == (1, 2, 1)
    assert caplog.messages == ["/dev/full: no space left on device; 0 logs dropped before"]
