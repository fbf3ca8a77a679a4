# SPDX-License-Identifier: Apache-2.0
"""What every measurement stands on: CPU and memory of processes, order of windows, statistics, machine facts.

The method, with its reasons, is in README.md. In short: arms alternate inside one run, effects are
differences of neighbouring windows, each effect has a bootstrap interval, and beside it stands the null
row: the same differences between windows in which nothing was changed.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BUDGETS = Path(__file__).with_name("budgets.toml")
RESAMPLES = 10_000
STEAL_MAX = 0.01  # share of the wall time; more and a window is marked unstable
TOO_FEW = "too few windows to say"
FOREIGN_MAX = 0.15  # cores that processes outside the benchmark may use in a window
ACHIEVED_MIN = 0.99  # of the offered rate; less and a window is no measurement of that rate

# ---------------------------------------------------------------- processes


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of processes so far, in ns, threads that have ended included.

    The process CPU clock: the sum that `/proc/PID/task/*/schedstat` shows, but without losing the
    threads that are gone. (utime and stime of `/proc/PID/stat` are sampled by the tick, hence useless here.)
    """
    return sum(_process_cpu_ns(pid) for pid in pids)


def _process_cpu_ns(pid: int) -> int:
    clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of a process, include/linux/posix-timers.h
    try:
        return time.clock_gettime_ns(clock)
    except OSError:
        return _schedstat_ns(pid)


def _schedstat_ns(pid: int) -> int:
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except OSError:
            continue  # the thread ended between the listing and the reading
    return total


@dataclass(frozen=True)
class Memory:
    """Memory of processes in bytes. private: theirs alone. pss: with their share of the rest."""

    private: int
    pss: int
    rss: int


