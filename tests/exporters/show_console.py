# SPDX-License-Identifier: Apache-2.0
"""What the console looks like, from made-up spans: python -m tests.exporters.show_console"""

from __future__ import annotations

import sys

from agent.spans import Resource
from exporters.console import ConsoleExporter, Sample
from tests.exporters.batches import CLIENT, SERVER, S, batch_of

MS = 1_000_000
RESOURCES = [Resource({"service.name": name}) for name in ("nginx", "shop", "späth-サービス", "payments")]


def server(
    trace: int, span: int, resource: int, start: float, ms: float, path: str, status: int, **more: object
) -> S:
    attributes = {"http.response.status_code": status, "url.path": path, "client.address": "10.0.0.7"}
    attributes |= {"client.port": 51_000 + span, **more.pop("attributes", {})}  # type: ignore[dict-item]
    route = "/".join("{id}" if part.isdigit() else part for part in path.split("/"))
    fields = {"error": status >= 500, **more}
    return S(
        f"GET {route}",
        attributes,
        resource,
        trace,
        span,
        kind=SERVER,
        start_ns=int(start * MS),
        duration_ns=int(ms * MS),
        **fields,
    )  # type: ignore[arg-type]


def client(
    trace: int, span: int, resource: int, start: float, ms: float, url: str, status: int, **more: object
) -> S:
    host = url.partition("/")[0]
    name, _, port = host.partition(":")
    attributes = {"url.full": f"http://{url}", "server.address": name, "server.port": int(port or 80)}
    attributes |= {"http.response.status_code": status} if status else {"error.type": "timeout"}
    fields = {"error": status >= 400 or not status, **more}
    return S(
        "GET",
        attributes,
        resource,
        trace,
        span,
        kind=CLIENT,
        start_ns=int(start * MS),
        duration_ns=int(ms * MS),
        **fields,
    )  # type: ignore[arg-type]


def spans() -> list[S]:
    """Children first, as the core gives them."""
    return [
        server(1, 3, 1, 1.3, 1.2, "/users/42", 200, parent=2, attributes={"client.address": "127.0.0.1"}),
        client(1, 2, 0, 1.1, 1.71, "127.0.0.1:8000/users/42", 200, parent=1),
        server(1, 1, 0, 1, 1.84, "/users/42", 200),
        server(2, 11, 0, 4, 0.412, "/favicon.ico", 404),
        client(3, 23, 1, 9, 310, "payments:9000/charge/7781?currency=EUR&amount=12", 503, parent=22),
        server(3, 25, 3, 9.2, 300, "/charge/7781", 503, parent=23),
        client(3, 24, 1, 320, 1250, "rates.example:80/latest", 0, parent=22),
        server(3, 22, 2, 8.5, 1600, "/orders/7781/pay", 500, parent=21),
        client(3, 21, 0, 8.2, 1601, "127.0.0.1:8001/orders/7781/pay", 500, parent=20),
        server(3, 20, 0, 8, 1603, "/orders/7781/pay", 500, parent=99, remote=True),
        server(4, 30, 1, 20, 65_000, "/events/\x1b[31mred\u202e/" + "long/" * 30, 200),
    ]


def main() -> None:
    color = sys.stdout.isatty() or "--color" in sys.argv
    console = ConsoleExporter(1, color=color, sample=Sample(200))
    console.export_spans(batch_of(spans(), RESOURCES))
    if "--flood" in sys.argv:
        flood = [server(n << 64 | n * 7919**5, n, 1, 30, 1, "/", 200) for n in range(1000, 9000)]
        console.export_spans(batch_of(flood, RESOURCES))
    console.flush(1)


if __name__ == "__main__":
    main()
