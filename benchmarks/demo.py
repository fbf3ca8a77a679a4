# SPDX-License-Identifier: Apache-2.0
"""The demo: a real nginx before a real Python service, some traffic, and every request as a trace.

    sudo make demo        or        python -m benchmarks demo [--seconds 6]

Then the sums: what was sent against what was seen at each hop, one by one. It fails when one is missing.

One request is under way at a time. nginx serves all its connections on one thread, and the agent links
what comes in to what goes out on a thread only when it is certain, that is with one candidate; the
demo shows complete trees, so it keeps to that. Concurrent load is for `python -m benchmarks cost`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.agent import CHUNKS, LOST, Agent, agent, needs_root
from benchmarks.servers import Server

SERVER, CLIENT = 2, 3  # Span.kind in OTLP
PAUSE_S = 0.06  # between requests, so that the trees can be read
SEEN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Request:
    """What one request looks like from either side of a hop."""

    method: str
    path: str
    status: int


@dataclass(frozen=True)
class SeenSpan:
    """A span of the JSON lines file, as far as the demo looks."""

    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    pid: int
    service: str
    request: Request


@dataclass
class Check:
    """What was sent against what was seen. Rows: hop, expected, seen, and how many are not as expected."""

    rows: list[tuple[str, int, int, int]] = field(default_factory=list)
    linked: int = 0
    sent: int = 0

    @property
    def exact(self) -> bool:
        return self.sent > 0 and self.linked == self.sent and all(not wrong for *_, wrong in self.rows)


def read_spans(path: Path) -> Iterator[SeenSpan]:
    """The spans of an OTLP JSON lines file; lines of other signals are passed over."""
    for line in path.read_text().splitlines():
        for resource_spans in json.loads(line).get("resourceSpans", ()):
            resource = _attributes(resource_spans.get("resource", {}))
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    yield _seen(span, resource)


def _seen(span: dict[str, Any], resource: dict[str, Any]) -> SeenSpan:
    attributes = _attributes(span)
    path = attributes.get("url.path") or _path_of(attributes.get("url.full", ""))
    return SeenSpan(
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId", ""),
        span["kind"],
        int(resource.get("process.pid", 0)),
        str(resource.get("service.name", "?")),
        Request(
            attributes.get("http.request.method", "?"),
            path,
            int(attributes.get("http.response.status_code", 0)),
        ),
    )


def _path_of(url: str) -> str:
    return "/" + url.split("://", 1)[-1].partition("/")[2].partition("?")[0]


def _attributes(owner: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for attribute in owner.get("attributes", ()):
        ((kind, value),) = attribute["value"].items()
        out[attribute["key"]] = int(value) if kind == "intValue" else value
    return out


def check(sent: list[Request], spans: Iterable[SeenSpan], front: set[int], service: set[int]) -> Check:
    """Holds the spans against the requests: at each hop the same requests, and each one a whole tree.

    front, service: the processes of nginx and of the Python service.
    """
    hops: dict[str, list[SeenSpan]] = {"nginx, server": [], "nginx, client": [], "Python service, server": []}
    names = {
        (True, SERVER): "nginx, server",
        (True, CLIENT): "nginx, client",
        (False, SERVER): "Python service, server",
    }
    others = 0
    for span in spans:
        name = names.get((span.pid in front, span.kind)) if span.pid in front | service else None
        if name:
            hops[name].append(span)
        else:
            others += 1
    expected = Counter(sent)
    result = Check(sent=len(sent))
    for name, seen in hops.items():
        counts = Counter(span.request for span in seen)
        wrong = (expected - counts).total() + (counts - expected).total()
        result.rows.append((name, len(sent), len(seen), wrong))
    if others:
        result.rows.append(("anything else", 0, others, others))

    roots, middles, leaves = hops.values()
    middle_of, leaf_of = _by_parent(middles), _by_parent(leaves)
    for root in roots:
        chain = [root]
        for children in (middle_of, leaf_of):
            below = children.get(chain[-1].span_id, [])
            if len(below) == 1:
                chain += below
        same = all(span.trace_id == root.trace_id and span.request == root.request for span in chain)
        result.linked += len(chain) == 3 and same and not root.parent_id
    return result


def _by_parent(spans: list[SeenSpan]) -> dict[str, list[SeenSpan]]:
    out: dict[str, list[SeenSpan]] = {}
    for span in spans:
        out.setdefault(span.parent_id, []).append(span)
    return out


def _traffic(port: int, seconds: float, seed: int = 1) -> list[Request]:
    """Requests one after the other, on two kept-alive connections and now and then on a new one."""
    rng, sent, end = random.Random(seed), [], time.monotonic() + seconds
    kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2)]
    number = 0
    while time.monotonic() < end:
        method, target, body = _next_request(rng, number)
        fresh = number % 10 == 9
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10) if fresh else rng.choice(kept)
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, target, body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if fresh:
            connection.close()
        sent.append(Request(method, target.partition("?")[0], answer.status))
        number += 1
        time.sleep(PAUSE_S)
    for connection in kept:
        connection.close()
    return sent


def _next_request(rng: random.Random, number: int) -> tuple[str, str, bytes | None]:
    """A shop's day: mostly products, some searches and orders, a missing page, a failing report."""
    choice = number % 10
    if choice in (0, 3, 6):
        return "GET", f"/products/{rng.randrange(1000)}", None
    if choice in (1, 5):
        return "GET", f"/search?q={rng.choice(['tea', 'cup', 'kettle'])}", None
    if choice in (2, 8):
        return "POST", "/orders", json.dumps({"product": rng.randrange(1000), "quantity": 1}).encode()
    if choice == 4:
        return "GET", "/recommendations", None
    if choice == 7:
        return "GET", f"/reports/{rng.randrange(20)}", None
    return "GET", f"/products/{rng.randrange(1000, 9999)}", None


