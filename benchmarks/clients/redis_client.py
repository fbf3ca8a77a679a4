# SPDX-License-Identifier: Apache-2.0
"""redis-py: python -m benchmarks.clients.redis_client HOST PORT [FEATURE...]

A call is told as MONITOR would write it, its words joined by blanks.
https://redis.readthedocs.io/
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from benchmarks.clients.journal import Journal, chosen

LARGE_ROWS = int(os.environ.get("LARGE_ROWS", "1000"))  # of 1000 bytes


class Session:
    """One connection, whose commands are told."""

    def __init__(self, journal: Journal, target: dict[str, Any], protocol: int = 2) -> None:
        self.journal = journal
        options = {"protocol": protocol, "driver_info": None, "maint_notifications_config": None}
        kind: Any = redis.UnixDomainSocketConnection if "path" in target else redis.Connection
        self.wire = kind(**target, **options)
        start_ns = time.monotonic_ns()
        self.wire.connect()
        self.port = 0 if "path" in target else self.wire._sock.getsockname()[1]
        if protocol == 3:
            journal.tell("HELLO 3", start_ns, port=self.port)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.disconnect()

    def run(self, *words: Any, fails: bool = False) -> Any:
        answer = None
        with self.journal.call(told(words), self.port, fails) as outcome:
            self.wire.send_command(*words)
            answer = self.wire.read_response(disconnect_on_error=False)
            outcome.rows = len(answer) if isinstance(answer, (list, dict, set)) else 1
        return answer

    def pipeline(self, *commands: tuple[Any, ...], replies: int | None = None) -> list[Any]:
        """All at once, then all answers. An error's word is told with its command."""
        start_ns = time.monotonic_ns()
        self.wire.send_packed_command(self.wire.pack_commands(commands))
        answers = []
        for words in commands:
            try:
                answers.append(self.wire.read_response())
                error = ""
            except ResponseError as raised:
                answers.append(raised)
                error = error_word(raised)
            self.journal.tell(told(words), start_ns, 1, error, self.port)
        return answers


def told(words: tuple[Any, ...]) -> str:
    """Bytes above 127 as the code points of their numbers."""
    return " ".join(
        word.decode("latin-1") if isinstance(word, bytes) else str(word).encode().decode("latin-1")
        for word in words
    )


_NO_WORDS = ("AUTH", "DEBUG")  # with which messages of ERR begin


def error_word(raised: BaseException) -> str:
    """redis-py cuts some of the words off and makes a class of them."""
    word = str(raised).partition(" ")[0]
    if isinstance(raised, NoScriptError):
        return "NOSCRIPT"
    return word if word.isupper() and word not in _NO_WORDS else "ERR"


Connect = Callable[..., Session]


