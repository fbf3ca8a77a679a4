# SPDX-License-Identifier: Apache-2.0
"""One thread that sends what waits in one or more queues, tries again as `retry.py` says, and counts.

A lane is one signal: its queue, its destination and its own wait, so that metrics are not stuck behind
spans that nobody takes. `step()` does at most one try and never waits: the thread waits, tests need not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from exporters.byte_queue import (
    QUEUE_FULL,
    REASONS,
    REJECTED,
    RETRY_EXPIRED,
    SHUTDOWN,
    TOO_LARGE,
    Queue,
    Request,
)
from exporters.retry import RETRYABLE, Backoff, retry_after_s
from exporters.say import Say

log = logging.getLogger(__name__)


class Unreachable(Exception):
    """No response: the message says why, in the words of the system."""


@dataclass(frozen=True)
class Answer:
    """A response. rejected: items that a successful one refused. text: the receiver's words, in one line."""

    status: int
    retry_after: str | None = None
    rejected: int = 0
    text: str = ""


class Destination(Protocol):
    url: str

    def prepare(self, data: bytes | memoryview) -> bytes | None:
        """The body as it is sent, compressed, or None: as it is. Called once per request."""

    def post(self, data: bytes | memoryview, compressed: bool) -> Answer:
        """Raises Unreachable."""

    def close(self) -> None: ...


@dataclass
class Lane:
    """noun: what the items are called in messages. bytes_max: of one body before compression."""

    name: str
    noun: str
    destination: Destination
    queue: Queue
    bytes_max: int
    due: float = 0.0
    told_to_wait: bool = False  # by Retry-After
    failures: int = 0  # in a row
    failing_since: float = 0.0
    sent_items: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"requests": 0, "failures": 0, "sent_bytes": 0})


