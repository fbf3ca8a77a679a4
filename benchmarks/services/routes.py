# SPDX-License-Identifier: Apache-2.0
"""The routes of the demo's shop: what is answered, and how long it takes. Knows no server and no tracing."""

from __future__ import annotations

import json
from dataclasses import dataclass

PRODUCTS = 1000


@dataclass(frozen=True)
class Reply:
    """An answer in JSON, and the time that making it takes (a database, say)."""

    status: int
    body: bytes
    delay_s: float = 0.0


def respond(method: str, target: str, body: bytes) -> Reply:
    """The answer to one request.

    /r/ID               at once, for load: as little work as possible
    /products/ID        2 ms; 404 from product 1000 on
    /search?q=TEXT      15 ms
    /recommendations    40 ms
    /orders             POST {"product": ID, "quantity": N}, 8 ms
    /reports/N          5 ms; every fifth report fails with 500
    """
    path, _, query = target.partition("?")
    parts = path.strip("/").split("/")
    match (method, *parts):
        case ("GET", "r", _):
            return _json(200, {"ok": True})
        case ("GET", ""):
            return _json(200, {"shop": "open"})
        case ("GET", "products", product) if product.isdigit() and int(product) < PRODUCTS:
            return _json(200, {"product": int(product), "price": 10 + int(product) % 90}, 0.002)
        case ("GET", "products", _):
            return _json(404, {"error": "no such product"}, 0.001)
        case ("GET", "search"):
            return _json(200, {"query": query.removeprefix("q="), "found": list(range(10))}, 0.015)
        case ("GET", "recommendations"):
            return _json(200, {"products": list(range(0, 1000, 5))}, 0.040)
        case ("POST", "orders"):
            return _order(body)
        case ("GET", "reports", number) if number.isdigit():
            failed = int(number) % 5 == 4
            return _json(500 if failed else 200, {"report": "failed" if failed else "ready"}, 0.005)
        case _:
            return _json(404, {"error": "not found"})


def _order(body: bytes) -> Reply:
    try:
        order = json.loads(body)
        return _json(201, {"ordered": order["product"], "quantity": order["quantity"]}, 0.008)
    except (ValueError, KeyError, TypeError):
        return _json(400, {"error": 'expected {"product": ID, "quantity": N}'})


def _json(status: int, value: object, delay_s: float = 0.0) -> Reply:
    return Reply(status, json.dumps(value).encode(), delay_s)
