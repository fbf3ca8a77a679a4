# SPDX-License-Identifier: Apache-2.0
"""Spans as the agent wrote them to a JSON lines file (OTLP JSON): for what compares them with the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER, CLIENT = 2, 3


@dataclass
class Span:
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: int
    flags: int
    attributes: dict[str, Any]
    resource: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.attributes.get(key)

    @property
    def target(self) -> str:
        query = self["url.query"]
        return str(self["url.path"]) + (f"?{query}" if query else "")

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


def _value(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return [_value(v) for v in content.get("values", [])]
    return content


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def read_spans(path: Path) -> list[Span]:
    spans = []
    for line in path.read_text().splitlines():
        for by_resource in json.loads(line)["resourceSpans"]:
            resource = _attributes(by_resource["resource"]["attributes"])
            for by_scope in by_resource["scopeSpans"]:
                for s in by_scope["spans"]:
                    spans.append(
                        Span(
                            s["name"],
                            s["kind"],
                            s["traceId"],
                            s["spanId"],
                            s.get("parentSpanId", ""),
                            int(s["startTimeUnixNano"]),
                            int(s["endTimeUnixNano"]),
                            s.get("status", {}).get("code", 0),
                            s.get("flags", 0),
                            _attributes(s.get("attributes", [])),
                            resource,
                        )
                    )
    return sorted(spans, key=lambda span: span.start_ns)
