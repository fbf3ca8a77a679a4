# SPDX-License-Identifier: Apache-2.0
"""When a request is sent again: the rules of the OTLP specification, and the time between tries.

https://opentelemetry.io/docs/specs/otlp/#otlphttp-response
Retried: no response, and the statuses below. Everything else is final.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC

RETRYABLE = frozenset((429, 502, 503, 504))


@dataclass(frozen=True)
class Backoff:
    """The Collector's schedule, but for the first wait: 1 s where it waits 5 s, so that a receiver that
    restarts costs little and Ctrl-C finds little waiting."""

    initial_s: float = 1.0
    factor: float = 1.5
    maximum_s: float = 30.0
    jitter: float = 0.5  # +- this share
    elapsed_max_s: float = 300.0  # since the first try of a request

    def delay_s(self, failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Time to wait after the n-th failure in a row, n >= 1."""
        base = min(self.maximum_s, self.initial_s * self.factor ** min(failures - 1, 64))
        return base * uniform(1 - self.jitter, 1 + self.jitter)


def retry_after_s(value: str | None, now_unix: float) -> float | None:
    """Seconds that a Retry-After asks for, a number or an HTTP date (RFC 9110, 10.2.3); None: unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    from email.utils import parsedate_to_datetime  # rare, and not small

    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_unix)
