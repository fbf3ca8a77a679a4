# SPDX-License-Identifier: Apache-2.0
"""Every counter there is has its line in the table, its name in both formats, and the ledger adds up."""

import re
import select
import socket
import time

import numpy as np
import pytest
from agent.core._core import ffi

from agent import status
from agent.engine import GAP_CAUSES, LEDGER_CLASSES, LEDGER_ROW, PROTOCOLS
from agent.own_process import OwnProcess, private_bytes
from agent.resources import ResourceTable
from agent.self_metrics import (
    BY_SOURCE,
    FIGURES,
    Ledger,
    exporter_samples,
    ledger_samples,
    otlp_metrics,
    prometheus_name,
    prometheus_text,
)
from agent.status import REQUEST_MAX, StatusServer, listen
from tests.agent.pipelines import ListExporter, rig


@pytest.mark.parametrize(
    "group,structure", [("core", "struct core_stats"), ("kernel", "struct kernel_counters")]
)
def test_every_counter_in_c_is_a_figure(group: str, structure: str) -> None:
    fields = {name for name, _ in ffi.typeof(structure).fields if not name.startswith("padding")}
    assert fields == {source.partition(".")[2] for source in BY_SOURCE if source.startswith(f"{group}.")}


def test_every_figure_has_a_sentence_and_names_of_its_own() -> None:
    for figure in FIGURES:
        assert figure.help.endswith(".") and figure.help[0].isupper()
        assert figure.kind in ("sum", "gauge", "updown")
        assert re.fullmatch(r"[a-z][a-z0-9_.]*", figure.name)
    assert len({figure.name for figure in FIGURES}) == len(FIGURES) == len(BY_SOURCE)
    assert len({prometheus_name(figure) for figure in FIGURES}) == len(FIGURES)


def test_names_that_others_rely_on() -> None:
    names = {prometheus_name(figure) for figure in FIGURES}
    for name in ("chunks_total", "bytes_total", "kernel_chunks_total", "spans_total", "ledger_difference"):
        assert f"ebpf_otlp_tracer_{name}" in names
    assert prometheus_name(BY_SOURCE["process.cpu_s"]) == "ebpf_otlp_tracer_process_cpu_time_seconds_total"
    assert prometheus_name(BY_SOURCE["exporter.spans"]) == "otel_sdk_exporter_span_exported_total"


def ledger_rows(*tgids: int) -> np.ndarray:
    rows = np.zeros(len(tgids), LEDGER_ROW)
    for row, tgid in zip(rows, tgids, strict=True):
        row["tgid"] = tgid
        row["chunks"][:6] = np.arange(1, 7) * tgid
        row["bytes"][:6] = np.arange(1, 7) * tgid * 100
        row["requests"] = tgid
        row["gaps"][PROTOCOLS.index("http1")][GAP_CAUSES.index("shed")] = tgid
        row["gaps"][0][GAP_CAUSES.index("lost")] = tgid == 1
    return rows


def test_classes_are_those_of_the_core() -> None:
    assert Ledger.CLASSES == LEDGER_CLASSES
    assert Ledger.GAPS == GAP_CAUSES


def test_every_chunk_of_the_kernel_stands_in_one_class() -> None:
    resources = ResourceTable(16)
    resources.put(1, {"service.name": "a"})
    resources.put(2, {"service.name": "b"})
    resources.put(4, {"service.name": "a"})
    ledger = Ledger({"chunks.parsed": 10, "bytes.parsed": 1000}, PROTOCOLS)
    ledger.keep(ledger_rows(4), resources)
    services = ledger.by_service(ledger_rows(1, 2), resources)
    assert services["a"]["chunks.truncated"] == 2 + 8
    counters = {"quiet": 100, "unknown": 20, "encrypted": 3, "unsent": 4, "shed": 5, "sent": 21 * 7 + 10}
    kernel = {f"{name}_chunks": count for name, count in counters.items()}
    kernel |= {f"{name}_bytes": 100 * count for name, count in counters.items()}
    kernel |= {"chunks": sum(counters.values()), "bytes": 100 * sum(counters.values()) + 7}
    samples = list(ledger_samples(services, ledger.earlier, kernel, {"a": 5}))
    by_class = dict.fromkeys(LEDGER_CLASSES, 0)
    for sample in samples:
        if sample.figure.source == "ledger.chunks":
            by_class[sample.labels["class"]] += int(sample.value)
    assert by_class == {
        "parsed": 7 + 100 + 10,
        "truncated": 14,
        "lost": 21 + 4,
        "unknown": 28 + 20,
        "late": 35,
        "encrypted": 42 + 3,
        "declined": 0,
        "shed": 5,
    }
    differences = {s.figure.source: s.value for s in samples if "difference" in s.figure.source}
    assert differences == {"ledger.difference_chunks": 0, "ledger.difference_bytes": 7}
    gaps = [(s.labels, s.value) for s in samples if s.figure.source == "ledger.gaps"]
    assert sorted(gaps, key=str) == [
        ({"service": "a", "protocol": "http1", "cause": "shed"}, 4 + 1),
        ({"service": "a", "protocol": "undecided", "cause": "lost"}, 1),
        ({"service": "b", "protocol": "http1", "cause": "shed"}, 2),
    ]
    page = prometheus_text(samples)
    assert 'ebpf_otlp_tracer_gaps_total{service="b",protocol="http1",cause="shed"} 2\n' in page


