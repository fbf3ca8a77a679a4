# SPDX-License-Identifier: Apache-2.0
"""Events of one direction to messages: cuts, holes, budgets, late joins, resyncs."""

from __future__ import annotations

import random

import pytest
from agent.core._core import lib

from tests.core.harness import CLIENT, IN, OUT, Core

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def paths(spans):
    return [s["url.path"] for s in spans]


def test_one_exchange_is_one_span_with_the_times_of_its_first_and_last_chunk():
    core = Core()
    c = core.open()
    c.receive(GET, at=2000)
    c.send(OK, at=2007)
    (span,) = core.spans()
    assert (span.start, span.end, span.kind) == (2000, 2007, 2)
    assert span["http.response.body.size"] == 2
    assert span["http.request.body.size"] == 0


def test_client_end_gives_a_client_span():
    core = Core()
    c = core.open(CLIENT, local=("10.0.0.1", 40000), remote=("10.0.0.2", 80))
    c.send(GET)
    c.receive(OK)
    (span,) = core.spans()
    assert span.kind == 3
    assert span["url.full"] == "http://x/a"


@pytest.mark.parametrize("cut", range(1, len(GET)))
def test_request_cut_at_any_byte_starts_when_its_first_byte_came(cut):
    core = Core()
    c = core.open()
    c.receive(GET[:cut], at=2000)
    c.receive(GET[cut:], at=2003)
    c.send(OK, at=2009)
    (span,) = core.spans()
    assert (span.start, span.end) == (2000, 2009)


def test_request_byte_by_byte_before_the_kernel_side_knows_the_protocol():
    core = Core()
    c = core.open()
    for i in range(len(GET)):
        c.receive(GET[i : i + 1], protocol=0)
    c.send(OK)
    assert paths(core.spans()) == ["/a"]
    assert core.ledger()["bytes"] == {"parsed": len(GET) + len(OK)}


@pytest.mark.parametrize("cut", range(1, len(OK)))
def test_response_cut_at_any_byte_ends_with_its_last_byte(cut):
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(OK[:cut], at=3000)
    assert core.spans() == []
    c.send(OK[cut:], at=3001)
    (span,) = core.spans()
    assert span.end == 3001


def test_span_leaves_when_its_response_is_complete_not_when_the_next_request_comes():
    core = Core()
    c = core.open()
    for i in range(3):
        c.receive(GET.replace(b"/a", b"/%d" % i))
        c.send(OK)
        assert paths(core.spans()) == [f"/{i}"]


def test_fifty_pipelined_requests_in_one_read_are_fifty_spans():
    core = Core()
    c = core.open()
    c.receive(b"".join(GET.replace(b"/a", b"/r/%d" % i) for i in range(50)), at=2000)
    for i in range(50):
        c.send(OK, at=2001 + i)
    spans = core.spans()
    assert paths(spans) == [f"/r/{i}" for i in range(50)]
    assert [s.end for s in spans] == [2001 + i for i in range(50)]


def test_pipelined_responses_in_one_write():
    core = Core()
    c = core.open()
    for i in range(7):
        c.receive(GET.replace(b"/a", b"/r/%d" % i), at=2000 + i)
    c.send(OK * 7, at=2100)
    spans = core.spans()
    assert [s.start for s in spans] == [2000 + i for i in range(7)]
    assert {s.end for s in spans} == {2100}


def test_body_passed_over_without_being_captured():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    c.send(b"", size=900_000)
    assert core.spans() == []
    c.send(b"", size=100_000, flags=lib.CHUNK_UNREADABLE)  # sendfile
    (span,) = core.spans()
    assert span["http.response.body.size"] == 1_000_000
    assert core.ledger()["bytes"] == {"parsed": len(GET) + 44 + 1_000_000}


def test_body_in_the_same_chunk_behind_the_captured_head():
    core = Core()
    c = core.open()
    c.receive(GET)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n"
    c.send(head + bytes(100), size=len(head) + 50000)
    c.receive(GET)
    c.send(OK)
    assert len(core.spans()) == 2


def test_next_request_behind_a_skipped_body_starts_in_the_same_chunk():
    core = Core()
    c = core.open()
    post = b"POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    c.receive(post + b"0123456789" + GET)
    c.send(OK + OK)
    assert paths(core.spans()) == ["/up", "/a"]


