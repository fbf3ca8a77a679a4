# SPDX-License-Identifier: Apache-2.0
"""OTLP over HTTP: the transport on urllib3, and the exporter that joins encoder, queue and transport.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import ssl
import time
import zlib
from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError

from agent.errors import ConfigError
from agent.spans import LogBatch, MetricBatch, RowBatch, SpanBatch
from exporters.byte_queue import Queue
from exporters.otlp_encode import REQUEST_BYTES_MAX, JsonEnvelope, ProtobufEnvelope, RowEncoder
from exporters.otlp_metrics import MetricEncoder
from exporters.otlp_settings import OtlpSettings, SignalSettings
from exporters.protobuf import read_fields
from exporters.retry import Backoff
from exporters.sender import Answer, Lane, Sender, Unreachable

log = logging.getLogger(__name__)

KIB = 1024
RESPONSE_BYTES_MAX = 4096 * KIB
GZIP_LEVEL = 1  # level 6 takes 2.6 times as long for 3% fewer bytes (python -m tests.exporters.speed)
_GZIP_WINDOW = 31  # zlib's code for the gzip format


class HttpDestination:
    """Where one signal goes. One connection, kept alive; redirects are not followed."""

    def __init__(self, settings: SignalSettings, version: str, context: ssl.SSLContext | None) -> None:
        self.url = settings.url
        self._settings = settings
        agent = f"ebpf-otlp-tracer/{version} OTel-OTLP-Exporter-Python/{version}"
        envelope = JsonEnvelope if settings.json else ProtobufEnvelope
        self._headers = {"User-Agent": agent, **settings.headers, "Content-Type": envelope.content_type}
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, ssl_context=context)

    def prepare(self, data: bytes | memoryview) -> bytes | None:
        return zlib.compress(data, GZIP_LEVEL, _GZIP_WINDOW) if self._settings.gzip else None

    def post(self, data: bytes | memoryview, compressed: bool) -> Answer:
        headers = self._headers | ({"Content-Encoding": "gzip"} if compressed else {})
        timeout_s = self._settings.timeout_s or None
        deadline = time.monotonic() + timeout_s if timeout_s else float("inf")
        try:
            response = self._pool.urlopen(
                "POST",
                self.url,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(total=timeout_s),
                redirect=False,
                preload_content=False,
            )
            body = _read(response, deadline)
        except (HTTPError, OSError) as error:
            raise Unreachable(_reason(error)) from None
        retry_after = response.headers.get("Retry-After")
        if body is None:
            return Answer(0, text=f"answered {response.status} with more than {RESPONSE_BYTES_MAX} bytes")
        if 300 <= response.status < 400:
            return Answer(
                response.status,
                text=f"redirects are not followed: {response.headers.get('Location', '')[:200]}",
            )
        if response.status >= 400:
            return Answer(response.status, retry_after, text=_status_text(body) or (response.reason or ""))
        rejected, text = partial_success(body)
        return Answer(response.status, rejected=rejected, text=text)

    def close(self) -> None:
        self._pool.clear()


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes | None:
    """The response's body; None when it is over the limit. One that drips past the deadline is an error."""
    parts, size = [], 0
    while part := response.read1(64 * 1024):
        parts.append(part)
        size += len(part)
        if size > RESPONSE_BYTES_MAX:
            response.close()
            return None
        if time.monotonic() > deadline:
            response.close()
            raise TimeoutError("timed out while reading the answer")
    response.release_conn()
    return b"".join(parts)


def _reason(error: BaseException) -> str:
    """The system's words for what went wrong, without urllib3's object names."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"certificate refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason or cause}"
        # To urllib3 a connection that is refused is a kind of timeout: its cause says more.
        timeouts = TimeoutError | urllib3.exceptions.TimeoutError
        if isinstance(cause, timeouts) and not isinstance(cause, NewConnectionError):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        args = [arg for arg in cause.args if isinstance(arg, BaseException)]
        cause = cause.__cause__ or (args[0] if args else cause.__context__)
    return " ".join(str(error).split())[:200]


def partial_success(body: bytes) -> tuple[int, str]:
    """(rejected items, message) of an Export*ServiceResponse, protobuf or JSON: field 1 { 1, 2 }.

    What cannot be read is a success, for the status said so.
    """
    try:
        if body[:1] == b"{":
            partial = json.loads(body).get("partialSuccess") or {}
            counts = [int(value) for key, value in partial.items() if key.startswith("rejected")]
            return max(0, *counts, 0), _line(partial.get("errorMessage") or "")
        rejected, text = 0, ""
        for number, value in read_fields(body):
            for inner, item in read_fields(value) if number == 1 and isinstance(value, bytes) else ():
                if inner == 1 and isinstance(item, int):
                    rejected = item if item < 1 << 63 else 0
                elif inner == 2 and isinstance(item, bytes):
                    text = _line(item.decode("utf-8", "replace"))
    except (ValueError, AttributeError, TypeError):
        return 0, ""
    return rejected, text


def _status_text(body: bytes) -> str:
    """The message of a google.rpc.Status, protobuf or JSON, or plain text as it is."""
    try:
        if body[:1] == b"{":
            return _line(str(json.loads(body).get("message", "")))
        for number, value in read_fields(body):
            if number == 2 and isinstance(value, bytes):
                return _line(value.decode("utf-8", "replace"))
    except ValueError:
        pass
    text = body[:200].decode("utf-8", "replace")
    return "" if "<" in text else _line(text)  # a proxy's HTML says nothing that the status does not


def _line(text: str) -> str:
    """A stranger's text for one log line."""
    return "".join(char if char.isprintable() else " " for char in text[:200]).strip()


