# SPDX-License-Identifier: Apache-2.0
"""asyncpg, without libpq, all in binary: python -m benchmarks.clients.asyncpg_client HOST PORT [FEATURE...]

https://magicstack.github.io/asyncpg/current/api/
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.clients.journal import Journal, chosen

Connect = Callable[[], Awaitable[Any]]


def local_port(connection: Any) -> int:
    own = connection._transport.get_extra_info("socket")
    return int(own.getsockname()[1]) if own.family == socket.AF_INET else 0


async def fetch(journal: Journal, connection: Any, text: str, *arguments: Any, fails: bool = False) -> None:
    with journal.call(text, local_port(connection), fails) as outcome:
        outcome.rows = len(await connection.fetch(text, *arguments))


async def prepared(journal: Journal, connect: Connect) -> None:
    """The same text twice: asyncpg keeps the statement, and binds it again."""
    connection = await connect()
    for number in (1, 2, 3):
        await fetch(journal, connection, "SELECT i FROM generate_series(1, $1::int) i", number)
    await fetch(journal, connection, "SELECT 1 / $1::int", 0, fails=True)
    await fetch(journal, connection, "SELECT $1::no_such_type", 0, fails=True)
    port = local_port(connection)
    with journal.call("SELECT 1; SELECT 2", port):
        await connection.execute("SELECT 1; SELECT 2")
    with journal.call("BEGIN;", port):
        await (transaction := connection.transaction()).start()
    with journal.call("ROLLBACK;", port):
        await transaction.rollback()
    await connection.close()


async def executemany(journal: Journal, connect: Connect) -> None:
    """One Parse, then Bind and Execute for each, without a Sync between them."""
    connection = await connect()
    port = local_port(connection)
    with journal.call("CREATE TEMPORARY TABLE many (id int, name text)", port):
        await connection.execute("CREATE TEMPORARY TABLE many (id int, name text)")
    text = "INSERT INTO many VALUES ($1, $2)"
    start_ns = time.monotonic_ns()
    await connection.executemany(text, [(number, f"name {number}") for number in range(50)])
    for _ in range(50):
        journal.tell(text, start_ns, port=port)
    await fetch(journal, connection, "SELECT * FROM many WHERE id > $1", 40)
    await connection.close()


async def cursor(journal: Journal, connect: Connect) -> None:
    """A portal that is executed with a row limit, again and again."""
    connection = await connect()
    port = local_port(connection)
    with journal.call("BEGIN;", port):
        await (transaction := connection.transaction()).start()
    text = "SELECT i FROM generate_series(1, 25) i"
    portal = await connection.cursor(text)
    for _ in range(3):
        with journal.call(text, port) as outcome:
            outcome.rows = len(await portal.fetch(10))
    with journal.call("COMMIT;", port):
        await transaction.commit()
    await connection.close()


async def copy(journal: Journal, connect: Connect) -> None:
    connection = await connect()
    port = local_port(connection)
    with journal.call("CREATE TEMPORARY TABLE copied (id int, name text)", port):
        await connection.execute("CREATE TEMPORARY TABLE copied (id int, name text)")
    with journal.call('COPY "copied" FROM STDIN  ', port):
        await connection.copy_to_table("copied", source=io.BytesIO(b"1\tone\n2\ttwo\n"))
    with journal.call("COPY (SELECT * FROM copied) TO STDOUT ", port):
        await connection.copy_from_query("SELECT * FROM copied", output=io.BytesIO())
    await connection.close()


async def pool(journal: Journal, connect: Connect) -> None:
    """Five connections, forty statements, in whatever order they come to be free."""
    connections = await asyncio.gather(*(connect() for _ in range(5)))
    free: asyncio.Queue[Any] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)

    async def one(number: int) -> None:
        connection = await free.get()
        await fetch(journal, connection, f"SELECT {number}, pg_sleep(0.001 * $1::int)", number % 7)
        free.put_nowait(connection)

    await asyncio.gather(*(one(number) for number in range(40)))
    for connection in connections:
        await connection.close()


FEATURES: dict[str, Callable[[Journal, Connect], Awaitable[None]]] = {
    each.__name__: each for each in (prepared, executemany, cursor, copy, pool)
}


async def main() -> None:
    host, port, names = chosen(FEATURES)
    folder = str(Path(host).parent) if host.startswith("/") else host

    async def connect() -> Any:
        return await asyncpg.connect(host=folder, port=port, user="postgres", database="postgres", ssl=False)

    journal = Journal(lambda raised: str(getattr(raised, "sqlstate", None) or type(raised).__name__))
    for journal.feature in names:
        await FEATURES[journal.feature](journal, connect)


if __name__ == "__main__":
    asyncio.run(main())
