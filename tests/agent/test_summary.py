# SPDX-License-Identifier: Apache-2.0
"""The words at the end: aligned, and the same numbers as /metrics."""

from agent.self_metrics import BY_SOURCE, Sample
from agent.summary import LOSSES, summary

CHUNKS, BYTES = BY_SOURCE["ledger.chunks"], BY_SOURCE["ledger.bytes"]


def samples(**plain: int) -> list[Sample]:
    found = [
        Sample(BY_SOURCE["ledger.spans"], {"service": "shop"}, 1200),
        Sample(BY_SOURCE["ledger.requests"], {"service": "shop"}, 1200),
        Sample(BY_SOURCE["ledger.orphans"], {"service": "shop"}, 0),
        Sample(BY_SOURCE["ledger.spans"], {"service": "a-longer-name"}, 34),
        Sample(BY_SOURCE["ledger.requests"], {"service": "a-longer-name"}, 35),
        Sample(BY_SOURCE["ledger.orphans"], {"service": "a-longer-name"}, 1),
        Sample(CHUNKS, {"class": "parsed", "service": "shop"}, 2400),
        Sample(CHUNKS, {"class": "parsed", "service": "", "part": "quiet"}, 100),
        Sample(BYTES, {"class": "parsed", "service": "shop"}, 3 << 20),
        Sample(BY_SOURCE["kernel.chunks"], {}, 2500),
        Sample(BY_SOURCE["kernel.bytes"], {}, 3 << 20),
        Sample(BY_SOURCE["exporter.spans"], {"otel.component.type": "otlp_http_span_exporter"}, 1230),
        Sample(
            BY_SOURCE["exporter.spans"],
            {"otel.component.type": "otlp_http_span_exporter", "error.type": "queue_full"},
            4,
        ),
    ]
    return found + [Sample(BY_SOURCE[key.replace("__", ".")], {}, value) for key, value in plain.items()]


def test_whole() -> None:
    assert (
        summary(samples(), 61.5)
        == """\
traced for 1 min 1 s

service        requests  spans  orphans
shop              1,200  1,200        0
a-longer-name        35     34        1
total             1,235  1,234        1

reads and writes    count    bytes
parsed              2,500  3.0 MiB
lost                    0      0 B
seen by the kernel  2,500  3.0 MiB

nothing was lost
exported: 1,230 spans by otlp_http; dropped: 4 queue_full
"""
    )


def test_losses_name_the_option_that_helps() -> None:
    text = summary(samples(kernel__unsent_chunks=7), 1)
    assert "lost: 7 reads or writes did not fit into the ring: raise capture.ring_bytes" in text
    assert "nothing was lost" not in text
    assert all(source in BY_SOURCE for source in LOSSES)


def test_what_a_crash_took_is_said() -> None:
    text = summary(samples(ledger__difference_chunks=3, keeper__restarts=1), 1)
    assert "not accounted for: 3 (lost with a pipeline that crashed)" in text
    assert "nothing was lost" not in text


def test_nothing_seen() -> None:
    assert "no requests seen" in summary([], 0.4)
