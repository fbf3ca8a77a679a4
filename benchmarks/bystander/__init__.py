# SPDX-License-Identifier: Apache-2.0
"""What the agent costs a process that it does not trace: its system calls, with the agent on and off in turn.

    python -m benchmarks bystander [--profile smoke|short|std] [--json FILE]

The agent traces a process that sleeps. The one that is measured (calls.c) is not selected: what it pays
more is the price of the hooks alone. The method is that of `cost`, see ../README.md. Whoever else traces
system calls on this machine (another agent, a test of this project) makes "off" no off: such windows are
found by the programs that the kernel has loaded, and left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.attach import SYS_BPF
from benchmarks import build, command, harness
from benchmarks.agent import agent
from benchmarks.harness import Estimate, Figure, MachineTime, Placement, Report, Slot, estimate
from benchmarks.processes import Child, ProcessError

SOURCE = Path(__file__).with_name("calls.c")
GUARD_S = 0.5  # between the start of the agent, or its end, and the window
GOALS = {"bystander_getpid": "getpid", "bystander_read": "read /dev/zero"}


@dataclass(frozen=True)
class Profile:
    """seconds: of one window; pairs: of off and on."""

    seconds: float
    pairs: int
    wait_s: float = 0.0  # in all, for others to end their tracing


PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD = 11, 13, 15  # enum bpf_cmd
TRACING = {2, 5, 17, 26}  # enum bpf_prog_type: kprobe, tracepoint, raw tracepoint, tracing

# The programs of an agent that has ended are freed some time later: that is waited for too.
PROFILES = {"smoke": Profile(0.5, 2, 10), "short": Profile(1, 8, 60), "std": Profile(3, 30, 300)}


class Calls:
    """The running micro-benchmark."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, seconds: float) -> dict[str, float]:
        """Nanoseconds per call, by name of the call."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{round(seconds * 1000)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ProcessError(f"{SOURCE.name} ended with status {self._process.wait()}; it said why above")
        return {name: float(value) for name, value in json.loads(line).items()}


@contextmanager
def running(cpus: Sequence[int] = ()) -> Iterator[Calls]:
    """The micro-benchmark, on these processors; empty: any."""
    words = [str(build.c_program(SOURCE))]
    if cpus:
        words = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *words]
    # Its standard input is what ends it: it cannot outlive us.
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Calls(process)


def tracing_programs() -> int:
    """How many programs the kernel holds that may hang on system calls, whoever loaded them."""
    libc, count, number = ctypes.CDLL(None, use_errno=True), 0, 0
    attributes = ctypes.create_string_buffer(128)

    def bpf(command: int, packed: bytes) -> int:
        ctypes.memmove(attributes, packed, len(packed))
        return int(libc.syscall(SYS_BPF, command, attributes, len(packed)))

    while bpf(PROG_GET_NEXT_ID, struct.pack("=III", number, 0, 0)) == 0:
        number = struct.unpack_from("=I", attributes, 4)[0]
        program = bpf(PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
        if program < 0:
            continue  # it went between the two calls
        info = ctypes.create_string_buffer(64)  # read by the kernel too: zeros
        done = bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
        os.close(program)
        count += done == 0 and struct.unpack_from("=I", info)[0] in TRACING
    return count


def sleeper(folder: Path) -> Child:
    """Somebody for the agent to trace, who does nothing."""
    return Child([sys.executable, "-c", "import time; time.sleep(900)"], log=folder / "sleeper.log")


# ---------------------------------------------------------------- the arithmetic


def pairs_of(windows: list[dict[str, Any]], kind: str, call: str) -> list[tuple[float, float]]:
    """(base, changed) of each pair of a kind, in ns per call; without pairs in which somebody else traced."""
    spoiled = {window["pair"] for window in windows if window["foreign"]}
    base: dict[int, float] = {}
    changed: dict[int, float] = {}
    for window in windows:
        if window["kind"] == kind and window["pair"] not in spoiled:
            (changed if window["sign"] > 0 else base)[window["pair"]] = window["ns"][call]
    return [(base[pair], changed[pair]) for pair in base]


def added_ns(windows: list[dict[str, Any]], kind: str, call: str) -> Estimate:
    return estimate([changed - base for base, changed in pairs_of(windows, kind, call)])


def added_percent(windows: list[dict[str, Any]], kind: str, call: str) -> Estimate:
    """From the ratios of the pairs: the machine's speed of the moment cancels in each."""
    ratio = harness.ratio_estimate(pairs_of(windows, kind, call))
    return Estimate(100 * (ratio.median - 1), 100 * (ratio.low - 1), 100 * (ratio.high - 1), ratio.n)


def table_of(windows: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["ns per call", "off", "on", "on - off, 95% interval", "percent", "off - off (null)", "verdict"]]
    clean = [window for window in windows if not window["foreign"]]
    for call in windows[0]["ns"]:
        effect, null = added_ns(windows, "effect", call), added_ns(windows, "null", call)
        medians = [estimate([w["ns"][call] for w in clean if w["arm"] == arm]) for arm in ("off", "on")]
        rows.append(
            [
                call,
                *(f"{each.median:.1f}" for each in medians),
                _interval(effect),
                _interval(added_percent(windows, "effect", call)),
                _interval(null),
                harness.verdict(effect, null),
            ]
        )
    return rows


