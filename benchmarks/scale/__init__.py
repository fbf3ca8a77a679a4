# SPDX-License-Identifier: Apache-2.0
"""What very many connections cost: 50,000 that are open and idle, and thousands of new ones each second.

    python -m benchmarks scale [--profile smoke|short|std] [--connections N] [--json FILE]

Server and clients are our own (server.c, client.c), the load is on loopback, every request has a number that
is looked for in what was exported. Memory is private (USS) of keeper and pipeline, as in `cost`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.attach import SYS_BPF
from benchmarks import build, command, harness
from benchmarks.agent import Agent, Counters, agent
from benchmarks.cost import Completeness, completeness_of
from benchmarks.harness import Estimate, Figure, Report
from benchmarks.processes import Child, ProcessError
from benchmarks.sink import Sink, sink

HERE = Path(__file__).parent
MIB = 1024 * 1024
SPARE_DESCRIPTORS = 0.75  # of the limit: SO_REUSEPORT shares out by a hash, not evenly
NUMBERS = 1 << 32  # between the first numbers of two clients
SETTLE_S = 30.0
GONE_S = 20.0
BPF_MAP_GET_NEXT_KEY, BPF_MAP_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD = 4, 14, 15  # enum bpf_cmd
PREFIX = "ebpf_otlp_tracer_"
CONNECTIONS = PREFIX + "core_connections"  # a gauge: those that the core keeps now
LOSSES = (
    "kernel_connections_refused_total",
    "kernel_unsent_chunks_total",
    "kernel_unsent_events_total",
    "kernel_gap_bytes_total",
    "core_connections_evicted_total",
    "core_connections_expired_total",
    "core_events_unknown_connection_total",
    "core_spans_refused_total",
)


@dataclass(frozen=True)
class Profile:
    """connections: open and idle; rate: new ones each second on top, for `seconds`."""

    connections: int
    rate: float
    seconds: float


PROFILES = {
    "smoke": Profile(5_000, 1_000, 2),
    "short": Profile(50_000, 5_000, 5),
    "std": Profile(50_000, 5_000, 60),
}


def processes_for(connections: int) -> int:
    """How many processes it takes to hold so many connections within the limit of descriptors."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, -(-connections // int(limit * SPARE_DESCRIPTORS)))


# ---------------------------------------------------------------- server and clients


@contextmanager
def server(workers: int, folder: Path) -> Iterator[tuple[Child, int]]:
    """The running server and its port."""
    program = build.c_program(HERE / "server.c")
    child = Child([program, str(workers)], log=folder / "server.log", stdout=subprocess.PIPE)
    try:
        yield child, int(child.first_line())
    finally:
        child.stop()