def resp2(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run("PING")
        session.run("SET", "key:1", "value")
        session.run("GET", "key:1")
        session.run("GET", "no such key")
        session.run("SET", b"binary\0\xff\r\n", b"\r\n$5\r\n\0")
        session.run("INCRBY", "counter", 5)
        session.run("RPUSH", "list", *range(10))
        session.run("LRANGE", "list", 0, -1)
        session.run("HSET", "hash", "a", 1, "b", "")
        session.run("HGETALL", "hash")
        session.run("ZADD", "zset", 1.5, "a", 2, "b")
        session.run("ZRANGE", "zset", 0, -1, "WITHSCORES")
        session.run("SCAN", 0, "COUNT", 100)
        session.run("COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2")
        session.run("XADD", "stream", "1-1", "field", "value")
        session.run("XRANGE", "stream", "-", "+")
        session.run("SELECT", 3)
        session.run("DBSIZE")


def resp3(journal: Journal, connect: Connect) -> None:
    """Maps, doubles, booleans, nulls, sets, big numbers, verbatim strings, pushes."""
    with connect(protocol=3) as session:
        session.run("HSET", "hash3", "a", 1)
        session.run("HGETALL", "hash3")
        session.run("GET", "no such key")
        session.run("ZADD", "zset3", 1.5, "a")
        session.run("ZSCORE", "zset3", "a")
        session.run("SADD", "set3", "a")
        session.run("SMEMBERS", "set3")
        for kind in ("true", "bignum", "verbatim", "double", "map", "set", "attrib"):
            if kind != "attrib":  # redis-py does not read them
                session.wire.send_command("DEBUG", "PROTOCOL", kind)  # MONITOR does not show it
                session.wire.read_response(disable_decoding=True)
        session.run("CLIENT", "TRACKING", "ON")
        session.run("GET", "tracked")
        with connect() as other:
            other.run("SET", "tracked", "1")
        session.run("GET", "tracked")


def pipeline(journal: Journal, connect: Connect) -> None:
    """A hundred at once; then some of which one fails, which stops nobody."""
    with connect() as session:
        session.pipeline(*(("SET", f"p:{number}", "x" * number) for number in range(50)))
        session.pipeline(*(("GET", f"p:{number}") for number in range(50)))
        answers = session.pipeline(("SET", "text", "a"), ("LPUSH", "text", "b"), ("GET", "text"))
        assert isinstance(answers[1], ResponseError)


def transaction(journal: Journal, connect: Connect) -> None:
    """MULTI to EXEC in one write, in several, with an error inside, discarded, and refused by WATCH."""
    with connect() as session:
        session.pipeline(("MULTI",), ("SET", "t:1", "a"), ("INCR", "t:2"), ("GET", "t:1"), ("EXEC",))
        for words in (("MULTI",), ("SET", "t:3", "text"), ("INCR", "t:3"), ("EXEC",)):
            if words[0] == "EXEC":
                session.wire.send_command("EXEC")
                start_ns = time.monotonic_ns()
                session.wire.read_response()
                journal.tell("EXEC", start_ns, 2, port=session.port)
            else:
                session.run(*words)
        session.run("MULTI")
        session.run("DISCARD")
        session.run("WATCH", "t:1")
        with connect() as other:
            other.run("SET", "t:1", "changed")
        session.run("MULTI")
        session.run("EXEC")


def pubsub(journal: Journal, connect: Connect) -> None:
    with connect() as listening, connect() as telling:
        listening.run("SUBSCRIBE", "news")
        listening.run("PSUBSCRIBE", "new*")
        telling.run("PUBLISH", "news", "first")
        assert listening.wire.read_response()[:2] == [b"message", b"news"]
        assert listening.wire.read_response()[:2] == [b"pmessage", b"new*"]
        telling.run("PUBLISH", "newer", "second")
        assert listening.wire.read_response()[3] == b"second"
        listening.run("PUNSUBSCRIBE", "new*")
        listening.run("UNSUBSCRIBE", "news")
        listening.run("PING")


def blocking(journal: Journal, connect: Connect) -> None:
    """An answer that waits for somebody else, and one that never comes but by time."""
    with connect() as waiting, connect() as other:
        start_ns = time.monotonic_ns()
        waiting.wire.send_command("BLPOP", "queue", 0)
        while b"blocked_clients:1" not in other.run("INFO", "clients"):
            pass
        other.run("RPUSH", "queue", "job")
        assert waiting.wire.read_response() == [b"queue", b"job"]
        journal.tell("BLPOP queue 0", start_ns, 2, port=waiting.port)
        waiting.run("BRPOP", "queue", "0.05")


def scripts(journal: Journal, connect: Connect) -> None:
    script = "redis.call('SET', KEYS[1], ARGV[1]); return {1, {redis.call('GET', KEYS[1])}, false}"
    with connect() as session:
        digest = session.run("SCRIPT", "LOAD", script)
        session.run("EVALSHA", digest, 1, "s:1", "value")
        session.run("EVAL", "return redis.error_reply('MINE own error')", 0, fails=True)
        session.run("EVALSHA", "0" * 40, 0, fails=True)
        session.run("EVAL", "return 'x'", 0)


def errors(journal: Journal, connect: Connect) -> None:
    """Unknown commands and wrong numbers of words do not reach a command, so MONITOR does not show them."""
    with connect() as session:
        session.run("SET", "e", "text")
        session.run("LPUSH", "e", "x", fails=True)
        session.run("INCR", "e", fails=True)
        for words in (("NO_SUCH_COMMAND", "a"), ("GET",), ("SUBSCRIBE",)):
            try:
                session.wire.send_command(*words)
                session.wire.read_response(disconnect_on_error=False)
            except ResponseError:
                continue
            raise AssertionError(f"{words} went well")
        session.run("PING")


def large(journal: Journal, connect: Connect) -> None:
    with connect() as session:
        session.run("SET", "large", "x" * 500 * LARGE_ROWS)
        session.run("GET", "large")
        session.run("RPUSH", "long", *range(50 * LARGE_ROWS // 10))
        session.run("LRANGE", "long", 0, -1)


def inline(journal: Journal, connect: Connect) -> None:
    """Commands as a person types them, several in one packet."""
    with connect() as session:
        lines = ["PING", "SET inline 'two words'", "GET inline", "EXISTS inline inline"]
        own: socket.socket = session.wire._sock
        start_ns = time.monotonic_ns()
        own.sendall("".join(line + "\r\n" for line in lines).encode())
        for line in lines:
            session.wire.read_response()
            journal.tell(line.replace("'", ""), start_ns, 1, port=session.port)


def monitor(journal: Journal, connect: Connect) -> None:
    """One request, and then lines without end."""
    with connect() as watching, connect() as other:
        watching.wire.send_command("MONITOR")
        assert watching.wire.read_response() == b"OK"
        other.run("PING")
        assert b'"PING"' in watching.wire.read_response()


FEATURES: dict[str, Callable[[Journal, Connect], None]] = {
    each.__name__: each
    for each in (
        *(resp2, resp3, pipeline, transaction, pubsub, blocking, scripts),
        *(errors, large, inline, monitor),
    )
}


def main() -> None:
    host, port, names = chosen(FEATURES)
    target: dict[str, Any] = {"path": host} if host.startswith("/") else {"host": host, "port": port}
    journal = Journal(error_word)
    for journal.feature in names:
        FEATURES[journal.feature](journal, lambda **options: Session(journal, target, **options))


if __name__ == "__main__":
    main()