def test_difference_is_zero_when_nothing_was_traced() -> None:
    with rig() as r:
        values = {s.figure.source: s.value for s in r.pipeline.samples()}
        assert values["ledger.difference_chunks"] == values["ledger.difference_bytes"] == 0


def test_exporters_figures_tell_reasons_apart() -> None:
    found = {
        (s.figure.name, s.labels.get("error.type", "")): s.value
        for s in exporter_samples([ListExporter("otlp")])
    }
    assert found == {
        ("otel.sdk.exporter.span.exported", ""): 0,
        ("otel.sdk.exporter.span.exported", "queue_full"): 2,
        ("ebpf_otlp_tracer.exporter.queue.size", ""): 5,
    }


def test_log_records_are_told_apart_from_spans() -> None:
    exporter = ListExporter("jsonl")
    exporter.stats = lambda: {"sent_logs": 3, "dropped_logs_no_file": 2}  # type: ignore[method-assign]
    found = [(s.figure.name, s.labels.get("error.type", ""), s.value) for s in exporter_samples([exporter])]
    name = "otel.sdk.exporter.log.exported"
    assert found == [(name, "", 3), (name, "no_file", 2)]


def test_prometheus_text_is_well_formed_whatever_a_service_is_called() -> None:
    with rig() as r:
        r.pipeline.spans['a"b\\c\nd'] = 1
        samples = r.pipeline.samples()
        text = prometheus_text(samples)
    assert 'ebpf_otlp_tracer_spans_total{service="a\\"b\\\\c\\nd"} 1' in text
    line = re.compile(r'[a-z_:][a-z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\.)*",?)+\})? -?[0-9.e+-]+$')
    helped: list[str] = []
    for row in text.splitlines():
        if row.startswith("# HELP "):
            helped.append(row.split()[2])
        elif not row.startswith("# TYPE "):
            assert line.match(row), row
            assert re.split("[{ ]", row)[0] == helped[-1]
    assert len(helped) == len(set(helped)), "samples of a figure stand together"


def test_otlp_has_the_same_samples() -> None:
    with rig() as r:
        samples = r.pipeline.samples()
        metrics = otlp_metrics(samples, 5)
    assert sum(len(metric.points) for metric in metrics) == len(samples)
    assert all(point.start_unix_ns == 5 for metric in metrics for point in metric.points)


def test_own_figures_are_plausible() -> None:
    figures = OwnProcess().figures()
    assert 0 < figures["cpu_s"] < 3600
    assert 1 << 20 < figures["private_bytes"] < 1 << 32
    assert private_bytes(b"Rss: 9 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 6 kB\n") == 10240


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", ":0"])
def test_addresses(address: str) -> None:
    with listen(address) as listener:
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3.4:http", "127.0.0.1:"])
def test_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(address))):
        listen(address)


class Served:
    """A status server driven by hand."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.listener = listen("127.0.0.1:0")
        self.server = StatusServer(self.listener, self.epoll, {"/": lambda: ("text/plain", "x" * 3_000_000)})

    def turn(self) -> None:
        for fd, _ in self.epoll.poll(5):
            self.server.handle(fd)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        self.turn()
        return client


def test_large_answer_to_a_slow_reader_and_head() -> None:
    served = Served()
    with served.connect() as client:
        client.sendall(b"GET / HT")
        served.turn()
        client.sendall(b"TP/1.1\r\n\r\n")
        served.turn()
        received = 0
        client.settimeout(5)
        while True:
            for fd, _ in served.epoll.poll(0):
                served.server.handle(fd)
            data = client.recv(65536)
            received += len(data)
            if not data:
                break
        assert received > 3_000_000
    with served.connect() as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        served.turn()
        served.turn()
        assert client.recv(65536).endswith(b"Content-Length: 3000000\r\nConnection: close\r\n\r\n")
    served.server.close()


def test_silent_endless_and_too_many_clients_are_closed() -> None:
    served = Served()
    with served.connect() as silent:
        served.server.tick(time.monotonic() + status.TIMEOUT_S)
        assert silent.recv(1) == b""
    with served.connect() as endless:
        endless.sendall(b"x" * REQUEST_MAX)
        served.turn()
        endless.settimeout(5)
        assert endless.recv(1) == b""
    clients = [served.connect() for _ in range(status.CONNECTIONS_MAX + 1)]
    assert clients[0].recv(1) == b"", "the oldest goes first"
    for client in clients:
        client.close()
    served.server.close()
