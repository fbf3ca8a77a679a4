# SPDX-License-Identifier: Apache-2.0
"""The keeper as a process, with a kernel side that is none and a pipeline that only listens."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent import messages
from agent.enrichment.process import read_process
from agent.keeper import Keeper, kernel_settings
from agent.log import Log
from tests.agent.fake_keeper import FakeKernel, options

TIMEOUT_S = 30


class Running:
    """A keeper that runs; what it and its pipeline do comes as lines."""

    def __init__(self, config: dict[str, Any], pipeline: str, seconds: dict[str, float]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.fake_keeper", json.dumps(config), json.dumps(seconds)],
            bufsize=0,  # select() and readline() agree on what is there
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "FAKE_PIPELINE": pipeline},
        )
        self.seen: list[dict[str, Any]] = []

    def wait(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next line of that type with these values."""
        assert self.process.stdout is not None
        while True:
            assert select.select([self.process.stdout], [], [], TIMEOUT_S)[0], f"no {kind} after {self.seen}"
            line = self.process.stdout.readline()
            assert line, f"ended without {kind}: {self.seen}"
            message = json.loads(line)
            self.seen.append(message)
            if message["type"] == kind and fields.items() <= message.items():
                return dict(message)

    def event(self, kind: str, tgid: int, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"kind": kind, "tgid": tgid, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Exit status and standard error of a keeper that ends by itself."""
        assert self.process.stderr is not None and self.process.stdout is not None
        said = self.process.stderr.read().decode()
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
        return self.process.wait(TIMEOUT_S), said


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(pipeline: str = "", seconds: dict[str, float] | None = None, **config: Any) -> Running:
        running.append(Running(config, pipeline, seconds or {}))
        return running[-1]

    yield begin
    for each in running:
        each.process.kill()
        each.process.wait()
        for stream in (each.process.stdin, each.process.stdout, each.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def target() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "1000"])
    yield child
    child.kill()
    child.wait()


def test_traces_what_is_selected_and_stops_in_order(start: Callable[..., Running], target: Any) -> None:
    keeper = start(select__pid=[target.pid])
    keeper.wait("kernel.trace", tgid=target.pid)
    keeper.wait("keeper")
    keeper.process.send_signal(signal.SIGTERM)
    status, said = keeper.end()
    assert status == 0
    order = [line["type"] for line in keeper.seen]
    assert order.index("kernel.attach") < order.index("kernel.trace")
    assert order.index("kernel.close") < order.index("stop"), "detached before the drain begins"
    assert said.count('msg="ready:') == 1
    assert (
        f"({target.pid})" in said
        and "sys_exit_sendfile64 is off (no such tracepoint); not seen: what is sent by sendfile64" in said
    )


def test_record_is_with_the_pipeline_before_the_process_is_traced(target: Any) -> None:
    ours, theirs = messages.pair()
    pipeline = messages.Channel(theirs, "to_pipeline")
    received = []

    class Kernel(FakeKernel):
        def trace(self, tgid: int, *, by_kprobe: bool = False) -> None:
            received.append(pipeline.receive(wait_s=0))

    keeper = Keeper(options(select__pid=[target.pid]), -1, Log("error"), Kernel)
    keeper._channel = ours
    process = read_process(target.pid)
    assert process is not None
    keeper._trace(Kernel(), process, "--pid")
    assert received[0] is not None and received[0].name == "process"
    assert received[0].fields["tgid"] == target.pid
    assert received[0].fields["attributes"]["process.pid"] == target.pid
    ours.close()
    pipeline.close()


def test_killed_pipeline_is_started_again_with_everything_it_needs(
    start: Callable[..., Running], target: Any
) -> None:
    keeper = start(select__pid=[target.pid])
    first = keeper.wait("hello")
    assert first["inherited"] == ["/memfd", "socket"], "no program, map or attachment is inherited"
    keeper.wait("keeper")  # the answer to its stats: they are known
    os.kill(first["pid"], signal.SIGKILL)
    second = keeper.wait("hello")
    assert second["pid"] != first["pid"]
    setup = keeper.wait("setup")
    assert setup["descriptors"] == ["ring", "demands", "counters"]
    assert (setup["earlier_spans"], setup["earlier_ledger"]) == ({"shop": 3}, {"chunks.parsed": 5})
    assert any(line == {"type": "kernel.set_epoch", "epoch": 1} for line in keeper.seen)
    keeper.wait("process", tgid=target.pid)
    assert keeper.wait("keeper")["figures"]["restarts"] == 1
    os.kill(second["pid"], signal.SIGKILL)
    keeper.wait("hello")
    keeper.process.send_signal(signal.SIGINT)
    status, said = keeper.end()
    assert status == 0
    assert "signal SIGKILL" in said and "after_s=0.1 restarts=1" in said and "after_s=0.2 restarts=2" in said


def test_malformed_messages_are_counted_and_not_acted_on(start: Callable[..., Running], target: Any) -> None:
    keeper = start(pipeline="garbage", select__pid=[target.pid])
    assert keeper.wait("keeper")["figures"]["malformed"] == 3
    assert keeper.process.poll() is None, "a stop from the pipeline is no message"


def test_ends_when_every_selected_process_has_ended(start: Callable[..., Running], target: Any) -> None:
    keeper = start(select__pid=[target.pid])
    keeper.wait("kernel.trace")
    keeper.event("exit", target.pid, traced=True)
    keeper.wait("gone", tgid=target.pid)
    keeper.wait("stop")
    status, said = keeper.end()
    assert (status, "every process that was selected has ended" in said) == (0, True)


def test_child_that_vanished_gets_its_parents_record(start: Callable[..., Running], target: Any) -> None:
    keeper = start(select__pid=[target.pid])
    name = keeper.wait("process", tgid=target.pid)["attributes"]["service.name"]
    keeper.event("fork", 4194303, parent_tgid=target.pid, traced=True)
    child = keeper.wait("process", tgid=4194303)
    assert child["attributes"]["service.name"] == name
    assert child["attributes"]["process.pid"] == 4194303


def test_process_that_becomes_a_selected_program_is_traced(
    start: Callable[..., Running], target: Any
) -> None:
    keeper = start(select__exe=["no-such-program", "sleep"])
    keeper.wait("kernel.trace", tgid=target.pid)
    with subprocess.Popen(["sleep", "1000"]) as later:
        keeper.event("exec", later.pid)
        keeper.wait("kernel.trace", tgid=later.pid)
        later.kill()
    keeper.process.send_signal(signal.SIGINT)
    _, said = keeper.end()
    assert "--exe no-such-program: no such process yet; waiting" in said


def test_selected_ports_are_given_to_the_kernel_side(start: Callable[..., Running]) -> None:
    keeper = start(select__port=[1])
    keeper.wait("kernel.attach")
    keeper.wait("kernel.select_port", port=1)
    keeper.wait("keeper")
    keeper.process.send_signal(signal.SIGINT)
    assert "waiting for what is selected" in keeper.end()[1]


def test_pipeline_that_refuses_to_start_ends_the_run_with_its_status(
    start: Callable[..., Running], target: Any
) -> None:
    status, _ = start(pipeline="refuse", select__pid=[target.pid]).end()
    assert status == 78


def test_pipeline_that_hangs_is_started_again(start: Callable[..., Running], target: Any) -> None:
    seconds = {"HANG_S": 0.5, "SWEEP_S": 0.1}
    keeper = start(pipeline="hang", seconds=seconds, select__pid=[target.pid])
    first, second = keeper.wait("hello")["pid"], keeper.wait("hello")["pid"]
    assert first != second and not os.path.exists(f"/proc/{first}")
    keeper.process.send_signal(signal.SIGINT)
    keeper.wait("kernel.close")
    keeper.process.send_signal(signal.SIGINT)  # the second one hangs, too
    assert 'msg="the pipeline does not answer" silent_s=0.5' in keeper.end()[1]


def test_silence_while_the_kernel_programs_are_compiled_is_none(
    start: Callable[..., Running], target: Any
) -> None:
    """It waits for its set-up: a machine that compiles for half a minute could never have started."""
    seconds = {"HANG_S": 0.5, "START_S": 20, "LOAD_S": 1.5, "SWEEP_S": 0.1}
    keeper = start(pipeline="slow", seconds=seconds, select__pid=[target.pid])
    keeper.wait("keeper")
    keeper.process.send_signal(signal.SIGTERM)
    status, said = keeper.end()
    assert (status, said.count('msg="ready:'), "answer" in said) == (0, 1, False)


def test_pipeline_that_is_never_ready_ends_the_run(start: Callable[..., Running], target: Any) -> None:
    keeper = start(pipeline="never", seconds={"START_S": 0.5, "SWEEP_S": 0.1}, select__pid=[target.pid])
    status, said = keeper.end()
    assert (
        status == 1
        and "the pipeline was not ready within 0.5 s" in said
        and "again" not in said.split("hint")[0]
    )


def test_second_signal_ends_at_once(start: Callable[..., Running], target: Any) -> None:
    keeper = start(select__pid=[target.pid])
    pid = keeper.wait("hello")["pid"]
    keeper.wait("keeper")
    os.kill(pid, signal.SIGSTOP)  # it will not drain
    keeper.process.send_signal(signal.SIGINT)
    keeper.wait("kernel.close")
    keeper.process.send_signal(signal.SIGINT)
    assert keeper.process.wait(TIMEOUT_S) == 128 + signal.SIGINT


def test_address_in_use_is_said_and_no_failure(capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        Keeper(options(self__listen=address), -1, Log("info"), FakeKernel)
    said = capfd.readouterr().err
    assert f"no /metrics and no /status on {address}" in said and "self.listen" in said


def test_every_capture_option_reaches_the_kernel_side() -> None:
    given = options(capture__ring_bytes=1 << 20, capture__loader_python="/x")
    settings = kernel_settings(given)
    assert (settings.ring_bytes, settings.loader_python) == (1 << 20, "/x")
    names = {name.partition(".")[2] for name in given if name.startswith("capture.")}
    assert names <= set(type(settings).__dataclass_fields__)
