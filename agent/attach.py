# SPDX-License-Identifier: Apache-2.0
"""Attaches loaded programs to their hooks, by descriptor, with three system calls and no library.

perf_event_open and an ioctl for tracepoints and kprobes, bpf(BPF_RAW_TRACEPOINT_OPEN) for raw ones: less
than the declarations that libbpf would need, and nothing to map into the keeper. An attachment lives as long
as its descriptor: when the keeper ends, however it ends, the kernel detaches everything.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import threading
from collections.abc import Callable, Collection, Sequence

from agent.backend import KPROBE_PMU
from agent.errors import PrivilegeError
from agent.permissions import why_refused
from agent.tracefs import tracefs

SYS_BPF, SYS_PERF_EVENT_OPEN = (280, 241) if platform.machine() == "aarch64" else (321, 298)
BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM, BPF_MAP_GET_NEXT_KEY = 1, 2, 3, 4
BPF_RAW_TRACEPOINT_OPEN = 17
PERF_TYPE_TRACEPOINT, PERF_FLAG_FD_CLOEXEC = 2, 8
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
PERF_ATTRIBUTES = struct.Struct("=IIQQQQQIIQQQ")  # perf_event_attr up to its second version, 80 bytes

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2). Returns its result, raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 64))
    result: int = _libc.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def attach_tracepoint(program: int, name: str) -> int:
    """`name` is category/event. Returns the descriptor that holds the attachment.

    The event is opened on one CPU; the program hangs on the tracepoint itself and runs on every CPU.
    """
    path = tracefs() / "events" / name / "id"
    try:
        number = int(path.read_text())
    except FileNotFoundError:
        raise OSError(2, f"this kernel has no tracepoint {name}") from None
    attributes = PERF_ATTRIBUTES.pack(PERF_TYPE_TRACEPOINT, 80, number, 1, 0, 0, 0, 1, 0, 0, 0, 0)
    return _attach_event(program, attributes, name)


def _attach_event(program: int, attributes: bytes, name: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    fd: int = _libc.syscall(SYS_PERF_EVENT_OPEN, buffer, -1, 0, -1, ctypes.c_ulong(PERF_FLAG_FD_CLOEXEC))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"perf_event_open of {name}: {os.strerror(error)}")
    try:
        fcntl.ioctl(fd, PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(fd, PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def attach_function(program: int, name: str, at_return: bool = False) -> int:
    """A kprobe, or kretprobe, on a function of the kernel. Returns the descriptor of the attachment."""
    try:
        kind = int(KPROBE_PMU.read_text())
    except OSError:
        raise OSError(2, "this kernel has no kprobes") from None
    text = ctypes.create_string_buffer(name.encode())
    where = ctypes.addressof(text), 0
    attributes = PERF_ATTRIBUTES.pack(kind, 80, int(at_return), 1, 0, 0, 0, 1, 0, *where, 0)
    return _attach_event(program, attributes, name)


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Returns the descriptor that holds the attachment."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf(BPF_RAW_TRACEPOINT_OPEN, struct.pack("=QI", ctypes.addressof(text), program))


ATTACH: dict[str, Callable[[int, str], int]] = {
    "tracepoint": attach_tracepoint,
    "raw_tracepoint": attach_raw_tracepoint,
    "kprobe": attach_function,
    "kretprobe": lambda program, name: attach_function(program, name, at_return=True),
}


class Attachments:
    """Everything attached; `refused` names what the kernel would not attach, and why."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.refused: list[dict[str, str]] = []

    def add(self, program: int, kind: str, targets: Sequence[str], optional: Collection[str] = ()) -> None:
        """Attaches one program to each of its targets. Raises PrivilegeError, else notes what failed, but for
        targets that are optional."""
        attach = ATTACH[kind]
        for target in targets:
            try:
                self.fds.append(attach(program, target))
            except PermissionError as error:
                reason = f"cannot attach to {target}: {error.strerror}"
                raise PrivilegeError(reason, why_refused()) from error
            except OSError as error:
                if target in optional:
                    continue
                self.refused.append({"name": target, "reason": error.strerror or str(error)})

    def close(self) -> None:
        """Detaches all. A second call does nothing.

        The kernel waits for a grace period at the end of each perf event, 0.1 s: side by side they cost one.
        """
        fds, self.fds = self.fds, []
        threads = [threading.Thread(target=os.close, args=(fd,)) for fd in fds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
