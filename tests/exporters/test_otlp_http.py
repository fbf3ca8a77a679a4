# SPDX-License-Identifier: Apache-2.0
"""OTLP over HTTP against a real server on loopback: bodies, TLS, answers of every kind."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from agent.errors import ConfigError
from agent.spans import Metric, MetricBatch, Point, Resource
from exporters import open_exporters, open_prepared, prepare
from exporters.otlp_http import HttpDestination, OtlpHttpExporter, client_file, partial_success
from exporters.otlp_settings import SIGNALS, read_settings
from exporters.retry import Backoff
from exporters.sender import Unreachable
from tests.exporters.batches import F, S, batch_of, log_batch_of
from tests.exporters.collector import Collector, Reply

PREFIX = "OTEL_EXPORTER_OTLP_"
STATUS = b"\x08\x08\x12\x09too early"  # google.rpc.Status


def exporter_to(url: str, **variables: str) -> OtlpHttpExporter:
    """Not started: the test calls step()."""
    environ = {PREFIX + "ENDPOINT": url, PREFIX + "TIMEOUT": "5000"}
    environ |= {PREFIX + key: value for key, value in variables.items()}
    settings = read_settings(environ)
    return OtlpHttpExporter(settings, "1.2.3", 8192, 1 << 20, backoff=Backoff(jitter=0))


def metrics() -> MetricBatch:
    metric = Metric("spans", "{span}", "", "sum", [Point({}, 5, 7), Point({"a": 1}, 5, 8)])
    return MetricBatch(9, [(Resource({}), [metric])])


def send(exporter: OtlpHttpExporter, spans: int = 3) -> dict[str, int]:
    exporter.export_spans(batch_of([S(span=i + 1) for i in range(spans)]))
    exporter.sender.step()
    exporter.sender._say._interval_s = 0
    return exporter.stats()


def test_spans_and_metrics_arrive() -> None:
    with Collector() as collector:
        exporter = exporter_to(collector.url, HEADERS="api-key=s%20ecret")
        exporter.export_metrics(metrics())
        exporter.sender.step()
        stats = send(exporter)
    first, second = collector.received
    assert (first.path, second.path) == ("/v1/metrics", "/v1/traces")
    assert len(ExportMetricsServiceRequest.FromString(first.body).resource_metrics) == 1
    spans = ExportTraceServiceRequest.FromString(second.body).resource_spans[0].scope_spans[0].spans
    assert [span.span_id[7] for span in spans] == [1, 2, 3]
    assert second.headers["content-type"] == "application/x-protobuf"
    assert second.headers["user-agent"] == "ebpf-otlp-tracer/1.2.3 OTel-OTLP-Exporter-Python/1.2.3"
    assert second.headers["api-key"] == "s ecret"
    assert "content-encoding" not in second.headers
    assert (stats["sent_spans"], stats["sent_points"], stats["requests"]) == (3, 2, 2)
    assert stats["sent_bytes"] == len(first.raw) + len(second.raw)


def test_findings_arrive_as_log_records() -> None:
    with Collector() as collector:
        exporter = exporter_to(collector.url, LOGS_HEADERS="api-key=logs", LOGS_COMPRESSION="gzip")
        exporter.export_logs(log_batch_of([F(span=1), F(span=2)]))
        exporter.sender.step()
        send(exporter)
        stats = exporter.stats()
    first, second = collector.received
    assert (first.path, second.path) == ("/v1/logs", "/v1/traces")
    records = ExportLogsServiceRequest.FromString(first.body).resource_logs[0].scope_logs[0].log_records
    assert [record.span_id[7] for record in records] == [1, 2]
    assert (first.headers["api-key"], first.headers["content-encoding"]) == ("logs", "gzip")
    assert (stats["sent_logs"], stats["sent_spans"], stats["sent_points"]) == (2, 3, 0)


def test_findings_as_json() -> None:
    with Collector() as collector:
        exporter = exporter_to(collector.url, LOGS_PROTOCOL="http/json")
        exporter.export_logs(log_batch_of([F()]))
        exporter.sender.step()
    (received,) = collector.received
    assert received.headers["content-type"] == "application/json"
    assert len(json.loads(received.body)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]) == 1


def test_log_records_that_were_refused_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records, answer.partial_success.error_message = 2, "too old"
    with Collector(Reply(200, body=answer.SerializeToString()), Reply(400)) as collector:
        exporter = exporter_to(collector.url)
        for count in (3, 4):
            exporter.export_logs(log_batch_of([F()] * count))
            exporter.sender.step()
    stats = exporter.stats()
    assert (stats["sent_logs"], stats["dropped_logs_rejected"]) == (1, 6)
    assert f"{collector.url}/v1/logs accepted all but 2 logs: too old" in caplog.messages
    assert (stats["sent_spans"], stats["dropped_spans_rejected"]) == (0, 0)


def test_log_records_wait_for_their_receiver_behind_nobody() -> None:
    """A receiver that takes no logs keeps no span waiting."""
    with Collector(Reply(503), Reply(200)) as collector:
        exporter = exporter_to(collector.url)
        exporter.export_logs(log_batch_of([F()]))
        exporter.sender.step()
        assert send(exporter)["sent_spans"] == 3
    assert (exporter.stats()["sent_logs"], exporter.stats()["queue_requests"]) == (0, 1)
    exporter.close()
    assert exporter.stats()["dropped_logs_shutdown"] == 1


def test_the_connection_is_kept_alive() -> None:
    with Collector() as collector:
        exporter = exporter_to(collector.url)
        for _ in range(5):
            send(exporter)
    assert (len(collector.received), collector.connections) == (5, 1)


def test_gzip() -> None:
    with Collector() as collector:
        send(exporter_to(collector.url, COMPRESSION="gzip"))
    (received,) = collector.received
    assert received.headers["content-encoding"] == "gzip"
    assert len(ExportTraceServiceRequest.FromString(received.body).resource_spans) == 1


def test_json() -> None:
    with Collector() as collector:
        exporter = exporter_to(collector.url, PROTOCOL="http/json")
        exporter.export_metrics(metrics())
        exporter.sender.step()
        send(exporter)
    assert [r.headers["content-type"] for r in collector.received] == ["application/json"] * 2
    assert len(json.loads(collector.received[0].body)["resourceMetrics"]) == 1
    assert len(json.loads(collector.received[1].body)["resourceSpans"][0]["scopeSpans"][0]["spans"]) == 3


def test_retryable_answer_then_success() -> None:
    replies = Reply(503, {"Retry-After": "0"}, STATUS), Reply(200)
    with Collector(*replies) as collector:
        exporter = exporter_to(collector.url)
        send(exporter)
        assert exporter.stats()["queue_requests"] == 1
        exporter.sender.step()
    assert exporter.stats()["sent_spans"] == 3
    assert collector.received[0].raw == collector.received[1].raw


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(400, body=STATUS), "answered 400 (too early); 3 spans dropped"),
        (
            Reply(400, body=b'{"code":3,"message":"bad\\u001b[1m id"}'),
            "answered 400 (bad [1m id); 3 spans dropped",
        ),
        (Reply(413), "answered 413 (Request Entity Too Large); 3 spans dropped"),
        (Reply(500, body=b"<html>oops</html>"), "answered 500 (Internal Server Error); 3 spans dropped"),
        (Reply(404, body=b"no such page"), "answered 404 (no such page); 3 spans dropped"),
        (Reply(200, body=b"x" * (4 << 20 | 1)), "answered 200 with more than 4194304 bytes; 3 spans dropped"),
    ],
)
def test_final_answers_are_not_retried_and_say_why(
    reply: Reply, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector(reply) as collector:
        stats = send(exporter_to(collector.url))
    assert (stats["dropped_spans_rejected"], stats["queue_requests"], stats["sent_spans"]) == (3, 0, 0)
    assert caplog.messages[0].endswith(said)


def test_redirects_are_not_followed(caplog: pytest.LogCaptureFixture) -> None:
    with Collector() as other, Collector() as collector:
        collector.replies.append(Reply(307, {"Location": other.url + "/v1/traces"}))
        stats = send(exporter_to(collector.url))
    assert other.received == []
    assert stats["dropped_spans_rejected"] == 3
    assert f"redirects are not followed: {other.url}" in caplog.text


def response(rejected: int, text: str) -> bytes:
    message = ExportTraceServiceResponse()
    message.partial_success.rejected_spans, message.partial_success.error_message = rejected, text
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("body", "rejected", "text"),
    [
        (b"", 0, ""),
        (response(0, ""), 0, ""),
        (response(2, "bad ids"), 2, "bad ids"),
        (response(0, "a warning\n"), 0, "a warning"),
        (response(-5, ""), 0, ""),
        (response(2**40, "x" * 5000), 2**40, "x" * 200),
        (b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"bad"}}', 2, "bad"),
        (b'{"partialSuccess":{"rejectedDataPoints":3}}', 3, ""),
        (b'{"partialSuccess":{"rejectedLogRecords":"4","errorMessage":"old"}}', 4, "old"),
        (b'{"partialSuccess":null}', 0, ""),
        (b'{"partialSuccess":{"rejectedSpans":null}}', 0, ""),
        (b"{}", 0, ""),
        (b'{"partialSuccess":[1]}', 0, ""),
        (b"{broken", 0, ""),
        (b"<html>", 0, ""),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0, ""),
        (b"\x0a\x05ab", 0, ""),
        (b"\x0f", 0, ""),
    ],
)
def test_partial_success_is_read_by_hand(body: bytes, rejected: int, text: str) -> None:
    assert partial_success(body) == (rejected, text)


def test_partial_success_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with Collector(Reply(200, body=response(2, "bad ids"))) as collector:
        stats = send(exporter_to(collector.url))
    assert (stats["sent_spans"], stats["dropped_spans_rejected"], len(collector.received)) == (1, 2, 1)
    assert f"{collector.url}/v1/traces accepted all but 2 spans: bad ids" in caplog.messages


def test_an_unreachable_collector_is_named_with_the_systems_words(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        stats = send(exporter_to(url))
    assert (stats["queue_requests"], stats["failures"]) == (1, 1)
    assert caplog.messages[0].startswith(f"cannot reach {url}/v1/traces: connection refused; 3 spans wait (")
    assert caplog.messages[0].endswith("next try in 1 s")


def test_a_name_that_does_not_resolve(caplog: pytest.LogCaptureFixture) -> None:
    stats = send(exporter_to("http://collector.invalid:4318"))
    assert stats["queue_requests"] == 1
    assert caplog.messages[0].startswith("cannot reach http://collector.invalid:4318/v1/traces: ")
    assert "urllib3" not in caplog.text


def test_a_collector_that_hangs_is_left_after_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    hold = threading.Event()
    with Collector(Reply(hold=hold)) as collector:
        exporter = exporter_to(collector.url, TIMEOUT="50")
        stats = send(exporter)
        hold.set()
    assert (stats["queue_requests"], stats["failures"]) == (1, 1)
    assert "no answer in time" in caplog.text


def test_an_answer_that_drips_is_cut_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk comes in time, the whole never would: the deadline counts."""
    now = [0.0]
    monkeypatch.setattr("exporters.otlp_http.time.monotonic", lambda: now[0])

    def drip() -> bytes:
        now[0] += 3
        return b"x"

    with Collector(Reply(chunks=[drip] * 1000)) as collector:
        settings = read_settings({PREFIX + "ENDPOINT": collector.url}).signals["traces"]
        with pytest.raises(Unreachable, match="no answer in time"):
            HttpDestination(settings, "1", None).post(b"x", False)


