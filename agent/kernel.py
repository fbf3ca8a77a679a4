# SPDX-License-Identifier: Apache-2.0
"""The kernel side as the keeper sees it: load, attach, say what to trace, hear of processes, count.

    kernel = load(Settings(ring_bytes=1 << 22))
    kernel.attach()
    kernel.trace(4711)
    for event in kernel.process_events(0.1): ...

Standard library only: the keeper stays at a few MiB.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from agent import attach
from agent.backend import Backend, choose
from agent.errors import AgentError, PrivilegeError
from agent.tracefs import tracefs

LOADER = Path(__file__).with_name("loader.py")
EVENTS_HEADER = Path(__file__).parent.parent / "bpf" / "events.h"
FOLLOW_CHILDREN, BY_KPROBE = 1, 2  # enum traced_flags, bpf/maps.bpf.h
KPROBES = ("kprobe", "kretprobe")
SHED_ALL = 256  # bpf/chunk.bpf.h
PROCESS_EVENT = struct.Struct("=BBHIIIQ16s")  # struct process_event
KINDS = {16: "exec", 17: "fork", 18: "exit", 19: "listen", 20: "io_uring"}
BUSY, DISCARDED = 1 << 31, 1 << 30  # in the length of a ring record
LOAD_TIMEOUT_S = 120.0  # 2 s in practice, 20 s in an emulated machine
KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """What the kernel programs are specialised to. Sizes in bytes; rings are powers of two."""

    ring_bytes: int = 4 * MIB
    process_ring_bytes: int = 256 * KIB
    wake_bytes: int = 0  # 0: an eighth of the ring
    allowance_bytes: int = 64 * KIB
    tail_bytes: int = 16
    connections_max: int = 65536
    unix_connections_max: int = 16384
    threads_max: int = 32768
    processes_max: int = 8192
    loader_python: str = ""
    shed: bool = True
    backend: str = "auto"  # one of agent.backend.CHOICES


@dataclass(frozen=True)
class ProcessEvent:
    """A process began ("exec", "fork"), ended ("exit"), started to listen ("listen") or to use "io_uring"."""

    kind: str
    traced: bool  # in the filter already
    tgid: int
    parent_tgid: int
    port: int
    netns: int
    ktime_ns: int
    comm: str


def load(settings: Settings) -> Kernel:
    """Compiles and loads the kernel programs in a process of its own; nothing is attached yet.

    Tries the configured Python, or those where distributions install BCC, until one has it. Raises
    AgentError with the loader's words.
    """
    backend = choose(settings.backend, tracefs())
    config = {**asdict(settings), **asdict(backend)}
    answer: dict[str, Any] = {"error": "no Python interpreter was found", "hint": ""}
    for python in _interpreters(settings.loader_python):
        answer, fds = _run_loader(python, config)
        if not answer.get("no_bcc"):
            break
    if "error" in answer:
        kind = PrivilegeError if answer.get("exit_code") == PrivilegeError.exit_code else AgentError
        raise kind(answer["error"], answer["hint"])
    return Kernel(answer, fds, backend)


def _interpreters(configured: str) -> list[str]:
    if configured:
        return [configured]
    found = ["/usr/bin/python3", shutil.which("python3") or "", sys.executable]
    return [path for path in dict.fromkeys(found) if path and os.access(path, os.X_OK)]


def _run_loader(python: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(LOAD_TIMEOUT_S)
    command = [python, "-E", str(LOADER), "--socket-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL) as loader:
        theirs.close()
        try:
            ours.sendall(json.dumps(config).encode() + b"\n")
            size = struct.unpack("!I", _receive(ours, 4))[0]
            answer = json.loads(_receive(ours, size))
            count = 0 if "error" in answer else len(answer["programs"]) + len(answer["maps"])
            return answer, _receive_fds(ours, count)
        except (OSError, EOFError) as error:
            with suppress(subprocess.TimeoutExpired):
                if loader.wait(1.0) == -signal.SIGKILL:
                    raise AgentError(
                        f"the loader ({python}) was killed, which the kernel does when memory is short",
                        "compiling takes 150 MiB for a second: give the agent's control group more memory",
                    ) from error
            loader.kill()
            hint = "what it wrote on standard error says more; capture.loader_python names another Python"
            raise AgentError(f"the loader ({python}) ended without an answer: {error}", hint) from error


def _receive(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            raise EOFError("end of file")
        data += part
    return data


def _receive_fds(channel: socket.socket, count: int) -> list[int]:
    fds: list[int] = []
    while len(fds) < count:
        data, messages, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4 * 253), socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise EOFError("end of file between descriptors")
        for _, _, payload in messages:
            fds += struct.unpack(f"={len(payload) // 4}i", payload)
    return fds


class Kernel:
    """Programs and maps of the kernel side, held by descriptors.

    maps: name -> descriptor. refused: what the verifier, or this kernel, would not have: name and reason.
    facts: the loader's answer (constants, times, kernel). backend: which hooks see the bytes.
    """

    def __init__(self, facts: dict[str, Any], fds: list[int], backend: Backend) -> None:
        self.facts = facts
        self.backend = backend
        self.refused: list[dict[str, str]] = list(facts["refused"])
        programs = facts["programs"]
        self._programs = list(zip(programs, fds[: len(programs)], strict=True))
        self._kprobe_names = {"kprobes", *(p["name"] for p in facts["refused"] if "probe_" in p["name"])}
        self._kprobe_names.update(t for p in programs if p["kind"] in KPROBES for t in p["targets"])
        names = [each["name"] for each in facts["maps"]]
        self.maps: dict[str, int] = dict(zip(names, fds[len(programs) :], strict=True))
        self._attachments = attach.Attachments()
        self._cpus = facts["constants"]["CPUS"]
        self._counter_names = counter_names()
        self._unix_begun = 0
        stride = 8 * len(self._counter_names)
        self._counters = mmap.mmap(self.maps["counters"], stride * self._cpus, prot=mmap.PROT_READ)
        self._control = mmap.mmap(self.maps["control"], mmap.PAGESIZE)
        self._process_ring = Ring(self.maps["process_events"], facts["process_ring_bytes"])

    def attach(self) -> None:
        """Attaches every program, but for the kprobes that only some processes need."""
        self._attach(lambda kind: kind not in KPROBES or self.backend.kprobes_for_all)

    def attach_kprobes(self) -> bool:
        """Attaches what sees processes that use io_uring. Again: no harm.

        False: this kernel has no kprobes, or refuses one of ours (`refused` says why). Then no process may be
        left to them: its system calls show more.
        """
        if not self.backend.kprobes:
            return False
        try:
            self._attach(lambda kind: kind in KPROBES)
        except AgentError as error:
            self.refused.append({"name": "kprobes", "reason": error.message})
        return not {each["name"] for each in self.refused} & self._kprobe_names

    def _attach(self, now: Callable[[str], bool]) -> None:
        """The descriptors of the programs are closed: the attachments hold them."""
        for program, fd in [each for each in self._programs if now(each[0]["kind"])]:
            self._attachments.add(fd, program["kind"], program["targets"], program.get("optional", ()))
            self._programs.remove((program, fd))
            os.close(fd)
        self.refused += self._attachments.refused
        self._attachments.refused = []

    def trace(self, tgid: int, follow_children: bool = True, by_kprobe: bool = False) -> None:
        """Traces a process from now on, and what it forks from now on. Again: no harm.

        by_kprobe: its system calls are passed over, the kernel's functions see it (attach_kprobes).
        """
        flags = (FOLLOW_CHILDREN if follow_children else 0) | (BY_KPROBE if by_kprobe else 0)
        try:
            self._update("traced", struct.pack("=I", tgid), struct.pack("=I", flags))
        except OSError as error:
            hint = "raise capture.processes_max"
            raise AgentError(f"cannot trace process {tgid}: {error.strerror}", hint) from error

    def untrace(self, tgid: int) -> None:
        """Leaves a process alone from now on; one that is not traced is no error."""
        self._delete("traced", struct.pack("=I", tgid))

    def is_traced(self, tgid: int) -> bool:
        """Whether the kernel side takes this process's system calls."""
        key = ctypes.create_string_buffer(struct.pack("=I", tgid), 4)
        value = ctypes.create_string_buffer(4)
        pointers = (ctypes.addressof(key), ctypes.addressof(value), 0)
        try:
            attach.bpf(attach.BPF_MAP_LOOKUP_ELEM, struct.pack("=IxxxxQQQ", self.maps["traced"], *pointers))
        except FileNotFoundError:
            return False
        return True

    def select_port(self, port: int) -> None:
        """Who begins to listen on this TCP port is traced before its first connection."""
        self._update("ports", struct.pack("=H", port), b"\x01")

    def deselect_port(self, port: int) -> None:
        """The opposite; who is traced already stays so."""
        self._delete("ports", struct.pack("=H", port))

    @property
    def process_ring_fd(self) -> int:
        """Readable (epoll) while process events wait."""
        return self.maps["process_events"]

    def process_events(self, timeout_s: float = 0.0) -> list[ProcessEvent]:
        """Process events in order; waits up to timeout_s for the first."""
        events = [_process_event(record) for record in self._process_ring.records()]
        if not events and timeout_s > 0 and select.select([self.process_ring_fd], [], [], timeout_s)[0]:
            events = [_process_event(record) for record in self._process_ring.records()]
        return events

    def set_epoch(self, epoch: int) -> None:
        """A pipeline starts: connections are announced again, and none is left out. Epochs go up from 0."""
        self.shed_none()
        self._control[0:4] = struct.pack("=I", epoch)

    def shed_none(self) -> None:
        """Leaves out no connection from now on: what filled the ring up is over."""
        self._control[12:16] = bytes(4)

    def shed_share(self) -> float:
        """The share of connections that is left out now, under pressure: 0 to 1."""
        return float(struct.unpack_from("=I", self._control, 12)[0]) / SHED_ALL

    def forget_unix(self, alive: Callable[[], Container[int] | None]) -> int:
        """Takes away connections of Unix sockets that ended unseen, as a killed process's do: how many.

        alive: the inodes of all such sockets, None if that is not known; asked for only when there were new
        ones since last time.
        """
        begun = self.counters()["unix_connections"]
        if begun == self._unix_begun:
            return 0
        entries = list(self._entries("unix_connections"))
        inodes = alive()
        if inodes is None:
            return 0
        self._unix_begun = begun
        gone = [key for key, value in entries if struct.unpack_from("=Q", value, 8)[0] not in inodes]
        for key in gone:
            self._delete("unix_connections", key)
        return len(gone)

    def _entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys (8 bytes) and values of a hash map; if it changes meanwhile not all of them, or one twice."""
        fd = self.maps[name]
        facts = dict(line.split(":") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        key, value = ctypes.create_string_buffer(8), ctypes.create_string_buffer(int(facts["value_size"]))
        here, there = ctypes.addressof(key), ctypes.addressof(value)
        before = 0
        for _ in range(2 * int(facts["max_entries"])):
            try:
                attach.bpf(attach.BPF_MAP_GET_NEXT_KEY, struct.pack("=IxxxxQQQ", fd, before, here, 0))
            except FileNotFoundError:
                return
            before = here
            with suppress(FileNotFoundError):
                attach.bpf(attach.BPF_MAP_LOOKUP_ELEM, struct.pack("=IxxxxQQQ", fd, here, there, 0))
                yield key.raw, value.raw

    def pause(self, paused: bool) -> None:
        """Paused, nothing is looked at; what moved meanwhile shows as a gap (gap_bytes)."""
        self._control[4:8] = struct.pack("=I", paused)

    def counters(self) -> dict[str, int]:
        """struct kernel_counters, summed over the CPUs."""
        names = self._counter_names
        values = struct.unpack(f"={len(names) * self._cpus}Q", self._counters[:])
        sums = (sum(values[i :: len(names)]) & (1 << 64) - 1 for i in range(len(names)))
        return {name: value for name, value in zip(names, sums, strict=True) if name}

    def reset_counters(self) -> None:
        """All to zero, while nothing is traced."""
        for cpu in range(self._cpus):
            self._update("counters", struct.pack("=I", cpu), bytes(8 * len(self._counter_names)))

    def close(self) -> None:
        """Detaches everything and lets go of all maps. A second call does nothing."""
        self._attachments.close()
        for _, fd in self._programs:
            os.close(fd)
        self._programs = []
        if self.maps:
            self._counters.close()
            self._control.close()
            self._process_ring.close()
        for fd in self.maps.values():
            os.close(fd)
        self.maps = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        keys = ctypes.create_string_buffer(key, len(key))
        values = ctypes.create_string_buffer(value, len(value))
        pointers = (ctypes.addressof(keys), ctypes.addressof(values), 0)
        attach.bpf(attach.BPF_MAP_UPDATE_ELEM, struct.pack("=IxxxxQQQ", self.maps[name], *pointers))

    def _delete(self, name: str, key: bytes) -> None:
        keys = ctypes.create_string_buffer(key, len(key))
        attributes = struct.pack("=IxxxxQ", self.maps[name], ctypes.addressof(keys))
        with suppress(FileNotFoundError):
            attach.bpf(attach.BPF_MAP_DELETE_ELEM, attributes)


class Ring:
    """Consumer of a ring buffer map: for few records, as each is Python's work. One consumer per ring.

    Layout (Documentation/bpf/ringbuf.rst): a page with the consumer's position, a page with the
    producers', then the data, mapped twice in a row so that no record is cut.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, page)
        self._producer = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)

    def records(self) -> Iterator[bytes]:
        """Each record that is complete; its room is given back when the next one is asked for."""
        (at,) = struct.unpack_from("=Q", self._consumer)
        while at < struct.unpack_from("=Q", self._producer)[0]:
            start = mmap.PAGESIZE + (at & self._mask)
            (length,) = struct.unpack_from("=I", self._producer, start)
            if length & BUSY:
                return
            size = length & ~DISCARDED
            if not length & DISCARDED:
                yield self._producer[start + 8 : start + 8 + size]
            at += (size + 8 + 7) & ~7
            self._consumer[0:8] = struct.pack("=Q", at)

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()


def _process_event(record: bytes) -> ProcessEvent:
    kind, traced, port, tgid, parent, netns, ktime_ns, comm = PROCESS_EVENT.unpack(record)
    name = comm.split(b"\0")[0].decode(errors="replace")
    return ProcessEvent(KINDS[kind], bool(traced), tgid, parent, port, netns, ktime_ns, name)


def counter_names() -> list[str]:
    """Fields of struct kernel_counters in order, from its declaration; "" for padding."""
    body = re.search(r"struct kernel_counters \{(.*?)\n\};", EVENTS_HEADER.read_text(), flags=re.DOTALL)
    assert body is not None
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    names: list[str] = []
    for name, count in re.findall(r"(\w+)(?:\[(\d+)\])?\s*[,;]", code):
        names += [""] * int(count) if count else [name]
    return names
