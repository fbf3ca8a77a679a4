# SPDX-License-Identifier: Apache-2.0
"""MariaDB with throw-away data, and what its performance schema and general log say it was asked.

The performance schema has outcome, rows and time of every command, but no text of prepared ones: that is in
the general log. Neither knows the client's port; init_connect, which runs before the first
command of a connection, writes it down.

https://mariadb.com/kb/en/performance-schema-events_statements_history_long-table/
"""

from __future__ import annotations

import signal
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
from benchmarks.processes import START_TIMEOUT_S, Child, ProcessError, free_port

USER = "tester"
DATABASE = "test"
_SYSTEM_USER = "mysql"
TEXT_BYTES = 2048
_HISTORY = 10_000
_UNKNOWN_STATEMENT = "1243"

_CONNECTED = (
    "INSERT INTO truth.connections SELECT PROCESSLIST_ID, THREAD_ID, PORT FROM performance_schema.threads "
    "JOIN performance_schema.socket_instances USING (THREAD_ID) WHERE PROCESSLIST_ID = CONNECTION_ID()"
)
_USERS = f"""
CREATE DATABASE {DATABASE};
CREATE DATABASE second;
CREATE USER {USER}@'%';
GRANT ALL ON {DATABASE}.* TO {USER}@'%';
GRANT ALL ON second.* TO {USER}@'%';
CREATE USER other@'%' IDENTIFIED BY 'throwaway';
GRANT ALL ON {DATABASE}.* TO other@'%';
"""
# CONNECTION ADMIN, which root has, is what init_connect does not run for.
_TRUTH = f"""
CREATE DATABASE truth;
CREATE TABLE truth.connections (id BIGINT, thread BIGINT, port INT) ENGINE=Aria;
GRANT INSERT ON truth.connections TO {USER}@'%', other@'%';
GRANT SELECT ON performance_schema.* TO {USER}@'%', other@'%';
TRUNCATE mysql.general_log;
TRUNCATE performance_schema.events_statements_history_long;
SET GLOBAL init_connect = "{_CONNECTED}";
"""


@dataclass
class MariaDB(Database):
    logged: bool = True

    def sql(self, text: str) -> str:
        """What the client prints for it, as root over the socket, which `statements` leaves out."""
        client = [program("mariadb", "mariadb-client"), "--no-defaults", "--batch", "--skip-column-names"]
        return run([*client, f"--socket={self.socket}", "--user=root"], text)

    def statements(self) -> list[Statement]:
        """Kinds: query, prepare, execute, close stmt, fetch, long data, ping, quit, ... Of several statements
        in one query the first has the whole text, each later one what is left of it. Texts of execute
        have the values in them; those of queries end after TEXT_BYTES.

        A command may come into the history after its answer has left, so we wait until nobody is at work.
        """
        if not self.logged:
            raise ValueError("mariadb keeps no log: start it with log=True")
        wait_for(lambda: self._idle() or None, self.child, "to be idle", LOG_TIMEOUT_S)
        connections = {
            int(thread): (int(session), int(port))
            for session, thread, port in self._rows("SELECT * FROM truth.connections")
        }
        texts = self._texts_of_prepared()
        numbers: dict[int, int] = defaultdict(int)
        statements = []
        events = self._rows(
            "SELECT THREAD_ID, EVENT_NAME, HEX(SQL_TEXT), MYSQL_ERRNO, TIMER_WAIT DIV 1000, ROWS_SENT "
            "FROM performance_schema.events_statements_history_long "
            "WHERE NESTING_EVENT_ID IS NULL ORDER BY THREAD_ID, EVENT_ID"
        )
        if len(events) >= _HISTORY:
            raise ValueError(f"more than the {_HISTORY} commands that mariadb keeps")
        for thread, event, sql, number, duration_ns, rows in events:
            if int(thread) not in connections:
                continue  # ours
            session, port = connections[int(thread)]
            _, family, name = event.lower().split("/")
            kind = name if family == "com" else "query"
            text, error = _text(sql), "" if number == "0" else number
            if name in ("prepare_sql", "execute_sql"):
                _next(texts, session, name.removesuffix("_sql"))  # it is logged for a second time
            elif name in ("execute", "bulk_execute") and error != _UNKNOWN_STATEMENT:
                text = _next(texts, session, "execute")
            elif name == "prepare" and not error:
                text = _next(texts, session, "prepare")
            statements.append(
                Statement(port, session, numbers[session], kind, text, error, int(duration_ns), int(rows))
            )
            numbers[session] += 1
        return statements

    def _idle(self) -> bool:
        own = "ID <> CONNECTION_ID() AND USER <> 'system user' AND COMMAND NOT IN ('Sleep', 'Daemon')"
        return self.sql(f"SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE {own}").strip() == "0"

    def _texts_of_prepared(self) -> dict[tuple[int, str], deque[str]]:
        """By session and kind, in order. What fails to be prepared is not logged."""
        texts: dict[tuple[int, str], deque[str]] = defaultdict(deque)
        for session, kind, text in self._rows(
            "SELECT thread_id, command_type, HEX(argument) FROM mysql.general_log "
            "WHERE command_type IN ('Prepare', 'Execute')"
        ):
            texts[int(session), kind.lower()].append(_text(text))
        return texts

    def _rows(self, query: str) -> list[list[str]]:
        return [line.split("\t") for line in self.sql(query).splitlines()]


