# SPDX-License-Identifier: Apache-2.0
"""Records the seeds: every feature of every database client, through a relay, against the real server.

    python -m tests.protocols.capture [postgres|mysql|redis ...]

Tests do not run it; the files it made are part of the repository. What changes from run to run (cancel keys,
salts, times) is no secret: the servers are gone, and trusted everybody.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from benchmarks.clients import client
from benchmarks.databases import Database, mariadb, postgres, redis
from tests.protocols.relay import relay
from tests.protocols.seeds import FOLDER, save

FILE_BYTES = 20_000
# Of 1000 bytes: enough for several reads, few enough for a repository.
LARGE_ROWS = "12"

Start = Callable[[], AbstractContextManager[Database]]
PROTOCOLS: dict[str, tuple[Start, dict[str, tuple[str, ...]]]] = {
    "postgres": (
        postgres,
        {
            "psycopg": (
                *("startup", "refused_tls", "password", "simple", "extended", "prepared", "pipeline"),
                *("copy", "cursors"),
                *("notify", "errors", "transactions", "cancel", "large"),
            ),
            "asyncpg": ("prepared", "executemany", "cursor", "copy"),
        },
    ),
    "mysql": (
        mariadb,
        {
            "pymysql": (
                *("startup", "query", "multi", "errors", "database", "transactions", "infile", "large"),
            ),
            "mariadb": (
                *("prepare", "prepare_error", "cursor", "long_data", "bulk", "procedure", "commands"),
                *("compressed", "change_user"),
            ),
        },
    ),
    "redis": (
        redis,
        {
            "redis": (
                *("resp2", "resp3", "pipeline", "transaction", "pubsub", "blocking", "scripts"),
                *("errors", "large", "inline", "monitor"),
            ),
        },
    ),
}


def main() -> None:
    os.environ["LARGE_ROWS"] = LARGE_ROWS
    for protocol in sys.argv[1:] or PROTOCOLS:
        for old in (FOLDER / protocol).glob("*.bin"):
            old.unlink()
        start, clients = PROTOCOLS[protocol]
        with start() as server:
            for name, features in clients.items():
                for feature in features:
                    with relay(server.port) as between:
                        with client(name, server, feature, port=between.port) as program:
                            program.output()
                    for number, chunks in enumerate(between.conversations, 1):
                        suffix = f"-{number}" if number > 1 else ""
                        path = save(f"{protocol}/{name}-{feature}{suffix}", chunks)
                        size = path.stat().st_size
                        print(f"{size:6} {path.relative_to(FOLDER)}")
                        if size > FILE_BYTES:
                            raise SystemExit(f"{path} is larger than {FILE_BYTES} bytes")


if __name__ == "__main__":
    main()
