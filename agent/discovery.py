# SPDX-License-Identifier: Apache-2.0
"""Which processes the selectors mean: records out of /proc against `select.*`, with the reason for each.

Runs in the keeper for every exec and every look around, so it remembers what it read: a process that was
seen before costs one `stat` and one link, and descriptors are listed only where a selected port listens.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.enrichment.process import (
    FILE_BYTES_MAX,
    PROC,
    Process,
    netns_of,
    read_bytes,
    read_link,
    read_process,
    read_stat,
    service_name,
)

ANCESTORS_MAX = 64  # deeper than any supervisor tree; a bound for a chain that changes under us
TABLE_BYTES_MAX = 32768  # of a socket table, read on without meeting a listening socket
_LISTEN = b"0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it


def processes(proc: Path = PROC) -> list[int]:
    """The tgids of this /proc, in rising order."""
    try:
        names = os.listdir(proc)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def listening_sockets(tgid: int, proc: Path = PROC) -> dict[int, int]:
    """Socket inode -> port of every TCP socket that listens in the network namespace of a process.

    The kernel writes the listening sockets before all others (tcp_get_idx() in net/ipv4/tcp_ipv4.c), so
    reading ends soon after the last of them: 100,000 connections cost nothing.
    """
    sockets: dict[int, int] = {}
    for table in ("tcp", "tcp6"):
        try:
            file = open(f"{proc}/{tgid}/net/{table}", "rb", buffering=0)  # noqa: SIM115 (closed below)
        except OSError:
            continue
        with file:
            rest, fruitless = b"", 0
            try:
                while fruitless < TABLE_BYTES_MAX and (piece := file.read(TABLE_BYTES_MAX)):
                    *lines, rest = (rest + piece).split(b"\n")
                    fruitless = 0 if _listening(lines, sockets) else fruitless + len(piece)
            except OSError:  # ESRCH: the process ended
                pass
    return sockets


def _listening(lines: Iterable[bytes], sockets: dict[int, int]) -> int:
    """Adds the listening sockets of some lines; how many there were.

    `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 28412 …`
    """
    found = 0
    for line in lines:
        fields = line.split(None, 10)
        if len(fields) > 9 and fields[3] == _LISTEN:
            sockets[int(fields[9])] = int(fields[1].rpartition(b":")[2], 16)
            found += 1
    return found


def sockets_held(tgid: int, wanted: Iterable[int], proc: Path = PROC) -> set[int]:
    """Those of the wanted socket inodes that a process has open; empty where that may not be read."""
    links = {f"socket:[{inode}]": inode for inode in wanted}
    held: set[int] = set()
    try:
        directory = os.open(f"{proc}/{tgid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return held
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
            except OSError:  # closed meanwhile
                continue
            if link in links:
                held.add(links[link])
    except OSError:
        pass
    finally:
        os.close(directory)
    return held


def uses_io_uring(tgid: int, proc: Path = PROC) -> bool:
    """Whether a process has a ring of io_uring open."""
    try:
        with os.scandir(f"{proc}/{tgid}/fd") as entries:
            return any(read_link(entry.path) == "anon_inode:[io_uring]" for entry in entries)
    except OSError:
        return False


def unix_sockets(tgids: Iterable[int], proc: Path = PROC) -> set[int] | None:
    """Inodes of the Unix sockets in the network namespaces of some processes; None: not all could be read."""
    inodes: set[int] = set()
    seen: set[int] = set()
    for tgid in tgids:
        netns = netns_of(tgid, proc)
        if netns in seen:
            continue
        seen.add(netns)
        # `0000000000000000: 00000003 00000000 00000000 0001 03 12345 /run/path`
        table = read_bytes(f"{proc}/{tgid}/net/unix")
        if not table or len(table) >= FILE_BYTES_MAX:
            return None  # it ended meanwhile, or there are too many
        for line in table.splitlines()[1:]:
            fields = line.split(None, 7)
            if len(fields) > 6:
                inodes.add(int(fields[6]))
    return inodes


def listening_ports(process: Process, proc: Path = PROC) -> list[int]:
    """The TCP ports that one process listens on, in rising order."""
    sockets = listening_sockets(process.tgid, proc)
    held = sockets_held(process.tgid, sockets, proc) if sockets else ()
    return sorted({sockets[inode] for inode in held})


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


# They hold the sockets of services that they start on demand, which is not serving them.
_SOCKET_HOLDERS = frozenset(("systemd", "xinetd", "inetd", "s6-tcpserver"))


class _Executable:
    """One `--exe`: with a slash it is a path or a glob of paths, without one it is a name or glob of names.

    A path that is a link (/usr/bin/python3) also means what it points to: that is what /proc names.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.by_path = "/" in pattern
        patterns = {pattern}
        if self.by_path:
            patterns = {os.path.abspath(pattern)}
            if not re.search(r"[*?\[]", pattern):
                patterns.add(os.path.realpath(pattern))
        self._globs = [_glob(p) for p in patterns]

    def matches(self, process: Process) -> bool:
        subject = process.exe if self.by_path else process.exe_name
        return bool(subject) and any(glob.match(subject) for glob in self._globs)


