# SPDX-License-Identifier: Apache-2.0
"""Real PostgreSQL, MariaDB and Redis on loopback, each a context manager, with what they themselves logged.

    with postgres() as server:
        server.port, server.socket, server.pids
        server.statements()      # what the server's own log says it was asked, and how it went

A server is ready when its block begins and gone when it ends, its data with it. Users and passwords: none.
"""

from benchmarks.databases.mariadb import MariaDB, mariadb
from benchmarks.databases.postgres import Postgres, postgres
from benchmarks.databases.redis import Redis, redis
from benchmarks.databases.server import Database, Statement

__all__ = ["Database", "MariaDB", "Postgres", "Redis", "Statement", "mariadb", "postgres", "redis"]