def memory(pids: Iterable[int]) -> Memory:
    sums = {"Private_Clean": 0, "Private_Dirty": 0, "Pss": 0, "Rss": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in sums:
                sums[name] += int(rest.split()[0]) * 1024
    return Memory(sums["Private_Clean"] + sums["Private_Dirty"], sums["Pss"], sums["Rss"])


@dataclass(frozen=True)
class BpfMap:
    """A BPF map that a process holds, as its descriptor's fdinfo tells."""

    id: int
    type: int
    max_entries: int
    memlock_bytes: int


def bpf_maps(pids: Iterable[int]) -> list[BpfMap]:
    """The BPF maps that processes hold, each once."""
    found: dict[int, BpfMap] = {}
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").glob("*"):
            try:
                pairs = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            except OSError:
                continue
            if "map_id" in pairs:
                number = int(pairs["map_id"])
                found[number] = BpfMap(
                    number, int(pairs["map_type"]), int(pairs["max_entries"]), int(pairs.get("memlock", 0))
                )
    return [found[number] for number in sorted(found)]


# ---------------------------------------------------------------- the machine


def machine_facts() -> dict[str, Any]:
    """What a reader must know to judge the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if "model name" in line), "?"
    )
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in cpuinfo,
        "memory_bytes": int(meminfo["MemTotal"].split()[0]) * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@dataclass(frozen=True)
class MachineTime:
    """`/proc/stat` at one moment, in ticks over all processors."""

    total: int
    idle: int
    steal: int

    @classmethod
    def now(cls) -> MachineTime:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return cls(sum(ticks), ticks[3] + ticks[4], ticks[7])

    def since(self, earlier: MachineTime) -> tuple[float, float]:
        """Shares of (steal, busy) between two moments, 0 to 1."""
        total = max(1, self.total - earlier.total)
        return (self.steal - earlier.steal) / total, 1 - (self.idle - earlier.idle) / total


@dataclass(frozen=True)
class Placement:
    """Processors of each side; empty: the scheduler's choice."""

    server: tuple[int, ...] = ()
    agent: tuple[int, ...] = ()
    load: tuple[int, ...] = ()


PLACEMENTS = ("isolated", "shared", "free")


def placement(name: str) -> Placement:
    """isolated: the agent beside the load, so that the server's processor shows what happens in the server.
    shared: the agent beside the server. free: anywhere."""
    cpus = sorted(os.sched_getaffinity(0))
    if name == "free" or len(cpus) < 2:
        return Placement()
    server, load = (cpus[0],), tuple(cpus[1:])
    return Placement(server, server if name == "shared" else load, load)


# ---------------------------------------------------------------- order of windows


@dataclass(frozen=True)
class Slot:
    """One window to be measured. Slots of a pair are neighbours; `sign` is +1 for its changed side."""

    pair: int
    kind: str  # "effect" or "null"
    arm: str  # "off" or "on"
    sign: int


def interleaved(blocks: int, seed: int) -> list[Slot]:
    """Off/on windows in blocks of two effect pairs and one null pair.

    A block is A B B A or B A A B, by the seed, so that a drift of the machine cancels within the block;
    an A A pair of the same length stands before or after it, by the seed.
    """
    rng, slots, pair = random.Random(seed), [], 0
    for _ in range(blocks):
        first = rng.choice(("off", "on"))
        second = "on" if first == "off" else "off"
        effects = []
        for arms in ((first, second), (second, first)):
            effects += [Slot(pair, "effect", arm, 1 if arm == "on" else -1) for arm in arms]
            pair += 1
        nulls = [Slot(pair, "null", "off", sign) for sign in rng.sample((1, -1), 2)]
        pair += 1
        slots += nulls + effects if rng.random() < 0.5 else effects + nulls
    return slots


def shuffled(arms: Sequence[str], blocks: int, seed: int) -> list[list[str]]:
    """Blocks of all arms, each in its own random order, and the first arm twice: the second is its null."""
    rng, out = random.Random(seed), []
    for _ in range(blocks):
        block = [*arms, f"{arms[0]} again"]
        rng.shuffle(block)
        out.append(block)
    return out


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Estimate:
    """A median with its 95% bootstrap interval. n: values behind it."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(values: Sequence[float], seed: int = 1) -> Estimate:
    """Median and percentile bootstrap interval. With fewer than 3 values the interval is their range."""
    data = np.asarray(values, float)
    if len(data) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    if len(data) < 3:
        return Estimate(float(np.median(data)), float(data.min()), float(data.max()), len(data))
    rng = np.random.default_rng(seed)
    medians = np.median(data[rng.integers(0, len(data), (RESAMPLES, len(data)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Estimate(float(np.median(data)), float(low), float(high), len(data))


def percentiles(values: np.ndarray) -> dict[str, float]:
    """p50, p90 and p99; NaN of nothing."""
    if len(values) == 0:
        return dict.fromkeys(("p50", "p90", "p99"), float("nan"))
    return dict(zip(("p50", "p90", "p99"), map(float, np.percentile(values, [50, 90, 99])), strict=True))


def ratio_estimate(pairs: Sequence[tuple[float, float]], seed: int = 1) -> Estimate:
    """Median of changed / base over pairs, from the logarithms, so that x2 and x0.5 weigh the same."""
    logs = estimate([float(np.log(changed / base)) for base, changed in pairs], seed)
    median, low, high = np.exp([logs.median, logs.low, logs.high]).tolist()
    return Estimate(median, low, high, logs.n)


def verdict(effect: Estimate, null: Estimate) -> str:
    """What the effect's interval allows to be said, given what doing nothing looks like."""
    if effect.n < 3 or null.n < 3:
        return TOO_FEW
    if effect.low <= 0 <= effect.high:
        return "no difference resolved"
    if null.low <= effect.low and effect.high <= null.high:
        return "within the null band"
    return "more" if effect.median > 0 else "less"


# ---------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """One line of budgets.toml. better: "lower" or "higher"."""

    name: str
    title: str
    unit: str
    reach: float
    dream: float
    better: str = "lower"


def goals() -> dict[str, Goal]:
    return {name: Goal(name, **fields) for name, fields in tomllib.loads(BUDGETS.read_text()).items()}


@dataclass(frozen=True)
class Figure:
    """A measured figure beside its goal. note: what was measured, or why it was not.

    resolved: whether the run was long enough to say.
    """

    goal: Goal
    value: Estimate | None
    note: str = ""
    resolved: bool = True

    @property
    def outcome(self) -> str:
        """dream, reached, not reached, or not measured; with "?" when the run cannot tell it for certain."""
        if self.value is None or self.value.n == 0:
            return "not measured"
        return self._compared().removesuffix("?") + "?" if not self.resolved else self._compared()

    def _compared(self) -> str:
        assert self.value is not None
        sign = 1 if self.goal.better == "lower" else -1
        middle = sign * self.value.median
        best, worst = sorted((sign * self.value.low, sign * self.value.high))
        for name, bound in (("dream", sign * self.goal.dream), ("reached", sign * self.goal.reach)):
            if middle <= bound:
                return name if worst <= bound else f"{name}?"
        return "not reached?" if best <= sign * self.goal.reach else "not reached"


def not_measured(goal: Goal, why: str) -> Figure:
    return Figure(goal, None, why)


# ---------------------------------------------------------------- reports


@dataclass
class Report:
    """The result of one benchmark: figures against goals, tables, and every raw window."""

    name: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=machine_facts)
    figures: list[Figure] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def write(self, path: Path) -> None:
        value = {**vars(self), "figures": [{**asdict(f), "outcome": f.outcome} for f in self.figures]}
        path.write_text(json.dumps(value, indent=1, default=float, allow_nan=True) + "\n")

    def text(self) -> str:
        facts = self.machine
        parts = [
            f"{self.name}: {facts['cpu']}, {facts['cores']} cores{' (virtual)' if facts['virtual'] else ''}, "
            f"kernel {facts['kernel']}, {facts['time']}"
        ]
        if self.figures:
            rows = [["figure", "measured", "95% interval", "reach", "dream", "outcome", "note"]]
            rows += [_figure_row(figure) for figure in self.figures]
            parts.append(table(rows))
        for title, rows in self.tables.items():
            parts.append(f"{title}\n{table(rows)}")
        parts += [f"warning: {text}" for text in self.warnings]
        return "\n\n".join(parts)


def _figure_row(figure: Figure) -> list[str]:
    goal, value = figure.goal, figure.value
    bounds = [f"{goal.reach:g} {goal.unit}", f"{goal.dream:g} {goal.unit}"]
    if value is None or value.n == 0:
        return [goal.title, "-", "-", *bounds, figure.outcome, figure.note]
    decimals = 4 if goal.better == "higher" else 3 if abs(value.median) < 0.1 else 2
    interval = "-" if value.n == 1 else f"{value.low:.{decimals}f} to {value.high:.{decimals}f}"
    measured = f"{value.median:.{decimals}f} {goal.unit}"
    return [goal.title, measured, interval, *bounds, figure.outcome, figure.note]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns with a line under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
