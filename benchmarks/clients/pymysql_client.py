# SPDX-License-Identifier: Apache-2.0
"""PyMySQL (text protocol): python -m benchmarks.clients.pymysql_client HOST PORT [FEATURE...]

https://pymysql.readthedocs.io/
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pymysql
from pymysql.constants import CLIENT

from benchmarks.clients.journal import Journal, chosen

LARGE_ROWS = int(os.environ.get("LARGE_ROWS", "1000"))  # of 1000 bytes


class Session:
    """A connection whose queries are told, those that PyMySQL sends by itself among them."""

    def __init__(self, journal: Journal, target: dict[str, Any], **options: Any) -> None:
        self._journal = journal
        start_ns = time.monotonic_ns()
        self.connection = pymysql.connect(**{**target, **options})
        own = self.connection._sock
        self.port = own.getsockname()[1] if own.family == socket.AF_INET else 0
        journal.tell("SET NAMES utf8mb4", start_ns, port=self.port)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def run(self, text: str, fails: bool = False) -> None:
        cursor = self.connection.cursor()
        with self._journal.call(text, self.port, fails) as outcome:
            cursor.execute(text)
            outcome.rows = len(cursor.fetchall())

    def run_each(self, texts: list[str], fails: bool = False) -> None:
        """One query of several statements: the server takes, and logs, each with what is left after it."""
        cursor, start_ns = self.connection.cursor(), time.monotonic_ns()
        for number in range(len(texts)):
            left, rows, error = "; ".join(texts[number:]), 0, ""
            try:
                if number:
                    cursor.nextset()
                else:
                    cursor.execute(left)
                rows = len(cursor.fetchall())
            except pymysql.MySQLError as raised:
                if not fails:
                    raise
                error = str(raised.args[0])
            self._journal.tell(left, start_ns, rows, error, self.port)
            if error:
                return


Connect = Callable[..., Session]


def startup(journal: Journal, connect: Connect) -> None:
    connect().connection.close()
    try:
        connect(user="other", password="wrong")
    except pymysql.MySQLError as refused:
        assert refused.args[0] == 1045


def query(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run("SELECT 1")
        session.run("/* where: shop */ SELECT 'ärger', NULL, 1.5")
        session.run("CREATE TABLE query (id INT PRIMARY KEY, name TEXT, data BLOB)")
        session.run("INSERT INTO query VALUES (1, 'one', x'00ff0d0a27'), (2, 'two', NULL)")
        session.run("INSERT INTO query VALUES (3, 'three', _binary'\x01\x02\\0')")
        session.run("UPDATE query SET name = 'none' WHERE id > 1")
        session.run("SELECT * FROM query")
        session.run("SELECT * FROM query WHERE id > 100")
        session.run("SHOW TABLES")
        session.run("DELETE FROM query")
        session.run("DROP TABLE query")
        session.run("DO SLEEP(0.01)")


def multi(journal: Journal, connect: Connect) -> None:
    with connect(client_flag=CLIENT.MULTI_STATEMENTS) as session:
        session.run_each(["SELECT 1", "SELECT 2 UNION SELECT 3", "SELECT 4"])
        session.run_each(["SET @a = 1", "SELECT @a", "SELECT no_such_column", "SELECT 5"], fails=True)
        session.run("SELECT 'after'")


def errors(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run("SELEC 1", fails=True)
        session.run("SELECT * FROM no_such_table", fails=True)
        session.run("SELECT no_such_column", fails=True)
        session.run("CREATE TEMPORARY TABLE errors (id INT PRIMARY KEY)")
        session.run("INSERT INTO errors VALUES (1), (1)", fails=True)
        session.run("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'mine'", fails=True)
        session.run("", fails=True)
        session.run("SELECT 'after'")


def database(journal: Journal, connect: Connect) -> None:
    """COM_INIT_DB, COM_PING and USE."""
    with connect() as session:
        session.connection.select_db("second")
        session.run("SELECT DATABASE()")
        session.connection.ping(reconnect=False)
        session.run("USE test")
        session.run("SELECT DATABASE()")


def transactions(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run("CREATE TABLE transactions (id INT PRIMARY KEY) ENGINE=InnoDB")
        session.run("BEGIN")
        session.run("INSERT INTO transactions VALUES (1)")
        session.run("ROLLBACK")
        session.run("START TRANSACTION READ ONLY")
        session.run("COMMIT")
        session.run("DROP TABLE transactions")


def infile(journal: Journal, connect: Connect) -> None:
    """The client sends a file in the middle of a query."""
    with connect(local_infile=True) as session, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/lines"
        session.run("CREATE TEMPORARY TABLE loaded (id INT, name TEXT)")
        with open(path, "w") as file:
            file.writelines(f"{number}\tname {number}\n" for number in range(100))
        session.run(f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE loaded")
        session.run("SELECT COUNT(*) FROM loaded")
        # PyMySQL sends no line, tells the server that this is all, and raises an error of its own.
        text = f"LOAD DATA LOCAL INFILE '{folder}/missing' INTO TABLE loaded"
        with journal.call(text, session.port), contextlib.suppress(pymysql.OperationalError):
            session.connection.cursor().execute(text)


def large(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run(f"SELECT seq, REPEAT('x', 1000) FROM seq_1_to_{LARGE_ROWS}")
        session.run("SELECT '" + "z" * 100 * LARGE_ROWS + "' AS long_text")


FEATURES: dict[str, Callable[[Journal, Connect], None]] = {
    each.__name__: each for each in (startup, query, multi, errors, database, transactions, infile, large)
}


def main() -> None:
    host, port, names = chosen(FEATURES)
    where = {"unix_socket": host} if host.startswith("/") else {"host": host, "port": port}
    target = {**where, "user": "tester", "database": "test", "autocommit": None}
    journal = Journal(lambda raised: str(raised.args[0]))
    for journal.feature in names:
        FEATURES[journal.feature](journal, lambda **options: Session(journal, target, **options))


if __name__ == "__main__":
    main()
