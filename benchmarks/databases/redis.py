# SPDX-License-Identifier: Apache-2.0
"""Redis without persistence, and what its MONITOR says it was asked.

https://redis.io/docs/latest/commands/monitor/
"""

from __future__ import annotations

import itertools
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.databases.server import (
    LOG_TIMEOUT_S,
    Database,
    Statement,
    as_user,
    folder_of,
    program,
    wait_for,
)
from benchmarks.processes import Child, free_port, wait_connectable

_SYSTEM_USER = "redis"


@dataclass
class Redis(Database):
    monitor: _Monitor | None = None
    _markers: Iterator[int] = field(default_factory=itertools.count)

    def command(self, *words: str) -> str:
        """The first line or bulk string of the answer, on a connection that `statements` leaves out."""
        with _connect(self.port) as own:
            return _ask(own, words, self.monitor)

    def statements(self) -> list[Statement]:
        """Kinds: the command's name, or `lua` for what a script did (session 0). session: the client's port.

        What Redis refuses before it runs it (unknown commands, wrong arity) and what it hides (CONFIG and all
        else that is for administrators) is not among it; `errors` counts the refusals. Commands between
        MULTI and EXEC appear when they are run.
        """
        if self.monitor is None:
            raise ValueError("redis is not monitored: start it with log=True")
        marker = f"marker {next(self._markers)}"
        self.command("ECHO", marker)
        monitor = self.monitor
        wait_for(lambda: monitor.seen(marker) or None, self.child, "the marker in MONITOR", LOG_TIMEOUT_S)
        return monitor.statements()

    def errors(self) -> dict[str, int]:
        """How many replies began with which error word, from INFO errorstats."""
        lines = self.command("INFO", "errorstats").splitlines()
        pairs = (re.fullmatch(r"errorstat_(\w+):count=(\d+)", line) for line in lines)
        return {pair[1]: int(pair[2]) for pair in pairs if pair}


class _Monitor:
    """A connection that reads MONITOR's lines until it is closed."""

    def __init__(self, port: int) -> None:
        self.own_ports: set[int] = set()
        self._lines: list[str] = []
        self._socket = _connect(port)
        self.own_ports.add(self._socket.getsockname()[1])
        self._socket.settimeout(None)
        self._socket.sendall(b"MONITOR\r\n")
        self._stream = self._socket.makefile("rb")
        if self._stream.readline() != b"+OK\r\n":
            raise ValueError("redis refused MONITOR")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.append(line.decode().strip())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1)
        self._stream.close()
        self._socket.close()

    def seen(self, marker: str) -> bool:
        return any(marker in line for line in reversed(self._lines))

    def statements(self) -> list[Statement]:
        numbers: dict[int, int] = defaultdict(int)
        statements = []
        for line in self._lines:
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"not a line of MONITOR: {line!r}")
            client, _, port_text = match[1].rpartition(":")
            port = int(port_text) if client and client != "unix" else 0
            if port in self.own_ports:
                continue
            words = [_unescaped(word) for word in _WORD.findall(match[2])]
            kind = "lua" if match[1] == "lua" else words[0].lower()
            statements.append(Statement(port, port, numbers[port], kind, " ".join(words), error=None))
            numbers[port] += 1
        return statements


_LINE = re.compile(r"\+[\d.]+ \[\d+ (.*?)\] (.*)")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b"}


def _unescaped(word: str) -> str:
    """Bytes from 128 on come out as the code points of the same number."""
    return _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) == 3 else _ESCAPES.get(m[1], m[1]), word)


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LOG_TIMEOUT_S)


def _ask(own: socket.socket, words: Sequence[str], monitor: _Monitor | None) -> str:
    if monitor is not None:
        monitor.own_ports.add(own.getsockname()[1])
    encoded = [word.encode() for word in words]
    request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
    own.sendall(request)
    with own.makefile("rb") as stream:
        line = stream.readline()
        if line.startswith(b"$") and line != b"$-1\r\n":
            return stream.read(int(line[1:])).decode()
    return line[1:].decode().strip()


@contextmanager
def redis(*, log: bool = True, options: Sequence[str] = (), cpus: Sequence[int] = ()) -> Iterator[Redis]:
    """Redis on 127.0.0.1 and on a Unix socket, for everybody.

    log: MONITOR runs from the start, which halves Redis' speed; leave it off where cost is measured.
    """
    with folder_of(_SYSTEM_USER) as folder:
        port, path = free_port(), folder / "redis.sock"
        flags = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
        flags += ["--unixsocket", str(path), "--unixsocketperm", "777", "--enable-debug-command", "local"]
        command = [*as_user(_SYSTEM_USER, "KILL"), program("redis-server", "redis-server"), *flags, *options]
        child = Child(command, log=folder / "output.log", cpus=cpus)
        child.name = "redis-server"
        monitor = None
        try:
            wait_connectable(port, child)
            monitor = _Monitor(port) if log else None
            yield Redis("redis", port, child, folder, path, monitor)
        finally:
            if monitor is not None:
                monitor.close()
            child.stop()
