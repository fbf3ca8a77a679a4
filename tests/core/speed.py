# SPDX-License-Identifier: Apache-2.0
"""What a statement costs the core, from its event to its span: python -m tests.core.speed

Recorded conversations of real clients (tests/protocols/seeds) are fed again and again, on a connection each.
The least of several runs counts: the one that was disturbed least.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from agent.core._core import ffi, lib

from tests.core.harness import CLIENT, MS, Core
from tests.protocols.seeds import load

CONVERSATIONS = (
    "postgres/psycopg-simple",
    "postgres/psycopg-extended",
    "postgres/psycopg-prepared",
    "postgres/psycopg-pipeline",
    "postgres/asyncpg-executemany",
    "mysql/pymysql-query",
    "mysql/mariadb-prepare",
    "redis/redis-resp2",
    "redis/redis-pipeline",
)
TIMES = 200  # that a conversation is fed in one run


def spans_of(core: Core, data: bytes, now_ms: int) -> tuple[int, float]:
    """How many spans, and seconds of CPU."""
    out = ffi.new("struct span_batch *")
    start = time.process_time_ns()
    lib.core_feed(core.core, data, len(data), now_ms * MS, True)
    lib.core_take_spans(core.core, out)
    return out.count, (time.process_time_ns() - start) / 1e9


def measure(rounds: int) -> Iterator[tuple[str, int, float]]:
    """Name, statements, and seconds of CPU for each."""
    for name in CONVERSATIONS:
        chunks = load(name)
        maker = Core()
        for _ in range(TIMES):
            connection = maker.open(CLIENT)
            for sender, data in chunks:
                (connection.receive if sender else connection.send)(data, protocol=lib.PROTOCOL_UNDECIDED)
            connection.close()
        records, best, count = bytes(maker.records), 1e9, 0
        for _ in range(max(3, rounds * 3)):
            count, seconds = spans_of(Core({"batch_spans_max": 65536}), records, maker.now_ms)
            best = min(best, seconds)
        yield name, count // TIMES, best / max(1, count)


if __name__ == "__main__":
    for each, statements, cost in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(f"{each:<32} {statements:4} statements  {cost * 1e9:7.0f} ns each")
