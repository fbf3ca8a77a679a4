# SPDX-License-Identifier: Apache-2.0
"""The console: trees as they are printed, hostile text, terminals that do not read, sampling."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from exporters._encode import lib

from agent.spans import Resource
from exporters.console import (
    BUFFER_BYTES_MAX,
    ConsoleExporter,
    Sample,
    clean,
    duration_text,
    fit,
    pad,
    time_text,
    width_of,
)
from tests.exporters.batches import CLIENT, CLOCK_OFFSET_NS, ROW, F, S, batch_of, log_batch_of
from tests.exporters.test_sending import Clock

MS = 1_000_000
RESOURCES = [Resource({"service.name": "nginx"}), Resource({"service.name": "shop"})]


class Terminal:
    """A pipe with a console at its end. text() is what was printed since the last call."""

    def __init__(self, color: bool = False, **options: Any) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.writer, self.clock = writer, Clock()
        self.console = ConsoleExporter(writer, color, self.clock, **options)

    def show(self, *spans: S, resources: list[Resource] = RESOURCES) -> str:
        self.console.export_spans(batch_of(spans, resources))
        return self.text()

    def after(self, seconds: float) -> str:
        self.clock.now += seconds
        self.console.tick(self.clock.now)
        return self.text()

    def text(self) -> str:
        try:
            return os.read(self.reader, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def tell(self, *findings: F, resources: list[Resource] = RESOURCES) -> str:
        self.console.export_logs(log_batch_of(findings, resources))
        return self.text()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.reader)
    os.close(terminal.writer)


def tree(text: str) -> list[str]:
    """Tree, service and name columns only."""
    return [line[23:].split("  ◀")[0].split("  ▶")[0].rstrip() for line in text.splitlines()]


def test_a_trace_is_printed_as_a_tree_when_its_root_arrives(terminal: Terminal) -> None:
    backend = S(
        "GET /users/{id}", {"http.response.status_code": 200, "url.path": "/users/42"}, 1, span=3, parent=2
    )
    backend.start_ns, backend.duration_ns = 1_002 * MS, MS
    attributes = {"http.response.status_code": 200, "url.full": "http://shop:8000/users/42"}
    out = S(
        "GET", attributes | {"server.address": "shop", "server.port": 8000}, 0, span=2, parent=1, kind=CLIENT
    )
    attributes = {"http.response.status_code": 200, "url.path": "/users/42"}
    root = S("GET /users/{id}", attributes | {"client.address": "::1", "client.port": 7}, 0, span=1)
    root.duration_ns = 1_840_000
    assert terminal.show(backend, out) == ""
    lines = terminal.show(root).splitlines()
    clock = time_text(1_700_000_001_000_000_000)
    assert lines == [
        f"{clock}   1.84ms  nginx             ◀ GET /users/{{id}}     200  [::1]:7          /users/42",
        f"{clock}   1.50ms  └─ nginx          ▶ GET                 200  shop:8000        /users/42",
        f"{clock[:-1]}2   1.00ms     └─ shop        ◀ GET /users/{{id}}     200                   /users/42",
    ]


def test_branches(terminal: Terminal) -> None:
    parents = {2: 1, 3: 2, 4: 2, 5: 1, 6: 5}
    spans = [S(span=i, parent=parent, start_ns=i * MS) for i, parent in parents.items()]
    text = terminal.show(*spans, S(span=1, start_ns=MS))
    assert tree(text) == ["nginx", "├─ nginx", "│  ├─ nginx", "│  └─ nginx", "└─ nginx", "   └─ nginx"]


def test_a_remote_parent_makes_a_root(terminal: Terminal) -> None:
    assert len(terminal.show(S(parent=77, remote=True)).splitlines()) == 1


def test_without_its_root_a_trace_is_printed_after_a_while(terminal: Terminal) -> None:
    assert terminal.show(S(span=2, parent=1), S(span=3, parent=2)) == ""
    assert terminal.after(1.4) == ""
    assert tree(terminal.after(0.2)) == ["nginx", "└─ nginx"]


def test_a_trace_with_two_local_roots_prints_each_when_it_is_there(terminal: Terminal) -> None:
    first, second = S(span=1, parent=90, remote=True), S(span=5, parent=91, remote=True)
    assert tree(terminal.show(S(span=2, parent=1), S(span=6, parent=5), first)) == ["nginx", "└─ nginx"]
    assert tree(terminal.show(second)) == ["nginx", "└─ nginx"]
    assert terminal.after(10) == ""


def test_parents_in_a_circle_are_printed_and_end(terminal: Terminal) -> None:
    terminal.show(S(span=1, parent=2), S(span=2, parent=1), S(span=3, parent=3))
    assert len(terminal.after(2).splitlines()) == 3


def test_a_very_deep_tree_does_not_recurse(terminal: Terminal) -> None:
    text = terminal.show(*[S(span=i + 1, parent=i) for i in range(400)])
    assert len(text.splitlines()) == 400


def test_spans_of_one_trace_are_held_up_to_a_bound(terminal: Terminal) -> None:
    terminal.console._sample = Sample(10**6)
    text = terminal.show(*[S(span=i, parent=1) for i in range(2, 700)], S(span=1))
    assert len(text.splitlines()) == 502
    assert "… 198 more spans of this trace" in text
    assert terminal.console.stats()["dropped_spans_not_read"] == 198


def test_traces_are_held_up_to_a_bound(terminal: Terminal) -> None:
    terminal.console._sample = Sample(10**6)
    terminal.show(*[S(trace=i, span=2, parent=1) for i in range(1, 3001)])
    assert len(terminal.console._traces) == 2000


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J\x1b]0;title\x07",
        "\r\n\t\x00\x7f",
        "\x9b31m",
        "\u202egnp.exe",
        "\u2066\u200b\u2028\ufeff",
        "\U000e0041",
    ],
)
def test_no_text_can_drive_the_terminal(terminal: Terminal, hostile: str) -> None:
    attributes = {"url.path": hostile, "client.address": hostile, "error.type": hostile}
    text = terminal.show(S(hostile, attributes), resources=[Resource({"service.name": hostile})])
    assert text.endswith("\n")
    assert text[:-1].isprintable()


def test_clean_leaves_printable_text_alone() -> None:
    assert clean("späth 日本 🦀 é") == "späth 日本 🦀 é"
    assert clean("a\x1bb") == "a\ufffdb"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0µs"),
        (812_400, "812µs"),
        (999_499, "999µs"),
        (999_500, "1.00ms"),
        (1_840_000, "1.84ms"),
        (9_994_000, "9.99ms"),
        (9_996_000, "10.0ms"),
        (99_960_000, "100ms"),
        (412_000_000, "412ms"),
        (999_600_000, "1.00s"),
        (12_300_000_000, "12.3s"),
        (245_000_000_000, "4m05s"),
        (7_260_000_000_000, "2h01m"),
    ],
)
def test_durations_have_three_digits_and_a_unit(ns: int, text: str) -> None:
    assert duration_text(ns) == text


def test_wide_and_combining_characters_keep_the_columns() -> None:
    assert width_of("日本") == 4
    assert width_of("e\u0301") == 1
    assert pad("日本", 6) == "日本  "
    assert fit("日本語", 5) == "日本…"
    assert fit("abcdef", 4) == "abc…"
    assert (fit("abc", 3), fit("abc", 0)) == ("abc", "")


@pytest.mark.parametrize("width", [60, 80, 100, 132])
def test_lines_fit_the_terminal(width: int) -> None:
    terminal = Terminal(width=width)
    attributes = {"url.path": "/long" * 80, "http.response.status_code": 200, "client.address": "10.0.0.7"}
    text = terminal.show(S("GET /route/" + "r" * 60, attributes), S(span=2, attributes={"url.path": "/"}))
    assert max(width_of(line) for line in text.splitlines()) <= width
    assert "…" in text


def test_plain_output_has_no_escapes_and_no_trailing_spaces(terminal: Terminal) -> None:
    text = terminal.show(S())
    assert "\x1b" not in text
    assert text == text.rstrip() + "\n"


@pytest.mark.parametrize(
    ("status", "color"), [(200, 32), (301, 36), (404, 33), (503, 31), (101, 2), ("timeout", 31)]
)
def test_status_colours(status: int | str, color: int) -> None:
    terminal = Terminal(color=True)
    key = "http.response.status_code" if isinstance(status, int) else "error.type"
    text = terminal.show(S(attributes={key: status}, error=status in (503, "timeout")))
    assert re.search(rf"\x1b\[{color}m{status} *\x1b\[0m", text)
    assert text.count("\x1b[") == 2 * text.count("\x1b[0m")


def test_a_terminal_that_does_not_read_stops_nothing() -> None:
    terminal = Terminal(sample=Sample(10**6))
    fcntl.fcntl(terminal.writer, fcntl.F_SETPIPE_SZ, 4096)
    spans = [S(trace=i + 1, attributes={"url.path": "/" * 1000}) for i in range(400)]
    terminal.console.export_spans(batch_of(spans, RESOURCES))
    stats = terminal.console.stats()
    assert stats["queue_bytes"] <= BUFFER_BYTES_MAX
    assert stats["dropped_spans_not_read"] == 400 - stats["sent_spans"] > 0
    terminal.clock.now += 1
    assert not terminal.console.flush(0)
    read = 0
    while terminal.console.stats()["queue_bytes"]:
        read += terminal.text().count("\n")
        terminal.console.tick(terminal.clock.now)
    assert read + terminal.text().count("\n") == stats["sent_spans"]


def test_a_closed_terminal_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    os.close(terminal.reader)
    for n in range(3):
        terminal.console.export_spans(batch_of([S(trace=n + 1)], RESOURCES))
    assert [record.getMessage() for record in caplog.records] == [
        "console: broken pipe; spans are no longer shown"
    ]


def rows(traces: list[int], parent: int = 0) -> np.ndarray:
    out = np.zeros(len(traces), ROW)
    for row, trace in zip(out, traces, strict=True):
        row["trace_id"] = np.frombuffer(trace.to_bytes(16, "big"), np.uint8)
        row["parent_id"][7] = parent
    return out


def test_few_spans_are_all_shown() -> None:
    sample = Sample(200)
    for second in range(5):
        assert sample.choose(rows(list(range(200))), float(second)).all()
    assert sample.hidden == 0


def test_at_high_rates_whole_traces_are_sampled_and_the_rest_counted() -> None:
    sample = Sample(200)
    shown = hidden = 0
    for tick in range(50):  # 10,000 traces of two spans a second
        traces = list(range(tick * 2000 + 1, tick * 2000 + 2001))
        chosen = sample.choose(np.concatenate([rows(traces, parent=1), rows(traces)]), tick / 5)
        assert (chosen[:2000] == chosen[2000:]).all()
        shown, hidden = shown + int(chosen[2000:].sum()), hidden + sample.take_hidden()
    assert shown + hidden == 100_000
    assert 600 < shown < 2400  # 10 s at 200 spans, and the first second is let through more freely


def test_sampling_ends_with_the_flood() -> None:
    sample = Sample(200)
    sample.choose(rows(list(range(10_000))), 0.0)
    assert not sample.choose(rows(list(range(100))), 1.0).all()
    assert sample.choose(rows(list(range(100))), 2.0).all()


def test_the_console_says_how_many_traces_it_left_out() -> None:
    terminal = Terminal()
    text = terminal.show(*[S(trace=i, span=i) for i in range(1, 5001)])
    shown = len(text.splitlines()) - 1
    assert text.splitlines()[-1] == f"… {5000 - shown:,} more traces not shown"
    assert terminal.console.stats()["dropped_spans_sampled"] == 5000 - shown


def test_flush_prints_what_is_held(terminal: Terminal) -> None:
    assert terminal.show(S(parent=5)) == ""
    assert terminal.console.flush(1)
    assert len(terminal.text().splitlines()) == 1


# ---- findings


def test_a_finding_is_one_line(terminal: Terminal) -> None:
    spans = {"ebpf_otlp_tracer.finding.span_ids": ["00f067aa0ba902b7"], "url.path": "/a", "client.port": 80}
    text = terminal.tell(F(lib.FINDING_HOT_KEY, spans, 1), F(lib.FINDING_COSTLY_COMMAND, severity=0))
    time = time_text(CLOCK_OFFSET_NS + 1_000_000_000)
    assert text.splitlines() == [
        f"{time}     WARN  shop              ! hot_key  One key got a large share of the commands.  "
        "url.path=/a  client.port=80",
        f"{time}           nginx             ! costly_command  "
        "A command ran whose cost grows with the data behind it.",
    ]
    assert terminal.console.stats()["sent_logs"] == 2


@pytest.mark.parametrize(
    ("severity", "name"), [(1, "TRACE"), (8, "DEBUG"), (9, "INFO"), (16, "WARN"), (24, "FATAL")]
)
def test_a_findings_severity_by_its_number(terminal: Terminal, severity: int, name: str) -> None:
    assert terminal.tell(F(severity=severity))[12:23].strip() == name


def test_a_finding_cannot_drive_the_terminal_and_fits_it() -> None:
    finding = F(attributes={"url.path": "\x1b[2J\n\u202e" + "日本" * 100})
    for width in (None, 100):
        text = Terminal(width=width).tell(finding)
        assert text.count("\n") == 1 and "\x1b" not in text and "\u202e" not in text
        assert text.count("日") == 100 if width is None else 99 <= width_of(text.rstrip("\n")) <= 100


def test_findings_that_nobody_reads_are_counted(terminal: Terminal) -> None:
    for _ in range(40):
        terminal.console.export_logs(log_batch_of([F(attributes={"url.path": "x" * 10_000})] * 5))
    stats = terminal.console.stats()
    assert stats["dropped_logs_not_read"] == 200 - stats["sent_logs"] > 0
    assert (stats["dropped_spans_not_read"], stats["queue_bytes"] <= BUFFER_BYTES_MAX) == (0, True)
