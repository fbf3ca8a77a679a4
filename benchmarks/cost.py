# SPDX-License-Identifier: Apache-2.0
"""What the agent costs: nginx under an open-loop load, agent on and off in turn, figures beside their goals.

    python -m benchmarks cost [--profile smoke|short|std] [--json FILE]

One nginx process serves the whole run. The method and its limits are in README.md.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import agent as agents
from benchmarks import command, harness, load, servers
from benchmarks.agent import Agent, agent
from benchmarks.harness import Estimate, Figure, MachineTime, Placement, Report, Slot, estimate, not_measured
from benchmarks.processes import ProcessError
from benchmarks.servers import Server
from benchmarks.sink import SERVER_SPAN, Sink, sink

MIB = 1024 * 1024
GUARD_S = 1.0  # between the start of the load, or of the agent, and the window
LOW_RATE = 20  # requests/s, where the delay from request to span is taken
START_RATE = 200  # requests/s while the agent starts, so that there is a first span to see
MEMORY_CONNECTIONS = 1000
MEMORY_RATE = 2000
LIMIT_RING_BYTES = 65536
CHUNKS_PER_REQUEST = 2  # nginx reads such a request in one call and answers in one (README.md)
SETTLE_S = 10.0


@dataclass(frozen=True)
class Profile:
    """How long and how much. pairs: off/on pairs of windows; starts: starts of the agent that are timed."""

    seconds: float
    pairs: int
    rate: float
    completeness_s: float
    limit_s: float
    delay_s: float
    starts: int
    connections: int = 50


PROFILES = {
    "smoke": Profile(2, 2, 2_000, 3, 2, 2, 1),
    "short": Profile(5, 6, 10_000, 15, 4, 5, 3),
    "std": Profile(10, 20, 10_000, 60, 10, 10, 5),
}


@dataclass(frozen=True)
class Bench:
    """What every part of the run shares."""

    profile: Profile
    server: Server
    report: Report
    folder: Path
    where: Placement
    seed: int

    def agent(
        self, receiver: Sink, *, cpus: tuple[int, ...] | None = None, **env: str
    ) -> AbstractContextManager[Agent]:
        """The agent on our nginx, exporting to `receiver`. cpus: the placement's, unless given."""
        return agent(
            [self.server.pid],
            exporters=["otlp"],
            env={**receiver.environment, **env},
            folder=self.folder,
            cpus=self.where.agent if cpus is None else cpus,
        )

    def load(self, *, rate: float, seconds: float, connections: int = 0) -> AbstractContextManager[load.Load]:
        """Load on our nginx; connections: the profile's, unless given."""
        return load.running(
            self.server.port,
            rate=rate,
            seconds=seconds,
            connections=connections or self.profile.connections,
            cpus=self.where.load,
        )


# ---------------------------------------------------------------- on and off in turn


@dataclass(frozen=True)
class Snapshot:
    """Counters at one edge of a window."""

    time_ns: int
    server_ns: int
    agent_ns: dict[str, int]
    machine: MachineTime

    @classmethod
    def now(cls, server: Server, tracer: Agent | None) -> Snapshot:
        roles = tracer.roles if tracer else {}
        return cls(
            time.monotonic_ns(),
            harness.cpu_ns(server.pids),
            {role: harness.cpu_ns(pids) for role, pids in roles.items()},
            MachineTime.now(),
        )