def test_a_connection_that_dies_without_an_answer_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    with Collector(Reply(drop=True)) as collector:
        exporter = exporter_to(collector.url)
        assert send(exporter)["queue_requests"] == 1
        assert exporter.flush(0) is False
        exporter.sender.step()
    assert exporter.stats()["sent_spans"] == 3
    assert "cannot reach" in caplog.text


def test_oversize_batches_are_cut_and_a_single_oversize_span_dropped() -> None:
    environ = {PREFIX + "ENDPOINT": "http://127.0.0.1:9"}
    exporter = OtlpHttpExporter(read_settings(environ), "1", 8192, 1 << 20, request_bytes_max=2000)
    spans = [S(span=i + 1, attributes={"url.path": "/" * 500}) for i in range(10)]
    exporter.export_spans(batch_of([*spans, S(span=99, attributes={"url.path": "/" * 3000})]))
    stats = exporter.stats()
    assert stats["dropped_spans_too_large"] == 1
    assert stats["queue_requests"] >= 4


def test_broken_rows_are_counted() -> None:
    exporter = exporter_to("http://127.0.0.1:9")
    batch = batch_of([S(), S()])
    batch.rows["name_offset"][0] = 2**32 - 1
    exporter.export_spans(batch)
    findings = log_batch_of([F(), F(severity=25), F(severity=26)])
    exporter.export_logs(findings)
    stats = exporter.stats()
    assert (stats["dropped_spans_invalid"], stats["dropped_logs_invalid"]) == (1, 2)


