# SPDX-License-Identifier: Apache-2.0
"""The capture tests once more, with the kernel's own functions as hooks (`--capture kprobe`), and io_uring.

Needs a kernel with kprobes: `make test-vm`. What is imported runs here against the fixture of this file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import kernel
from tests import io_uring

from .conftest import IN, OUT, UNREADABLE, Tracer, ended, load
from .test_capture import (  # noqa: F401
    REQUEST,
    test_a_fin_read_with_the_first_bytes_that_are_seen,
    test_a_fin_read_with_the_last_bytes_is_no_gap,
    test_a_peeked_read_is_no_chunk,
    test_a_send_that_waits_has_the_time_of_its_entry,
    test_a_tail_that_spans_two_vectors,
    test_descriptor_reused_by_another_connection,
    test_descriptor_reused_by_dup2_is_not_mistaken,
    test_discarded_bytes_are_unreadable,
    test_each_call_is_one_chunk_with_its_bytes,
    test_half_close_ends_one_direction,
    test_ipv6_and_mapped_addresses,
    test_many_short_connections_leave_nothing_behind,
    test_one_call_is_cut_into_records_up_to_the_allowance,
    test_open_event_tells_both_ends,
    test_other_protocols_are_counted_without_records,
    test_partial_writes_and_eagain_count_what_moved,
    test_positions_are_the_sequence_numbers_of_tcp,
    test_request_that_arrives_byte_by_byte,
    test_reset_is_told,
    test_scattered_bytes_are_gathered_up_to_the_kernels_limit,
    test_skipped_bytes_are_not_copied,
    test_sockets_older_than_the_agent,
    test_what_is_no_connection_is_not_counted,
)

pytestmark = [pytest.mark.kernel, pytest.mark.kprobes]

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture(scope="module")
def loaded() -> Iterator[kernel.Kernel]:
    with load(backend="kprobe") as each:
        assert each.refused == []
        yield each


def test_unix_and_udp_sockets(tracer: Tracer) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendmsg([REQUEST[:7], REQUEST[7:]])
        assert there.recv(4096) == REQUEST
        assert [(e.direction, e.head) for e in tracer.of("chunk")] == [(OUT, REQUEST), (IN, REQUEST)]
    tracer.wait(lambda events: len(ended(events)) == 2)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET6, 2) as two:
        two.bind(("::1", 0))
        one.sendto(REQUEST, two.getsockname())
        two.recv(4096)
    counted = tracer.counted()
    assert (counted["chunks"], counted["unknown_chunks"]) == (4, 2)


def test_sendfile_is_a_chunk_for_each_run_of_pages(tracer: Tracer, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"f" * 50_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server, file.open("rb") as body:
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        assert os.sendfile(client.fileno(), body.fileno(), 0, 50_000) == 50_000
        pages = tracer.of("chunk", OUT)[1:]
    assert sum(e.size for e in pages) == 50_000
    assert all(e.flags & UNREADABLE and not e.head and not e.tail for e in pages)
    assert tracer.counted()["gap_bytes"] == 0


@pytest.mark.parametrize("how", ["", "vectors"])
def test_io_uring_is_seen_byte_by_byte(tracer: Tracer, tmp_path: Path, how: str) -> None:
    with io_uring.server(tmp_path, how) as server:
        tracer.kernel.trace(server.pid, by_kprobe=True)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            for _ in range(5):
                client.sendall(REQUEST)
                assert client.recv(4096) == RESPONSE
        chunks = [e for e in tracer.of("chunk") if e.tgid == server.pid]
        tracer.kernel.untrace(server.pid)
    assert [(e.direction, e.head) for e in chunks] == [(IN, REQUEST), (OUT, RESPONSE)] * 5
    assert len({e.conn_id for e in chunks}) == 1
    assert tracer.counted()["gap_bytes"] == 0


def test_with_both_kinds_of_hooks_nothing_is_counted_twice() -> None:
    """`auto`: a process goes from one to the other, and back; each call is one chunk."""
    with load(backend="auto") as both:
        assert both.backend.name == "auto" and both.attach_kprobes()
        tracer = Tracer(both)
        for by_kprobe in (False, True, False):
            both.trace(os.getpid(), by_kprobe=by_kprobe)
            here, there = socket.socketpair()
            with here, there:
                here.send(REQUEST)
                there.recv(4096)
        both.untrace(os.getpid())
        assert both.refused == []
        assert tracer.counted()["chunks"] == 6