class Sender:
    def __init__(
        self,
        name: str,
        lanes: Sequence[Lane],
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self.lanes = {lane.name: lane for lane in lanes}
        self._name, self._backoff, self._clock, self._unix = name, backoff or Backoff(), clock, unix
        self._say = Say(log, clock=clock)
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, lane_name: str, data: bytes | memoryview, items: int) -> None:
        """Never blocks. The data must not change any more."""
        lane = self.lanes[lane_name]
        with self._changed:
            if self._closing:
                lane.queue.drop(SHUTDOWN, items, len(data))
            elif len(data) > lane.bytes_max:
                lane.queue.drop(TOO_LARGE, items, len(data))
                self._say.warn(
                    f"{lane.name} large",
                    f"a request of {len(data)} bytes is over the limit of {lane.bytes_max}: "
                    f"{items} {lane.noun} dropped",
                )
            else:
                if not lane.queue.put(Request(data, items)):
                    dropped = lane.queue.dropped_items[QUEUE_FULL]
                    self._say.warn(
                        f"{lane.name} full",
                        f"{lane.destination.url}: queue full (export.queue_bytes), the oldest are dropped: "
                        f"{dropped} {lane.noun} so far",
                    )
                self._changed.notify_all()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"export-{self._name}", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Tries what waits for a retry at once, unless the receiver asked for the wait. True: all was sent
        or finally refused in time."""
        with self._changed:
            for lane in self.lanes.values():
                if not lane.told_to_wait:
                    lane.due = self._clock()
            self._changed.notify_all()
            return self._changed.wait_for(self._empty, timeout_s)

    def close(self) -> None:
        """What still waits is dropped and counted. Does not wait for a try that is under way."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(0.2)
        with self._changed:
            for lane in self.lanes.values():
                lane.queue.clear(SHUTDOWN)
                lane.destination.close()

    def stats(self) -> dict[str, int]:
        """Counters since the start; queue_* are now. By what the items are, the rest together."""
        with self._changed:
            out: dict[str, int] = {}
            for lane in self.lanes.values():
                out[f"sent_{lane.noun}"] = lane.sent_items
                for reason in REASONS:
                    out[f"dropped_{lane.noun}_{reason}"] = lane.queue.dropped_items[reason]
                    key = f"dropped_bytes_{reason}"
                    out[key] = out.get(key, 0) + lane.queue.dropped_bytes[reason]
                now = {"queue_bytes": lane.queue.bytes, "queue_requests": len(lane.queue)}
                for key, value in (lane.counts | now).items():
                    out[key] = out.get(key, 0) + value
            return out

    def step(self) -> float | None:
        """One try of the lane that is due the longest. Seconds until the next one is; None: nothing waits."""
        with self._changed:
            wait_s = self._wait_s()
            if wait_s is None or wait_s > 0:
                return wait_s
            lane = min((lane for lane in self.lanes.values() if len(lane.queue)), key=lambda lane: lane.due)
            request = lane.queue.take()
            assert request is not None
            if request.first_try is None:
                request.first_try = self._clock()
        try:
            if not request.compressed and (smaller := lane.destination.prepare(request.data)) is not None:
                with self._changed:
                    lane.queue.shrink(smaller)
            outcome: Answer | Unreachable = lane.destination.post(request.data, request.compressed)
        except Unreachable as error:
            outcome = error
        except Exception as error:  # a fault of ours must cost one request, not the thread
            log.exception("sending to %s", lane.destination.url)
            outcome = Answer(0, text=f"{type(error).__name__}: {error}")
        with self._changed:
            if not self._closing:
                self._settle(lane, request, outcome)
                self._changed.notify_all()
            return self._wait_s()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    wait_s = self._wait_s()
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._changed.wait(wait_s)
                if self._closing:
                    return
            self.step()

    def _empty(self) -> bool:
        return not any(len(lane.queue) for lane in self.lanes.values())

    def _wait_s(self) -> float | None:
        due = [lane.due for lane in self.lanes.values() if len(lane.queue)]
        return max(0.0, min(due) - self._clock()) if due else None

    def _settle(self, lane: Lane, request: Request, outcome: Answer | Unreachable) -> None:
        lane.counts["requests"] += 1
        where = lane.destination.url
        if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
            rejected = min(outcome.rejected, request.items)
            lane.sent_items += request.items - rejected
            lane.counts["sent_bytes"] += len(request.data)
            lane.queue.finish(REJECTED if rejected else "", rejected)
            if rejected or outcome.text:
                self._say.warn(
                    f"{lane.name} partial",
                    f"{where} accepted all but {rejected} {lane.noun}: {outcome.text or 'no reason'}",
                )
            self._say.over(
                f"{lane.name} failing",
                f"{where} answers again, after {self._clock() - lane.failing_since:.0f} s",
            )
            lane.failures, lane.due, lane.told_to_wait = 0, 0.0, False
            return

        lane.counts["failures"] += 1
        if isinstance(outcome, Unreachable):
            trouble, retryable, asked = f"cannot reach {where}: {outcome}", True, None
        else:
            text = f" ({outcome.text})" if outcome.text else ""
            trouble = (
                f"{where} answered {outcome.status}{text}" if outcome.status else f"{where}: {outcome.text}"
            )
            retryable, asked = outcome.status in RETRYABLE, retry_after_s(outcome.retry_after, self._unix())
        if not retryable:
            lane.queue.finish(REJECTED)
            lane.failures, lane.due, lane.told_to_wait = 0, 0.0, False
            self._say.warn(f"{lane.name} refused", f"{trouble}; {request.items} {lane.noun} dropped")
            return

        now = self._clock()
        lane.failing_since = lane.failing_since if lane.failures else now
        lane.failures += 1
        delay_s = self._backoff.delay_s(lane.failures) if asked is None else asked
        lane.due, lane.told_to_wait = now + delay_s, asked is not None
        assert request.first_try is not None
        if lane.due - request.first_try > self._backoff.elapsed_max_s:
            lane.queue.finish(RETRY_EXPIRED)
            trouble += f"; {request.items} {lane.noun} dropped after {now - request.first_try:.0f} s"
        else:
            lane.queue.put_back()
        self._say.warn(
            f"{lane.name} failing",
            f"{trouble}; {lane.queue.items} {lane.noun} wait ({_bytes(lane.queue.bytes)}), "
            f"next try in {delay_s:.0f} s",
        )


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} MiB"
