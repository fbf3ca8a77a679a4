# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL with a throw-away cluster, and what its log (jsonlog, from 15 on) says it was asked.

https://www.postgresql.org/docs/15/runtime-config-logging.html
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.databases.server import (
    LOG_TIMEOUT_S,
    Database,
    Statement,
    as_user,
    folder_of,
    program,
    run,
    wait_for,
)
from benchmarks.processes import START_TIMEOUT_S, Child, free_port

USER = "postgres"
_OURS = "ebpf-otlp-tracer-truth"
_BINARIES = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def binary(name: str) -> str:
    """Of the newest version that is installed: Debian keeps them off the path."""
    return program(name, "postgresql", *_BINARIES)


@dataclass
class Postgres(Database):
    logged: bool = True
    _markers: Iterator[int] = field(default_factory=itertools.count)

    def sql(self, text: str) -> str:
        """What psql prints for it, on a connection of its own that `statements` leaves out."""
        command = [binary("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER]
        target = f"host=127.0.0.1 port={self.port} dbname=postgres application_name={_OURS}"
        return run([*command, "-d", target, "-f", "-"], text)

    def statements(self) -> list[Statement]:
        """Kinds: statement (a simple query as a whole), parse, bind, execute (the extended protocol's steps),
        error (what failed before it was begun, so before it was logged), refused (the whole connection).

        A backend writes its log lines before it answers. Our own statement comes after the last answer, so
        when it stands in the log, so does all that was answered before.
        """
        if not self.logged:
            raise ValueError("postgres keeps no log: start it with log=True")
        marker = f"marker {next(self._markers)}"
        self.sql(f"SELECT '{marker}'")
        text = wait_for(lambda: self._log_with(marker), self.child, "its log", LOG_TIMEOUT_S)
        return _read(text)

    def _log_with(self, marker: str) -> str | None:
        file = self.folder / "log" / "postgres.json"
        text = file.read_text() if file.exists() else ""
        return text[: text.rindex("\n") + 1] if marker in text else None


@contextmanager
def postgres(
    *, log: bool = True, tls: bool = False, settings: Sequence[str] = (), cpus: Sequence[int] = ()
) -> Iterator[Postgres]:
    """PostgreSQL with the superuser postgres, trusted on 127.0.0.1 and on the socket folder/.s.PGSQL.PORT.
    Of a user `checked`, who is not there yet, the password is asked.

    log: every statement goes to the log, which `statements` reads; leave it off where cost is measured.
    tls: clients may use TLS, with a certificate that nobody signed. settings: more, as "name=value".
    """
    prefix = as_user(USER, "QUIT")
    with folder_of(USER) as folder:
        data = folder / "data"
        options = ["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        run([*prefix, binary("initdb"), "-D", data, *options, "--no-instructions"])
        (data / "pg_hba.conf").write_text(_WHO)
        port = free_port()
        chosen = [
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={folder}",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "shared_buffers=16MB",
            "max_connections=60",
        ]
        if log:
            chosen += [
                "logging_collector=on",
                "log_destination=jsonlog",
                f"log_directory={folder / 'log'}",
                "log_filename=postgres",
                "log_rotation_size=0",
                "log_rotation_age=0",
                "log_statement=all",
                "log_min_duration_statement=0",
            ]
        if tls:
            _certificate(data, prefix)
            chosen.append("ssl=on")
        flags = [word for setting in (*chosen, *settings) for word in ("-c", setting)]
        command: list[str | Path] = [*prefix, binary("postgres"), "-D", data, *flags]
        child = Child(command, log=folder / "output.log", cpus=cpus)
        child.name = "postgres"
        try:
            wait_for(lambda: _ready(data) or None, child, "ready to be connected to", START_TIMEOUT_S)
            yield Postgres("postgres", port, child, folder, folder / f".s.PGSQL.{port}", log)
        finally:
            child.stop(signal.SIGINT)  # SIGTERM would wait for clients to leave


def _ready(data: Path) -> bool:
    """The last line of the postmaster's pid file is its state."""
    try:
        return (data / "postmaster.pid").read_text().rstrip().endswith("ready")
    except FileNotFoundError:
        return False


def _certificate(data: Path, prefix: list[str]) -> None:
    files: list[str | Path] = ["-keyout", data / "server.key", "-out", data / "server.crt"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=here"]
    run([*prefix, program("openssl", "openssl"), "req", *kind, *files])
    os.chmod(data / "server.key", 0o600)


_WHO = """\
local all all trust
host all checked 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""

_BEGUN = re.compile(r"(statement|fastpath function call|execute [^:]*): (.*)", re.DOTALL)
_DONE = re.compile(r"duration: ([\d.]+) ms(?:  (parse|bind|execute) [^:]*: (.*))?", re.DOTALL)


def _read(log: str) -> list[Statement]:
    """A statement is logged when it begins; its duration or error is a later line of the same session."""
    sessions: dict[int, list[Statement]] = {}
    for line in log.splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry.get("backend_type") != "client backend" or entry.get("application_name") == _OURS:
            continue
        if entry.get("remote_host") is None:
            continue
        statements = sessions.setdefault(entry["pid"], [])
        new = Statement(entry.get("remote_port", 0), entry["pid"], len(statements), "", "")
        message, severity = entry.get("message", ""), entry["error_severity"]
        open_one = statements[-1] if statements and _is_open(statements[-1]) else None
        if severity == "LOG" and (begun := _BEGUN.fullmatch(message)):
            statements.append(replace(new, kind=begun[1].partition(" ")[0], text=begun[2]))
        elif severity == "LOG" and (done := _DONE.fullmatch(message)):
            duration_ns = round(float(done[1]) * 1e6)
            if done[2] is not None:
                statements.append(replace(new, kind=done[2], text=done[3], duration_ns=duration_ns))
            elif open_one is not None:
                statements[-1] = replace(open_one, duration_ns=duration_ns)
        elif severity in ("ERROR", "FATAL"):
            if open_one is not None:
                statements[-1] = replace(open_one, error=entry["state_code"])
            else:
                text = entry.get("statement", "")
                kind = "error" if severity == "ERROR" else "refused"
                statements.append(replace(new, kind=kind, text=text, error=entry["state_code"]))
    return [statement for statements in sessions.values() for statement in statements]


def _is_open(statement: Statement) -> bool:
    return statement.duration_ns is None and not statement.error
