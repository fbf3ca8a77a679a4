# SPDX-License-Identifier: Apache-2.0
"""Every option once: its name, type, default, unit and sentence; and the one precedence.

flag > environment > file > default. `a.b_c` has a flag of its own only where `flag` names one (any
option can be given as `--set a.b_c=VALUE`), is always `EBPF_OTLP_TRACER_A_B_C` in the environment, and
is nested keys in YAML. Loading is in `agent/config_load.py`; the keeper and the pipeline need only this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ENV_PREFIX = "EBPF_OTLP_TRACER_"


@dataclass(frozen=True)
class Option:
    """One line of the table. type: one of int, float, bool, str, "ints", "strs".

    env: further environment variables that set it, first found wins (OTEL_* names).
    secret: not shown by print-config.
    minimum, maximum: of the number, or of each number of "ints".
    """

    name: str
    type: Any
    default: Any
    help: str
    flag: str = ""
    env: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False

    @property
    def env_name(self) -> str:
        """The variable of our own: `a.b_c` is EBPF_OTLP_TRACER_A_B_C."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()


@dataclass(frozen=True)
class Config(Mapping[str, Any]):
    """The effective value of every option, and where each came from. `config["core.hold_ms"]`.

    Lists are tuples. warnings: what was ignored on the way, for the log.
    """

    values_by_name: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def source(self, name: str) -> str:
        """Where the value came from: a flag, a variable, FILE:LINE, or the word default."""
        return self.sources.get(name, "default")

    def to_json(self) -> str:
        """One flat object, name -> value: what the keeper and the pipeline are given."""
        return json.dumps(dict(self.values_by_name))

    @classmethod
    def from_json(cls, text: str | bytes) -> Config:
        values = json.loads(text)
        return cls({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


KIB, MIB = 1024, 1024 * 1024

# The query keys that the HTTP conventions redact by default.
REDACTED_KEYS = (
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
)
KNOWN_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")

# fmt: off
OPTIONS: tuple[Option, ...] = (
    # What to trace. Any of them matches; nothing is traced that none of them selects.
    Option("select.pid", "ints", (), "Trace this process and its children.", flag="--pid", minimum=1, maximum=4194304),
    Option("select.port", "ints", (), "Trace the processes that listen on this TCP port.", flag="--port", minimum=1, maximum=65535),
    Option("select.exe", "strs", (), "Trace processes by executable: path or glob.", flag="--exe"),
    Option("select.service", "strs", (), "Trace processes by service name: name or glob.", flag="--service"),
    Option("select.container", "strs", (), "Trace processes by container id (a prefix will do).", flag="--container"),
    Option("select.all", bool, False, "Trace every process but the agent's own.", flag="--all"),
    # Kernel side.
    Option("capture.backend", str, "auto", "Hooks: system calls (tracepoint), functions of the kernel (kprobe), or auto.", flag="--capture", choices=("auto", "tracepoint", "kprobe")),
    Option("capture.ring_bytes", int, 4 * MIB, "Size of the data ring: a power of two, at least a page.", minimum=4096),
    Option("capture.wake_bytes", int, 0, "Bytes waiting in the ring that wake the pipeline; 0: an eighth of the ring.", minimum=0),
    Option("capture.allowance_bytes", int, 64 * KIB, "Bytes copied at most per message; beyond, the first 256 and the last few of each call. Of databases four times as many per turn, and more of pipelines; beyond, the last few.", minimum=256),
    Option("capture.tail_bytes", int, 48, "Last bytes copied of a chunk that is not copied whole; up to 256 where a long answer of a database may end.", minimum=0, maximum=256),
    Option("capture.connections_max", int, 65536, "Connections the kernel side keeps at once.", minimum=16),
    Option("capture.unix_connections_max", int, 16384, "The same for Unix sockets.", minimum=16),
    Option("capture.threads_max", int, 32768, "Threads the kernel side keeps at once.", minimum=64),
    Option("capture.processes_max", int, 8192, "Processes traced at once.", minimum=16),
    Option("capture.shed", bool, True, "When the ring fills up, leave out whole connections, so that the others stay complete."),
    Option("capture.loader_python", str, "", "Python interpreter that has BCC; empty: found."),
    # Core.
    Option("core.connections_max", int, 65536, "Connections the core keeps at once; the longest idle one goes first.", minimum=16),
    Option("core.stream_bytes_max", int, 128 * KIB, "Bytes that one direction may hold back while a message head is incomplete.", minimum=1024),
    Option("core.buffer_bytes_max", int, 32 * MIB, "The same over all connections.", minimum=65536),
    Option("core.pending_max", int, 131072, "Requests that may wait for an answer on one connection.", minimum=1),
    Option("core.request_timeout_s", float, 300.0, "A request without an answer becomes a span with error.type timeout after this time.", minimum=0.1),
    Option("core.idle_timeout_s", float, 900.0, "A connection that moved nothing for this time is forgotten by the core.", minimum=1),
    Option("core.hold_ms", float, 5.0, "Events wait this long to be put in the order of their times.", minimum=0, maximum=1000),
    Option("core.poll_ms", float, 100.0, "The pipeline looks at the ring at least this often.", minimum=1, maximum=10000),
    Option("core.batch_spans_max", int, 8192, "Spans that one batch may hold; more wait for the next.", minimum=64),
    Option("core.statement_bytes_max", int, 4 * MIB, "Texts of SQL statements kept, and which connection has prepared them; without room a span has no text.", minimum=64 * KIB),
    Option("core.series_max", int, 2000, "Duration series kept at once; others are counted together (otel.metric.overflow).", minimum=16),
    Option("core.findings_per_second_max", int, 20, "Findings of a kind that become log records; more are only counted.", minimum=0, maximum=10000),
    # Protocols.
    Option("http.route", str, "heuristic", "http.route from the path by rule, or never (strict).", choices=("heuristic", "unset")),
    Option("http.routes_max", int, 200, "Distinct routes per process; further paths get no route.", minimum=0),
    Option("http.redact_query_keys", "strs", REDACTED_KEYS, "Query keys whose values are replaced by REDACTED."),
    Option("http.request_headers", "strs", (), "Request headers to capture as attributes.", env=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",)),
    Option("http.response_headers", "strs", (), "Response headers to capture as attributes.", env=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",)),
    Option("http.known_methods", "strs", KNOWN_METHODS, "HTTP methods that are named in spans; others are _OTHER.", env=("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS",)),
    Option("database.query_text", str, "parameterized", "db.query.text: never; with every literal replaced, keys of Redis too; or the same, but statements with placeholders as they are, and Redis commands with their keys.", choices=("off", "sanitized", "parameterized")),
    Option("database.server_spans", bool, False, "Spans of the database's side too, where its process is traced."),
    # What is told of statements, as log records and as a metric.
    Option("findings.slow_ms", float, 100.0, "A statement that takes so long is marked and told; 0: none.", minimum=0),
    Option("findings.n_plus_one", int, 10, "So many equal reads on behalf of one request, or in a row on a connection, are told; 0: none.", minimum=0),
    Option("findings.duplicate_reads", int, 5, "The same, with equal values too; 0: none.", minimum=0),
    Option("findings.idle_in_transaction_s", float, 10.0, "A transaction left alone for so long is told; 0: none.", minimum=0),
    Option("findings.costly_commands", bool, True, "Redis commands are told whose cost grows with what is stored."),
    Option("findings.hot_keys", bool, True, "Redis keys are told that a quarter of all commands is about."),
    # Sampling and resource.
    Option("traces.sampler", str, "parentbased_always_on", "Which traces are kept.", env=("OTEL_TRACES_SAMPLER",), choices=("always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio")),
    Option("traces.sampler_ratio", float, 1.0, "Share of traces kept by the traceidratio samplers.", env=("OTEL_TRACES_SAMPLER_ARG",), minimum=0, maximum=1),
    Option("resource.attributes", str, "", "Attributes added to every resource: k=v,k2=v2; the target's own win."),
    Option("resource.command_args", bool, False, "Add process.command_args, which may hold secrets, to resources."),
    # Export.
    Option("exporters", "strs", (), "Where spans and findings go: console, jsonl:PATH, otlp, sdk:NAME, none. Default: console, and otlp if an endpoint is set.", flag="--exporter", env=("OTEL_TRACES_EXPORTER",)),
    Option("export.interval_ms", int, 200, "Spans wait at most this long to fill a request.", minimum=10),
    Option("export.request_spans_max", int, 8192, "Spans in one request at most.", minimum=1),
    Option("export.queue_bytes", int, 16 * MIB, "Encoded bytes that may wait for one exporter; the oldest are dropped and counted.", minimum=64 * KIB),
    Option("export.metric_interval_ms", int, 60000, "Metrics are exported this often.", env=("OTEL_METRIC_EXPORT_INTERVAL",), minimum=100),
    Option("export.shutdown_timeout_s", float, 5.0, "Time to send what is queued at the end.", minimum=0),
    Option("console.color", str, "auto", "Colours on the console.", choices=("auto", "always", "never")),
    # The agent itself.
    Option("self.listen", str, "127.0.0.1:9465", "Address of /metrics, /status and /healthz; empty: none."),
    Option("self.telemetry", bool, True, "Export the agent's own metrics as OTLP too."),
    Option("self.user", int, 65534, "User id of the pipeline, which holds no privilege.", minimum=1),
    Option("log.level", str, "info", "How much is said on standard error.", env=("OTEL_LOG_LEVEL",), choices=("error", "warn", "info", "debug")),
)
# fmt: on

BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}