def client_file(pem: str) -> int:
    """A file in memory that holds a client's certificate and key: OpenSSL reads them from a path only, and
    /proc/self/fd/N is one. Made where that is allowed, handed on like any other descriptor, so nothing is
    written to a disk and the process that uses it needs no right to make files."""
    fd = os.memfd_create("otlp-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(pem.encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


def tls_context(settings: SignalSettings, client_fd: int | None = None) -> ssl.SSLContext | None:
    """None for plain HTTP. client_fd: a `client_file` in place of settings.client_pem, not closed here.
    Raises ConfigError."""
    if not settings.url.startswith("https:"):
        return None
    try:
        context = ssl.create_default_context(cadata=settings.ca or None)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_CERTIFICATE cannot be used: {error}", "it holds CA certificates in PEM form"
        ) from None
    if settings.client_pem or client_fd is not None:
        fd = client_file(settings.client_pem) if client_fd is None else client_fd
        try:
            context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_password)
        except (ssl.SSLError, ValueError, OSError) as error:
            raise ConfigError(
                f"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY cannot be used: {error}",
                "they are PEM files that belong together; the key must not be encrypted",
            ) from None
        finally:
            if client_fd is None:
                os.close(fd)
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL asks on the terminal


class OtlpHttpExporter:
    """queue_bytes is shared, in sixteenths: 12 for spans, 3 for metrics, 1 for log records. A request is kept
    under a quarter of its queue, so that dropping the oldest does not mean dropping everything; but not
    under 64 KiB.

    client_fds: by signal, each a `client_file`, the caller's to close.
    """

    name = "otlp"

    def __init__(
        self,
        settings: OtlpSettings,
        version: str,
        rows_max: int,
        queue_bytes: int,
        request_bytes_max: int = REQUEST_BYTES_MAX,
        backoff: Backoff | None = None,
        client_fds: Mapping[str, int] | None = None,
        **clocks: Any,
    ) -> None:
        fds = client_fds or {}
        contexts = {name: tls_context(signal, fds.get(name)) for name, signal in settings.signals.items()}
        lanes, limits = [], {}
        for name, share, noun in (("traces", 12, "spans"), ("metrics", 3, "points"), ("logs", 1, "logs")):
            queue = Queue(queue_bytes * share // 16)
            limits[name] = min(request_bytes_max, queue.bytes_max, max(queue.bytes_max // 4, 64 * KIB))
            destination = HttpDestination(settings.signals[name], version, contexts[name])
            lanes.append(Lane(name, noun, destination, queue, limits[name]))
        self._rows = {
            name: RowEncoder(
                JsonEnvelope(version, name) if settings.signals[name].json else ProtobufEnvelope(version),
                rows_max,
                limits[name],
            )
            for name in ("traces", "logs")
        }
        self._metrics = MetricEncoder(
            version,
            json=settings.signals["metrics"].json,
            temporality=settings.temporality,
            bytes_max=limits["metrics"],
        )
        self.sender = Sender(self.name, lanes, backoff, **clocks)

    def start(self) -> None:
        self.sender.start()

    def export_spans(self, batch: SpanBatch) -> None:
        self._put("traces", batch)

    def export_logs(self, batch: LogBatch) -> None:
        self._put("logs", batch)

    def export_metrics(self, batch: MetricBatch) -> None:
        for body in self._metrics.encode(batch):
            self.sender.put("metrics", body.data, body.items)

    def tick(self, now: float) -> None:
        """Nothing: the sender has its own thread."""

    def flush(self, timeout_s: float) -> bool:
        return self.sender.flush(timeout_s)

    def close(self) -> None:
        self.sender.close()

    def stats(self) -> dict[str, int]:
        stats = self.sender.stats()
        stats["dropped_points_too_large"] += self._metrics.too_large
        for name, rows in self._rows.items():
            noun = self.sender.lanes[name].noun
            stats[f"dropped_{noun}_too_large"] += rows.too_large
            stats[f"dropped_{noun}_invalid"] = rows.skipped
        return stats

    def _put(self, lane: str, batch: RowBatch) -> None:
        for body in self._rows[lane].encode(batch):
            self.sender.put(lane, body.data, body.items)
