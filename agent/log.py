# SPDX-License-Identifier: Apache-2.0
"""What the agent says on standard error: plain lines for people, logfmt when it is not a terminal.

Not the `logging` package: two processes would each carry it for a dozen lines of text.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

LEVELS = ("error", "warn", "info", "debug")

LogValue = str | int | float | bool


class Log:
    """Writes lines of at least `level`. The levels are methods: log.info("message", key=value)."""

    def __init__(self, level: str = "info", process: str = "") -> None:
        self.process = process
        self.plain = sys.stderr.isatty()
        self.level = level
        self.process = process
        self._rank = LEVELS.index(level)

    def error(self, message: str, hint: str = "", **fields: LogValue) -> None:
        self._say(0, message, hint, fields)

    def warn(self, message: str, hint: str = "", **fields: LogValue) -> None:
        self._say(1, message, hint, fields)

    def info(self, message: str, **fields: LogValue) -> None:
        self._say(2, message, "", fields)

    def debug(self, message: str, **fields: LogValue) -> None:
        self._say(3, message, "", fields)

    def _say(self, rank: int, message: str, hint: str, fields: dict[str, LogValue]) -> None:
        if rank > self._rank:
            return
        if self.plain:
            pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
            prefix = f"{LEVELS[rank]}: " if rank < 2 else ""
            text = f"{prefix}{message}{pairs}\n" + (f"hint: {hint}\n" if hint else "")
        else:
            fields = {"process": self.process, "msg": message, **fields, "hint": hint}
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields.items() if value != "")
            text = f"time={now} level={LEVELS[rank]}{pairs}\n"
        write_stderr(text)


def write_stderr(text: str) -> None:
    """One write(2), so that lines of two processes do not mix; a closed terminal is no failure."""
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def _quoted(value: LogValue) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"' if not text or any(c in ' ="\\' or not c.isprintable() for c in text) else text


class RateLimit:
    """True at most once in `every_s` for each subject: for messages that traffic could repeat forever."""

    SUBJECTS_MAX = 256

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last: dict[str, float] = {}

    def allows(self, subject: str) -> bool:
        now = self._clock()
        if now - self._last.get(subject, -self._every_s) < self._every_s:
            return False
        if len(self._last) >= self.SUBJECTS_MAX:
            self._last.clear()
        self._last[subject] = now
        return True


def capture_logging(log: Log) -> None:
    """What libraries say through `logging` (the exporters do) is said by `log`."""
    import logging

    methods: dict[int, Callable[[str], None]] = {
        logging.ERROR: log.error,
        logging.WARNING: log.warn,
        logging.INFO: log.info,
    }

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say = methods.get(min(record.levelno, logging.ERROR), log.debug)
            say(record.getMessage())

    root = logging.getLogger()
    root.handlers = [Handler()]
    root.setLevel(logging.DEBUG if log.level == "debug" else logging.INFO)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each try that fails; the exporter says it once