def test_chunked_body_cut_everywhere_has_the_right_size():
    body = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: 1\r\n\r\n"
    for cut in range(1, len(body)):
        core = Core()
        c = core.open()
        c.receive(GET)
        c.send(CHUNKED + body[:cut])
        c.send(body[cut:])
        (span,) = core.spans()
        assert span["http.response.body.size"] == 11


def test_read_until_close_ends_with_the_connection():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(b"HTTP/1.0 200 OK\r\n\r\nsome bytes", at=3000)
    c.send(b"and more", at=3005)
    assert core.spans() == []
    c.fin(OUT, at=3009)
    (span,) = core.spans()
    assert (span.end, span["http.response.status_code"]) == (3005, 200)


def test_read_until_close_that_a_reset_cuts_is_an_error():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(b"HTTP/1.0 200 OK\r\n\r\nsome bytes")
    c.fin(OUT, reset=True)
    (span,) = core.spans()
    assert (span.status, span["error.type"]) == (2, "connection_reset")


def test_head_response_has_no_body_and_does_not_swallow_the_next():
    core = Core()
    c = core.open()
    c.receive(b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n")
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    c.receive(GET)
    c.send(OK)
    assert paths(core.spans()) == ["/h", "/a"]


def test_interim_responses_belong_to_the_same_span():
    core = Core()
    c = core.open()
    c.receive(b"POST /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", at=2000)
    c.send(b"HTTP/1.1 100 Continue\r\n\r\n", at=2001)
    c.receive(b"abc", at=2002)
    c.send(OK, at=2003)
    (span,) = core.spans()
    assert (span.start, span.end, span["http.response.status_code"]) == (2000, 2003, 200)
    assert span["http.request.body.size"] == 3


def test_upgrade_ends_http_and_what_follows_is_unknown():
    core = Core()
    c = core.open()
    c.receive(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    c.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    c.receive(b"\x81\x05GET /")
    c.receive(GET)
    (span,) = core.spans()
    assert span["http.response.status_code"] == 101
    assert core.ledger()["bytes"]["unknown"] == 7 + len(GET)


def test_joined_in_the_middle_of_a_body_the_next_full_message_is_right():
    core = Core()
    c = core.open(late=True, unknown_role=True)
    c.receive(b"tail of an upload\r\nwith lines\r\n")
    c.send(b"rest of an answer")
    c.receive(GET)
    c.send(OK)
    (span,) = core.spans()
    assert span["url.path"] == "/a"
    assert core.ledger()["bytes"] == {"late": 31 + 17, "parsed": len(GET) + len(OK)}


def test_late_join_that_starts_with_a_response_does_not_pair_it_with_a_later_request():
    core = Core()
    c = core.open(late=True, unknown_role=True)
    c.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
    c.receive(GET)
    c.send(OK)
    (span,) = core.spans()
    assert span["http.response.status_code"] == 200
    assert core.stats().responses_unmatched == 1


def test_lost_request_costs_its_own_span_only():
    core = Core()
    c = core.open()
    for i in range(5):
        request = GET.replace(b"/a", b"/%d" % i)
        if i == 2:
            c.lose(IN, request)
        else:
            c.receive(request)
        c.send(OK)
    assert paths(core.spans()) == ["/0", "/1", "/3", "/4"]


def test_lost_response_costs_its_own_span_only():
    core = Core()
    c = core.open()
    for i in range(5):
        c.receive(GET.replace(b"/a", b"/%d" % i))
        if i == 2:
            c.lose(OUT, OK)
        else:
            c.send(OK)
    assert paths(core.spans()) == ["/0", "/1", "/3", "/4"]
    assert core.ledger()["orphans"] == 1
    assert core.ledger()["gaps"] == {"http1.lost": 1}


def test_lost_part_of_a_body_of_known_length_costs_nothing():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n")
    c.send(bytes(1000))
    c.lose(OUT, bytes(1000))
    c.send(bytes(1000))
    (span,) = core.spans()
    assert span["http.response.body.size"] == 3000


def test_budget_cuts_a_chunked_body_the_span_has_no_size_and_the_next_is_right():
    core = Core()
    c = core.open()
    c.receive(GET, at=2000)
    c.send(CHUNKED + b"10\r\n0123456789abcdef\r\n", at=2001)
    c.send(b"20\r\n", size=1000, at=2005)  # 996 bytes were not copied
    c.receive(GET, at=2009)
    c.send(OK, at=2012)
    first, second = core.spans()
    assert (first.end, first["http.response.body.size"]) == (2005, None)
    assert second["http.response.body.size"] == 2


def test_an_answer_of_lost_framing_ends_with_the_call_that_ends_as_it_would():
    core = Core()
    c = core.open()
    c.receive(GET, at=2000)
    c.send(CHUNKED + b"10\r\n0123456789abcdef\r\n", at=2001)
    c.send(b"20\r\n", size=1000, at=2005)
    assert core.spans() == []
    last = bytes(100) + b"\r\n0\r\n\r\n"
    c.send(last, head=0, tail=16, at=2007)
    (span,) = core.spans()
    assert (span.end, span.status, span["http.response.body.size"]) == (2007, 0, None)


def test_budget_cuts_a_chunked_body_and_the_connection_is_closed_in_order():
    core = Core()
    c = core.open()
    c.receive(GET, at=2000)
    c.send(CHUNKED + b"10\r\n0123456789abcdef\r\n", at=2001)
    c.send(b"20\r\n", size=1000, at=2005)
    c.fin(OUT, at=2009)
    (span,) = core.spans()
    assert (span.end, span.status, span["http.response.body.size"]) == (2005, 0, None)


def test_quiet_bytes_that_the_core_asked_for_are_no_loss():
    core = Core()
    c = core.open()
    c.receive(GET)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    c.send(head)
    c.pos[OUT] += 99_000
    c.send(bytes(1000), quiet=(99_000, 3))
    (span,) = core.spans()
    assert span["http.response.body.size"] == 100_000
    assert "lost" not in core.ledger()["bytes"]


def test_garbage_makes_no_span_and_the_connection_is_given_up_in_the_end():
    core = Core()
    c = core.open()
    rng = random.Random(7)
    for _ in range(50):
        c.receive(b"GET / nonsense \r\n\r\n" + rng.randbytes(40))
    c.receive(GET)
    c.send(OK)
    assert core.spans() == []
    assert core.stats().messages_invalid == 1
    assert core.ledger()["bytes"].keys() == {"unknown"}


def test_server_that_answers_twice_gives_one_span():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.send(OK + OK)
    c.receive(GET)
    c.send(OK)
    assert len(core.spans()) == 2
    assert core.stats().responses_unmatched == 1


def test_connection_that_dies_in_mid_message_is_an_error_span():
    core = Core()
    c = core.open(CLIENT)
    c.send(GET)
    c.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
    c.close(reset=True)
    (span,) = core.spans()
    assert (span.status, span["error.type"]) == (2, "connection_reset")
    assert core.stats().connections == 0


def test_an_answer_that_the_ring_refused_is_not_called_a_closed_connection():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.lose(OUT, OK)
    c.close()
    assert core.spans() == []
    assert core.stats().requests_dropped == 1


def test_request_without_an_answer_times_out():
    core = Core({"request_timeout_ns": 10_000 * 1_000_000})
    c = core.open(CLIENT)
    c.send(GET)
    assert core.spans() == []
    core.feed(now_ms=core.now_ms + 11_000)
    (span,) = core.spans()
    assert span["error.type"] == "timeout"


def test_half_closed_client_still_gets_its_answer():
    core = Core()
    c = core.open()
    c.receive(GET)
    c.fin(IN)
    c.send(OK)
    c.fin(OUT)
    c.close()
    (span,) = core.spans()
    assert span["http.response.status_code"] == 200


def test_endless_header_is_refused_at_the_cap_and_memory_is_given_back():
    core = Core({"stream_bytes_max": 64 * 1024})
    c = core.open()
    c.receive(b"GET / HTTP/1.1\r\n")
    for _ in range(100):
        c.receive(b"X: " + b"y" * 1000 + b"\r\n")
    assert core.spans() == []
    assert core.stats().buffered_bytes <= 64 * 1024
    c.close()
    core.feed()
    assert core.stats().buffered_bytes == 0


def test_chunk_of_an_unknown_connection_is_counted_as_lost():
    core = Core()
    c = core.open(announce=False)
    c.receive(GET)
    core.feed()
    assert core.stats().events_unknown_connection == 1
    assert core.ledger()["bytes"] == {"lost": len(GET)}


def test_malformed_records_are_counted_and_dropped():
    core = Core()
    c = core.open()
    c.receive(GET)
    core.records[-len(GET) - 8 : -len(GET)] = b"\xff" * 8  # quiet_bytes: harmless
    core.push(b"\x02" + bytes(10))
    core.push(b"\x63" + bytes(30))
    core.push(core.header(lib.EVENT_CHUNK, 0, 0, 3, 1, None, c.id) + b"\xff" * 40)
    core.feed()
    assert core.stats().events_malformed == 3


def conversation(rng: random.Random, requests: int) -> tuple[list[tuple[int, bytes]], list[str]]:
    """Messages in the order of their times, and the paths that were asked for."""
    messages: list[tuple[int, bytes]] = []
    asked = []
    for i in range(requests):
        path, status = f"/q/{i}x", 210 + i  # the status says which request it answers
        asked.append(path)
        body = rng.randbytes(rng.choice([0, 1, 300, 20000]))
        if rng.random() < 0.3:
            messages.append(
                (
                    IN,
                    b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
                    + body,
                )
            )
        else:
            messages.append((IN, b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode()))
        if rng.random() < 0.5:
            data = (
                b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:100], body[100:]) if p) + b"0\r\n\r\n"
            )
            messages.append((OUT, CHUNKED.replace(b"200", b"%d" % status) + data))
        else:
            messages.append(
                (OUT, b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            )
    return messages, asked


@pytest.mark.parametrize("seed", range(40))
def test_random_cuts_give_every_span_once_and_the_ledger_is_exact(seed):
    rng = random.Random(seed)
    messages, asked = conversation(rng, 20)
    core = Core()
    c = core.open()
    total = chunks = 0
    for direction, data in messages:
        while data:
            n = rng.choice([1, 3, 50, 1000, len(data), len(data)])
            c.chunk(direction, data[:n])
            total, chunks, data = total + len(data[:n]), chunks + 1, data[n:]
    assert paths(core.spans()) == asked
    ledger = core.ledger()
    assert ledger["bytes"] == {"parsed": total}
    assert ledger["chunks"] == {"parsed": chunks}
    c.close()
    core.feed()
    assert core.stats().buffered_bytes == 0


@pytest.mark.parametrize("seed", range(150))
def test_random_loss_and_truncation_never_invent_or_mispair_a_span(seed):
    rng = random.Random(1000 + seed)
    messages, asked = conversation(rng, 30)
    core = Core()
    c = core.open()
    seen_bytes = seen_chunks = 0
    starts = {}
    for direction, data in messages:
        while data:
            n = min(len(data), rng.choice([40, 1000, 30000]))
            piece, data = data[:n], data[n:]
            if direction == IN and piece.startswith((b"GET", b"POST")):
                starts[piece.split(b" ", 2)[1].decode()] = core.now_ms + 1
            if rng.random() < 0.1:
                core.now_ms += 1
                c.lose(direction, piece)
                continue
            captured = rng.choice([len(piece), len(piece), 64, 0])
            c.chunk(direction, piece[:captured], size=len(piece))
            seen_bytes, seen_chunks = seen_bytes + len(piece), seen_chunks + 1
    c.close()
    spans = core.spans()
    got = paths(spans)
    assert len(set(got)) == len(got)
    assert set(got) <= set(asked)
    for span in spans:
        if span["http.response.status_code"] is not None:
            assert f"/q/{span['http.response.status_code'] - 210}x" == span["url.path"]
        assert span.start == starts[span["url.path"]]
        assert span.end >= span.start
    ledger = core.ledger()
    assert sum(ledger["bytes"].values()) == seen_bytes
    assert sum(ledger["chunks"].values()) == seen_chunks
    assert core.stats().buffered_bytes == 0
    assert core.stats().connections == 0