def measure_window(bench: Bench, slot: Slot, rate: float, receiver: Sink) -> dict[str, Any]:
    """One window under load; rate 0: the closed loop. CPU in us per request answered within the window."""
    seconds = bench.profile.seconds
    with ExitStack() as stack:
        tracer = stack.enter_context(bench.agent(receiver)) if slot.arm == "on" else None
        generator = stack.enter_context(bench.load(rate=rate, seconds=GUARD_S + seconds + 0.2))
        time.sleep(GUARD_S)
        before = Snapshot.now(bench.server, tracer)
        time.sleep(seconds)
        after = Snapshot.now(bench.server, tracer)
        result = generator.wait()
        if tracer is not None:
            tracer.child.check()
    answered = result.between(before.time_ns, after.time_ns)
    count = max(1, len(answered))
    latency_us = harness.percentiles((answered["done_ns"] - answered["intended_ns"]) / 1e3)
    steal, busy = after.machine.since(before.machine)
    wall_s = (after.time_ns - before.time_ns) / 1e9
    agent_ns = {role: ns - before.agent_ns[role] for role, ns in after.agent_ns.items()}
    server_ns = after.server_ns - before.server_ns
    load_cores = result.cpu_s / (GUARD_S + seconds)
    ours = (server_ns + sum(agent_ns.values())) / 1e9 / wall_s + load_cores
    return {
        **asdict(slot),
        "rate": rate,
        "seconds": wall_s,
        "requests": len(answered),
        "per_s": len(answered) / wall_s,
        "failed": result.failed + result.unsent,
        "late": result.late,
        "server_us": server_ns / count / 1e3,
        "agent_us": {role: ns / count / 1e3 for role, ns in agent_ns.items()},
        "load_cores": load_cores,
        "foreign_cores": max(0.0, busy * (os.cpu_count() or 1) - ours),
        "steal": steal,
        **latency_us,
    }


def differences(
    windows: list[dict[str, Any]], kind: str, value: Callable[[dict[str, Any]], float]
) -> list[float]:
    """Changed minus base, for each pair of one kind."""
    pairs: dict[int, float] = {}
    for window in windows:
        if window["kind"] == kind:
            pairs[window["pair"]] = pairs.get(window["pair"], 0.0) + window["sign"] * value(window)
    return list(pairs.values())