def _next(texts: dict[tuple[int, str], deque[str]], session: int, kind: str) -> str:
    waiting = texts[session, kind]
    return waiting.popleft() if waiting else ""


def _text(hexadecimal: str) -> str:
    return "" if hexadecimal == "NULL" else bytes.fromhex(hexadecimal).decode(errors="backslashreplace")


@contextmanager
def mariadb(*, log: bool = True, options: Sequence[str] = (), cpus: Sequence[int] = ()) -> Iterator[MariaDB]:
    """MariaDB with the user `tester` without a password, the databases `test` and `second`, and the user
    `other` (password `throwaway`) to change to. Compression and LOCAL INFILE are on for who asks.

    log: keep what `statements` reads; leave it off where cost is measured.
    """
    prefix = as_user(_SYSTEM_USER, "KILL")
    with folder_of(_SYSTEM_USER) as folder:
        data, socket, port = folder / "data", folder / "mariadb.sock", free_port()
        common = ["--no-defaults", f"--datadir={data}", "--innodb-log-file-size=4M"]
        install = program("mariadb-install-db", "mariadb-server")
        run([*prefix, install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"])
        flags = [
            "--bind-address=127.0.0.1",
            f"--port={port}",
            f"--socket={socket}",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
            "--key-buffer-size=1M",
            "--aria-pagecache-buffer-size=8M",
            "--max-connections=60",
            "--table-open-cache=200",
            "--local-infile",
            "--max-allowed-packet=64M",
        ]
        if log:
            flags += _LOGGING
        command = [*prefix, program("mariadbd", "mariadb-server"), *common, *flags, *options]
        child = Child(command, log=folder / "output.log", cpus=cpus)
        child.name = "mariadbd"
        server = MariaDB("mariadb", port, child, folder, socket, log)

        def answers() -> str | None:
            try:
                return server.sql("SELECT 1") if socket.exists() else None
            except ProcessError:
                return None

        try:
            wait_for(answers, child, "ready to be connected to", START_TIMEOUT_S)
            server.sql(_USERS + (_TRUTH if log else ""))
            yield server
        finally:
            child.stop(signal.SIGKILL)  # nobody needs its data


_LOGGING = [
    "--general-log",
    "--log-output=TABLE",
    "--performance-schema",
    "--performance-schema-instrument=%=OFF",
    "--performance-schema-instrument=statement/%=ON",
    "--performance-schema-instrument=wait/io/socket/sql/client_connection=ON",
    "--performance-schema-consumer-events-statements-current=ON",
    "--performance-schema-consumer-events-statements-history-long=ON",
    f"--performance-schema-events-statements-history-long-size={_HISTORY}",
    f"--performance-schema-max-sql-text-length={TEXT_BYTES}",
    "--performance-schema-max-thread-instances=200",
    "--performance-schema-digests-size=0",
    "--performance-schema-events-waits-history-long-size=0",
    "--performance-schema-events-stages-history-long-size=0",
]
