# SPDX-License-Identifier: Apache-2.0
"""The kernel side against a process that keeps its own log: every kind of call, not one chunk or byte off.

The witness (tests/witness/witness.c) goes by what its calls returned; the kernel side by what it saw. Both
must be equal, and the kernel's accounts must add up, over calls that are interrupted, cut short, reset,
thrown into each other's descriptors, or none of ours.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from agent import kernel, loader
from tests.witness.program import Told, Witness

from .conftest import CONTINUED, IN, OUT, Tracer, load

# TCP by these calls is what was hooked when this was written. Once splice, sendmmsg and the others have
# their hooks, the tests take all kinds on all transports by themselves. WITNESS_KINDS says otherwise.
FIRST_KINDS = "tcp:read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,sendfile"
HOOKED = {name for names in loader.TARGETS.values() for name in names}
ALL_HOOKED = {"recvmmsg", "sendmmsg", "splice", "preadv2", "pwritev2"} <= HOOKED
KINDS = os.environ.get("WITNESS_KINDS") or ("all" if ALL_HOOKED else FIRST_KINDS)
CALLS = int(os.environ.get("WITNESS_CALLS", 1_000_000))
SEED = int(os.environ.get("WITNESS_SEED", 1))

CHUNK_EVENT, CLOSE_EVENT = 2, 4
SIZE_AT = 24 + 8  # of chunk_event.size
DIRECTIONS = {"in": IN, "out": OUT}


@dataclass
class Seen:
    """Sums over the chunk records of the ring, [IN, OUT]: chunks by first records, bytes by all of them."""

    chunks: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, ring: kernel.Ring) -> None:
        """Empties the ring. Nothing but sums: a million records pass here, in Python."""
        size = struct.Struct("=I")
        for record in ring.records():
            if record[0] == CHUNK_EVENT:
                direction = record[2]
                self.chunks[direction] += not record[1] & CONTINUED
                self.bytes[direction] += size.unpack_from(record, SIZE_AT)[0]


@contextmanager
def reading(ring: kernel.Ring) -> Iterator[Seen]:
    """Empties the ring beside the block, and once more at its end."""
    seen, done = Seen(), threading.Event()

    def read() -> None:
        while not done.wait(0.001):
            seen.add(ring)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.add(ring)


def trace_witness(
    side: kernel.Kernel, *, calls: int, seed: int, kinds: str, payload: str = "mixed"
) -> tuple[Told, dict[str, int], Seen]:
    """Runs a witness under the kernel side: what it says, what was counted, what came through the ring."""
    tracer = Tracer(side)
    for _ in tracer.ring.records():
        pass
    with Witness(calls=calls, seed=seed, kinds=kinds, payload=payload) as witness:
        side.trace(witness.pid)
        with reading(tracer.ring) as seen:
            told = witness.run()
        side.untrace(witness.pid)
    counted = tracer.counted()  # which checks that the accounts add up
    tracer.ring.close()
    print(told)
    print(counted, seen)
    return told, counted, seen


def compare(told: Told, counted: dict[str, int], seen: Seen) -> None:
    """Fails unless nothing is missing, nothing twice, nothing invented."""
    assert (counted["chunks"], counted["bytes"]) == (told.chunks, told.bytes), (
        f"kernel side minus witness: {counted['chunks'] - told.chunks} chunks, "
        f"{counted['bytes'] - told.bytes} bytes\n{told}"
    )
    assert sum(seen.chunks) == counted["sent_chunks"]
    assert sum(seen.bytes) == counted["sent_bytes"]
    # An urgent byte has a sequence number and is no byte of the stream: the only gap there may be.
    assert counted["gap_bytes"] == told.raw["urgent"], counted
    refused = {name: value for name, value in counted.items() if name.endswith("_refused") and value}
    assert not refused and not counted["overlaps"], counted


@pytest.mark.kernel
@pytest.mark.slow
def test_a_million_calls_are_counted_to_the_byte(loaded: kernel.Kernel) -> None:
    told, counted, seen = trace_witness(loaded, calls=CALLS, seed=SEED, kinds=KINDS)
    # The run was one: all that was asked for was called, moved bytes, and was disturbed.
    for transport, directions in told.raw["log"].items():
        for kinds in directions.values():
            for kind, each in kinds.items():
                assert not each["calls"] or each["moved"], f"{transport} {kind} never moved a byte\n{told}"
    for name in ("eintr", "again", "resets", "eofs", "peeks", "passed", "urgent", "connections", "others"):
        assert told.raw[name] > 0, name
    compare(told, counted, seen)


@pytest.mark.kernel
def test_every_chunk_of_known_connections_comes_through_the_ring_in_its_direction() -> None:
    """A ring that holds everything, and connections that are HTTP from the first byte: equal by direction."""
    tcp = next((part for part in KINDS.split(";") if part.startswith("tcp")), "tcp")
    with load(ring_bytes=64 << 20, allowance_bytes=256) as side:
        told, counted, seen = trace_witness(side, calls=100_000, seed=SEED + 7, kinds=tcp, payload="http")
    compare(told, counted, seen)
    assert counted["sent_chunks"] == counted["chunks"], counted
    for name, direction in DIRECTIONS.items():
        assert (seen.chunks[direction], seen.bytes[direction]) == told.of("tcp", name), name


def test_one_chunk_or_byte_less_is_a_failure() -> None:
    """The comparison itself: equal passes, off by one in any figure does not."""
    told = Told({"chunks": 5, "bytes": 100, "urgent": 1, "log": {}})
    names = {"chunks": 5, "bytes": 100, "sent_chunks": 4, "sent_bytes": 90, "gap_bytes": 1, "overlaps": 0}
    seen = Seen([1, 3], [40, 50])
    compare(told, names, seen)
    for name in names:
        with pytest.raises(AssertionError):
            compare(told, {**names, name: names[name] - 1}, seen)