def test_the_thread_sends_and_flush_waits_for_it() -> None:
    hold = threading.Event()
    with Collector(Reply(hold=hold)) as collector:
        exporter = exporter_to(collector.url)
        exporter.start()
        for _ in range(23):
            exporter.export_spans(batch_of([S()]))
        assert not exporter.flush(0.02)
        hold.set()
        assert exporter.flush(10)
        assert (exporter.stats()["sent_spans"], len(collector.received)) == (23, 23)
        exporter.close()
    assert not exporter.sender._thread or not exporter.sender._thread.is_alive()


def test_close_does_not_wait_for_a_collector_that_hangs() -> None:
    hold = threading.Event()
    with Collector(Reply(hold=hold)) as collector:
        exporter = exporter_to(collector.url)
        exporter.start()
        exporter.export_spans(batch_of([S(), S()]))
        exporter.export_spans(batch_of([S()]))
        exporter.close()
        hold.set()
    assert exporter.stats()["dropped_spans_shutdown"] == 3


# ---- TLS


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client certificates, and a key with a password."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for ca in ("ca", "other"):
        openssl("req", "-x509", *curve, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.crt")
    for name in ("server", "client"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.crt")
        extension = (
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )
        issuer = ("-CA", "ca.crt", "-CAkey", "ca.key")
        openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *extension, *issuer, *files)
    openssl("ec", "-in", "client.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")
    return folder


def server_context(pki: Path, mutual: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.crt", pki / "server.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pki / "ca.crt")
    return context


def test_tls_with_an_own_authority(pki: Path) -> None:
    with Collector(tls=server_context(pki)) as collector:
        stats = send(exporter_to(collector.url, CERTIFICATE=str(pki / "ca.crt")))
    assert (stats["sent_spans"], len(collector.received)) == (3, 1)


@pytest.mark.parametrize("authority", ["other.crt", ""])
def test_tls_with_an_unknown_authority_sends_nothing(
    pki: Path, authority: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector(tls=server_context(pki)) as collector:
        stats = send(exporter_to(collector.url, CERTIFICATE=str(pki / authority) if authority else ""))
    assert (stats["queue_requests"], collector.received) == (1, [])
    assert "certificate refused: " in caplog.text


def test_mutual_tls(pki: Path) -> None:
    variables = {
        "CERTIFICATE": str(pki / "ca.crt"),
        "CLIENT_CERTIFICATE": str(pki / "client.crt"),
        "CLIENT_KEY": str(pki / "client.key"),
    }
    with Collector(tls=server_context(pki, mutual=True)) as collector:
        stats = send(exporter_to(collector.url, **variables))
    assert stats["sent_spans"] == 3
    peer = collector.received[0].peer
    assert peer and peer["subject"][0][0] == ("commonName", "client")


def test_mutual_tls_without_a_certificate_is_retried_not_lost(pki: Path) -> None:
    with Collector(tls=server_context(pki, mutual=True)) as collector:
        stats = send(exporter_to(collector.url, CERTIFICATE=str(pki / "ca.crt")))
    assert (stats["queue_requests"], collector.received) == (1, [])


@pytest.mark.parametrize(("certificate", "key"), [("client.crt", "server.key"), ("client.crt", "locked.key")])
def test_client_pairs_that_do_not_work_are_an_error_at_start(pki: Path, certificate: str, key: str) -> None:
    with pytest.raises(ConfigError, match="CLIENT_CERTIFICATE and _CLIENT_KEY cannot be used"):
        exporter_to("https://c", CLIENT_CERTIFICATE=str(pki / certificate), CLIENT_KEY=str(pki / key))


def test_an_authority_that_is_no_certificate_is_an_error_at_start(pki: Path) -> None:
    with pytest.raises(ConfigError, match="CERTIFICATE cannot be used"):
        exporter_to("https://c", CERTIFICATE=str(pki / "ca.key"))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
def test_mutual_tls_without_privileges(pki: Path) -> None:
    """As in the pipeline: another user, the files out of reach, settings and descriptors from the parent."""
    environ = {
        PREFIX + "CERTIFICATE": str(pki / "ca.crt"),
        PREFIX + "CLIENT_CERTIFICATE": str(pki / "client.crt"),
    }
    environ[PREFIX + "CLIENT_KEY"] = str(pki / "client.key")
    options = {"export.request_spans_max": 8192, "export.queue_bytes": 1 << 20}
    with Collector(tls=server_context(pki, mutual=True)) as collector:
        prepared = prepare(["otlp"], options, environ | {PREFIX + "ENDPOINT": collector.url}, "1")
        assert len(prepared.fds) == len(SIGNALS)
        assert "PRIVATE KEY" not in str(prepared.settings)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                (exporter,) = open_prepared(prepared.settings, prepared.fds)
                exporter.export_spans(batch_of([S()]))
                os._exit(0 if exporter.flush(10) and exporter.stats()["sent_spans"] == 1 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for fd in prepared.fds:
            os.close(fd)


def test_client_files_are_closed_after_use_and_cannot_be_changed(pki: Path) -> None:
    fd = client_file("secret")
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    os.close(fd)
    before = sorted(os.listdir("/proc/self/fd"))
    environ = {
        PREFIX + "ENDPOINT": "https://127.0.0.1:9",
        PREFIX + "CLIENT_CERTIFICATE": str(pki / "client.crt"),
    }
    environ[PREFIX + "CLIENT_KEY"] = str(pki / "client.key")
    options = {"export.request_spans_max": 8192, "export.queue_bytes": 1 << 20}
    for exporter in open_exporters(["otlp"], options, environ, "1"):
        exporter.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "exporters"):
        yield
