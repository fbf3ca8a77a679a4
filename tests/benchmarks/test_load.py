# SPDX-License-Identifier: Apache-2.0
"""The load generator against real servers: every request counted, each id once, the schedule kept."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks import load, servers
from benchmarks.processes import ProcessError, free_port, listener


@pytest.mark.parametrize(
    ("options", "connections"),
    [
        ({"rate": 3000, "requests": 1009}, 50),
        ({"rate": 3000, "requests": 1009, "pipeline": 7}, 50),
        ({"rate": 1000, "requests": 211, "close": True}, 211),
        ({"rate": 0, "requests": 1009}, 50),
        ({"rate": 3000, "requests": 1009, "connections": 1, "pipeline": 50}, 1),
    ],
)
def test_nginx_logs_exactly_the_ids_that_were_sent(options: dict[str, int], connections: int) -> None:
    with servers.nginx(access_log=True) as server:
        result = load.run(server.port, **options)
        logged = Counter(
            int(request.target.removeprefix("/r/"), 16)
            for request in server.requests(count=options["requests"])
        )
    assert (result.answered, result.failed, result.unsent) == (options["requests"], 0, 0)
    assert result.statuses == {200: options["requests"]}
    assert logged == Counter(result.ids())
    assert result.connections == connections


def test_a_rate_is_kept_and_latency_runs_from_the_due_time() -> None:
    with servers.nginx() as server:
        result = load.run(server.port, rate=2000, seconds=1)
    gaps = np.diff(result.records["intended_ns"])
    assert np.all(np.abs(gaps - 500_000) <= 1)
    assert result.achieved_per_s == pytest.approx(2000, rel=0.05)
    assert np.all(result.records["sent_ns"] >= result.records["intended_ns"])


def test_a_server_that_stalls_is_charged_for_the_requests_that_had_to_wait() -> None:
    """One connection, 20 ms between requests, one answer 200 ms late: ten requests feel it, not one."""
    with _slow_server(slow_request=5, delay_s=0.2) as port:
        result = load.run(port, rate=50, requests=23, connections=1)
    latency_ms = (result.records["done_ns"] - result.records["intended_ns"]) / 1e6
    assert result.answered == 23
    assert np.sum(latency_ms > 30) >= 7
    assert result.late >= 7


def test_bodies_in_chunks_without_length_and_after_100_continue_are_read_to_their_end() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nCONTENT-LENGTH: 3\r\n\r\nabc",
    ]
    with _scripted_server(answers, close_last=b"HTTP/1.0 200 OK\r\n\r\nuntil the end") as port:
        result = load.run(port, rate=100, requests=4, connections=1)
    assert result.answered == 4
    assert result.statuses == {200: 2, 204: 1, 404: 1}


def test_requests_without_an_answer_are_failed_not_forgotten() -> None:
    with _scripted_server([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], close_last=b"") as port:
        result = load.run(port, rate=100, requests=2, connections=1)
    assert (result.requests, result.answered, result.failed, result.unsent) == (2, 1, 1, 0)


def test_headers_are_sent_and_ids_never_repeat_between_runs() -> None:
    with servers.nginx(
        directives="add_header X-Seen $http_x_test; if ($http_x_test = '') { return 400; }"
    ) as server:
        with_header = load.run(server.port, requests=11, headers=["X-Test: 1"])
        without = load.run(server.port, requests=11)
    assert with_header.statuses == {200: 11}
    assert without.statuses == {400: 11}
    assert not with_header.ids() & without.ids()


def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(ProcessError, match="Connection refused"):
        load.run(port, requests=1)


def test_a_load_ends_with_its_block() -> None:
    start = time.monotonic()
    with servers.nginx() as server, load.running(server.port, rate=100, seconds=600) as generator:
        assert generator.child.running
    assert not generator.child.running
    assert time.monotonic() - start < 10


@contextmanager
def _slow_server(slow_request: int, delay_s: float) -> Iterator[int]:
    """Answers every request on its connection; one of them late."""

    def serve(held: socket.socket) -> None:
        connection, _ = held.accept()
        count, data = 0, b""
        with connection:
            while part := connection.recv(65536):
                data += part
                while b"\r\n\r\n" in data:
                    _, _, data = data.partition(b"\r\n\r\n")
                    count += 1
                    if count == slow_request:
                        time.sleep(delay_s)  # the stall that is measured
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with _serving(serve) as port:
        yield port


@contextmanager
def _scripted_server(answers: list[bytes], close_last: bytes) -> Iterator[int]:
    """Gives these answers, each to one request and byte by byte; then `close_last`, and closes."""

    def serve(held: socket.socket) -> None:
        connection, _ = held.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for answer in answers:
                connection.recv(65536)
                for byte in answer:
                    connection.sendall(bytes([byte]))
            connection.recv(65536)
            connection.sendall(close_last)

    with _serving(serve) as port:
        yield port


@contextmanager
def _serving(serve) -> Iterator[int]:  # type: ignore[no-untyped-def]
    with listener() as held:
        thread = threading.Thread(target=serve, args=(held,), daemon=True)
        thread.start()
        yield held.getsockname()[1]
        thread.join(5)
