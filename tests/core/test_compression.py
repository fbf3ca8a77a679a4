# SPDX-License-Identifier: Apache-2.0
"""Compressed MySQL connections through the core: frames made by Python's zlib and by the zstandard package.

https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_compression_packet.html
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from agent.core._core import lib

from tests.core.harness import CLIENT, IN, OUT, SERVER, Connection, Core, Span
from tests.protocols.test_mysql import (
    COMPRESS,
    USUAL,
    ZSTD,
    connected,
    err,
    ok,
    packet,
    packets,
    query,
    rows,
    string,
)

Compress = Callable[[bytes], bytes]
DEMAND = 32  # bytes of struct demand
SELECT, TEXT = query(b"SELECT a FROM t WHERE b = 1"), "SELECT a FROM t WHERE b = ?"
WIDE = query(b"SELECT a FROM t WHERE b = '" + b"x" * 3000 + b"'")
DONE = packet(1, ok())
FAILED = packet(1, err(1146))
DIRECTIONS = (OUT, IN)
ALGORITHMS = {
    "zlib": (COMPRESS, zlib.compress),
    "zstd": (ZSTD, zstandard.ZstdCompressor(level=3).compress),
    "both offered": (COMPRESS | ZSTD, zlib.compress),
}


def frame(
    sequence: int, data: bytes, compress: Compress | None = zlib.compress, held: int | None = None
) -> bytes:
    """compress: None: as it is. held: what the header says of the length of `data`."""
    payload = data if compress is None else compress(data)
    size = (len(data) if compress else 0) if held is None else held
    return (
        struct.pack("<I", len(payload))[:3] + bytes([sequence % 256]) + struct.pack("<I", size)[:3] + payload
    )


def opened(core: Core, capabilities: int = COMPRESS, **options: object) -> Connection:
    """Behind its connection phase, which is not compressed."""
    settings = {"role": CLIENT, "local": ("127.0.0.1", 50000), "remote": ("127.0.0.1", 3306), **options}
    connection = core.open(**settings, protocol=lib.PROTOCOL_MYSQL)
    for sender, data, _ in connected(USUAL | capabilities):
        connection.chunk(DIRECTIONS[sender], data)
    return connection


def told(spans: list[Span]) -> list[tuple[str | None, str | None, int | None]]:
    return [(span["db.query.text"], span["error.type"], span["db.response.returned_rows"]) for span in spans]


def next_exchange(core: Core, connection: Connection, compress: Compress = zlib.compress) -> list[Span]:
    connection.send(frame(0, SELECT, None))
    connection.receive(frame(1, FAILED, compress))
    return core.spans()


IN_ORDER = [(TEXT, "1146", None)]


def check_in_order(core: Core, connection: Connection) -> None:
    """What came before may have cost spans, but the next exchange is right."""
    spans = next_exchange(core, connection)
    assert told(spans)[-1:] == IN_ORDER or told(next_exchange(core, connection)) == IN_ORDER


@pytest.mark.parametrize("name", ALGORITHMS)
def test_statements_have_their_spans(name: str) -> None:
    capabilities, compress = ALGORITHMS[name]
    core = Core()
    connection = opened(core, capabilities)
    connection.send(frame(0, SELECT, None))
    connection.receive(frame(1, packets(*rows(b"\x011", b"\x012")), compress))
    connection.send(frame(0, WIDE, compress))
    connection.receive(frame(1, FAILED, compress))
    spans = core.spans()
    assert told(spans) == [(TEXT, None, 2), (TEXT, "1146", None)]
    assert {span["db.namespace"] for span in spans} == {"shop"}
    assert core.stats().messages_invalid == 0
    assert "unknown" not in core.ledger()["bytes"]


def test_a_statement_begins_with_its_frame_and_ends_with_the_last_one() -> None:
    core = Core()
    connection = opened(core)
    asked, answer = frame(0, WIDE), packets(*rows(*[string(b"x" * 200)] * 50))
    connection.send(asked[:7], at=2000)  # its header by itself
    connection.send(asked[7:], at=2001)
    connection.receive(frame(1, answer[:5000]), at=2010)
    connection.receive(frame(2, answer[5000:]), at=2030)
    (span,) = core.spans()
    assert (span.start, span.end, span["db.response.returned_rows"]) == (2000, 2030, 50)


def cut(data: bytes, rng: random.Random, sizes: tuple[int, ...]) -> Iterator[bytes]:
    while data:
        size = rng.choice(sizes)
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
@pytest.mark.parametrize("seed", range(20))
def test_frames_calls_and_packets_end_anywhere(seed: int, algorithm: str) -> None:
    """Some frames are compressed, some are not; a large one is inflated in several parts."""
    capabilities, compress = ALGORITHMS[algorithm]
    rng = random.Random(seed)
    core = Core()
    connection = opened(core, capabilities)
    expected = []
    for i in range(6):
        values = [string(bytes(rng.choices(b"abc", k=rng.randrange(300)))) for _ in range(rng.randrange(200))]
        answer = packets(*rows(*values)) if i % 3 else FAILED
        expected.append((TEXT, None if i % 3 else "1146", len(values) if i % 3 else None))
        for sender, said in ((0, rng.choice((SELECT, WIDE))), (1, answer)):
            parts = enumerate(cut(said, rng, (3, 60, 1000, 16384, 60_000)))
            sent = b"".join(frame(n, part, rng.choice((compress, None))) for n, part in parts)
            for call in cut(sent, rng, (1, 5, 8, 100, 20_000)):
                connection.chunk(DIRECTIONS[sender], call)
    assert told(core.spans()) == expected
    assert core.stats().messages_invalid == 0 and core.stats().buffered_bytes == 0


def test_of_a_long_statement_the_beginning_is_enough() -> None:
    """The rest of the frame is passed over as it was sent: no byte of it need be copied."""
    rng = random.Random(1)
    core = Core()
    connection = opened(core)
    letters = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=3_000_000))
    sent = frame(0, query(b"INSERT INTO t VALUES ('" + letters + b"')"))
    connection.send(sent, head=60_000, tail=48)
    connection.receive(frame(1, DONE, None))
    (span,) = core.spans()
    assert (span.name, span["error.type"]) == ("INSERT t", None)
    check_in_order(core, connection)
    assert core.ledger()["gaps"] == {} and core.ledger()["bytes"].keys() == {"parsed"}


def test_the_kernel_side_is_told_what_to_pass_over() -> None:
    core = Core()
    descriptor = os.memfd_create("demands")
    os.ftruncate(descriptor, DEMAND * lib.DEMAND_SLOTS)
    assert lib.core_map_demands(core.core, descriptor) == 0
    connection = opened(core)
    data = random.Random(2).randbytes(400_000).replace(b"'", b"").replace(b"\\", b"")
    sent = frame(0, query(b"INSERT INTO t VALUES ('" + data + b"')"))
    connection.send(sent[:40_000])
    core.feed()
    demanded = struct.unpack(
        "=QQQ8x", os.pread(descriptor, DEMAND, DEMAND * (connection.id % lib.DEMAND_SLOTS))
    )
    os.close(descriptor)
    assert demanded[0] == connection.id
    assert demanded[1 + OUT] == connection.pos[OUT] - 40_000 + len(sent)


@pytest.mark.parametrize("lost", range(4))
def test_a_lost_frame_costs_its_exchange(lost: int) -> None:
    core = Core()
    connection = opened(core)
    answer = packets(*rows(*[string(b"x" * 200)] * 50))
    calls = [
        (OUT, frame(0, WIDE)),
        *((IN, frame(1 + i, answer[i * 4000 : (i + 1) * 4000])) for i in range(3)),
    ]
    for n, (direction, call) in enumerate(calls):
        connection.lose(direction, call) if n == lost else connection.chunk(direction, call)
    check_in_order(core, connection)


def test_a_result_that_grows_without_end_is_given_up() -> None:
    """16 MiB of zeros are 16 KiB as they are sent. The core reads no more of them than it has to."""
    core = Core()
    connection = opened(core)
    row = b"\xfd\xf0\xff\x0f" + bytes(0x0FFFF0)
    connection.send(frame(0, SELECT, None))
    connection.receive(frame(1, packets(*rows())[:-9], None))
    connection.receive(frame(2, packets(*[row] * 15, first=4)))
    check_in_order(core, connection)
    assert core.ledger()["gaps"] == {"mysql.truncated": 1}


BROKEN = {
    "garbage": frame(0, b"\xff" * 60, None, held=200),
    "empty": bytes(7),
    "nothing in it": frame(0, b"", held=10),
    "shorter than it says": frame(0, SELECT, held=len(SELECT) + 1),
    "longer than it says": frame(0, SELECT, held=len(SELECT) - 1),
    "much longer than it says": frame(0, query(b"x" * 60_000), held=100),
    "bytes behind the end": frame(0, SELECT, lambda data: zlib.compress(data) + b"more"),
    "without its end": frame(0, SELECT, lambda data: zlib.compress(data)[:-4]),
    "a wrong checksum": frame(0, SELECT, lambda data: zlib.compress(data)[:-1] + b"\0"),
    "by another algorithm": frame(0, SELECT, zstandard.ZstdCompressor().compress),
    "no packet": frame(0, b"\xff" * 60),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("step", [1, 9, 1 << 20])
def test_a_broken_frame_is_refused(name: str, step: int) -> None:
    core = Core()
    connection = opened(core)
    for at in range(0, len(BROKEN[name]), step):
        connection.send(BROKEN[name][at : at + step])
    connection.receive(frame(1, FAILED))
    core.spans()
    assert core.stats().messages_invalid >= 1
    check_in_order(core, connection)


def test_a_window_that_zstd_would_need_too_much_memory_for_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    data = query(b"SELECT '" + random.Random(3).randbytes(1 << 20) + b"'")
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    sent = frame(0, data, lambda whole: compressor.compress(whole) + compressor.flush())
    core = Core()
    connection = opened(core, ZSTD)
    connection.send(sent[:60_000])
    core.feed()
    assert core.stats().messages_invalid == 1 and core.stats().memory_bytes < 4 << 20


def test_where_the_agreement_was_lost_nothing_is_read() -> None:
    """Frames look like packets now and then: 0x0003xx bytes held would be a COM_QUERY."""
    core = Core()
    connection = core.open(
        CLIENT, local=("127.0.0.1", 50000), remote=("127.0.0.1", 3306), protocol=lib.PROTOCOL_MYSQL
    )
    for sender, data, _ in connected(USUAL | COMPRESS):
        connection.chunk(DIRECTIONS[sender], data, lost=data == packet(2, ok()))
    for size in range(0x103, 0x1003, 0x100):
        connection.send(frame(0, query(b"SELECT '" + b"x" * (size - 14) + b"'")))
        connection.receive(frame(1, DONE, None))
    assert core.spans() == [] and core.ledger()["requests"] == 0


def test_only_the_first_frame_of_a_turn_begins_a_statement() -> None:
    """What a lost statement inserts may look like another one."""
    core = Core()
    connection = opened(core)
    for i in range(3):
        connection.lose(OUT, frame(0, query(b"INSERT INTO t VALUES ('" + b"x" * 1000)))
        connection.send(frame(1, SELECT if i else WIDE))
        connection.receive(frame(1, DONE, None))
    assert core.spans() == []
    check_in_order(core, connection)


def test_the_end_of_a_call_is_no_end_of_an_answer() -> None:
    """It may be of a packet that is compressed, or of one that frames surround."""
    core = Core()
    connection = opened(core)
    connection.send(frame(0, SELECT, None))
    answer = packets(*rows(*[string(random.Random(6).randbytes(200))] * 50))
    connection.receive(frame(1, answer[:-9]), head=60)
    last = frame(2, answer[-300:-9], None) + frame(3, answer[-9:], None)
    connection.receive(last, head=0, tail=48)
    core.spans()
    assert core.stats().messages_invalid == 0
    check_in_order(core, connection)


def test_a_frame_of_which_the_rest_is_lost_costs_its_exchange() -> None:
    core = Core()
    connection = opened(core)
    for kept in (7, 40):
        connection.send(frame(0, WIDE)[:kept])
        connection.lose(OUT, frame(0, WIDE)[kept:])
        connection.receive(frame(1, DONE, None))
        assert core.spans() == []
        assert told(next_exchange(core, connection)) == IN_ORDER


def test_the_ledger_counts_bytes_as_they_are_sent() -> None:
    core = Core()
    connection = opened(core)
    core.feed()
    before = core.ledger()["bytes"]["parsed"]
    first, second = frame(0, WIDE[:-10]), frame(1, WIDE[-10:])
    connection.send(first)
    connection.lose(OUT, second)
    connection.send(frame(0, SELECT))
    core.feed()
    assert core.ledger()["bytes"] == {"parsed": before + len(first) + len(frame(0, SELECT))}


def test_memory_has_a_cap_and_is_given_back() -> None:
    core = Core({"buffer_bytes_max": 1 << 20})
    asked = frame(0, query(b"SELECT '" + random.Random(4).randbytes(60_000) + b"'"))
    after = []
    for i in range(3):
        connections = [opened(core, remote=("127.0.0.1", 3306 + i)) for i in range(100)]
        core.feed()
        before = core.stats().memory_bytes
        for connection in connections:
            connection.send(asked[:30_000])
        core.feed()
        assert 20_000 < core.stats().memory_bytes - before < 2 << 20
        assert 0 < core.ledger()["gaps"]["mysql.truncated"] < 100 * (i + 1)
        for connection in connections:
            connection.close()
        core.spans()
        after.append(core.stats().memory_bytes)
    assert after[1] == after[2] and core.stats().buffered_bytes == 0


def test_both_ends_name_a_request_alike() -> None:
    core = Core({"database_servers": 1})
    client = opened(core)
    here, there = ("127.0.0.1", 3306), ("127.0.0.1", 50000)
    server = core.open(SERVER, local=here, remote=there, pos=(2000, 1000), protocol=lib.PROTOCOL_MYSQL)
    for sender, data, _ in connected(USUAL | COMPRESS):
        server.chunk((IN, OUT)[sender], data)
    for said, answer in ((SELECT, DONE), (WIDE, FAILED)):
        client.send(frame(0, said))
        for part in cut(frame(0, said), random.Random(5), (7, 20)):
            server.receive(part)
        for way, connection in ((OUT, server), (IN, client)):
            connection.chunk(way, frame(1, answer))
    spans = core.spans()
    parents = {span.span_id for span in spans if span.kind == lib.KIND_CLIENT}
    assert len(parents) == 2
    assert {span.parent_id for span in spans if span.kind == lib.KIND_SERVER} == parents
