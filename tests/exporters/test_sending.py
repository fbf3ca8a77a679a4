# SPDX-License-Identifier: Apache-2.0
"""Queue, retry and sender with a clock of the test's own and a destination that answers as told."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from exporters.byte_queue import Queue, Request
from exporters.retry import RETRYABLE, Backoff, retry_after_s
from exporters.say import Say
from exporters.sender import Answer, Lane, Sender, Unreachable

OK = Answer(200)
NOW = 1_760_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeDestination:
    url = "http://collector/v1/traces"

    def __init__(self, *outcomes: Answer | Exception, gzip: Callable[[bytes], bytes] | None = None) -> None:
        self.outcomes, self.gzip = list(outcomes), gzip
        self.posted: list[bytes] = []
        self.compressions = 0

    def prepare(self, data: bytes | memoryview) -> bytes | None:
        if self.gzip is None:
            return None
        self.compressions += 1
        return self.gzip(bytes(data))

    def post(self, data: bytes | memoryview, compressed: bool) -> Answer:
        assert compressed == (self.gzip is not None)
        self.posted.append(bytes(data))
        outcome = self.outcomes.pop(0) if self.outcomes else OK
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        pass


def sender_to(
    *outcomes: Answer | Exception,
    queue_bytes: int = 1000,
    bytes_max: int = 1000,
    gzip: Callable[[bytes], bytes] | None = None,
) -> tuple[Sender, FakeDestination, Clock]:
    clock, destination = Clock(), FakeDestination(*outcomes, gzip=gzip)
    lane = Lane("traces", "spans", destination, Queue(queue_bytes), bytes_max)
    sender = Sender("otlp", [lane], Backoff(jitter=0), clock=clock, unix=lambda: NOW)
    return sender, destination, clock


# ---- queue


def test_queue_drops_the_oldest_and_counts_items_and_bytes() -> None:
    queue = Queue(30)
    assert queue.put(Request(b"a" * 10, 1))
    assert queue.put(Request(b"b" * 20, 2))
    assert not queue.put(Request(b"c" * 5, 3))
    assert (queue.bytes, queue.items, len(queue)) == (25, 5, 2)
    assert queue.dropped_items == {"queue_full": 1}
    assert queue.dropped_bytes == {"queue_full": 10}
    request = queue.take()
    assert request and bytes(request.data)[:1] == b"b"


def test_queue_refuses_what_is_larger_than_itself() -> None:
    queue = Queue(30)
    assert not queue.put(Request(b"a" * 31, 4))
    assert (queue.bytes, queue.items, len(queue), queue.dropped_items["queue_full"]) == (0, 0, 0, 4)


def test_what_is_being_sent_is_not_dropped() -> None:
    queue = Queue(30)
    queue.put(Request(b"a" * 20, 1))
    queue.take()
    assert not queue.put(Request(b"b" * 20, 2))
    assert (queue.bytes, queue.dropped_items["queue_full"]) == (20, 2)
    queue.finish()
    assert (queue.bytes, queue.items, len(queue)) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_queue_accounts_for_everything_and_stays_within_its_bound(seed: int) -> None:
    rng, queue, put, done = random.Random(seed), Queue(1000), 0, 0
    for _ in range(2000):
        action = rng.randrange(6)
        if action < 3:
            items = rng.randrange(1, 5)
            queue.put(Request(bytes(rng.randrange(400)), items))
            put += items
        elif action == 3:
            queue.take()
        elif action == 4 and (taken := queue.take()):
            done += taken.items
            queue.finish()
        else:
            queue.put_back()
        assert 0 <= queue.bytes <= 1000
        assert put == done + queue.items + queue.dropped_items["queue_full"]


# ---- retry


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        (format_datetime(datetime.fromtimestamp(NOW + 42, UTC), usegmt=True), 42.0),
        (format_datetime(datetime.fromtimestamp(NOW - 42, UTC), usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("1.5", None),
        ("9" * 5000, 999_999_999.0),
        ("Wed, 32 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_backoff_grows_to_its_maximum_with_jitter() -> None:
    backoff = Backoff()
    middle = [backoff.delay_s(n, lambda low, high: (low + high) / 2) for n in (1, 2, 3, 9, 10, 10**9)]
    assert middle == [1.0, 1.5, 2.25, pytest.approx(25.6, abs=0.1), 30.0, 30.0]
    delays = [backoff.delay_s(1) for _ in range(1000)]
    assert 0.5 <= min(delays) < 0.6
    assert 1.4 < max(delays) <= 1.5


# ---- sender


@pytest.mark.parametrize("status", [*range(300, 309), *range(400, 432), 451, *range(500, 512), 599])
def test_only_four_statuses_are_retried(status: int) -> None:
    sender, destination, clock = sender_to(Answer(status))
    sender.put("traces", b"x", 5)
    wait_s = sender.step()
    stats = sender.stats()
    assert stats["requests"] == stats["failures"] == 1
    if status in (429, 502, 503, 504):
        assert wait_s == 1.0
        clock.now += wait_s
        assert sender.step() is None
        assert sender.stats()["sent_spans"] == 5
        assert destination.posted == [b"x", b"x"]
    else:
        assert wait_s is None
        assert stats["dropped_spans_rejected"] == 5
        assert destination.posted == [b"x"]
    assert (status in RETRYABLE) == (status in (429, 502, 503, 504))


def test_no_response_is_retried_and_nothing_is_sent_before_its_time() -> None:
    sender, destination, clock = sender_to(
        Unreachable("connection refused"), Unreachable("no answer in time")
    )
    sender.put("traces", b"x", 1)
    assert sender.step() == 1.0
    assert sender.step() == 1.0
    assert len(destination.posted) == 1
    clock.now += 1.0
    assert sender.step() == 1.5
    clock.now += 1.5
    assert sender.step() is None
    assert sender.stats()["sent_spans"] == 1


def test_success_resets_the_backoff() -> None:
    sender, _, clock = sender_to(Unreachable("x"), Unreachable("x"), OK, Unreachable("x"))
    for _ in range(2):
        sender.put("traces", b"x", 1)
    for wait_s in (1.0, 1.5, 0.0, 1.0):
        assert sender.step() == wait_s
        clock.now += wait_s


@pytest.mark.parametrize("value", ["17", format_datetime(datetime.fromtimestamp(NOW + 17, UTC), usegmt=True)])
def test_retry_after_is_honoured_even_by_flush(value: str) -> None:
    sender, destination, clock = sender_to(Answer(503, retry_after=value))
    sender.put("traces", b"x", 1)
    assert sender.step() == 17.0
    assert not sender.flush(0)
    assert sender.step() == 17.0
    clock.now += 17.0
    assert sender.step() is None
    assert len(destination.posted) == 2


def test_flush_tries_at_once_what_waits_for_a_backoff() -> None:
    sender, destination, _ = sender_to(Unreachable("x"))
    sender.put("traces", b"x", 1)
    assert sender.step() == 1.0
    assert not sender.flush(0)
    assert sender.step() is None
    assert len(destination.posted) == 2
    assert sender.flush(0)


def test_a_request_is_given_up_after_five_minutes() -> None:
    sender, _, clock = sender_to(*[Unreachable("x")] * 100)
    sender.put("traces", b"xyz", 7)
    start, waited = clock.now, sender.step()
    while waited is not None:
        clock.now += waited
        waited = sender.step()
    assert 270 <= clock.now - start <= 300
    stats = sender.stats()
    assert (
        stats["dropped_spans_retry_expired"],
        stats["dropped_bytes_retry_expired"],
        stats["queue_bytes"],
    ) == (7, 3, 0)


def test_a_wait_beyond_the_end_expires_the_request_and_still_spares_the_receiver() -> None:
    sender, destination, clock = sender_to(Answer(429, retry_after="86400"))
    sender.put("traces", b"x", 1)
    assert sender.step() is None
    assert sender.stats()["dropped_spans_retry_expired"] == 1
    sender.put("traces", b"y", 1)
    assert sender.step() == 86400.0
    clock.now += 86400.0
    sender.step()
    assert destination.posted == [b"x", b"y"]


def test_partial_success_is_counted_and_never_retried() -> None:
    sender, destination, _ = sender_to(Answer(200, rejected=3, text="bad ids"))
    sender.put("traces", b"x", 10)
    assert sender.step() is None
    stats = sender.stats()
    assert (stats["sent_spans"], stats["dropped_spans_rejected"], len(destination.posted)) == (7, 3, 1)


def test_partial_success_cannot_reject_more_than_there_was() -> None:
    sender, _, _ = sender_to(Answer(200, rejected=2**62))
    sender.put("traces", b"x", 10)
    sender.step()
    assert (sender.stats()["sent_spans"], sender.stats()["dropped_spans_rejected"]) == (0, 10)


def test_an_oversize_request_is_never_sent() -> None:
    sender, destination, _ = sender_to(bytes_max=10)
    sender.put("traces", b"x" * 11, 4)
    sender.put("traces", b"x" * 10, 1)
    assert sender.step() is None
    assert sender.stats()["dropped_spans_too_large"] == 4
    assert [len(data) for data in destination.posted] == [10]


def test_queue_overflow_while_the_receiver_is_away() -> None:
    sender, destination, clock = sender_to(Unreachable("x"), queue_bytes=100)
    for n in range(5):
        sender.put("traces", bytes([n]) * 10, 1)
    sender.step()
    for n in range(5, 25):
        sender.put("traces", bytes([n]) * 10, 1)
    stats = sender.stats()
    assert (stats["dropped_spans_queue_full"], stats["dropped_bytes_queue_full"], stats["queue_bytes"]) == (
        15,
        150,
        100,
    )
    clock.now += 60
    while sender.step() is not None:
        pass
    assert [data[0] for data in destination.posted] == [0, *range(15, 25)]


def test_a_body_is_compressed_once_and_the_queue_shrinks() -> None:
    sender, destination, clock = sender_to(Unreachable("x"), gzip=lambda data: data[:3])
    sender.put("traces", b"x" * 100, 1)
    assert sender.stats()["queue_bytes"] == 100
    sender.step()
    assert sender.stats()["queue_bytes"] == 3
    clock.now += 1
    sender.step()
    assert (destination.compressions, destination.posted) == (1, [b"xxx", b"xxx"])
    assert (sender.stats()["sent_bytes"], sender.stats()["queue_bytes"]) == (3, 0)


def test_one_lane_does_not_wait_for_another() -> None:
    clock = Clock()
    away, there = FakeDestination(*[Unreachable("x")] * 9), FakeDestination()
    lanes = [
        Lane("traces", "spans", away, Queue(100), 100),
        Lane("metrics", "points", there, Queue(100), 100),
    ]
    sender = Sender("otlp", lanes, Backoff(jitter=0), clock=clock)
    sender.put("traces", b"t", 1)
    sender.step()
    sender.put("metrics", b"m", 8)
    assert sender.step() == 1.0
    assert (there.posted, sender.stats()["sent_points"], sender.stats()["sent_spans"]) == ([b"m"], 8, 0)


def test_close_counts_what_was_left() -> None:
    sender, _, _ = sender_to()
    sender.put("traces", b"xx", 3)
    sender.close()
    sender.put("traces", b"x", 2)
    stats = sender.stats()
    assert (stats["dropped_spans_shutdown"], stats["dropped_bytes_shutdown"], stats["queue_bytes"]) == (
        5,
        3,
        0,
    )


def test_a_fault_of_ours_costs_one_request_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    sender, _, _ = sender_to(RuntimeError("bug"))
    sender.put("traces", b"x", 2)
    sender.put("traces", b"y", 3)
    assert sender.step() == 0.0
    assert sender.step() is None
    assert (sender.stats()["dropped_spans_rejected"], sender.stats()["sent_spans"]) == (2, 3)
    assert "Traceback" in caplog.text


def test_failures_are_said_once_with_what_waits_and_the_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sender, _, clock = sender_to(*[Unreachable("connection refused")] * 3)
    sender.put("traces", b"x" * 500, 42)
    for _ in range(4):
        clock.now += sender.step() or 0
    assert caplog.messages == [
        "cannot reach http://collector/v1/traces: connection refused; "
        "42 spans wait (500 bytes), next try in 1 s",
        "http://collector/v1/traces answers again, after 5 s",
    ]


def test_log_lines_are_limited_by_subject() -> None:
    clock, lines = Clock(), list[str]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.Logger("test")
    logger.addHandler(Handler())
    say = Say(logger, 10.0, clock)
    for _ in range(25):
        say.warn("a", "trouble")
        clock.now += 1
    say.warn("b", "other")
    say.over("b", "fine")
    say.over("c", "never heard")
    assert lines == ["trouble", "trouble (9 more like it)", "trouble (9 more like it)", "other", "fine"]
