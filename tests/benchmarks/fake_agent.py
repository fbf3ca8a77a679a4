# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the agent that the benchmarks' tests start: the same command line, no BPF.

It watches packets on loopback, which needs root but no kernel program, and makes spans of what the
processes named by --pid serve. Enough for the demo and the benchmarks to run whole: `ready` on standard
error, console, jsonl and otlp exporters, /metrics, SIGINT. FAKE_AGENT_DROP=N leaves out every Nth span.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil

REQUEST = re.compile(rb"(GET|POST) (\S+) HTTP/1\.1\r\n")
RESPONSE = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h: loopback shows each packet twice
SERVER, CLIENT = 2, 3

Span = dict[str, Any]


class Watcher:
    """Packets to and from the ports that the processes listen on, paired into spans."""

    def __init__(self, pids: list[int]) -> None:
        self.owner: dict[int, psutil.Process] = {}
        for pid in pids:
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        self.owner[connection.laddr.port] = process
        self.front = next((port for port, p in self.owner.items() if p.name() == "nginx"), 0)
        self.open: dict[tuple[int, int], deque[Span]] = defaultdict(deque)
        self.done: list[Span] = []
        self.chunks = 0
        self.lock = threading.Lock()
        self.drop_every = int(os.environ.get("FAKE_AGENT_DROP", 0))
        self.count = itertools.count(1)

        self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.packets.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.packets.bind(("lo", 0x0800))

    def run(self) -> None:
        while True:
            data, address = self.packets.recvfrom(1 << 17)
            if address[2] != OUTGOING and data[9] == socket.IPPROTO_TCP:
                self.packet(data)

    def packet(self, data: bytes) -> None:
        header = (data[0] & 15) * 4
        source, target = struct.unpack_from("!HH", data, header)
        payload = data[header + (data[header + 12] >> 4) * 4 : int.from_bytes(data[2:4], "big") or None]
        if payload and target in self.owner:
            self.chunks += 1
            for method, path in REQUEST.findall(payload):
                self.request(source, target, method.decode(), path.decode())
        elif payload and source in self.owner:
            self.chunks += 1
            for status in RESPONSE.findall(payload):
                self.response(target, source, int(status))

    def request(self, client: int, port: int, method: str, target: str) -> None:
        path, _, _ = target.partition("?")
        span = {
            "pid": self.owner[port].pid,
            "service": self.owner[port].name(),
            "kind": SERVER,
            "parent": None,
        }
        span |= {"method": method, "path": path, "start": time.time_ns(), "trace": secrets.token_hex(16)}
        span["id"] = secrets.token_hex(8)
        if self.front and port != self.front:
            parents = [spans[0] for key, spans in self.open.items() if key[1] == self.front and spans]
            if len(parents) == 1:
                root = parents[0]
                middle = {**span, "pid": root["pid"], "service": root["service"], "kind": CLIENT}
                middle |= {"id": secrets.token_hex(8), "trace": root["trace"], "parent": root["id"]}
                span |= {"trace": root["trace"], "parent": middle["id"], "middle": middle}
        self.open[client, port].append(span)

    def response(self, client: int, port: int, status: int) -> None:
        spans = self.open[client, port]
        if not spans:
            return
        span = spans.popleft()
        for each in (span, span.pop("middle", None)):
            if each is not None:
                each |= {"status": status, "end": time.time_ns()}
                if not self.drop_every or next(self.count) % self.drop_every:
                    with self.lock:
                        self.done.append(each)

    def take(self) -> list[Span]:
        with self.lock:
            out, self.done = self.done, []
        return out


def attributes(span: Span) -> list[tuple[str, str | int]]:
    return [
        ("http.request.method", span["method"]),
        ("url.path", span["path"]),
        ("http.response.status_code", span["status"]),
    ]


def json_value(value: str | int) -> dict[str, str]:
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def json_line(spans: list[Span]) -> str:
    groups = defaultdict(list)
    for span in spans:
        groups[span["pid"], span["service"]].append(span)
    out = []
    for (pid, service), members in groups.items():
        resource = [("process.pid", pid), ("service.name", service)]
        out.append(
            {
                "resource": {"attributes": [{"key": k, "value": json_value(v)} for k, v in resource]},
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": span["trace"],
                                "spanId": span["id"],
                                **({"parentSpanId": span["parent"]} if span["parent"] else {}),
                                "name": span["method"],
                                "kind": span["kind"],
                                "startTimeUnixNano": str(span["start"]),
                                "endTimeUnixNano": str(span["end"]),
                                "attributes": [
                                    {"key": k, "value": json_value(v)} for k, v in attributes(span)
                                ],
                            }
                            for span in members
                        ]
                    }
                ],
            }
        )
    return json.dumps({"resourceSpans": out})


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def protobuf(spans: list[Span]) -> bytes:
    out = b""
    for span in spans:
        body = field(1, bytes.fromhex(span["trace"])) + field(2, bytes.fromhex(span["id"]))
        body += field(5, span["method"].encode()) + field(6, span["kind"])
        for key, value in attributes(span):
            any_value = field(3, value) if isinstance(value, int) else field(1, value.encode())
            body += field(9, field(1, key.encode()) + field(2, any_value))
        out += field(2, body)
    return field(1, field(2, out))


def serve_metrics(listen: str, watcher: Watcher) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            chunks = watcher.chunks
            text = f'ebpf_otlp_tracer_chunks_total{{class="parsed",service="nginx"}} {chunks}\n'
            text += 'ebpf_otlp_tracer_chunks_total{class="lost",service="nginx"} 0\n'
            text += f"ebpf_otlp_tracer_kernel_chunks_total {chunks}\n"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    host, port = listen.split(":")
    threading.Thread(
        target=ThreadingHTTPServer((host, int(port)), Handler).serve_forever, daemon=True
    ).start()


def export(spans: list[Span], exporters: list[str]) -> None:
    for exporter in exporters if spans else ():
        if exporter == "console":
            for span in spans:
                print(f"{span['service']} {span['method']} {span['path']} {span['status']}", flush=True)
        elif exporter.startswith("jsonl:"):
            with open(exporter.removeprefix("jsonl:"), "a") as file:
                file.write(json_line(spans) + "\n")
        elif exporter == "otlp":
            url = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"].rstrip("/") + "/v1/traces"
            headers = {"Content-Type": "application/x-protobuf"}
            urllib.request.urlopen(urllib.request.Request(url, protobuf(spans), headers), timeout=5).read()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--pid", type=int, action="append", default=[])
    parser.add_argument("--exporter", action="append", default=[])
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    watcher = Watcher(options.pid)
    serve_metrics(os.environ.get("EBPF_OTLP_TRACER_SELF_LISTEN", "127.0.0.1:9465"), watcher)
    threading.Thread(target=watcher.run, daemon=True).start()
    print(f"fake agent ready, tracing {options.pid}", file=sys.stderr, flush=True)
    total = 0
    while not ended.wait(0.1):
        spans = watcher.take()
        total += len(spans)
        export(spans, options.exporter)
    spans = watcher.take()
    export(spans, options.exporter)
    print(f"spans: {total + len(spans)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