class Selection:
    """The selectors of one configuration against the processes of one /proc.

    own: tgids that are never traced, with their children; the keeper adds the pipeline and the loader.
    The session is no sign of the agent: started from a terminal, it shares it with what it shall trace.
    """

    def __init__(self, config: Mapping[str, Any], proc: Path = PROC, own: Collection[int] = ()) -> None:
        self.proc = proc
        self.own: set[int] = set(own)
        self.pids = frozenset(config["select.pid"])
        self.ports = frozenset(config["select.port"])
        self.executables = [_Executable(pattern) for pattern in config["select.exe"]]
        self.services = [(pattern, _glob(pattern)) for pattern in config["select.service"]]
        self.containers = tuple(config["select.container"])
        self.all = bool(config["select.all"])
        self._known: dict[int, Process] = {}
        self._verdicts: dict[int, tuple[Process, list[str]]] = {}  # of _by_record, while the record stands
        self._selected: dict[int, str] = {}  # tgid -> the selector that matched it, or its ancestor
        self._met: set[str] = set()  # selectors that matched anything in the last scan
        self._holders: dict[int, _Holders] = {}  # by network namespace

    def __bool__(self) -> bool:
        """Whether there is any selector at all."""
        return bool(
            self.pids or self.ports or self.executables or self.services or self.containers or self.all
        )

    # One process.

    def matches(self, process: Process) -> str | None:
        """Why the process is traced ("--port 8080"), None if it is not. Reads the present, not the last scan.

        For an exec. Only what is selected is remembered: of the others nobody says when they end.
        """
        self.forget(process.tgid)
        if self.excluded(process):
            return None
        selectors = self._judge(process)
        if not selectors and self.ports and process.exe_name not in _SOCKET_HOLDERS:
            ports = set(listening_ports(process, self.proc)) & self.ports
            selectors = [f"--port {port}" for port in sorted(ports)]
        self._met.update(selectors)
        if selectors:
            self._selected[process.tgid] = selectors[0]
            return selectors[0]
        ancestor, selector = self._selected_ancestor(process, {})
        if not ancestor:
            return None
        self._selected[process.tgid] = selector
        return f"child of {ancestor} ({selector})"

    def forget(self, tgid: int) -> None:
        """The process has ended, or became another one: the next with this tgid is a stranger."""
        self._known.pop(tgid, None)
        self._verdicts.pop(tgid, None)
        self._selected.pop(tgid, None)

    def why_not(self, process: Process) -> str:
        """Why the process is not traced, and what would select it."""
        reason = self.excluded(process)
        if reason:
            return reason
        ports = listening_ports(process, self.proc)
        selector = f"--port {ports[0]}" if ports else f"--pid {process.tgid}"
        return f"no selector matches; {selector} would" if self else f"nothing is selected; {selector} would"

    def excluded(self, process: Process) -> str:
        """Why no selector can reach the process, "" if one can."""
        if process.kernel_thread:
            return "a kernel thread"
        if process.tgid in self.own or process.ppid in self.own:
            return "the agent itself"
        return ""

    def _by_record(self, process: Process) -> list[str]:
        """Every selector but --port that the record alone satisfies, the most particular first."""
        record, verdict = self._verdicts.get(process.tgid, (None, []))
        if record is not process:
            verdict = self._judge(process)
            self._verdicts[process.tgid] = process, verdict
        return list(verdict)

    def _judge(self, process: Process) -> list[str]:
        found = [f"--pid {process.tgid}"] if process.tgid in self.pids else []
        found += [
            f"--container {prefix}" for prefix in self.containers if process.container_id.startswith(prefix)
        ]
        if self.services:
            name = service_name(process, self.proc)
            found += [f"--service {pattern}" for pattern, glob in self.services if glob.match(name)]
        found += [f"--exe {e.pattern}" for e in self.executables if e.matches(process)]
        return [*found, "--all"] if self.all else found

    def _selected_ancestor(self, process: Process, known: Mapping[int, Process]) -> tuple[int, str]:
        """The nearest ancestor that is selected, with its selector; 0 if none. known: read just now.

        The kernel side follows the children of what is traced; those that exist already are found here.
        """
        parent = process.ppid
        for _ in range(ANCESTORS_MAX):
            if parent <= 1:
                break
            if parent in self._selected:
                return parent, self._selected[parent]
            record = known.get(parent) or read_stat(parent, self.proc)
            if record is None:
                break
            parent = record.ppid
        return 0, ""

    # All processes.

    def snapshot(self) -> list[Process]:
        """Every process of this /proc by rising tgid, those seen before from memory."""
        known: dict[int, Process] = {}
        for tgid in processes(self.proc):
            process = self._known.get(tgid)
            if process is None or not self._unchanged(process):
                process = read_process(tgid, self.proc)
            if process is not None:
                known[tgid] = process
        self._known = known
        self._verdicts = {tgid: verdict for tgid, verdict in self._verdicts.items() if tgid in known}
        return list(known.values())

    def _unchanged(self, process: Process) -> bool:
        """Whether the record still holds: the same process and parent; an exec shows in its names."""
        stat = read_stat(process.tgid, self.proc)
        return (
            stat is not None
            and (stat.start_ticks, stat.ppid, stat.comm) == (process.start_ticks, process.ppid, process.comm)
            and read_link(f"{self.proc}/{process.tgid}/exe").removesuffix(" (deleted)") == process.exe
        )

    def scan(self) -> list[tuple[Process, str]]:
        """Every process that is selected now, with the reason, by rising tgid."""
        candidates = [process for process in self.snapshot() if not self.excluded(process)]
        on_ports = self._on_ports(candidates) if self.ports else {}
        selected: dict[int, str] = {}
        self._met = set()
        for process in candidates:
            selectors = self._by_record(process) + [
                f"--port {port}" for port in on_ports.get(process.tgid, ())
            ]
            self._met.update(selectors)
            if selectors:
                selected[process.tgid] = selectors[0]
        self._selected = selected
        reasons = dict(selected)
        for process in candidates:
            if process.tgid not in selected:
                ancestor, selector = self._selected_ancestor(process, self._known)
                if ancestor:
                    reasons[process.tgid] = f"child of {ancestor} ({selector})"
        return [(process, reasons[process.tgid]) for process in candidates if process.tgid in reasons]

    def _on_ports(self, candidates: Iterable[Process]) -> dict[int, list[int]]:
        """tgid -> the selected ports it listens on.

        One table per network namespace. A listening socket may be shared (forked workers), so every process
        of the namespace is asked; its answer is kept as long as the namespace listens with the same sockets.
        """
        by_netns: dict[int, list[Process]] = {}
        for process in candidates:
            by_netns.setdefault(process.netns, []).append(process)
        found: dict[int, list[int]] = {}
        holders: dict[int, _Holders] = {}
        for netns, members in by_netns.items():
            sockets = self._sockets_of(members)
            if not sockets:
                continue
            before = self._holders.get(netns)
            kept = before.held if before and before.sockets == sockets else {}
            now = holders[netns] = _Holders(sockets, {})
            for process in members:
                identity = (process.tgid, process.start_ticks)
                inodes = kept.get(identity)
                if inodes is None:
                    inodes = sockets_held(process.tgid, sockets, self.proc)
                now.held[identity] = inodes
                if inodes and process.exe_name not in _SOCKET_HOLDERS:
                    found[process.tgid] = sorted({sockets[inode] for inode in inodes})
        self._holders = holders
        return found

    def _sockets_of(self, members: Iterable[Process]) -> dict[int, int]:
        """The listening sockets on selected ports, asked of a member that is still there."""
        for process in members:
            sockets = listening_sockets(process.tgid, self.proc)
            if sockets or read_stat(process.tgid, self.proc):
                return {inode: port for inode, port in sockets.items() if port in self.ports}
        return {}

    def pending(self) -> list[str]:
        """One sentence for each selector that the last scan found nothing for."""
        waits = [
            *((f"--port {port}", "nobody listens yet; waiting") for port in sorted(self.ports)),
            *(
                (f"--exe {e.pattern}", f"no such process yet; waiting{self._hint(e)}")
                for e in self.executables
            ),
            *((f"--service {pattern}", "no such service yet; waiting") for pattern, _ in self.services),
            *((f"--container {prefix}", "no such container yet; waiting") for prefix in self.containers),
        ]
        for pid in sorted(self.pids):
            process = self._known.get(pid)
            reason = self.excluded(process) if process else "there is no such process (any more)"
            waits.append((f"--pid {pid}", reason))
        return [f"{selector}: {sentence}" for selector, sentence in waits if selector not in self._met]

    def _hint(self, executable: _Executable) -> str:
        """A script is run by an interpreter, which is then the executable: --service is meant."""
        wanted = executable.pattern.rpartition("/")[2]
        for process in self._known.values():
            if any(arg.rpartition("/")[2] == wanted for arg in process.args[1:2]):
                name = service_name(process, self.proc)
                return f" (pid {process.tgid} runs it with {process.exe_name}: try --service {name})"
        return ""


@dataclass(frozen=True, slots=True)
class _Holders:
    """Who holds the listening sockets of one network namespace."""

    sockets: dict[int, int]  # inode -> port
    held: dict[tuple[int, int], set[int]]  # (tgid, start_ticks) -> inodes