def figures_of(windows: list[dict[str, Any]]) -> list[Figure]:
    figures = []
    for name, call in GOALS.items():
        percent, null = added_percent(windows, "effect", call), added_percent(windows, "null", call)
        said = harness.verdict(percent, null)
        note = f"{_interval(added_ns(windows, 'effect', call))} ns; null {_interval(null)}%, {said}"
        figures.append(Figure(harness.goals()[name], percent, note, resolved=said != harness.TOO_FEW))
    return figures


def _interval(value: Estimate) -> str:
    return f"{value.median:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


# ---------------------------------------------------------------- the run


class Quiet:
    """Waits for others to end their tracing, no longer than so many seconds in all."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def wait(self) -> int:
        """The number of tracing programs of others: 0, unless the time is used up."""
        begin = time.monotonic()
        while (programs := tracing_programs()) and time.monotonic() - begin < self._left:
            time.sleep(0.1)
        self._left -= time.monotonic() - begin
        return programs


def find_foreign(windows: list[dict[str, Any]]) -> None:
    """Fills in `foreign`: programs that hung on the host's system calls and are not our agent's.

    before: programs at the begin of a window, without our agent; begin and end: of the measurement.
    """
    ours = min((w["begin"] - w["before"] for w in windows if w["arm"] == "on"), default=0)
    for window in windows:
        expected = ours if window["arm"] == "on" else 0
        counts = (window["before"], window["begin"] - expected, window["end"] - expected)
        window["foreign"] = max(counts)


def measure_window(
    calls: Calls, slot: Slot, seconds: float, quiet: Quiet, where: Placement, folder: Path
) -> dict[str, Any]:
    """One window, with the agent started for it when the slot says so."""
    with ExitStack() as stack:
        programs = quiet.wait()
        if slot.arm == "on":
            idle = sleeper(folder)
            stack.callback(idle.stop)
            stack.enter_context(agent([idle.pid], exporters=["none"], folder=folder, cpus=where.agent))
        time.sleep(GUARD_S)
        began, before = tracing_programs(), MachineTime.now()
        values = calls.measure(seconds)
        steal, busy = MachineTime.now().since(before)
        counts = {"before": programs, "begin": began, "end": tracing_programs()}
    return {**asdict(slot), "ns": values, "steal": steal, "busy": busy, **counts}


def run(profile: Profile, *, seed: int, where: str) -> Report:
    """The whole benchmark."""
    report = Report("bystander", {**asdict(profile), "seed": seed, "placement": where})
    place = harness.placement(where)
    quiet = Quiet(profile.wait_s)
    slots = harness.interleaved((profile.pairs + 1) // 2, seed)
    with tempfile.TemporaryDirectory() as name, running(place.server) as calls:
        calls.measure(profile.seconds)  # once for nothing: caches, and the processor's clock
        for number, slot in enumerate(slots, 1):
            window = measure_window(calls, slot, profile.seconds, quiet, place, Path(name))
            report.windows.append(window)
            shown = ", ".join(f"{call} {window['ns'][call]:.1f}" for call in GOALS.values())
            text = f"  window {number}/{len(slots)} {slot.kind}/{slot.arm}: {shown} ns"
            print(text, file=sys.stderr, flush=True)
    find_foreign(report.windows)
    report.figures += figures_of(report.windows)
    report.tables["System calls of a process that is not traced"] = table_of(report.windows)
    foreign = [window for window in report.windows if window["foreign"]]
    if foreign:
        report.warn(
            f"in {len(foreign)} of {len(slots)} windows others had programs on the host's system calls "
            f"(up to {max(w['foreign'] for w in foreign)}); their pairs are left out (bpftool prog list)"
        )
    stolen = sum(window["steal"] > harness.STEAL_MAX for window in report.windows)
    if stolen:
        report.warn(
            f"in {stolen} of {len(slots)} windows more than {harness.STEAL_MAX:.0%} of the time was stolen"
        )
    return report


def main(arguments: list[str]) -> int:
    parser = command.parser("bystander", __doc__, PROFILES)
    parser.add_argument("--seconds", type=float, help="length of one window")
    parser.add_argument("--pairs", type=int, help="off/on pairs of windows")
    parser.add_argument(
        "--wait", type=float, dest="wait_s", help="seconds, in all, for others to end their tracing"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of windows")
    parser.add_argument("--placement", choices=harness.PLACEMENTS, default="isolated", help="see cost --help")
    options = parser.parse_args(arguments)
    return command.measure(
        options,
        PROFILES[options.profile],
        ("seconds", "pairs", "wait_s"),
        lambda profile: run(profile, seed=options.seed, where=options.placement),
    )
