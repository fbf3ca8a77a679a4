# SPDX-License-Identifier: Apache-2.0
"""Traces as trees on a terminal, one line per span, and findings, one line each.

    14:03:07.512   1.84ms  nginx            ◀ GET /users/{id}     200  10.0.0.7:51514  /users/42
    14:03:07.512   1.71ms  └─ nginx         ▶ GET                 200  127.0.0.1:8000  /users/42
    14:03:07.513   1.20ms     └─ shop       ◀ GET /users/{id}     200  127.0.0.1:39170 /users/42
    14:03:07.514     WARN  shop             ! slow_statement  A statement was slow.  db.system.name=mysql

◀ a request that came in (server), ▶ one that went out (client). A trace's spans arrive children first:
they are held until its root is there or HOLD_S is over, then printed together. This is a view for people:
above SPANS_PER_S whole traces are left out, and their number is said. A finding (!) is printed as it comes.

Text comes from strangers. It is valid UTF-8, and everything that is not printable (control, escape,
bidirectional and other format characters) is replaced before it reaches the terminal.
"""

from __future__ import annotations

import logging
import os
import select
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from agent.spans import AttributeValue, LogBatch, MetricBatch, SpanBatch

log = logging.getLogger(__name__)

HOLD_S = 1.5
SPANS_PER_S = 200
TRACES_MAX = 2000  # held at once; the oldest is printed early
TRACE_SPANS_MAX = 500  # held of one trace; the rest is counted on its last line
BUFFER_BYTES_MAX = 256 * 1024  # waits for a terminal that does not read
CHUNK_BYTES = 4096  # PIPE_BUF: what poll() promises will not block
TREE_WIDTH_MAX, NAME_WIDTH_MAX, STATUS_WIDTH_MAX, PEER_WIDTH_MAX = 40, 44, 18, 28
PATH_WIDTH_MIN = 16  # less, and the peer makes room, then the name
FIXED_WIDTH = 12 + 2 + 7 + 2 + 2 + 2 + 2 + 2  # time, duration, arrow and the gaps

RESET, DIM, BOLD = "\x1b[0m", "\x1b[2m", "\x1b[1m"
RED, GREEN, YELLOW, CYAN, MAGENTA, BLUE = (f"\x1b[{code}m" for code in (31, 32, 33, 36, 35, 34))
SERVICE_COLORS = (CYAN, MAGENTA, BLUE, *(f"\x1b[{code}m" for code in (96, 95, 94)))
SLOW_NS = 1_000_000_000
# Of OTLP's severity numbers, four to a name.
SEVERITIES = (
    ("TRACE", DIM),
    ("DEBUG", DIM),
    ("INFO", GREEN),
    ("WARN", YELLOW),
    ("ERROR", RED),
    ("FATAL", RED),
)

_NO_PARENT = bytes(8)


@dataclass(slots=True)
class Line:
    """One span, as text that is safe to print."""

    span_id: bytes
    parent_id: bytes
    start_ns: int  # Unix
    duration_ns: int
    is_root: bool  # of what this host saw of the trace
    is_server: bool
    failed: bool
    service: str
    name: str
    status: str
    peer: str
    path: str


@dataclass(slots=True)
class Trace:
    since: float
    lines: list[Line] = field(default_factory=list)
    has_root: bool = False
    left_out: int = 0


@dataclass(slots=True)
class Columns:
    """Widths in cells. peer 0: not shown. path None: as long as it is."""

    tree: int = 16
    name: int = 18
    status: int = 3
    peer: int = 15
    path: int | None = None


def clean(text: str) -> str:
    """One line that cannot drive a terminal: what is not printable becomes U+FFFD."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)


def width_of(text: str) -> int:
    """Terminal cells."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # only for those who need it

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def fit(text: str, width: int) -> str:
    """Cut to `width` cells, with an ellipsis where something is missing."""
    if width_of(text) <= width:
        return text
    cut, used = 0, 1
    while cut < len(text) and (used := used + width_of(text[cut])) <= width:
        cut += 1
    return text[:cut] + "…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    text = fit(text, width)
    return text + " " * (width - width_of(text))


