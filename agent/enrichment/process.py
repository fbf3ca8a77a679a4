# SPDX-License-Identifier: Apache-2.0
"""One process: its record out of /proc, and the resource attributes made from it.

Plain reads of /proc rather than psutil: the keeper would pay 6 MiB for it, and a scan of the whole host
reads only the five files that are needed, each once (psutil opens `stat` again for most questions).

A process may vanish between any two reads: then there is no record. What may not be read (no privilege)
is empty. Of the environment only the two OTEL_* variables are taken; the rest is never kept.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agent import __version__
from agent.enrichment import container
from agent.enrichment.service import runtime_of, service_from_command
from agent.resource_text import parse_attributes

PROC = Path("/proc")
FIRST_READ_BYTES = 8192
FILE_BYTES_MAX = 4 << 20  # an environment holds 2 MiB by default (a quarter of the stack limit)
ARGS_MAX = 4096  # a command line of 100,000 words is not a description
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PF_KTHREAD = 0x00200000  # include/linux/sched.h

# The UUIDv5 namespace that the semantic conventions give for service.instance.id.
INSTANCE_NAMESPACE = bytes.fromhex("4d63009a8d0f11eeaad74c796ed8e320")


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when it was read. (tgid, start_ticks) is its identity."""

    tgid: int
    ppid: int
    start_ticks: int  # since boot, as /proc/PID/stat has it
    start_unix_ns: int
    comm: str
    exe: str  # "" when it may not be read
    args: tuple[str, ...]
    cgroup: str
    container_id: str
    netns: int  # inode of the network namespace, 0 when it may not be read
    otel_service_name: str
    otel_resource_attributes: str
    kernel_thread: bool = False

    @property
    def exe_name(self) -> str:
        """Name of the executable; where that may not be read, the one in the command, or comm."""
        path = self.exe or (self.args[0].split(" ", 1)[0].rstrip(":") if self.args else "")
        return path.rpartition("/")[2] or self.comm


@dataclass(frozen=True, slots=True)
class Host:
    """What the resources of all processes of this host share."""

    id: str
    boot_id: str
    name: str
    arch: str


def read_text(path: str) -> str:
    """A file of /proc as text, "" if it cannot be read (gone, forbidden)."""
    return read_bytes(path).decode("utf-8", "replace")


def read_bytes(path: str) -> bytes:
    """The same as bytes, at most FILE_BYTES_MAX of them.

    A read that is not filled is the last: true of the files of one record (stat, status, cgroup), of cmdline
    and of environ, and it saves a quarter of the time. mountinfo has many records, which come in pieces.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        data = part = os.read(descriptor, FIRST_READ_BYTES)
        more = len(part) == FIRST_READ_BYTES or path.endswith("/mountinfo")
        while part and more and len(data) < FILE_BYTES_MAX:
            part = os.read(descriptor, 262144)
            data += part
        return data
    except OSError:  # ESRCH: it has ended; EACCES: /proc/PID/environ of others
        return b""
    finally:
        os.close(descriptor)


def read_link(path: str) -> str:
    """Where a link of /proc points, "" if it cannot be read."""
    try:
        return os.fsencode(os.readlink(path)).decode("utf-8", "replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is needed of /proc/PID/stat."""

    comm: str
    ppid: int
    flags: int
    start_ticks: int


def read_stat(tgid: int, proc: Path = PROC) -> Stat | None:
    """None when there is no such process, or it is a zombie: it serves nobody any more."""
    data = read_bytes(f"{proc}/{tgid}/stat")
    # `pid (comm) state ppid …`: comm may hold spaces and parentheses, so the last one counts.
    head, closed, tail = data.rpartition(b")")
    fields = tail.split()
    if not closed or len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    comm = head.partition(b"(")[2].decode("utf-8", "replace")
    return Stat(comm, int(fields[1]), int(fields[6]), int(fields[19]))