def on_and_off(bench: Bench, rate: float) -> list[dict[str, Any]]:
    """All windows at one rate, in their order."""
    slots, windows = harness.interleaved((bench.profile.pairs + 1) // 2, bench.seed), []
    for number, slot in enumerate(slots, 1):
        with sink(cpus=bench.where.load) as receiver:
            window = measure_window(bench, slot, rate, receiver)
        windows.append(window)
        name = f"{number}/{len(slots)} {slot.kind}/{slot.arm}"
        costs = f"nginx {window['server_us']:.2f}, agent {sum(window['agent_us'].values()):.2f} us/request"
        _progress(f"  window {name}: {costs}")
    _check_windows(bench.report, f"{rate:,.0f} requests/s" if rate else "saturated", windows)
    bench.report.windows += windows
    return windows


def effect_of(windows: list[dict[str, Any]], key: str) -> tuple[Estimate, Estimate]:
    """(on - off, off - off) of one column."""
    effect = estimate(differences(windows, "effect", lambda window: float(window[key])))
    return effect, estimate(differences(windows, "null", lambda window: float(window[key])))


def effect_table(windows: list[dict[str, Any]], keys: dict[str, str]) -> list[list[str]]:
    rows = [["", "off", "on", "on - off, 95% interval", "off - off (null)", "verdict"]]
    for key, title in keys.items():
        effect, null = effect_of(windows, key)
        medians = [estimate([w[key] for w in windows if w["arm"] == arm]).median for arm in ("off", "on")]
        cells = [f"{median:.2f}" for median in medians] + [_interval(effect), _interval(null)]
        rows.append([title, *cells, harness.verdict(effect, null)])
    return rows


def open_loop(bench: Bench) -> None:
    """CPU of the agent and CPU added to nginx at the profile's rate."""
    windows = on_and_off(bench, bench.profile.rate)
    goals, figures = harness.goals(), bench.report.figures
    on_windows = [window for window in windows if window["arm"] == "on"]
    roles = {role: estimate([w["agent_us"][role] for w in on_windows]) for role in on_windows[0]["agent_us"]}
    total = estimate([sum(window["agent_us"].values()) for window in on_windows])
    note = ", ".join(f"{role} {value.median:.2f}" for role, value in roles.items())
    figures.append(Figure(goals["agent_cpu"], total, note))
    effect, null = effect_of(windows, "server_us")
    said = harness.verdict(effect, null)
    note = f"null {_interval(null)}, {said}"
    figures.append(Figure(goals["server_cpu"], effect, note, resolved=said != harness.TOO_FEW))
    columns = {"server_us": "nginx CPU us/request", "p50": "latency p50 us"}
    columns |= {"p90": "latency p90 us", "p99": "latency p99 us"}
    title = f"Agent on and off in turn, open loop, {bench.profile.rate:,.0f} requests/s"
    bench.report.tables[title] = effect_table(windows, columns)


def saturated(bench: Bench) -> None:
    """The same with nginx busy all the time: no idle wake-ups, so its CPU per request is at its steadiest.

    Says what the agent takes from the highest throughput; the latencies of a closed loop say nothing.
    """
    windows = on_and_off(bench, 0)
    columns = {"server_us": "nginx CPU us/request", "per_s": "requests/s"}
    title = "Agent on and off in turn, closed loop, nginx saturated"
    bench.report.tables[title] = effect_table(windows, columns)


def _interval(value: Estimate) -> str:
    return f"{value.median:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _check_windows(report: Report, name: str, windows: list[dict[str, Any]]) -> None:
    """Warns of what makes windows unlike each other."""

    def warn(bad: list[dict[str, Any]], text: str) -> None:
        if bad:
            report.warn(f"{name}: in {len(bad)} of {len(windows)} windows {text}")

    stolen = [w for w in windows if w["steal"] > harness.STEAL_MAX]
    warn(stolen, f"more than {harness.STEAL_MAX:.0%} of the CPU time was stolen by other machines")
    foreign = [w for w in windows if w["foreign_cores"] > harness.FOREIGN_MAX]
    warn(foreign, f"other processes used more than {harness.FOREIGN_MAX:g} cores: repeat on a quiet machine")
    slow = [w for w in windows if w["rate"] and w["per_s"] < harness.ACHIEVED_MIN * w["rate"]]
    warn(slow, f"less than {harness.ACHIEVED_MIN:.0%} of the offered rate was answered")
    warn([w for w in windows if w["failed"]], "requests failed or were not sent")


# ---------------------------------------------------------------- single figures


def memory(bench: Bench) -> None:
    """Private memory of keeper and pipeline while 1,000 connections are open and in use."""
    with (
        sink(cpus=bench.where.load) as receiver,
        bench.agent(receiver) as tracer,
        bench.load(rate=MEMORY_RATE, seconds=4, connections=MEMORY_CONNECTIONS) as generator,
    ):
        time.sleep(3)
        by_role = {role: harness.memory(pids) for role, pids in tracer.roles.items()}
        maps = harness.bpf_maps(tracer.pids)
        generator.wait()
    total = sum(each.private for each in by_role.values()) / MIB
    bench.report.figures.append(
        Figure(
            harness.goals()["private_memory"],
            Estimate(total, total, total, 1),
            f"{MEMORY_CONNECTIONS} connections; "
            + ", ".join(f"{role} {each.private / MIB:.1f}" for role, each in by_role.items()),
        )
    )
    rows = [["MiB", "private", "pss", "rss"]]
    rows += [
        [role, *(f"{value / MIB:.1f}" for value in (each.private, each.pss, each.rss))]
        for role, each in by_role.items()
    ]
    rows.append([f"{len(maps)} BPF maps", f"{sum(each.memlock_bytes for each in maps) / MIB:.1f}", "", ""])
    bench.report.tables["Memory"] = rows


def first_span(bench: Bench) -> None:
    """Wall time from the start of the command to the first span at the sink; programs compiled anew."""
    times, ready = [], []
    for _ in range(bench.profile.starts):
        with (
            sink() as receiver,
            bench.load(rate=START_RATE, seconds=8, connections=4),
            bench.agent(receiver, cpus=()) as tracer,
        ):
            stats = receiver.wait_for_spans(1, timeout_s=8)
            ready.append((tracer.ready_ns - tracer.started_ns) / 1e9)
            if stats.first_span_ns:
                times.append((stats.first_span_ns - tracer.started_ns) / 1e9)
    goal = harness.goals()["first_span"]
    if len(times) < bench.profile.starts:
        bench.report.figures.append(not_measured(goal, "no span arrived"))
        return
    bench.report.figures.append(Figure(goal, estimate(times), f"ready after {estimate(ready).median:.2f} s"))


def span_delay(bench: Bench) -> None:
    """From the last byte of the answer, as the client saw it, to the arrival of the span at the sink."""
    with sink(record=True) as receiver, bench.agent(receiver, cpus=()):
        with bench.load(rate=LOW_RATE, seconds=bench.profile.delay_s, connections=2) as generator:
            result = generator.wait()
        receiver.wait_for_spans(result.answered, timeout_s=5)
        arrived = {seen.id: seen.time_ns for seen in receiver.requests_seen()}
    done = dict(zip(result.records["id"].tolist(), result.records["done_ns"].tolist(), strict=True))
    delays = [(arrived[key] - when) / 1e9 for key, when in done.items() if key in arrived and when]
    goal = harness.goals()["span_delay"]
    if not delays:
        bench.report.figures.append(not_measured(goal, "no span arrived"))
        return
    missing = f", {len(done) - len(delays)} never came" if len(delays) < len(done) else ""
    bench.report.figures.append(
        Figure(goal, estimate(delays), f"longest {max(delays):.2f} s of {len(delays)}{missing}")
    )


@dataclass(frozen=True)
class Completeness:
    """Requests by id against server spans by id."""

    answered: int
    seen: int
    missing: int
    duplicates: int
    invented: int

    @property
    def percent(self) -> float:
        return 100.0 * (self.answered - self.missing) / self.answered if self.answered else math.nan


def completeness_of(answered: set[int], sent: set[int], seen: Iterable[int]) -> Completeness:
    """answered: requests that got their answer; sent: all; seen: the id in each server span, with repeats."""
    ids = list(seen)
    unique = set(ids)
    return Completeness(
        len(answered), len(unique), len(answered - unique), len(ids) - len(unique), len(unique - sent)
    )


def completeness(bench: Bench) -> None:
    """Every request of a long load, looked for by its id in what was exported."""
    with sink(record=True, cpus=bench.where.load) as receiver:
        with bench.agent(receiver) as tracer:
            with bench.load(rate=bench.profile.rate, seconds=bench.profile.completeness_s) as generator:
                result = generator.wait()
            receiver.wait_for_spans(result.answered, timeout_s=SETTLE_S)
            lost = tracer.counters().total(agents.CHUNKS, **{"class": agents.LOST})
        receiver.wait_for_spans(result.answered, timeout_s=1)
        seen = [each.id for each in receiver.requests_seen() if each.kind == SERVER_SPAN]
    found = completeness_of(result.ids(), set(result.records["id"].tolist()), seen)
    bench.report.figures.append(
        Figure(
            harness.goals()["completeness"],
            Estimate(found.percent, found.percent, found.percent, 1),
            f"{found.missing} of {found.answered} missing, {found.duplicates} twice, "
            f"{found.invented} invented, "
            f"agent says {'?' if lost is None else lost} lost; {result.achieved_per_s:,.0f}/s for "
            f"{bench.profile.completeness_s:g} s",
        )
    )
    if result.failed or result.unsent:
        bench.report.warn(f"completeness: {result.failed} requests failed, {result.unsent} were not sent")


def over_the_limit(bench: Bench) -> None:
    """A ring much too small under the highest rate: what is lost must be counted, to the chunk."""
    ring = str(LIMIT_RING_BYTES)
    goal = harness.goals()["ledger"]
    with (
        sink(cpus=bench.where.load) as receiver,
        bench.agent(receiver, EBPF_OTLP_TRACER_CAPTURE_RING_BYTES=ring) as tracer,
    ):
        before = tracer.settled()
        with bench.load(rate=0, seconds=bench.profile.limit_s) as generator:
            result = generator.wait()
        after = tracer.settled()
        spans = receiver.stats().spans
    truth = {
        agents.CHUNKS: CHUNKS_PER_REQUEST * result.answered,
        agents.BYTES: result.bytes_sent + result.bytes_received,
    }
    rows, deviations = [["over the limit", "truth", "ledger", "off by", "by class"]], []
    for name, title in ((agents.CHUNKS, "chunks"), (agents.BYTES, "bytes")):
        if after.total(name) is None:
            rows.append([title, str(truth[name]), "-", "-", f"the agent has no metric {name}"])
            continue
        classes = after.by(name, "class")
        earlier = before.by(name, "class")
        grown = {key: value - earlier.get(key, 0) for key, value in classes.items()}
        total = sum(grown.values())
        deviations.append(100.0 * abs(total - truth[name]) / max(1, truth[name]))
        shown = ", ".join(f"{key} {value}" for key, value in grown.items() if value)
        rows.append([title, str(truth[name]), str(total), f"{deviations[-1]:.4f}%", shown])
    kernel = after.total(agents.KERNEL_CHUNKS)
    if kernel is not None:
        counted = kernel - (before.total(agents.KERNEL_CHUNKS) or 0)
        rows.append(["chunks, kernel's count", str(truth[agents.CHUNKS]), str(counted), "", ""])
    rows.append(["spans", str(result.answered), str(spans), "", f"{result.achieved_per_s:,.0f} requests/s"])
    bench.report.tables["Over the limit"] = rows
    if not deviations:
        bench.report.figures.append(not_measured(goal, f"the agent has no metric {agents.CHUNKS}"))
        return
    worst = max(deviations)
    lost = after.by(agents.CHUNKS, "class").get(agents.LOST, 0)
    note = f"ring {LIMIT_RING_BYTES // 1024} KiB, {result.achieved_per_s:,.0f} requests/s, {lost} chunks lost"
    bench.report.figures.append(Figure(goal, Estimate(worst, worst, worst, 1), note))
    if lost == 0:
        bench.report.warn("over the limit: nothing was lost, so the run says nothing about counting losses")


# ---------------------------------------------------------------- the run


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# name: (the goals that it measures, the work)
PARTS: dict[str, tuple[tuple[str, ...], Callable[[Bench], None]]] = {
    "open-loop": (("agent_cpu", "server_cpu"), open_loop),
    "memory": (("private_memory",), memory),
    "first-span": (("first_span",), first_span),
    "span-delay": (("span_delay",), span_delay),
    "completeness": (("completeness",), completeness),
    "over-the-limit": (("ledger",), over_the_limit),
    "saturated": ((), saturated),
}


def run(profile: Profile, *, seed: int, where: str, parts: Iterable[str]) -> Report:
    """The whole benchmark. A part that fails becomes figures that were not measured, with the reason."""
    settings = {**asdict(profile), "seed": seed, "placement": where, "agent": Path(agents.command()[0]).name}
    report, place, wanted = Report("cost", settings), harness.placement(where), set(parts)
    with tempfile.TemporaryDirectory() as folder, servers.nginx(cpus=place.server) as server:
        bench = Bench(profile, server, report, Path(folder), place, seed)
        for name, (goals, part) in PARTS.items():
            if name not in wanted:
                continue
            _progress(name)
            try:
                part(bench)
            except ProcessError as error:
                reason = str(error).splitlines()[0]
                report.figures += [not_measured(harness.goals()[goal], reason) for goal in goals]
                report.warn(f"{name}: {error}")
    return report


def main(arguments: list[str]) -> int:
    parser = command.parser("cost", __doc__, PROFILES)
    parser.add_argument("--seconds", type=float, help="length of one window")
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--pairs", type=int, help="off/on pairs of windows")
    parser.add_argument("--seed", type=int, default=1, help="of the order of windows")
    parser.add_argument(
        "--placement", choices=harness.PLACEMENTS, default="isolated", help=harness.placement.__doc__
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this (repeatable)")
    options = parser.parse_args(arguments)
    return command.measure(
        options,
        PROFILES[options.profile],
        ("seconds", "rate", "pairs"),
        lambda profile: run(profile, seed=options.seed, where=options.placement, parts=options.only or PARTS),
    )
