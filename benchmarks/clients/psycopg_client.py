# SPDX-License-Identifier: Apache-2.0
"""psycopg 3 (libpq): python -m benchmarks.clients.psycopg_client HOST PORT [FEATURE...]

https://www.psycopg.org/psycopg3/docs/
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, Cursor

from benchmarks.clients.journal import Journal, chosen

Connect = Callable[..., Connection[Any]]
LARGE_ROWS = int(os.environ.get("LARGE_ROWS", "1000"))  # of 1000 bytes


def local_port(connection: Connection[Any]) -> int:
    """psycopg does not tell it: the name of the socket behind its descriptor does."""
    import socket

    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        return int(same.getsockname()[1]) if same.family == socket.AF_INET else 0


class Session:
    """A connection whose statements are told."""

    def __init__(self, journal: Journal, connect: Connect) -> None:
        self._journal = journal
        self.connection = connect()
        self.port = local_port(self.connection)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def run(
        self, text: str, parameters: tuple[Any, ...] = (), *, fails: bool = False, **options: Any
    ) -> Cursor[Any]:
        """text: as it goes over the wire, with $1 for parameters."""
        cursor = self.connection.cursor()
        sent = text
        for number in range(len(parameters)):
            sent = sent.replace(f"${number + 1}", "%s")
        with self._journal.call(text, self.port, fails) as outcome:
            cursor.execute(sent.encode(), parameters or None, **options)
            outcome.rows = rows(cursor)
        return cursor


def rows(cursor: Cursor[Any]) -> int:
    """Of all results of the statement."""
    count = len(cursor.fetchall()) if cursor.description else 0
    while cursor.nextset():
        count += len(cursor.fetchall()) if cursor.description else 0
    return count


def startup(journal: Journal, connect: Connect) -> None:
    connect().close()


def refused_tls(journal: Journal, connect: Connect) -> None:
    """The client asks for TLS first, and goes on without."""
    connect(sslmode="prefer").close()


def password(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run("CREATE ROLE checked LOGIN PASSWORD 'throwaway'")
        connect(user="checked", password="throwaway").close()
        try:
            connect(user="checked", password="wrong")
        except psycopg.OperationalError as refused:
            assert "password authentication failed" in str(refused)
        session.run("DROP ROLE checked")


def simple(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run("SELECT 1")
        session.run("SELECT 1 AS one; SELECT 2 AS two, 3 AS three")
        session.run("/* where: shop */ SELECT 'ärger', NULL, true")
        session.run("CREATE TABLE simple (id int PRIMARY KEY, name text)")
        session.run("INSERT INTO simple SELECT i, 'name ' || i FROM generate_series(1, 7) i")
        session.run("UPDATE simple SET name = 'none' WHERE id > 5")
        session.run("SELECT * FROM simple ORDER BY id")
        session.run("DO $$ BEGIN RAISE NOTICE 'look here'; END $$")
        session.run("SHOW server_version")
        session.run("DELETE FROM simple WHERE id = 1")
        session.run("DROP TABLE simple")


def extended(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.connection.prepare_threshold = None
        session.run("SELECT 1", binary=True)
        session.run("SELECT $1::int + $2::int", (1, 2))
        session.run("SELECT $1::text, $2::bytea, $3::float8", (None, b"\0\1\xff\0", 0.5))
        session.run("SELECT length($1::text)", ("long " * 2000,))
        session.run("SELECT i FROM generate_series(1, $1) i", (23,), binary=True)
        session.run("CREATE TEMPORARY TABLE extended (id int)", binary=True)
        session.run("INSERT INTO extended VALUES ($1), ($2)", (1, 2))
        session.run("SELECT * FROM extended WHERE id = $1::int", (3,))


def prepared(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.connection.prepare_threshold = 2
        for number in range(5):
            session.run("SELECT $1::int * 2", (number,))
        session.connection.prepare_threshold = 0
        for _ in range(2):
            session.run("SELECT now()")
        session.run("SELECT 1 / $1::int", (0,), fails=True)
        session.run("SELECT 1 / $1::int", (1,))
        session.run("PREPARE by_hand (int) AS SELECT $1 + 1", prepare=False)
        session.run("EXECUTE by_hand(4)", prepare=False)
        session.run("DEALLOCATE by_hand", prepare=False)


def pipeline(journal: Journal, connect: Connect) -> None:
    """Twenty at once; then five of which the third fails, so that the server skips the last two."""
    with Session(journal, connect) as session:
        session.connection.prepare_threshold = None
        sent: list[tuple[str, int, Cursor[Any]]] = []
        with session.connection.pipeline():
            for number in range(20):
                cursor = session.connection.cursor()
                start_ns = time.monotonic_ns()
                cursor.execute("SELECT i FROM generate_series(1, %s) i", (number,))
                sent.append(("SELECT i FROM generate_series(1, $1) i", start_ns, cursor))
            for text, start_ns, cursor in sent:
                journal.tell(text, start_ns, len(cursor.fetchall()), port=session.port)
        start_ns = time.monotonic_ns()
        cursors = []
        try:
            with session.connection.pipeline():
                for divisor in (2, 1, 0, 1, 2):
                    cursors.append(session.connection.cursor())
                    cursors[-1].execute("SELECT 6 / %s::int", (divisor,))
        except psycopg.errors.DivisionByZero as error:
            for outcome in ("", "", error.sqlstate or ""):
                journal.tell("SELECT 6 / $1::int", start_ns, int(not outcome), outcome, session.port)
        session.run("SELECT 'after'")


def copy(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run("CREATE TEMPORARY TABLE copied (id int, name text)")
        cursor = session.connection.cursor()
        text = "COPY copied FROM STDIN"
        with journal.call(text, session.port), cursor.copy(text) as incoming:
            for number in range(100):
                incoming.write_row((number, f"name\t{number}"))
        text = "COPY copied TO STDOUT"
        with journal.call(text, session.port) as outcome, cursor.copy(text) as outgoing:
            outcome.rows = sum(1 for _ in outgoing.rows())
        text = "COPY copied FROM STDIN (FORMAT csv)"
        with journal.call(text, session.port, fails=True), cursor.copy(text) as incoming:
            incoming.write(b"1,good\nno number,bad\n")
        text = "COPY (SELECT * FROM copied LIMIT 3) TO STDOUT (FORMAT binary)"
        with journal.call(text, session.port) as outcome, cursor.copy(text) as outgoing:
            outcome.rows = sum(1 for _ in outgoing)
        session.run("SELECT count(*) FROM copied")


def cursors(journal: Journal, connect: Connect) -> None:
    """A named cursor is DECLARE, FETCH and CLOSE."""
    with Session(journal, connect) as session:
        session.run("BEGIN")
        declare = 'DECLARE "wide" CURSOR FOR SELECT i FROM generate_series(1, 25) i'
        cursor = session.connection.cursor("wide")
        with journal.call(declare, session.port):
            cursor.execute("SELECT i FROM generate_series(1, 25) i")
        for _ in range(3):
            with journal.call('FETCH FORWARD 10 FROM "wide"', session.port) as outcome:
                outcome.rows = len(cursor.fetchmany(10))
        with journal.call('CLOSE "wide"', session.port):
            cursor.close()
        session.run("COMMIT")


def notify(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as listening, Session(journal, connect) as telling:
        listening.run("LISTEN news")
        telling.run("NOTIFY news, 'first'")
        telling.run("SELECT pg_notify('news', 'second')")
        received = listening.connection.notifies(stop_after=2, timeout=30)
        assert [each.payload for each in received] == ["first", "second"]
        listening.run("UNLISTEN news")


def errors(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run("SELEC 1", fails=True)
        session.run("SELECT * FROM no_such_table", fails=True)
        session.run("SELECT 1; SELECT no_such_column; SELECT 3", fails=True)
        session.run("SELECT 12 / (3 - i) FROM generate_series(1, 5) i", fails=True)
        session.run("SELECT $1::int / 0", (1,), fails=True)
        session.run("SELECT no_such_column + $1::int", (1,), fails=True)
        session.run("SELECT $1::text::int", ("no number",), fails=True)
        session.run("DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'XX123'; END $$", fails=True)
        session.run("SELECT 'after'")


def transactions(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run("CREATE TABLE transactions (id int PRIMARY KEY)")
        session.run("BEGIN")
        session.run("INSERT INTO transactions VALUES (1)")
        session.run("SAVEPOINT before")
        session.run("INSERT INTO transactions VALUES (1)", fails=True)
        session.run("SELECT 'refused'", fails=True)
        session.run("ROLLBACK TO SAVEPOINT before")
        session.run("COMMIT")
        session.run("BEGIN ISOLATION LEVEL SERIALIZABLE")
        session.run("ROLLBACK")
        session.run("DROP TABLE transactions")


_UNTIL_IT_SLEEPS = (
    "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND "
    "query = 'SELECT pg_sleep(60)') LOOP PERFORM pg_stat_clear_snapshot(); END LOOP; END $$"
)


def cancel(journal: Journal, connect: Connect) -> None:
    """The request to cancel comes on a connection of its own, when the statement is surely running."""
    with Session(journal, connect) as session, Session(journal, connect) as watching:

        def stop() -> None:
            watching.connection.execute(_UNTIL_IT_SLEEPS)
            session.connection.cancel_safe(timeout=30)

        start_ns = time.monotonic_ns()
        stopper = threading.Thread(target=stop)
        stopper.start()
        session.run("SELECT pg_sleep(60)", fails=True)
        stopper.join()
        journal.tell(_UNTIL_IT_SLEEPS, start_ns, port=watching.port)
        session.run("SET statement_timeout = '10ms'")
        session.run("SELECT pg_sleep(61)", fails=True)


def slow(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        for milliseconds in (1, 10, 100):
            session.run(f"SELECT pg_sleep(0.{milliseconds:03})")


def large(journal: Journal, connect: Connect) -> None:
    with Session(journal, connect) as session:
        session.run(f"SELECT i, repeat('x', 1000) FROM generate_series(1, {LARGE_ROWS}) i")
        session.run("SELECT length($1::text)", ("y" * 300 * LARGE_ROWS,))
        session.run("SELECT '" + "z" * 100 * LARGE_ROWS + "' AS long_text")


FEATURES: dict[str, Callable[[Journal, Connect], None]] = {
    each.__name__: each
    for each in (
        *(startup, refused_tls, password, simple, extended, prepared, pipeline, copy, cursors),
        *(notify, errors, transactions, cancel, slow, large),
    )
}


def main() -> None:
    host, port, names = chosen(FEATURES)
    folder = str(Path(host).parent) if host.startswith("/") else host

    def connect(**options: Any) -> Connection[Any]:
        # no TLS unless asked, no GSS: the same bytes wherever it runs
        same = {"user": "postgres", "dbname": "postgres", "gssencmode": "disable", "autocommit": True}
        tls = {"sslmode": os.environ.get("PGSSLMODE", "disable")}
        return psycopg.connect(host=folder, port=port, **{**same, **tls, **options})

    journal = Journal(lambda raised: str(getattr(raised, "sqlstate", None) or type(raised).__name__))
    for journal.feature in names:
        FEATURES[journal.feature](journal, connect)


if __name__ == "__main__":
    main()
