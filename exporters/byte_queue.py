# SPDX-License-Identifier: Apache-2.0
"""Encoded requests of one signal that wait to be sent: bounded by bytes, the oldest goes first.

A newer span says more about a system in trouble than an older one, and an agent must not grow while a
receiver is away. What is dropped is counted by reason, in items (spans, points, log records) and bytes.

Not locked: the sender's lock guards it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

QUEUE_FULL, RETRY_EXPIRED, REJECTED, TOO_LARGE, SHUTDOWN = REASONS = (
    "queue_full",
    "retry_expired",
    "rejected",
    "too_large",
    "shutdown",
)


@dataclass(slots=True)
class Request:
    """data: the body, compressed from the first try on, if at all."""

    data: bytes | memoryview
    items: int
    compressed: bool = False
    first_try: float | None = None


class Queue:
    """bytes: of what waits and of what is being sent, never more than bytes_max."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.items = 0
        self.dropped_items: Counter[str] = Counter()
        self.dropped_bytes: Counter[str] = Counter()
        self._waiting: deque[Request] = deque()
        self._taken: Request | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._taken is not None)

    def put(self, request: Request) -> bool:
        """Drops the oldest until the new one fits. False: something was dropped."""
        self._add(request)
        self._waiting.append(request)
        return self._make_room()

    def take(self) -> Request | None:
        """The oldest, which stays counted, and cannot be dropped, until it is finished or put back."""
        if self._taken is None and self._waiting:
            self._taken = self._waiting.popleft()
        return self._taken

    def shrink(self, data: bytes) -> None:
        """The taken request has a smaller body now."""
        if self._taken is not None:
            self.bytes += len(data) - len(self._taken.data)
            self._taken.data, self._taken.compressed = data, True
            self._make_room()

    def put_back(self) -> None:
        if self._taken is not None:
            self._waiting.appendleft(self._taken)
            self._taken = None

    def finish(self, reason: str = "", items: int | None = None) -> None:
        """The taken request is done with. reason: why it, or `items` of it, was lost."""
        request, self._taken = self._taken, None
        if request is not None:
            self.bytes -= len(request.data)
            self.items -= request.items
            if reason:
                self.drop(
                    reason,
                    request.items if items is None else items,
                    len(request.data) if items is None else 0,
                )

    def drop(self, reason: str, items: int, size: int) -> None:
        self.dropped_items[reason] += items
        self.dropped_bytes[reason] += size

    def clear(self, reason: str) -> None:
        self.finish(reason)
        while self.take():
            self.finish(reason)

    def _add(self, request: Request) -> None:
        self.bytes += len(request.data)
        self.items += request.items

    def _make_room(self) -> bool:
        fitted = True
        while self.bytes > self.bytes_max and self._waiting:
            oldest = self._waiting.popleft()
            self.bytes -= len(oldest.data)
            self.items -= oldest.items
            self.drop(QUEUE_FULL, oldest.items, len(oldest.data))
            fitted = False
        return fitted