class Clients:
    """Some client processes that share every command evenly."""

    def __init__(self, port: int, count: int) -> None:
        program = build.c_program(HERE / "client.c")
        self._firsts = [1 + index * NUMBERS for index in range(count)]
        self._requests = [0] * count
        self._processes = [
            subprocess.Popen(
                [program, str(port), str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for first in self._firsts
        ]

    def open(self, total: int) -> float:
        """So many more connections, one request on each; they stay open. How long it took, in seconds."""
        return self._command(lambda share: f"open {share}", total)

    def short(self, total: int, rate: float = 0.0) -> float:
        """So many connections of one request each; rate: per second, 0 for as fast as it goes."""
        each = rate / len(self._processes)
        return self._command(lambda share: f"short {each} {share}", total)

    def close(self) -> None:
        """Closes those that are open."""
        self._command(lambda _: "close", 0)

    def numbers(self) -> set[int]:
        """The numbers of all requests that were answered: each, or the client has failed."""
        pairs = zip(self._firsts, self._requests, strict=True)
        return {number for first, count in pairs for number in range(first, first + count)}

    def end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()  # its end of file ends it
            process.wait(10)
            process.stdout.close()

    def _command(self, text: Any, total: int) -> float:
        count, longest = len(self._processes), 0.0
        for index, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(text(total // count + (index < total % count)) + "\n")
            process.stdin.flush()
        for index, process in enumerate(self._processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ProcessError(f"a client ended with status {process.wait()}; it said why above")
            told = json.loads(line)
            self._requests[index] = told["requests"]
            longest = max(longest, told["seconds"])
        return longest


@contextmanager
def clients(port: int, count: int) -> Iterator[Clients]:
    running = Clients(port, count)
    try:
        yield running
    finally:
        running.end()


# ---------------------------------------------------------------- what the agent holds


def map_entries(pids: Sequence[int], name: str) -> int:
    """How many entries the map of this name has, among the BPF maps that processes hold."""
    libc = ctypes.CDLL(None, use_errno=True)

    def bpf(command: int, packed: bytes) -> int:
        buffer = ctypes.create_string_buffer(packed, 128)
        return int(libc.syscall(SYS_BPF, command, buffer, len(packed)))

    for each in harness.bpf_maps(pids):
        fd = bpf(BPF_MAP_GET_FD_BY_ID, struct.pack("=III", each.id, 0, 0))
        if fd < 0:
            continue
        try:
            info = ctypes.create_string_buffer(64)
            bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
            _, _, key_size, _, _, _, found = struct.unpack_from("=IIIIII16s", info)
            if found.split(b"\0")[0].decode() != name:
                continue
            key = ctypes.create_string_buffer(key_size)
            address, entries = 0, 0
            while bpf(BPF_MAP_GET_NEXT_KEY, struct.pack("=IxxxxQQ", fd, address, ctypes.addressof(key))) == 0:
                address, entries = ctypes.addressof(key), entries + 1
            return entries
        finally:
            os.close(fd)
    raise ProcessError(f"no map is called {name!r} among those of {list(pids)}")


@dataclass(frozen=True)
class Held:
    """What the agent holds at one moment. Bytes; connections: the core's and the kernel side's."""

    keeper: int
    pipeline: int
    maps: int
    core_connections: int
    kernel_connections: int

    @classmethod
    def now(cls, tracer: Agent) -> Held:
        private = {role: harness.memory(pids).private for role, pids in tracer.roles.items()}
        maps = sum(each.memlock_bytes for each in harness.bpf_maps(tracer.pids))
        core = tracer.counters().total(CONNECTIONS)
        kernel = map_entries(tracer.pids, "connections")
        return cls(private["keeper"], private["pipeline"], maps, -1 if core is None else core, kernel)

    @property
    def private(self) -> int:
        return self.keeper + self.pipeline


def losses(counters: Counters) -> dict[str, int]:
    """What was refused, evicted or lost, by metric; nothing that is 0."""
    found = {name: counters.total(PREFIX + name) or 0 for name in LOSSES}
    return {name: value for name, value in found.items() if value}


def wait_gone(tracer: Agent, timeout_s: float = GONE_S) -> float:
    """Seconds until neither the core nor the kernel side holds a connection, at most timeout_s."""
    begin = time.monotonic()
    while time.monotonic() - begin < timeout_s:
        if not tracer.counters().total(CONNECTIONS) and not map_entries(tracer.pids, "connections"):
            break
        time.sleep(0.05)
    return time.monotonic() - begin


def exported(receiver: Sink, numbers: set[int]) -> Completeness:
    """Requests against server spans, one by one, once all came or nothing more does."""
    receiver.wait_for_spans(len(numbers), timeout_s=SETTLE_S, quiet_s=0.5)
    return completeness_of(numbers, numbers, [each.id for each in receiver.requests_seen()])


# ---------------------------------------------------------------- the run


def run(profile: Profile) -> Report:
    """The whole benchmark."""
    workers = processes_for(profile.connections)
    report = Report("scale", {**asdict(profile), "workers": workers})
    held: dict[str, Held] = {}

    def note(moment: str, tracer: Agent) -> None:
        held[moment] = Held.now(tracer)
        private, maps = held[moment].private / MIB, held[moment].maps / MIB
        print(f"  {moment}: {private:.1f} MiB private, {maps:.1f} MiB of maps", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name, sink(record=True) as receiver:
        folder = Path(name)
        with (
            server(workers, folder) as (child, port),
            clients(port, workers) as load,
            agent(
                [child.pid],
                exporters=["otlp"],
                env=receiver.environment,
                folder=folder,
            ) as tracer,
        ):
            load.short(2_000)  # what every agent needs at work, whatever the number of connections
            receiver.wait_for_spans(2_000, timeout_s=SETTLE_S)
            wait_gone(tracer)
            note("before", tracer)
            open_s = load.open(profile.connections)
            receiver.wait_for_spans(len(load.numbers()), timeout_s=SETTLE_S, quiet_s=1.0)
            note(f"{profile.connections:,} open and idle", tracer)
            short = int(profile.rate * profile.seconds)
            short_s = load.short(short, profile.rate)
            note("with new ones on top", tracer)
            load.close()
            gone_s = wait_gone(tracer)
            receiver.wait_for_spans(len(load.numbers()), timeout_s=SETTLE_S, quiet_s=1.0)
            note("after they are closed", tracer)
            lost = losses(tracer.counters())
            numbers = load.numbers()
        found = exported(receiver, numbers)

    moments = list(held)
    added = (held[moments[1]].private - held["before"].private) / MIB
    maps = (held[moments[1]].maps - held["before"].maps) / MIB
    each = added * MIB / profile.connections
    report.figures.append(
        Figure(
            harness.goals()["scale_memory"],
            Estimate(added, added, added, 1),
            f"{profile.connections:,} connections, {each:.0f} bytes each; BPF maps {maps:+.1f} MiB",
        )
    )
    rows = [["MiB", "private", "keeper", "pipeline", "BPF maps", "held by the core", "by the kernel side"]]
    for moment, value in held.items():
        sizes = (value.private, value.keeper, value.pipeline, value.maps)
        counts = (value.core_connections, value.kernel_connections)
        rows.append([moment, *(f"{size / MIB:.1f}" for size in sizes), *(f"{count:,}" for count in counts)])
    report.tables["What the agent holds"] = rows
    report.tables["Requests"] = [
        ["made", "exported", "missing", "twice", "invented", "opened/s", "new ones/s", "gone after"],
        [
            *(
                f"{n:,}"
                for n in (found.answered, found.seen, found.missing, found.duplicates, found.invented)
            ),
            f"{profile.connections / open_s:,.0f}",
            f"{short / short_s:,.0f}",
            f"{gone_s:.2f} s",
        ],
    ]
    report.windows.append({"held": {key: asdict(value) for key, value in held.items()}, "losses": lost})
    report.windows.append(asdict(found))
    for name, count in lost.items():
        report.warn(f"{name}: {count:,}")
    if found.missing or found.duplicates or found.invented:
        report.warn("the spans are not the requests")
    if held[moments[-1]].core_connections or held[moments[-1]].kernel_connections:
        report.warn(f"connections are still held {GONE_S:g} s after they were closed")
    return report


def main(arguments: list[str]) -> int:
    parser = command.parser("scale", __doc__, PROFILES)
    parser.add_argument("--connections", type=int, help="open and idle")
    parser.add_argument("--rate", type=float, help="new connections per second on top")
    parser.add_argument("--seconds", type=float, help="for how long")
    options = parser.parse_args(arguments)
    return command.measure(options, PROFILES[options.profile], ("connections", "rate", "seconds"), run)
