# SPDX-License-Identifier: Apache-2.0
"""The same Python service bare, with OpenTelemetry's auto-instrumentation, and with the agent.

    python -m benchmarks compare [--blocks 5] [--json FILE]

Flask under gunicorn (one worker, threads), with the demo's routes; one load; one receiver. The SDK arm is
what a user gets by its manual: `opentelemetry-instrument`, batch processor and OTLP/HTTP with their
defaults, traces and metrics on, logs off, every trace kept. Every arm has a fresh process of the
service; a block holds each arm once and the bare one twice (the null), in random order.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import harness, load, servers
from benchmarks.agent import agent, command, needs_root
from benchmarks.harness import Estimate, MachineTime, Report, estimate
from benchmarks.sink import SERVER_SPAN, sink

MIB = 1024 * 1024
ARMS = ("bare", "sdk", "agent")
NULL = "bare again"
TITLES = {"bare": "bare", NULL: "bare again (null)", "sdk": "OpenTelemetry SDK", "agent": "this agent"}
WARM_UP_S = 2.0
CONNECTIONS = 8  # as many as gunicorn has threads
FLUSH_S = 8.0  # the SDK's batch processor waits up to 5 s
SDK_ENVIRONMENT = {
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "otlp",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
}


def measure_arm(arm: str, block: int, seconds: float, rate: float, where: str) -> dict[str, Any]:
    """One window of one arm, in a fresh process of the service. CPU in us per answered request."""
    place = harness.placement(where)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = stack.enter_context(sink(record=True, cpus=place.load))
        environment = {**SDK_ENVIRONMENT, **receiver.environment} if arm == "sdk" else {}
        service = stack.enter_context(
            servers.python_flask(
                instrumented=arm == "sdk", threads=CONNECTIONS, env=environment, cpus=place.server
            )
        )
        tracer = None
        if arm == "agent":
            tracer = stack.enter_context(
                agent(
                    [service.pid],
                    exporters=["otlp"],
                    env=receiver.environment,
                    folder=folder,
                    cpus=place.agent,
                )
            )
        generator = stack.enter_context(
            load.running(
                service.port,
                rate=rate,
                seconds=WARM_UP_S + seconds + 0.2,
                connections=CONNECTIONS,
                cpus=place.load,
            )
        )
        time.sleep(WARM_UP_S)
        agent_pids = tracer.pids if tracer else ()
        edges = [
            (time.monotonic_ns(), harness.cpu_ns(service.pids), harness.cpu_ns(agent_pids), MachineTime.now())
        ]
        time.sleep(seconds)
        edges.append(
            (time.monotonic_ns(), harness.cpu_ns(service.pids), harness.cpu_ns(agent_pids), MachineTime.now())
        )
        service_memory, agent_memory = harness.memory(service.pids), harness.memory(agent_pids)
        result = generator.wait()
        if arm in ("sdk", "agent"):
            receiver.wait_for_spans(result.answered, timeout_s=FLUSH_S)
        seen = [each.id for each in receiver.requests_seen() if each.kind == SERVER_SPAN]
        stats = receiver.stats()
    (start_ns, service_start, agent_start, machine_start), (end_ns, service_end, agent_end, machine_end) = (
        edges
    )
    answered = result.between(start_ns, end_ns)
    count = max(1, len(answered))
    wall_s = (end_ns - start_ns) / 1e9
    return {
        "arm": arm,
        "block": block,
        "requests": len(answered),
        "achieved": len(answered) / wall_s / rate,
        "failed": result.failed + result.unsent,
        "service_us": (service_end - service_start) / count / 1e3,
        "agent_us": (agent_end - agent_start) / count / 1e3,
        "cpu_us": (service_end - service_start + agent_end - agent_start) / count / 1e3,
        "service_mib": service_memory.private / MIB,
        "agent_mib": agent_memory.private / MIB,
        "memory_mib": (service_memory.private + agent_memory.private) / MIB,
        "answered": result.answered,
        "spans": len(set(seen) & result.ids()),
        "duplicates": len(seen) - len(set(seen)),
        "exported_bytes": stats.bytes,
        "steal": machine_end.since(machine_start)[0],
        **harness.percentiles((answered["done_ns"] - answered["intended_ns"]) / 1e3),
    }


def added(windows: list[dict[str, Any]], arm: str, key: str) -> Estimate:
    """The arm minus the bare arm of the same block."""
    bare = {window["block"]: window[key] for window in windows if window["arm"] == ARMS[0]}
    return estimate([w[key] - bare[w["block"]] for w in windows if w["arm"] == arm and w["block"] in bare])


def tables(windows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """What each arm is, and what each adds to the bare service."""

    def median(arm: str, key: str) -> float:
        return estimate([window[key] for window in windows if window["arm"] == arm]).median

    def total(arm: str, key: str) -> int:
        return sum(window[key] for window in windows if window["arm"] == arm)

    present = [arm for arm in TITLES if any(window["arm"] == arm for window in windows)]
    rows = [
        [
            "arm",
            "CPU us/request",
            "of it agent",
            "private MiB",
            "of it agent",
            "p50 us",
            "p99 us",
            "spans/requests",
        ]
    ]
    for arm in present:
        spans = f"{total(arm, 'spans')}/{total(arm, 'answered')}" if arm in ("sdk", "agent") else "-"
        rows.append(
            [
                TITLES[arm],
                f"{median(arm, 'cpu_us'):.1f}",
                f"{median(arm, 'agent_us'):.1f}",
                f"{median(arm, 'memory_mib'):.1f}",
                f"{median(arm, 'agent_mib'):.1f}",
                f"{median(arm, 'p50'):.0f}",
                f"{median(arm, 'p99'):.0f}",
                spans,
            ]
        )
    effects = [["added to bare", "CPU us/request", "", "private MiB", "p50 us", ""]]
    for arm in present:
        if arm == ARMS[0]:
            continue
        cpu, latency = added(windows, arm, "cpu_us"), added(windows, arm, "p50")
        effects.append(
            [
                TITLES[arm],
                _interval(cpu),
                harness.verdict(cpu, added(windows, NULL, "cpu_us")) if arm != NULL else "",
                _interval(added(windows, arm, "memory_mib")),
                _interval(latency),
                harness.verdict(latency, added(windows, NULL, "p50")) if arm != NULL else "",
            ]
        )
    return {"Each arm (medians)": rows, "Added, 95% intervals over blocks": effects}


def _interval(value: Estimate) -> str:
    return f"{value.median:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"


def run(
    blocks: int, seconds: float, rate: float, seed: int, where: str, say: Callable[[str], None]
) -> Report:
    settings = {"blocks": blocks, "seconds": seconds, "rate": rate, "seed": seed, "placement": where}
    report = Report("compare", {**settings, "agent": Path(command()[0]).name})
    for block, arms in enumerate(harness.shuffled(ARMS, blocks, seed)):
        for arm in arms:
            window = measure_arm(arm, block, seconds, rate, where)
            report.windows.append(window)
            say(f"block {block + 1}/{blocks} {TITLES[arm]}: {window['cpu_us']:.0f} us/request")
            name = f"block {block} {arm}"
            if window["steal"] > harness.STEAL_MAX:
                report.warn(f"{name}: {window['steal']:.1%} of the CPU time was stolen by other machines")
            if window["achieved"] < harness.ACHIEVED_MIN:
                report.warn(f"{name}: only {window['achieved']:.1%} of the offered rate was answered")
            if window["failed"]:
                report.warn(f"{name}: {window['failed']} requests failed or were not sent")
            if window["duplicates"]:
                report.warn(f"{name}: {window['duplicates']} requests have more than one span")
    report.tables = tables(report.windows)
    return report


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--blocks", type=int, default=5, help="of all arms (default: 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one window (default: 10)")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of arms")
    parser.add_argument(
        "--placement", choices=harness.PLACEMENTS, default="shared", help=harness.placement.__doc__
    )
    parser.add_argument("--json", type=Path, help="write everything there, raw windows too")
    options = parser.parse_args(arguments)
    problem = needs_root()
    if problem:
        print(problem, file=sys.stderr)
        return 77

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report = run(options.blocks, options.seconds, options.rate, options.seed, options.placement, say)
    print(report.text())
    if options.json:
        report.write(options.json)
    return 0
