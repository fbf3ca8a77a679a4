# SPDX-License-Identifier: Apache-2.0
"""What the exporters cost per span: python -m tests.exporters.speed

Spans of 14 attributes, in batches of 2,000 of 4 resources; the least and the median of 40 rounds. The SDK
lane and the console are here to say what they are: they run per span, in Python.
"""

from __future__ import annotations

import os
import random
import statistics
import time
import zlib
from collections.abc import Callable
from functools import partial

from agent.spans import Resource
from exporters.console import ConsoleExporter, Sample
from exporters.otlp_encode import JsonEnvelope, ProtobufEnvelope, RowEncoder
from exporters.otlp_http import GZIP_LEVEL
from tests.exporters.batches import CLIENT, S, batch_of

SPANS, ROUNDS = 2_000, 40
RNG = random.Random(1)

KEYS = dict(
    enumerate(
        (
            "http.request.method",
            "http.response.status_code",
            "http.route",
            "http.response.body.size",
            "url.scheme",
            "url.path",
            "url.query",
            "user_agent.original",
            "network.protocol.version",
            "network.peer.address",
            "network.peer.port",
            "client.address",
            "client.port",
            "server.address",
        ),
        start=1,
    )
)


def span(i: int) -> S:
    path = f"/users/{RNG.randrange(10**6)}"
    values = ("GET", 200, "/users/{id}", 512 + i, "http", path, "page=2", "Mozilla/5.0 (X11; Linux)")
    values += ("1.1", "10.0.0.7", 40_000 + i % 20_000, "10.0.0.7", 40_000 + i % 20_000, "shop.example")
    attributes = dict(zip(KEYS.values(), values, strict=True))
    ids = {"trace": RNG.getrandbits(128), "span": RNG.getrandbits(64), "start_ns": RNG.getrandbits(50)}
    return S("GET /users/{id}", attributes, i % 4, kind=CLIENT, **ids)


def measure(name: str, spans: int, run: Callable[[], object], note: str = "") -> None:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / spans * 1e9)
    print(f"{name:34} {min(times):9,.0f} {statistics.median(times):9,.0f}   {note}")


def main() -> None:
    batch = batch_of(
        [span(i) for i in range(SPANS)], [Resource({"service.name": f"s{i}"}) for i in range(4)], KEYS
    )
    protobuf, as_json = RowEncoder(ProtobufEnvelope("1"), 8192), RowEncoder(JsonEnvelope("1"), 8192)
    body = bytes(protobuf.encode(batch)[0].data)
    json_size = len(as_json.encode(batch)[0].data)
    print(f"{'ns per span':34} {'least':>9} {'median':>9}")
    measure("protobuf", SPANS, lambda: protobuf.encode(batch), f"{len(body) / SPANS:.0f} bytes a span")
    measure("json", SPANS, lambda: as_json.encode(batch), f"{json_size / SPANS:.0f} bytes a span")
    for level in (GZIP_LEVEL, 6):
        size = len(zlib.compress(body, level, 31))
        compress = partial(zlib.compress, body, level, 31)
        measure(f"gzip level {level}, of protobuf", SPANS, compress, f"{size / SPANS:.0f} bytes a span")
    with open(os.devnull, "wb") as sink:
        console = ConsoleExporter(sink.fileno(), color=True, sample=Sample(10**9))
        measure("console, every span shown", SPANS, lambda: console.export_spans(batch))
        console = ConsoleExporter(sink.fileno(), color=True)
        measure("console, sampled", SPANS, lambda: console.export_spans(batch), "200 spans/s shown")
    try:
        from exporters.sdk import Converter
    except ImportError:
        return
    convert = Converter("1")
    measure("sdk lane, rows to ReadableSpan", SPANS, lambda: convert(batch))


if __name__ == "__main__":
    main()
