# SPDX-License-Identifier: Apache-2.0
"""Log lines that do not flood: one line per subject and interval, with the number of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Say:
    def __init__(
        self, log: logging.Logger, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._interval_s, self._clock = log, interval_s, clock
        self._subjects: dict[str, tuple[float, int]] = {}  # subject: (when said last, left out since)

    def warn(self, subject: str, message: str) -> None:
        """`subject` is one of a few fixed words: each is remembered."""
        now = self._clock()
        said, left_out = self._subjects.get(subject, (float("-inf"), 0))
        if now - said < self._interval_s:
            self._subjects[subject] = (said, left_out + 1)
            return
        self._subjects[subject] = (now, 0)
        self._log.warning("%s%s", message, f" ({left_out} more like it)" if left_out else "")

    def over(self, subject: str, message: str) -> None:
        """The trouble has ended: said once, if it was ever told, and the next one is said at once."""
        if self._subjects.pop(subject, None):
            self._log.info("%s", message)
