# SPDX-License-Identifier: Apache-2.0
"""The privileged process: decides what is traced, attaches, says who is who, keeps the pipeline running.

`python -m agent.keeper --config-fd N` is what `ebpf-otlp-tracer run` becomes. It holds the kernel programs'
attachments, so that its end detaches them, and touches no payload. The pipeline, which does, is its child:
what comes back from there is not trusted (agent/messages.py).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol

from agent import __version__, hooks, messages, self_test
from agent.backend import Backend
from agent.discovery import Selection, unix_sockets, uses_io_uring
from agent.enrichment.process import (
    Host,
    Process,
    own_attributes,
    read_host,
    read_process,
    resource_attributes,
)
from agent.errors import AgentError
from agent.kernel import Kernel, ProcessEvent, Settings, load
from agent.log import Log, RateLimit
from agent.own_process import OwnProcess
from agent.resource_text import parse_attributes

BACK_OFF_S, BACK_OFF_MAX_S = 0.1, 10.0
HEALTHY_S = 60.0  # a pipeline that ran for so long starts the back-off anew
HANG_S = 30.0  # without a sign of life from the pipeline
START_S = 120.0  # the same, from its set-up until it is ready: a busy machine takes long to import
SWEEP_S = 10.0  # processes whose exit event was lost are found by then
STOP_MARGIN_S = 2.0  # beyond the exporters' own time: reading the ring empty, the summary
NAMED_MAX = 8  # processes that the ready line names

# -P as the keeper itself: no modules out of the working directory.
PIPELINE_COMMAND = (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "agent.pipeline")

Attributes = Mapping[str, Any]


class KernelSide(Protocol):
    """What the keeper uses of agent.kernel.Kernel; tests give a fake one."""

    maps: dict[str, int]
    refused: list[dict[str, str]]
    facts: dict[str, Any]
    backend: Backend

    def attach(self) -> None: ...
    def trace(self, tgid: int, *, by_kprobe: bool = False) -> None: ...
    def attach_kprobes(self) -> bool: ...
    def forget_unix(self, alive: Callable[[], Container[int] | None]) -> int: ...
    def shed_share(self) -> float: ...
    def select_port(self, port: int) -> None: ...
    def set_epoch(self, epoch: int) -> None: ...
    def process_events(self) -> Sequence[ProcessEvent]: ...
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...

    @property
    def process_ring_fd(self) -> int: ...


class Keeper:
    """One run: `run` returns the exit status.

    pipeline_command: what starts a pipeline, the two descriptors are appended; tests give their own.
    test_capture: raises AgentError when what is attached reads this kernel wrong.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        config_fd: int,
        log: Log,
        load_kernel: Callable[[], KernelSide],
        pipeline_command: Sequence[str] = PIPELINE_COMMAND,
        test_capture: Callable[[Any, Log], None] = self_test.run,
    ) -> None:
        self._options = options
        self._config_fd = config_fd
        self._log = log
        self._load_kernel = load_kernel
        self._pipeline_command = pipeline_command
        self._test_capture = test_capture
        self._selection = Selection(options, own=(os.getpid(),))
        self._added = parse_attributes(options["resource.attributes"])
        self._host: Host = read_host()
        self._traced: dict[int, Attributes] = {}  # tgid -> its record, to send it again
        self._unseen: set[int] = set()  # of these, who uses io_uring, which this kernel cannot show
        self._started_s = time.monotonic()
        self._process = OwnProcess()
        self._limit = RateLimit(10.0)
        self._listener = self._listen(options["self.listen"])
        self._epoll = select.epoll()
        self._kernel: KernelSide | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: messages.Channel | None = None
        self._child_started_s = self._child_heard_s = 0.0
        self._child_silent_max_s = HANG_S
        self._is_ready = False  # the first pipeline was
        self._restarts = 0
        self._restart_at_s: float | None = None
        self._back_off_s = BACK_OFF_S
        self._malformed = 0
        self._spans: dict[str, int] = {}  # by service, over all pipelines
        self._ledger: dict[str, int] = {}  # by class, the same
        self._process_events_lost = 0
        self._next_sweep_s = 0.0
        self._signals = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._status: int | None = None  # set: the run is over

    # Beginning and end.

    def run(self) -> int:
        """Until a signal, or the end of everything that was selected."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        try:
            self._spawn()  # it imports while the kernel programs are compiled
            kernel = self._kernel = self._load_kernel()
            kernel.attach()
            self._test_capture(kernel, self._log)  # before anybody else reads the ring
            self._set_up_pipeline(kernel)
            self._begin_tracing(kernel)
            while self._status is None and not self._signals:
                self._turn(kernel)
            return self._stop(kernel)
        except AgentError as error:
            status = self._child_failure()
            if status is None:
                self._log.error(error.message, error.hint)
                status = error.exit_code
            return status
        finally:
            self._kill()
            if self._kernel is not None:
                self._kernel.close()

    def _turn(self, kernel: KernelSide) -> None:
        """Waits for something to happen, and does what it asks for."""
        for fd, _ in self._epoll.poll(self._wait_s()):
            if fd == kernel.process_ring_fd:
                self._on_process_events(kernel)
            elif self._channel is not None and fd == self._channel.fileno():
                self._on_messages(kernel)
        now = time.monotonic()
        if self._restart_at_s is not None and now >= self._restart_at_s:
            self._restart(kernel)
        if self._channel is not None and now - self._child_heard_s > self._child_silent_max_s:
            self._on_silence()
        if now >= self._next_sweep_s:
            self._sweep(kernel)
            self._next_sweep_s = now + SWEEP_S

    def _wait_s(self) -> float:
        until = [self._next_sweep_s]
        if self._restart_at_s is not None:
            until.append(self._restart_at_s)
        return max(0.0, min(until) - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first ends the run in order, the second at once."""
        self._signals += 1
        if self._signals > 1:
            if self._child is not None:
                self._child.kill()
            os._exit(128 + number)

    def _stop(self, kernel: KernelSide) -> int:
        """Detaches first, so that what is drained has an end."""
        kernel.close()
        if self._channel is not None and self._child is not None:
            timeout_s = float(self._options["export.shutdown_timeout_s"])
            try:
                self._channel.send("stop", timeout_s=timeout_s)
                self._child.wait(timeout_s + STOP_MARGIN_S)
            except (OSError, subprocess.TimeoutExpired):
                self._log.warn("the pipeline did not end in time", "export.shutdown_timeout_s gives it more")
                return self._status or 1
        return self._status or 0

    # What is traced.

    def _begin_tracing(self, kernel: KernelSide) -> None:
        for port in sorted(self._selection.ports):
            kernel.select_port(port)  # who begins to listen is traced before its first connection
        self._epoll.register(kernel.process_ring_fd, select.EPOLLIN)
        # A child that was forked between the look and the deed is found by the next look: from then on the
        # kernel side follows.
        while new := [found for found in self._selection.scan() if found[0].tgid not in self._traced]:
            for process, reason in new:
                self._trace(kernel, process, reason)
        for sentence in self._selection.pending():
            self._log.info(sentence)

    def _trace(self, kernel: KernelSide, process: Process, reason: str) -> None:
        """The pipeline hears who it is before the first event of it can come."""
        self._tell(process.tgid, self._record(process))
        try:
            kernel.trace(process.tgid, by_kprobe=self._needs_kprobes(kernel, process.tgid))
        except AgentError as error:
            if self._limit.allows("trace"):
                self._log.warn(error.message, error.hint)
            return
        self._log.debug("traces", pid=process.tgid, exe=process.exe_name, because=reason)

    def _needs_kprobes(self, kernel: KernelSide, tgid: int) -> bool:
        """Whether a process moves bytes without system calls, and this kernel can show it all the same."""
        if not uses_io_uring(tgid):
            return False
        known = len(kernel.refused)
        if kernel.attach_kprobes():
            return True
        for off in hooks.switched_off(kernel.refused[known:]):
            self._log.warn(hooks.sentence(off))
        self._unseen.add(tgid)
        if self._limit.allows("io_uring"):
            self._log.warn(
                f"pid {tgid} uses io_uring: what it moves that way is not seen on this kernel",
                "a kernel with kprobes shows it (ebpf-otlp-tracer doctor)",
            )
        return False

    def _record(self, process: Process) -> dict[str, Any]:
        """The resource of a process; what is wrong with its own variables is said once for each process."""
        problem = own_attributes(process)[1]
        if problem and process.tgid not in self._traced:
            self._log.warn(problem, pid=process.tgid)
        return resource_attributes(
            process, self._host, self._added, command_args=bool(self._options["resource.command_args"])
        )

    def _tell(self, tgid: int, attributes: Attributes) -> None:
        self._traced[tgid] = attributes
        self._send("process", tgid=tgid, attributes=attributes)

    def _on_process_events(self, kernel: KernelSide) -> None:
        for event in kernel.process_events():
            if event.kind == "exit":
                self._on_exit(event.tgid)
            elif event.kind == "fork":
                self._on_fork(event)
            elif (
                event.kind in ("listen", "io_uring")
                or event.traced
                or event.tgid in self._traced
                or self._by_program
            ):
                self._look_at(kernel, event.tgid, event.traced)

    def _on_fork(self, event: ProcessEvent) -> None:
        """The child of a traced process is traced already; once it is gone its parent's record will do."""
        if not event.traced or event.tgid in self._selection.own:
            return
        process = read_process(event.tgid)
        if process is not None:
            self._tell(event.tgid, self._record(process))
        elif event.parent_tgid in self._traced:
            self._tell(event.tgid, {**self._traced[event.parent_tgid], "process.pid": event.tgid})

    def _look_at(self, kernel: KernelSide, tgid: int, traced: bool) -> None:
        """A process became another program, or listens: it may match now, and it may be called otherwise."""
        process = read_process(tgid) if tgid not in self._selection.own else None
        if process is None:
            return
        reason = self._selection.matches(process)
        if reason is None and (traced or tgid in self._traced):
            reason = "traced already"
        if reason is None:
            return
        is_new = tgid not in self._traced
        self._trace(kernel, process, reason)
        if is_new and not traced:
            self._log.info(f"traces {process.exe_name}", pid=tgid, because=reason)

    def _on_exit(self, tgid: int) -> None:
        self._unseen.discard(tgid)
        if self._traced.pop(tgid, None) is None:
            return
        self._selection.forget(tgid)
        self._send("gone", tgid=tgid)
        if not self._traced and self._only_pids():
            self._log.info("every process that was selected has ended")
            self._status = 0

    @property
    def _by_program(self) -> bool:
        """Whether an exec can make a process match. Reading each new one of a busy host would cost much."""
        s = self._selection
        return bool(s.executables or s.services or s.containers or s.all)

    def _only_pids(self) -> bool:
        return bool(self._selection.pids) and not (self._selection.ports or self._by_program)

    def _sweep(self, kernel: KernelSide) -> None:
        """Process events are few and their ring is large; when one was lost all the same, look around."""
        for tgid in list(self._traced):
            if not os.path.exists(f"/proc/{tgid}"):
                self._on_exit(tgid)
        kernel.forget_unix(lambda: unix_sockets(self._traced))
        lost = kernel.counters()["process_events_lost"]
        if lost != self._process_events_lost:
            self._process_events_lost = lost
            for process, reason in self._selection.scan():
                if process.tgid not in self._traced:
                    self._trace(kernel, process, reason)

    # The pipeline.

    def _spawn(self) -> None:
        """Starts a pipeline. It inherits two descriptors and no other: never a program or an attachment."""
        channel, theirs = messages.pair()
        pass_fds = (self._config_fd, theirs.fileno())
        command = [*self._pipeline_command, "--config-fd", str(pass_fds[0]), "--socket-fd", str(pass_fds[1])]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(command, pass_fds=pass_fds, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._channel = channel
        self._selection.own.add(self._child.pid)
        self._child_started_s = time.monotonic()
        self._epoll.register(channel, select.EPOLLIN | select.EPOLLRDHUP)

    def _set_up_pipeline(self, kernel: KernelSide) -> None:
        """Its silence counts from here: the first one waits until the kernel programs are compiled."""
        self._child_heard_s, self._child_silent_max_s = time.monotonic(), START_S
        descriptors = {
            "ring": kernel.maps["events"],
            "demands": kernel.maps["demands"],
            "counters": kernel.maps["counters"],
        }
        if self._listener is not None:
            descriptors["listener"] = self._listener.fileno()
        self._send(
            "setup",
            list(descriptors.values()),
            descriptors=list(descriptors),
            cpus=kernel.facts["constants"]["CPUS"],
            earlier_spans=self._spans,
            earlier_ledger=self._ledger,
            started_s=self._started_s,
            host={"host.id": self._host.id, "host.name": self._host.name, "host.arch": self._host.arch},
            capture={
                "backend": kernel.backend.name,
                "sees": kernel.backend.sees,
                "off": hooks.switched_off(kernel.refused),
            },
        )

    def _restart(self, kernel: KernelSide) -> None:
        """The same descriptors for a new pipeline; the kernel side announces its connections again."""
        self._restart_at_s = None
        self._restarts += 1
        self._spawn()
        kernel.set_epoch(self._restarts)
        self._set_up_pipeline(kernel)
        for tgid, attributes in list(self._traced.items()):
            self._send("process", tgid=tgid, attributes=attributes)

    def _send(self, name: str, descriptors: Sequence[int] = (), /, **fields: Any) -> None:
        """To the pipeline, if there is one. That it ended is heard by its socket, and met there."""
        if self._channel is None:
            return
        try:
            self._channel.send(name, descriptors, **fields)
        except messages.MalformedMessage as error:
            if name == "process":
                fields["attributes"] = _shortened(fields["attributes"])
                self._channel.send(name, descriptors, **fields)
            self._log.debug(str(error))
        except OSError as error:
            self._log.debug(f"{name} was not delivered: {error}")

    def _on_messages(self, kernel: KernelSide) -> None:
        assert self._channel is not None
        while True:
            try:
                message = self._channel.receive(wait_s=0)
            except TimeoutError:
                return
            except OSError:
                message = None
            if message is None:
                self._on_pipeline_end()
                return
            self._child_heard_s, self._child_silent_max_s = time.monotonic(), HANG_S
            if message.name == "ready":
                self._on_ready(kernel)
            elif message.name == "stats":
                self._spans, self._ledger = message.fields["spans"], message.fields["ledger"]
                self._channel.offer("keeper", figures=self._figures(kernel))

    def _on_ready(self, kernel: KernelSide) -> None:
        if self._is_ready:
            self._log.info("the pipeline runs again", restarts=self._restarts)
            return
        self._is_ready = True
        names = [
            f"{a.get('service.name', '')} ({tgid})" for tgid, a in list(self._traced.items())[:NAMED_MAX]
        ]
        if len(self._traced) > NAMED_MAX:
            names.append(f"{len(self._traced) - NAMED_MAX} more")
        off = [hooks.sentence(each) for each in hooks.switched_off(kernel.refused)]
        traced = f"tracing {', '.join(names)}" if names else "waiting for what is selected"
        self._log.info("; ".join([f"ready: {traced}", *off]), version=__version__)

    def _on_silence(self) -> None:
        if self._is_ready:
            self._log.warn("the pipeline does not answer", silent_s=self._child_silent_max_s)
        else:
            self._log.error(
                f"the pipeline was not ready within {self._child_silent_max_s:g} s",
                "this machine may be overloaded, or its limits too low for the agent: start it again",
            )
        self._on_pipeline_end()

    def _on_pipeline_end(self) -> None:
        """It crashed, or hangs: another one is started after a pause, unless it could never begin."""
        assert self._channel is not None and self._child is not None
        self._epoll.unregister(self._channel)
        self._malformed += self._channel.malformed
        self._channel.close()
        self._channel = None
        lived_s = time.monotonic() - self._child_started_s
        status = self._reap()
        if not self._is_ready:
            self._status = status or 1
            return
        if lived_s >= HEALTHY_S:
            self._back_off_s = BACK_OFF_S
        self._log.warn(
            f"the pipeline ended ({_described(status)}); it is started again",
            after_s=self._back_off_s,
            restarts=self._restarts + 1,
        )
        self._restart_at_s = time.monotonic() + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_MAX_S)

    def _reap(self) -> int:
        """Exit status of the pipeline that closed its socket or hangs; killed if it does not go by itself."""
        assert self._child is not None
        try:
            status = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            status = self._child.wait()
        self._selection.own.discard(self._child.pid)
        self._child = None
        return status

    def _child_failure(self) -> int | None:
        """Exit status of a pipeline that refused to start, which it has explained itself."""
        if self._child is None or self._is_ready:
            return None
        status = self._child.poll()
        return status if status else None

    def _kill(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    def _figures(self, kernel: KernelSide) -> dict[str, int | float]:
        """By the names of the group `keeper` of agent/self_metrics.py."""
        assert self._channel is not None
        return {
            **self._process.figures(),
            "processes": len(self._traced),
            "restarts": self._restarts,
            "unseen": len(self._unseen),
            "shed_share": kernel.shed_share(),
            "malformed": self._malformed + self._channel.malformed,
        }

    def _listen(self, address: str) -> socket.socket | None:
        """The socket of /metrics; held here, it outlives a pipeline. An address in use is no failure."""
        if not address:
            return None
        from agent.status import listen

        try:
            return listen(address)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._log.warn(
                f"no /metrics and no /status on {address}: {reason}",
                "self.listen names another address, or none with ''",
            )
            return None


def _described(status: int) -> str:
    try:
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    except ValueError:
        return f"signal {-status}"


def _shortened(attributes: Attributes) -> dict[str, Any]:
    """A record that fits into a message: a command line may be 2 MiB long."""
    return {
        key: value[:256] if isinstance(value, str) else value
        for key, value in attributes.items()
        if not isinstance(value, list)
    }


def kernel_settings(options: Mapping[str, Any]) -> Settings:
    """The options `capture.*`, of which each setting has the name."""
    names = Settings.__dataclass_fields__
    return Settings(**{name: options[f"capture.{name}"] for name in names if f"capture.{name}" in options})


def main(arguments: Sequence[str]) -> int:
    config_fd = int(arguments[arguments.index("--config-fd") + 1])
    options = messages.from_memfd(config_fd)
    log = Log(options["log.level"], "keeper")

    def load_kernel() -> Kernel:
        return load(kernel_settings(options))

    try:
        return Keeper(options, config_fd, log, load_kernel).run()
    except AgentError as error:
        log.error(error.message, error.hint)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