def _wait_until_seen(path: Path, sent: list[Request], front: set[int], service: set[int]) -> Check:
    """Waits for the last spans (they leave in batches). What was seen by then."""
    deadline = time.monotonic() + SEEN_TIMEOUT_S
    while True:
        result = check(sent, _whole_lines(path), front, service) if path.exists() else Check(sent=len(sent))
        if result.exact or time.monotonic() > deadline:
            return result
        time.sleep(0.1)


def _whole_lines(path: Path) -> list[SeenSpan]:
    try:
        return list(read_spans(path))
    except json.JSONDecodeError:  # the last line is being written
        return []


def _say(text: str = "") -> None:
    print(text, flush=True)


def _summary(
    result: Check, lost: int | None, path: Path, front: Server, service: Server, agent_status: int
) -> None:
    _say()
    _say(f"  {'hop':<24}{'requests sent':>14}{'spans seen':>12}   ")
    for name, expected, seen, wrong in result.rows:
        _say(f"  {name:<24}{expected:>14}{seen:>12}   {'exact' if not wrong else f'{wrong} not as sent'}")
    _say(f"  {'whole trees':<24}{result.sent:>14}{result.linked:>12}   (server > client > server, one trace)")
    said = "the agent did not say" if lost is None else "none" if lost == 0 else f"{lost} reads or writes"
    _say(f"  lost on the way: {said}")
    if agent_status != 0:
        _say(f"  the agent ended with status {agent_status}")
    _say()
    _say(f"Every span is in {path} (OTLP JSON lines, readable by an OpenTelemetry Collector).")
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        _say(f"They also went to {os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}.")
    _say()
    _say("Next, on your own machine:")
    _say("  sudo .venv/bin/ebpf-otlp-tracer doctor                     what this machine allows")
    _say("  sudo .venv/bin/ebpf-otlp-tracer ps                         what could be traced")
    _say("  sudo .venv/bin/ebpf-otlp-tracer run --port 8080            trace whatever listens on a port")
    _say("  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 sudo -E make demo")
    _say("                                                             the same demo into your collector")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=6.0, help="of traffic (default: 6)")
    parser.add_argument(
        "--output", type=Path, help="the JSON lines file, replaced (default: in a new folder)"
    )
    options = parser.parse_args(arguments)
    problem = needs_root()
    if problem:
        print(problem, file=sys.stderr)
        return 77  # EX_NOPERM, as the agent

    output = (
        options.output or Path(tempfile.mkdtemp(prefix="ebpf-otlp-tracer-demo-")) / "traces.jsonl"
    ).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    exporters = ["console", f"jsonl:{output}"]
    exporters += ["otlp"] if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ else []

    with (
        servers.python_threads() as service,
        servers.nginx(proxy_to=service.port, upstream="shop", access_log=True) as front,
    ):
        _say(f"nginx on port {front.port} (pid {front.pid}) passes every request to")
        _say(f"a Python service on port {service.port} (pid {service.pid}). Neither has any tracing in it.")
        _say("Starting the agent: it compiles its kernel programs for this machine first.")
        _say()
        with tempfile.TemporaryDirectory() as scratch:
            with agent(
                [front.pid, service.pid], exporters=exporters, folder=Path(scratch), terminal=True
            ) as tracer:
                fronts, services = set(front.pids), set(service.pids)
                sent = _traffic(front.port, options.seconds)
                result = _wait_until_seen(output, sent, fronts, services)
                lost = _lost(tracer)
            status = tracer.child.process.returncode
        result = check(sent, _whole_lines(output), fronts, services) if output.exists() else result
        served = Counter(
            Request(r.method, r.target.partition("?")[0], r.status) for r in front.requests(count=len(sent))
        )
        _say()
        _say(f"{len(sent)} requests sent; nginx's own access log has {served.total()}.")
        _summary(result, lost, output, front, service, status)
    if served != Counter(sent):
        _say("\nnginx logged other requests than were sent: the demo itself is at fault.")
        return 1
    if not result.exact or status != 0:
        _say("\nNot every request was seen as it was sent: this is a bug, please report it with this output.")
        return 1
    return 0


def _lost(tracer: Agent) -> int | None:
    return tracer.counters().total(CHUNKS, **{"class": LOST})