@cache
def boot_unix_ns() -> int:
    """Unix time of the boot; read once, so that a start time never changes while the agent runs."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_process(tgid: int, proc: Path = PROC) -> Process | None:
    """The record of a process, None when there is none (any more)."""
    found = read_stat(tgid, proc)
    if found is None:
        return None
    base = f"{proc}/{tgid}"
    kernel_thread = bool(found.flags & PF_KTHREAD)
    cgroup_text = "" if kernel_thread else read_text(base + "/cgroup")
    environment = b"" if kernel_thread else read_bytes(base + "/environ")
    process = Process(
        tgid=tgid,
        ppid=found.ppid,
        start_ticks=found.start_ticks,
        start_unix_ns=boot_unix_ns() + found.start_ticks * (1_000_000_000 // TICKS_PER_S),
        comm=found.comm,
        exe=read_link(base + "/exe").removesuffix(" (deleted)"),
        args=() if kernel_thread else _arguments(read_bytes(base + "/cmdline")),
        cgroup=container.cgroup_path(cgroup_text),
        container_id=container.from_cgroup(cgroup_text) or _hidden_container(cgroup_text, tgid, proc),
        netns=netns_of(tgid, proc),
        otel_service_name=_variable(environment, b"OTEL_SERVICE_NAME="),
        otel_resource_attributes=_variable(environment, b"OTEL_RESOURCE_ATTRIBUTES="),
        kernel_thread=kernel_thread,
    )
    # Gone meanwhile: the later reads gave nothing, which would look like a process without a name.
    complete = kernel_thread or (process.exe and process.args)
    return process if complete or read_stat(tgid, proc) else None


def netns_of(tgid: int, proc: Path = PROC) -> int:
    """Inode of the network namespace (`net:[4026531840]`), 0 when it may not be read."""
    link = read_link(f"{proc}/{tgid}/ns/net")
    return int(link[5:-1]) if link.startswith("net:[") else 0


def _arguments(data: bytes) -> tuple[str, ...]:
    # A program that sets its title leaves spaces and a row of NULs behind it.
    text = data.rstrip(b"\0 ").decode("utf-8", "replace")
    return tuple(text.split("\0", ARGS_MAX)[:ARGS_MAX]) if text else ()


def read_uid(tgid: int, proc: Path = PROC) -> int:
    """The real user id, -1 when there is none (any more). Read for those that are traced only: it is slow.

    Not the owner of /proc/PID: that is root for whatever is not dumpable, as the workers of nginx are.
    """
    _, found, rest = read_bytes(f"{proc}/{tgid}/status").partition(b"\nUid:")
    return int(rest.split(None, 1)[0]) if found else -1


def _variable(environment: bytes, name: bytes) -> str:
    """One variable; empty when unset."""
    at = 0 if environment.startswith(name) else environment.find(b"\0" + name) + 1
    if not environment.startswith(name, at):
        return ""
    return environment[at + len(name) :].partition(b"\0")[0].decode("utf-8", "replace").strip()


def _hidden_container(cgroup_text: str, tgid: int, proc: Path) -> str:
    """The id by mountinfo, when the cgroup says nothing: a cgroup namespace hides the path, or the container
    has no group of its own (podman --cgroups=disabled, and rootless where cgroups are of version 1).

    mountinfo is long, so only where the mount namespace is neither our own nor the host's. In a container
    we may not be told which is the host's: then for hidden paths only.
    """
    namespace = read_link(f"{proc}/{tgid}/ns/mnt") if cgroup_text else ""
    ours, hosts = _known_mount_namespaces(proc)
    if not namespace or namespace in (ours, hosts):
        return ""
    if not hosts and any(not line.endswith(":/") and "/.." not in line for line in cgroup_text.splitlines()):
        return ""
    return container.from_mountinfo(read_text(f"{proc}/{tgid}/mountinfo"))


@cache
def _known_mount_namespaces(proc: Path) -> tuple[str, str]:
    """Our own one and that of the first process, "" where it may not be read."""
    return read_link(f"{proc}/self/ns/mnt"), read_link(f"{proc}/1/ns/mnt")


# Names and attributes.


def own_attributes(process: Process) -> tuple[dict[str, str], str]:
    """The target's OTEL_RESOURCE_ATTRIBUTES, and what is wrong with them ("" if nothing).

    Any error discards the whole variable, as the specification says.
    """
    try:
        return parse_attributes(process.otel_resource_attributes), ""
    except ValueError as error:
        return {}, f"pid {process.tgid}: OTEL_RESOURCE_ATTRIBUTES is ignored: {error}"


def service_name(process: Process, proc: Path = PROC) -> str:
    """What the target says it is, else a good name out of its command, else `unknown_service:<exe>`."""
    return (
        process.otel_service_name
        or own_attributes(process)[0].get("service.name", "")
        or _detected(process, proc)[0]
        or f"unknown_service:{process.exe_name}"
    )


def _detected(process: Process, proc: Path) -> tuple[str, str]:
    """(name, version) out of the command, or of the systemd service for commands that say nothing."""
    name, version = service_from_command(
        process.exe_name, process.args, lambda: _Directory(process.tgid, proc)
    )
    return (name, version) if name else (container.systemd_service(process.cgroup), "")


class _Directory:
    """The working directory of a target, which is asked only for commands that need it."""

    def __init__(self, tgid: int, proc: Path) -> None:
        self.path = f"{proc}/{tgid}/cwd"

    def name(self) -> str:
        return read_link(self.path).rpartition("/")[2]

    def read(self, name: str, size: int) -> bytes:
        """The start of a plain file in it. Neither a link nor a pipe: the target chose what stands there."""
        try:
            descriptor = os.open(
                f"{self.path}/{name}",
                os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY,
            )
        except OSError:
            return b""
        try:
            return os.read(descriptor, size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except OSError:
            return b""
        finally:
            os.close(descriptor)


def read_host(root: Path = Path("/")) -> Host:
    """The host; root is the top of its file system (a DaemonSet mounts it elsewhere)."""
    identity = ""
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        identity = identity or read_text(f"{root}/{name}").strip()
    system = os.uname()
    return Host(
        id=identity if identity != "uninitialized" else "",
        boot_id=read_text(f"{root}/proc/sys/kernel/random/boot_id").strip(),
        name=system.nodename,
        arch=_ARCHITECTURES.get(system.machine, system.machine),
    )


# host.arch of the semantic conventions by uname -m.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm32",
    "armv6l": "arm32",
    "ppc64le": "ppc64",
    "i686": "x86",
    "i386": "x86",
}


def resource_attributes(
    process: Process,
    host: Host,
    added: Mapping[str, str] | None = None,
    command_args: bool = False,
    proc: Path = PROC,
) -> dict[str, str | int | list[str]]:
    """The resource of a process by the semantic conventions v1.44.0.

    Detection < added (the option resource.attributes) < the target's own OTEL_RESOURCE_ATTRIBUTES <
    its OTEL_SERVICE_NAME. telemetry.* nobody overrides: it says who produced the spans, and that is us.

    telemetry.sdk.name is our own name ("opentelemetry" is reserved for the OpenTelemetry SDKs), and
    telemetry.sdk.language is the language of the target, which is how backends read it and what other
    eBPF agents (OBI) send; "generic" where it is not certain. telemetry.distro.* names agents that stand
    on an SDK: we stand on none, so it is left out.
    """
    language, runtime = runtime_of(process.exe_name)
    detected_name, version = _detected(process, proc)
    attributes: dict[str, str | int | list[str]] = {
        "service.name": detected_name or f"unknown_service:{process.exe_name}",
        "service.instance.id": instance_id(process, host),
        "process.pid": process.tgid,
        "process.parent_pid": process.ppid,
        "process.creation.time": rfc3339(process.start_unix_ns),
        "process.executable.name": process.exe_name,
        "os.type": "linux",
    }
    optional: dict[str, str] = {
        "service.version": version,
        "process.executable.path": process.exe,
        "process.command": process.args[0] if process.args else "",
        "process.owner": _user_name(read_uid(process.tgid, proc), process),
        "process.runtime.name": runtime,
        "container.id": process.container_id,
        "host.id": host.id,
        "host.name": host.name,
        "host.arch": host.arch,
    }
    attributes.update({key: value for key, value in optional.items() if value})
    if command_args and process.args:
        attributes["process.command_args"] = list(process.args)
    attributes.update(added or {})
    attributes.update(own_attributes(process)[0])
    if process.otel_service_name:
        attributes["service.name"] = process.otel_service_name
    attributes["telemetry.sdk.name"] = "ebpf-otlp-tracer"
    attributes["telemetry.sdk.version"] = __version__
    attributes["telemetry.sdk.language"] = language or "generic"
    return attributes


def instance_id(process: Process, host: Host) -> str:
    """service.instance.id: UUIDv5 of host, boot, pid and start, so the same after a restart of the agent.

    By hand: `uuid` takes `hashlib`, which loads OpenSSL: 3.6 MiB for one digest of 100 bytes.
    """
    try:
        from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # not CPython
        from hashlib import sha1
    name = f"{host.id}/{host.boot_id}/{process.tgid}/{process.start_ticks}".encode()
    digest = bytearray(sha1(INSTANCE_NAMESPACE + name).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # variant of RFC 9562
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def rfc3339(unix_ns: int) -> str:
    """UTC to the millisecond (start times come in hundredths of a second)."""
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"


@cache
def _account(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _user_name(uid: int, process: Process) -> str:
    """Our own accounts do not tell who user 1000 of a container is, only who root is."""
    return "" if uid < 0 or (process.container_id and uid != 0) else _account(uid)