def duration_text(ns: int) -> str:
    """Three digits and a unit: 812µs, 1.84ms, 23.1ms, 412ms, 1.20s, 4m05s."""
    if ns < 999_500:
        return f"{ns / 1e3:.0f}µs"
    if ns < 999_500_000:
        value, unit = ns / 1e6, "ms"
    elif ns < 100_000_000_000:
        value, unit = ns / 1e9, "s"
    else:
        seconds = ns // 1_000_000_000
        return (
            f"{seconds // 60}m{seconds % 60:02}s"
            if seconds < 6000
            else f"{seconds // 3600}h{seconds // 60 % 60:02}m"
        )
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def time_text(unix_ns: int) -> str:
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{ns // 1_000_000:03}"


class Sample:
    """Which traces are shown: all while they are few, else those whose hashed id is under a threshold.

    The threshold moves at most once a second upwards, so a trace is shown whole or not at all, but for
    those under way at that moment.
    """

    def __init__(self, spans_per_s: int = SPANS_PER_S) -> None:
        self._per_s = spans_per_s
        self._share = 1.0
        self._second = float("-inf")
        self._seen = self._seen_before = 0
        self.hidden = 0  # traces left out since the last take_hidden()

    def choose(self, rows: np.ndarray, now: float) -> np.ndarray:
        """Boolean (n,): spans to show."""
        if now - self._second >= 1.0:
            self._seen_before = self._seen if now - self._second < 2.0 else 0
            self._second, self._seen = now, 0
            self._share = min(1.0, self._per_s / max(1, self._seen_before))
        self._seen += len(rows)
        self._share = min(self._share, self._per_s / max(self._per_s, self._seen))
        if self._share == 1.0:
            return np.ones(len(rows), bool)
        ids = np.ascontiguousarray(rows["trace_id"]).view(np.uint64)
        # Ids from the wire need not be random in every bit: Fibonacci hashing spreads them.
        mixed = (ids[:, 0] ^ (ids[:, 1] * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
        shown: np.ndarray = (mixed >> np.uint64(11)).astype(float) < self._share * 2.0**53
        self.hidden += int((~shown & is_local_root(rows)).sum())
        return shown

    def take_hidden(self) -> int:
        hidden, self.hidden = self.hidden, 0
        return hidden


def is_local_root(rows: np.ndarray) -> np.ndarray:
    """Boolean (n,): no parent, or one that another host has."""
    local: np.ndarray = (rows["parent_id"] == 0).all(axis=1) | (rows["remote_parent"] != 0)
    return local


class ConsoleExporter:
    """fd: where to. width: asked of the terminal each time when None; what is no terminal has none."""

    name = "console"

    def __init__(
        self,
        fd: int,
        color: bool,
        clock: Callable[[], float] = time.monotonic,
        width: int | None = None,
        sample: Sample | None = None,
    ) -> None:
        self._fd, self._color, self._clock, self._fixed_width = fd, color, clock, width
        self._sample = sample or Sample()
        self._traces: dict[bytes, Trace] = {}
        self._seen = Columns()
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._broken = False
        self._told = 0.0
        self._sent = self._dropped = self._sampled_out = 0
        self._sent_logs = self._dropped_logs = 0

    def export_spans(self, batch: SpanBatch) -> None:
        now = self._clock()
        chosen = np.flatnonzero(self._sample.choose(batch.rows, now))
        self._sampled_out += len(batch) - len(chosen)
        roots = is_local_root(batch.rows[chosen])
        for i, is_root in zip(chosen.tolist(), roots.tolist(), strict=True):
            self._hold(bytes(batch.rows[i]["trace_id"]), _line(batch, i, is_root), now)
        self.tick(now)

    def export_logs(self, batch: LogBatch) -> None:
        for i in range(len(batch)):
            shown = self._write(self._format_finding(batch, i))
            self._sent_logs += shown
            self._dropped_logs += not shown
        self._drain()

    def export_metrics(self, batch: MetricBatch) -> None:
        """Not shown."""

    def tick(self, now: float) -> None:
        """Prints what is complete or has waited long enough. To be called at least once a second."""
        ready = [key for key, trace in self._traces.items() if trace.has_root or now - trace.since >= HOLD_S]
        self._print(ready, now)

    def flush(self, timeout_s: float) -> bool:
        self._print(list(self._traces), self._clock(), last=True)
        deadline = self._clock() + timeout_s
        while self._buffer and not self._broken and self._clock() < deadline:
            self._poll.poll(50)
            self._drain()
        return not self._buffer

    def close(self) -> None:
        self._drain()

    def stats(self) -> dict[str, int]:
        held = sum(len(trace.lines) for trace in self._traces.values())
        return {
            "sent_spans": self._sent,
            "dropped_spans_not_read": self._dropped,
            "dropped_spans_sampled": self._sampled_out,
            "sent_logs": self._sent_logs,
            "dropped_logs_not_read": self._dropped_logs,
            "queue_spans": held,
            "queue_bytes": len(self._buffer),
        }

    def _hold(self, key: bytes, line: Line, now: float) -> None:
        trace = self._traces.get(key)
        if trace is None:
            if len(self._traces) >= TRACES_MAX:
                self._print([next(iter(self._traces))], now)
            trace = self._traces[key] = Trace(now)
        if len(trace.lines) < TRACE_SPANS_MAX or line.is_root:
            trace.lines.append(line)
        else:
            trace.left_out += 1
            self._dropped += 1
        trace.has_root |= line.is_root

    def _print(self, keys: list[bytes], now: float, last: bool = False) -> None:
        for key in keys:
            trace = self._traces.pop(key)
            overdue = last or now - trace.since >= HOLD_S or len(self._traces) >= TRACES_MAX - 1
            printed, waiting = _tree(trace.lines, overdue)
            columns = self._columns(printed)
            for prefix, line in printed:
                shown = self._write(self._format(prefix, line, columns))
                self._sent += shown
                self._dropped += not shown
            if trace.left_out:
                self._write(self._paint(f"{'':23}… {trace.left_out:,} more spans of this trace", DIM))
            if waiting:  # for another root of the same trace
                self._traces[key] = Trace(trace.since, waiting)
        if self._sample.hidden and (last or now - self._told >= 1.0):
            hidden, self._told = self._sample.take_hidden(), now
            self._write(self._paint(f"… {hidden:,} more trace{'s' * (hidden != 1)} not shown", DIM))
        self._drain()

    def _columns(self, lines: list[tuple[str, Line]]) -> Columns:
        """Widths for a tree: those of the trees before it or more, less where the terminal is narrow."""
        seen = self._seen
        for prefix, line in lines:
            seen.tree = min(TREE_WIDTH_MAX, max(seen.tree, len(prefix) + width_of(line.service)))
            seen.name = min(NAME_WIDTH_MAX, max(seen.name, width_of(line.name)))
            seen.status = min(STATUS_WIDTH_MAX, max(seen.status, width_of(line.status)))
            seen.peer = min(PEER_WIDTH_MAX, max(seen.peer, width_of(line.peer)))
        out, terminal = replace(seen), self._terminal_width()
        if terminal is None:
            return out
        left = terminal - FIXED_WIDTH - out.tree - out.name - out.status
        if left - out.peer - 2 < PATH_WIDTH_MIN:
            out.peer = 0
        if left < PATH_WIDTH_MIN:
            out.name = max(8, out.name + left - PATH_WIDTH_MIN)
        out.path = (
            terminal - FIXED_WIDTH - out.tree - out.name - out.status - (out.peer + 2 if out.peer else 0)
        )
        return out

    def _format(self, prefix: str, line: Line, columns: Columns) -> str:
        paint = self._paint
        color = SERVICE_COLORS[zlib.crc32(line.service.encode()) % len(SERVICE_COLORS)]
        service = pad(prefix + line.service, columns.tree)
        cells = [
            paint(time_text(line.start_ns), DIM),
            paint(f"{duration_text(line.duration_ns):>7}", YELLOW if line.duration_ns >= SLOW_NS else ""),
            paint(service[: len(prefix)], DIM) + paint(service[len(prefix) :], color),
            (paint("◀", GREEN) if line.is_server else paint("▶", BLUE))
            + " "
            + paint(pad(line.name, columns.name), "" if prefix else BOLD),
            paint(pad(line.status, columns.status), _status_color(line)),
        ]
        if columns.peer:
            cells.append(paint(pad(line.peer, columns.peer), DIM))
        cells.append(line.path if columns.path is None else fit(line.path, columns.path))
        text = "  ".join(cells)
        return text if self._color else text.rstrip()

    def _format_finding(self, batch: LogBatch, i: int) -> str:
        row, finding = batch.rows[i], batch.finding(i)
        severity, color = SEVERITIES[(int(row["severity"]) - 1) // 4] if row["severity"] else ("", "")
        attributes = batch.attributes(i).items()
        # Lists are ids of spans, which no line of a trace shows.
        values = [f"{key}={value}" for key, value in attributes if not isinstance(value, list)]
        cells = [
            self._paint(time_text(int(row["ktime_ns"]) + batch.clock_offset_ns), DIM),
            self._paint(f"{severity:>7}", color),
            pad(clean(batch.resources[int(batch.resource[i])].service_name), self._seen.tree),
            self._paint("! " + finding.name, BOLD),
        ]
        rest, terminal = clean("  ".join([finding.sentence, *values])), self._terminal_width()
        if terminal is not None:
            used = 12 + 2 + 7 + 2 + self._seen.tree + 2 + 2 + width_of(finding.name) + 2
            rest = fit(rest, max(PATH_WIDTH_MIN, terminal - used))
        return "  ".join([*cells, rest])

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{RESET}" if color and text and self._color else text

    def _terminal_width(self) -> int | None:
        if self._fixed_width is not None:
            return self._fixed_width
        try:
            return os.get_terminal_size(self._fd).columns or None
        except OSError:
            return None

    def _write(self, line: str) -> bool:
        """False: nobody reads, and the line is lost."""
        data = line.encode("utf-8", "replace") + b"\n"
        if len(self._buffer) + len(data) > BUFFER_BYTES_MAX or self._broken:
            return False
        self._buffer += data
        return True

    def _drain(self) -> None:
        """Writes what the terminal takes now: a stopped one must not stop the pipeline."""
        try:
            while self._buffer and self._poll.poll(0):
                del self._buffer[: os.write(self._fd, self._buffer[:CHUNK_BYTES])]
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken = True
            self._buffer.clear()
            log.warning("console: %s; spans are no longer shown", (error.strerror or str(error)).lower())


def _line(batch: SpanBatch, i: int, is_root: bool) -> Line:
    row = batch.rows[i]
    attributes = batch.attributes(i)
    start, end = int(row["start_ktime_ns"]), int(row["end_ktime_ns"])
    is_server = int(row["kind"]) == 2
    status = attributes.get("http.response.status_code", attributes.get("error.type", ""))
    address = attributes.get("client.address" if is_server else "server.address")
    port = attributes.get("client.port" if is_server else "server.port")
    if address is None:
        address, port = attributes.get("network.peer.address", ""), attributes.get("network.peer.port")
    host = f"[{address}]" if ":" in str(address) and port is not None else str(address)
    return Line(
        span_id=bytes(row["span_id"]),
        parent_id=bytes(row["parent_id"]),
        start_ns=start + batch.clock_offset_ns,
        duration_ns=max(0, end - start),
        is_root=is_root,
        is_server=is_server,
        failed=int(row["status"]) != 0,
        service=clean(batch.resources[int(batch.resource[i])].service_name),
        name=clean(batch.name(i)),
        status=clean(str(status)),
        peer=clean(host if port is None else f"{host}:{port}"),
        path=clean(_asked(attributes)),
    )


def _asked(attributes: Mapping[str, AttributeValue]) -> str:
    """The concrete path and query, of a client's full URL too; or the text of a statement, in one line."""
    text = attributes.get("db.query.text")
    if text is not None:
        return " ".join(str(text).split())
    path = str(attributes.get("url.path", ""))
    if not path:
        rest = str(attributes.get("url.full", "")).partition("://")[2]
        path = "/" + rest.partition("/")[2] if rest else ""
    query = attributes.get("url.query")
    return f"{path}?{query}" if query else path


def _status_color(line: Line) -> str:
    if line.status[:1] == "5" or (line.failed and not line.status[:1].isdigit()):
        return RED
    return {"1": DIM, "2": GREEN, "3": CYAN, "4": YELLOW}.get(line.status[:1], RED if line.failed else "")


def _tree(lines: list[Line], overdue: bool) -> tuple[list[tuple[str, Line]], list[Line]]:
    """(prefix, line) in the order to print, and the lines that still wait for their root.

    overdue: a line whose parent never came is printed as if it were a root.
    """
    ids = {line.span_id for line in lines}
    children: dict[bytes, list[Line]] = {}
    tops = []
    for line in sorted(lines, key=lambda line: (line.start_ns, -line.duration_ns)):
        if line.is_root or (overdue and line.parent_id not in ids):
            tops.append(line)
        else:
            children.setdefault(line.parent_id, []).append(line)
    out: list[tuple[str, Line]] = []
    # A stack, not recursion: the depth is a stranger's. (line, prefix of its line, prefix of its children)
    stack = [(line, "", "") for line in reversed(tops)]
    while stack:
        line, own, below = stack.pop()
        out.append((own, line))
        inner = children.pop(line.span_id, [])
        for n, child in enumerate(reversed(inner)):
            stack.append((child, below + ("└─ " if n == 0 else "├─ "), below + ("   " if n == 0 else "│  ")))
    waiting = [line for group in children.values() for line in group]
    if overdue and waiting:  # parents in a circle: only wrong ids make one
        return out + [("", line) for line in waiting], []
    return out, waiting
