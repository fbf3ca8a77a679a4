# SPDX-License-Identifier: Apache-2.0
"""What crosses between keeper and pipeline: the table, hostile input, descriptors, a full socket."""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import messages
from agent.messages import MESSAGE_MAX, MESSAGES, Channel, MalformedMessage, decode

VALUES = {
    "descriptors": ["ring"],
    "cpus": 2,
    "earlier_spans": {"shop": 3},
    "earlier_ledger": {},
    "started_s": 12.5,
    "host": {"host.name": "h"},
    "capture": {"backend": "tracepoint", "sees": "all", "off": [{"name": "a", "reason": "b", "unseen": "c"}]},
    "tgid": 4711,
    "attributes": {"service.name": "shöp", "process.pid": 4711, "args": ["a", "b"], "ok": True, "f": 0.5},
    "figures": {"cpu_s": 0.25, "restarts": 1},
    "timeout_s": 5.0,
    "spans": {"shop": 7},
    "ledger": {"chunks.parsed": 9},
}


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    keeper, theirs = messages.pair()
    pipeline = Channel(theirs, "to_pipeline")
    yield keeper, pipeline
    keeper.close()
    pipeline.close()


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_arrives_as_it_was_sent(ends: tuple[Channel, Channel], name: str) -> None:
    keeper, pipeline = ends
    sender, receiver = (keeper, pipeline) if MESSAGES[name].direction == "to_pipeline" else (pipeline, keeper)
    fields = {field: VALUES[field] for field in MESSAGES[name].fields}
    sender.send(name, **fields)
    assert receiver.receive(wait_s=0) == (name, fields, ())


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_is_sent_by_one_process_and_handled_by_the_other(name: str) -> None:
    source = {p: Path(messages.__file__).with_name(f"{p}.py").read_text() for p in ("keeper", "pipeline")}
    receiver = MESSAGES[name].direction.removeprefix("to_")
    sender = "pipeline" if receiver == "keeper" else "keeper"
    assert re.search(rf'(send|offer)\(\s*"{name}"', source[sender])
    assert name == "setup" or f'case "{name}"' in source[receiver] or f'name == "{name}"' in source[receiver]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b"[" * 60000,
        b'{"type":7}',
        b'{"type":"unknown"}',
        b'{"type":"stop","timeout_s":1}',  # goes the other way
        b'{"type":"stats"}',
        b'{"type":"stats","spans":{},"ledger":{},"more":1}',
        b'{"type":"stats","spans":{"a":-1},"ledger":{}}',
        b'{"type":"stats","spans":{"a":true},"ledger":{}}',
        b'{"type":"stats","spans":{"a":1e3},"ledger":{}}',
        b'{"type":"stats","spans":{"a":18446744073709551616},"ledger":{}}',
        b'{"type":"stats","spans":[1],"ledger":{}}',
        b'{"type":"stats","spans":' + b"9" * 5000 + b',"ledger":{}}',
    ],
)
def test_what_the_pipeline_may_not_say_is_counted_and_passed_over(
    ends: tuple[Channel, Channel], data: bytes
) -> None:
    keeper, pipeline = ends
    pipeline.sock.send(data)
    pipeline.send("ready")
    received = keeper.receive(wait_s=0)
    assert received is not None and received.name == "ready"
    assert keeper.malformed == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_are_finite(value: str) -> None:
    with pytest.raises(MalformedMessage):
        decode(f'{{"type":"stop","timeout_s":{value}}}'.encode(), "to_pipeline")


def test_descriptors_ride_along_and_are_not_inherited(ends: tuple[Channel, Channel]) -> None:
    keeper, pipeline = ends
    fd = os.memfd_create("x")
    os.write(fd, b"[1]")
    keeper.send("setup", [fd], **{field: VALUES[field] for field in MESSAGES["setup"].fields})
    received = pipeline.receive(wait_s=0)
    assert received is not None
    assert messages.from_memfd(received.descriptors[0]) == [1]
    assert not os.get_inheritable(received.descriptors[0])
    os.close(fd)
    os.close(received.descriptors[0])


def test_descriptors_of_a_refused_message_are_closed(ends: tuple[Channel, Channel]) -> None:
    keeper, pipeline = ends
    read, write = os.pipe()
    socket.send_fds(pipeline.sock, [b'{"type":"ready"}'], [write])
    os.close(write)
    with pytest.raises(TimeoutError):
        keeper.receive(wait_s=0)
    assert keeper.malformed == 1
    assert os.read(read, 1) == b"", "nobody holds the write end any more"
    os.close(read)


def test_too_long_is_refused_by_both_ends(ends: tuple[Channel, Channel]) -> None:
    keeper, pipeline = ends
    with pytest.raises(MalformedMessage):
        keeper.send("process", tgid=1, attributes={"a": "x" * MESSAGE_MAX})
    pipeline.sock.send(json.dumps({"type": "ready", "x": "y" * MESSAGE_MAX}).encode())
    with pytest.raises(TimeoutError):
        keeper.receive(wait_s=0)
    assert keeper.malformed == 1


def test_offer_never_waits_and_send_gives_up(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, pipeline = ends
    while not pipeline.refused:
        pipeline.offer("ready")
    assert pipeline.refused == 1
    monkeypatch.setattr(messages, "SEND_TIMEOUT_S", 0.01)
    with pytest.raises(TimeoutError):
        pipeline.send("ready")
    assert keeper.receive(wait_s=0) is not None
    pipeline.send("ready")


def test_closed_end_reads_as_none(ends: tuple[Channel, Channel]) -> None:
    keeper, pipeline = ends
    pipeline.close()
    assert keeper.receive(wait_s=0) is None
