# SPDX-License-Identifier: Apache-2.0
"""Spans as JSON lines in the OTLP file format: each line is one TracesData object; and findings, one LogsData
object a line, in a file of their own.

https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/
The file is opened by a process that may (`open_file`), and written by one that may not open files.
A line is written whole or not at all: where the disk ends in the middle of one, the file is cut back.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from agent.errors import ConfigError
from agent.spans import LogBatch, MetricBatch, RowBatch, SpanBatch
from exporters.otlp_encode import JsonEnvelope, RowEncoder
from exporters.say import Say

log = logging.getLogger(__name__)

# The Collector's otlpjsonfile receiver refuses longer lines unless told otherwise (max_log_size).
LINE_BYTES_MAX = 1024 * 1024


def open_file(path: str) -> int:
    """Descriptor of the file to append to. Raises ConfigError."""
    try:
        # O_NONBLOCK means nothing to a file; a pipe with a slow reader must not stop the pipeline.
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        hint = "start a reader first" if error.errno == errno.ENXIO else "give a path in a folder that exists"
        raise ConfigError(f"jsonl:{path} cannot be written: {error.strerror}", hint) from None


def logs_path(path: str, fd: int) -> str:
    """The file for log records: t.logs.jsonl beside t.jsonl, as a file holds one signal. Empty for what is
    open as no file (a pipe, a device): it has no place beside it."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return ""
    real = Path(os.path.realpath(path))
    return str(real.with_suffix(f".logs{real.suffix}"))


class JsonlExporter:
    """logs: descriptor and path of the file for log records. None: they are dropped and counted."""

    name = "jsonl"

    def __init__(
        self,
        fd: int,
        path: str,
        version: str,
        rows_max: int,
        logs: tuple[int, str] | None = None,
        line_bytes_max: int = LINE_BYTES_MAX,
        write: Callable[[int, bytes | memoryview], int] = os.write,
    ) -> None:
        def lines(signal: str, noun: str, fd: int, path: str) -> _Lines:
            envelope = JsonEnvelope(version, signal)
            return _Lines(fd, path, noun, RowEncoder(envelope, rows_max, line_bytes_max, b"\n"), write)

        self._spans = lines("traces", "spans", fd, path)
        self._logs = lines("logs", "logs", *logs) if logs else None
        self._no_file = 0

    def export_spans(self, batch: SpanBatch) -> None:
        self._spans.export(batch)

    def export_logs(self, batch: LogBatch) -> None:
        if self._logs:
            self._logs.export(batch)
        else:
            self._no_file += len(batch)

    def export_metrics(self, batch: MetricBatch) -> None:
        """Not written."""

    def tick(self, now: float) -> None:
        for lines in self._files():
            lines.write_rest()

    def flush(self, timeout_s: float) -> bool:
        written = [lines.write_rest() for lines in self._files()]
        return all(written)

    def close(self) -> None:
        for lines in self._files():
            lines.close()

    def stats(self) -> dict[str, int]:
        out: Counter[str] = Counter(dropped_logs_no_file=self._no_file)
        for lines in self._files():
            out.update(lines.stats())
        return dict(out)

    def _files(self) -> list[_Lines]:
        return [lines for lines in (self._spans, self._logs) if lines]


class _Lines:
    """One signal in one file."""

    def __init__(
        self,
        fd: int,
        path: str,
        noun: str,
        encoder: RowEncoder,
        write: Callable[[int, bytes | memoryview], int],
    ) -> None:
        self._fd, self._path, self._noun, self._encoder, self._write = fd, path, noun, encoder, write
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._rest: bytes | memoryview = b""  # of a line that a pipe took half of
        self._say = Say(log)
        self._sent = self._dropped = self._failures = self._bytes = 0

    def export(self, batch: RowBatch) -> None:
        for body in self._encoder.encode(batch):
            if self._write_line(body.data):
                self._sent += body.items
                self._bytes += len(body.data)
            else:
                self._dropped += body.items

    def close(self) -> None:
        os.close(self._fd)

    def stats(self) -> dict[str, int]:
        return {
            f"sent_{self._noun}": self._sent,
            "sent_bytes": self._bytes,
            "failures": self._failures,
            f"dropped_{self._noun}_write_failed": self._dropped,
            f"dropped_{self._noun}_too_large": self._encoder.too_large,
            f"dropped_{self._noun}_invalid": self._encoder.skipped,
        }

    def _write_line(self, line: bytes | memoryview) -> bool:
        """False: nothing of it is in the file."""
        if not self.write_rest():
            return False
        written = self._write_some(line)
        if written == len(line):
            self._say.over("write", f"{self._path}: written again")
            return True
        if written and self._is_file:
            # Appends only: what was written is the end, unless somebody else cut the file meanwhile.
            end = os.fstat(self._fd).st_size
            os.ftruncate(self._fd, max(0, end - written))
            return False
        self._rest = line[written:] if written else b""
        return written > 0  # a pipe: the rest follows

    def write_rest(self) -> bool:
        self._rest = self._rest[self._write_some(self._rest) :]
        return not self._rest

    def _write_some(self, data: bytes | memoryview) -> int:
        """Bytes written; fewer than there are after an error, which is counted and said."""
        written = 0
        try:
            while written < len(data):
                written += self._write(self._fd, data[written:])
        except OSError as error:
            self._failures += 1
            reason = (error.strerror or str(error)).lower()
            self._say.warn("write", f"{self._path}: {reason}; {self._dropped} {self._noun} dropped before")
        return written
