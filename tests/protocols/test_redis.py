# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (a table: one case, one line where it can be)
"""RESP 2 and 3: framing and meaning by https://redis.io/docs/latest/develop/reference/protocol-spec/, commands by
https://redis.io/docs/latest/commands/, spans by the semantic conventions.

Expected values are those of the documentation, written by hand.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from tests.contract import CLIENT, KIND_CLIENT, ROOT, SERVER, Case, Contract, Side, driver

PLAIN, SELECT, RESET, SUBSCRIBE, UNSUBSCRIBE, MONITOR, REPLICATE, MULTI, EXEC, HELLO, PING = range(
    1, 12
)  # enum redis_kind
READS, COSTLY = 1, 2  # enum trait
NONE, OPEN = 1, 2  # enum transaction
REDIS = ("192.0.2.7", 6379)


def hint(kind: int, value: int = 0, selects: int = 0) -> int:
    return kind | selects << 5 | value << 16


def bulk(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"$%d\r\n%b\r\n" % (len(data), data)


def cmd(*words: bytes | str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def array(*elements: bytes, sign: bytes = b"*") -> bytes:
    return b"%b%d\r\n" % (sign, len(elements)) + b"".join(elements)


def pair_count(sign: bytes, *elements: bytes) -> bytes:
    return b"%b%d\r\n" % (sign, len(elements) // 2) + b"".join(elements)


def request(name: str, data: bytes, *messages: dict[str, Any], **more: Any) -> Case:
    return Case(name, CLIENT, data, list(messages), kind=KIND_CLIENT, remote=REDIS, **more)


def reply(
    name: str, data: bytes, *messages: dict[str, Any], hints: tuple[int, ...] = (), **more: Any
) -> Case:
    due = hints or tuple([hint(PLAIN)] * max(1, len(messages)))
    return Case(name, SERVER, data, list(messages), hints=due, kind=KIND_CLIENT, remote=REDIS, **more)


def told(operation: str | None, text: str | None, **more: Any) -> dict[str, Any]:
    """A request, complete, with its name and text."""
    attributes = {"db.operation.name": operation, "db.query.text": text, **more.pop("attributes", {})}
    return {"complete": True, "attributes": attributes, **more}


def text_of(text: str, *words: bytes | str, **more: Any) -> Case:
    operation = " ".join(text.split(" ")[: 2 if more.pop("group", False) else 1])
    return request(
        f"text of {' '.join(str(word) for word in words)[:60]}", cmd(*words), told(operation, text, **more)
    )


OK: dict[str, Any] = {
    "complete": True,
    "failed": 0,
    "attributes": {"error.type": None, "db.response.status_code": None},
}
SCRIPT = "6ffb25e57b850dab1b731a0412edcba4cae659fe"
LONG_KEY = "k" * 250

REQUESTS = [
    request(
        "GET",
        cmd("GET", "key:1"),
        told(
            "GET",
            "GET key:1",
            traits=READS,
            hint=hint(PLAIN),
            attributes={
                "db.system.name": "redis",
                "db.namespace": None,  # told with the answer
                "server.address": "192.0.2.7",
                "server.port": None,
                "network.peer.address": "192.0.2.7",
                "network.peer.port": 6379,
                "db.stored_procedure.name": None,
            },
        ),
    ),
    request("a name in small letters", cmd("get", "key:1"), told("GET", "GET key:1")),
    request("a pipeline of commands", cmd("INCR", "a") * 50, *[told("INCR", "INCR a", traits=0)] * 50),
    request("an empty command is passed over", b"*0\r\n*-1\r\n" + cmd("PING"), told("PING", "PING")),
    request("binary keys and values", cmd("SET", b"b\x00\xff\r\n", b"\r\n$5\r\n\x00"), told("SET", "SET b\ufffd\ufffd\ufffd\ufffd ?")),
    request("an empty value", cmd("SET", "k", ""), told("SET", "SET k ?")),
    request("an unknown command", cmd("NO_SUCH.thing", "secret"), told("NO_SUCH.THING", "NO_SUCH.THING ?", traits=0)),
    request("a name that is no word", cmd("G\x01T", "secret"), told(None, None)),
    request("a subcommand that is none", cmd("CONFIG", "hunter2", "x"), told("CONFIG", "CONFIG ? ?")),
    request("inline commands", b"PING\r\nSET inline 'two words'\r\n\r\n get \"a key\" \nEXISTS a b\r\n",
        told("PING", "PING"), told("SET", "SET inline ?"), told("GET", "GET a key"), told("EXISTS", "EXISTS a b")),
    request("an inline command of many words", b"DEL" + b" k" * 100 + b"\r\n", {"complete": True, "attributes": {"db.operation.name": "DEL"}}),
    request("a big value is passed over", cmd("SET", "k", "x" * 5000) + cmd("GET", "k"), told("SET", "SET k ?"), told("GET", "GET k")),
    request("behind a big value nothing is looked at", cmd("MSET", "a", "x" * 257, "b", "1", "c", "y" * 3000) + cmd("PING"),
        told("MSET", "MSET a ? ? ? ? ?"), told("PING", "PING")),
    request("a value of 512 MiB", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n", told("SET", "SET k ?"), end="need"),
    request("as many arguments as fit into a head", cmd("DEL", *[f"k{i:04}" for i in range(2000)]) + cmd("PING"),
        {"complete": True, "attributes": {"db.operation.name": "DEL"}}, told("PING", "PING")),
    request("many values", cmd("RPUSH", "list", *"0123456789abcdef"), told("RPUSH", "RPUSH list ? ? ? ? ? ? ? ? ...")),
    request("text is cut before the first word without room", cmd("DEL", LONG_KEY, LONG_KEY, "short"), told("DEL", f"DEL {LONG_KEY} {LONG_KEY} ...")),
    text_of("HMSET myhash field1 ? field2 ?", "HMSET", "myhash", "field1", "secret", "field2", "secret"),
    text_of("MSET a ? b ?", "MSET", "a", "1", "b", "2"),
    text_of("MGET a b c", "MGET", "a", "b", "c", traits=READS),
    text_of("HGET h f", "hget", "h", "f", traits=READS),
    text_of("HGETALL h", "HGETALL", "h", traits=READS | COSTLY),
    text_of("KEYS ?", "KEYS", "user:*", traits=READS | COSTLY),
    text_of("FLUSHALL", "FLUSHALL", traits=COSTLY),
    text_of("LRANGE list ? ?", "LRANGE", "list", "0", "-1", traits=READS | COSTLY),
    text_of("ZADD z ? ? ? ?", "ZADD", "z", "1.5", "alice", "2", "bob"),
    text_of("BLPOP a b ?", "BLPOP", "a", "b", "5"),
    text_of("BITOP ? d a b", "BITOP", "AND", "d", "a", "b"),
    text_of("EVAL ? 2 a b ?", "EVAL", "return 1", "2", "a", "b", "secret", traits=0),
    text_of("EVAL ? ? ?", "EVAL", "return 1", "nonsense", "a"),
    text_of("EVAL ? 99999999 a", "EVAL", "return 1", "99999999", "a"),
    text_of(f"EVALSHA {SCRIPT} 1 s:1 ?", "EVALSHA", SCRIPT, "1", "s:1", "v", attributes={"db.stored_procedure.name": SCRIPT}),
    text_of("FCALL my_func 1 k ?", "FCALL", "my_func", "1", "k", "v", attributes={"db.stored_procedure.name": "my_func"}),
    text_of("FCALL ? 0", "FCALL", "no name", "0", attributes={"db.stored_procedure.name": None}),
    text_of("ZUNIONSTORE d 2 a b ? ? ?", "ZUNIONSTORE", "d", "2", "a", "b", "WEIGHTS", "1", "2"),
    text_of("XREAD ? ? STREAMS s1 s2 ? ?", "XREAD", "COUNT", "2", "streams", "s1", "s2", "0-0", "0-0"),
    text_of("XREADGROUP ? ? ? STREAMS s ?", "XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"),
    text_of("MIGRATE ? ? k ? ? ? ?", "MIGRATE", "host", "6379", "k", "0", "1000", "AUTH", "hunter2"),
    text_of("OBJECT ENCODING k", "object", "encoding", "k", group=True),
    text_of("CONFIG GET ?", "CONFIG", "GET", "save", group=True),
    text_of("CONFIG SET ? ?", "CONFIG", "SET", "requirepass", "hunter2", group=True),
    text_of("CLIENT SETNAME ?", "CLIENT", "SETNAME", "me", group=True),
    text_of("ACL SETUSER ? ? ?", "ACL", "SETUSER", "u", "on", ">hunter2", group=True),
    text_of("SCRIPT LOAD ?", "SCRIPT", "LOAD", "return 'hunter2'", group=True),
    text_of("XINFO STREAM s", "XINFO", "STREAM", "s", group=True),
    text_of("AUTH ?", "AUTH", "hunter2"),
    text_of("AUTH ? ?", "AUTH", "me", "hunter2"),
    text_of("HELLO ? ? ? ?", "HELLO", "3", "AUTH", "me", "hunter2", hint=hint(HELLO)),
    text_of("SUBSCRIBE a b", "SUBSCRIBE", "a", "b", hint=hint(SUBSCRIBE, 2)),
    text_of("UNSUBSCRIBE", "UNSUBSCRIBE", hint=hint(UNSUBSCRIBE, 0)),
    text_of("PUBLISH news ?", "PUBLISH", "news", "secret"),
    request("SELECT numbers what follows it", cmd("SELECT", "3") + cmd("GET", "a") + cmd("SELECT", "x") + cmd("RESET"),
        {"hint": hint(SELECT, 3, 1)}, {"hint": hint(PLAIN, 0, 1)}, {"hint": hint(SELECT, 0xFFFF, 2)}, {"hint": hint(RESET, 0, 3)}),
    request("CLIENT REPLY OFF and ON", cmd("CLIENT", "REPLY", "OFF") + cmd("SET", "a", "1") + cmd("client", "reply", "on") + cmd("PING"),
        {"unanswered": 1, "complete": True}, {"unanswered": 1}, {"unanswered": 0}, {"unanswered": 0}),
    request("CLIENT REPLY SKIP", cmd("CLIENT", "REPLY", "SKIP") + cmd("SET", "a", "x" * 2000) + cmd("PING"),
        {"unanswered": 1}, {"unanswered": 1, "complete": True}, {"unanswered": 0}),
    request("CLIENT REPLY OFF and RESET", cmd("CLIENT", "REPLY", "OFF") + cmd("RESET") + cmd("PING"),
        {"unanswered": 1}, {"unanswered": 0}, {"unanswered": 0}),
    request("REPLCONF", cmd("REPLCONF", "listening-port", "6380") + cmd("REPLCONF", "ACK", "14"),
        {"unanswered": 0, "silent": 0}, {"unanswered": 1, "silent": 1}),
    request("noise", b"\x16\x03\x01\x00", end="invalid"),
    request("a null for an argument", b"*1\r\n$-1\r\n", end="invalid"),
    request("an argument that is no bulk string", b"*1\r\n:1\r\n", end="invalid"),
    request("an argument longer than it says", b"*2\r\n$3\r\nGET\r\n$1\r\nab\r\n", end="invalid"),
    request("a count that is none", b"*x\r\n", end="invalid"),
    request("a count without digits", b"*\r\n", end="invalid"),
    request("a count beyond all limits", b"*2147483648\r\n", end="invalid"),
    request("a length beyond all limits", b"*1\r\n$99999999999999999999\r\n", end="invalid"),
    request("a name of 2 KB", b"*1\r\n$2048\r\n", end="invalid"),
    request("the end of a line by LF alone", b"*1\n$4\nPING\n", end="invalid"),
]  # fmt: skip


ERROR = {"complete": True, "failed": 1}
LIST = array(bulk("a"), array(b":1\r\n", b"$-1\r\n", b"*-1\r\n", array()), bulk(""))


def error(code: str | None, kind: str | None = None) -> dict[str, Any]:
    return {**ERROR, "attributes": {"db.response.status_code": code, "error.type": kind or code}}


def confirm(word: str, channel: str | None, count: int, sign: bytes = b"*") -> bytes:
    return array(bulk(word), b"$-1\r\n" if channel is None else bulk(channel), b":%d\r\n" % count, sign=sign)


MESSAGE = array(bulk("message"), bulk("news"), bulk("text"))
PMESSAGE = array(bulk("pmessage"), bulk("n*"), bulk("news"), bulk("text"))
BEGIN = ((CLIENT, cmd("PING"), 0), (SERVER, b"+PONG\r\n", hint(PING)))  # the connection has begun
LISTENS = (
    (CLIENT, cmd("SUBSCRIBE", "news"), 0),
    (SERVER, confirm("subscribe", "news", 1), hint(SUBSCRIBE, 1)),
)

REPLIES = [
    reply("a simple string", b"+OK\r\n", OK),
    reply("an error", b"-ERR unknown command 'x'\r\n", error("ERR")),
    reply("an error that is a code alone", b"-LOADING\r\n", error("LOADING")),
    reply("redirections", b"-MOVED 3999 127.0.0.1:6381\r\n-ASK 3999 127.0.0.1:6381\r\n", error("MOVED"), error("ASK")),
    reply("an error of a script, that begins with its text", b"-secret text\r\n", error(None, "_OTHER")),
    reply("an empty error", b"-\r\n", error(None, "_OTHER")),
    reply("numbers", b":0\r\n:-1\r\n:9223372036854775807\r\n:+1\r\n", OK, OK, OK, OK),
    reply("bulk strings", bulk("hello") + bulk("") + b"$-1\r\n" + bulk("a\r\nb"), OK, OK, OK, OK),
    reply("a big bulk string", bulk("x" * 5000) + b"+OK\r\n", OK, OK),
    reply("a bulk string of 512 MiB", b"$536870912\r\nabc", OK, end="need"),
    reply("arrays, nested, null and empty", LIST + b"*0\r\n*-1\r\n" + array(LIST, LIST), OK, OK, OK, OK),
    reply("a long array", array(*[bulk(str(i)) for i in range(500)]) + b"+OK\r\n", OK, OK),
    reply("an array with big strings", array(bulk("x" * 3000), bulk("y" * 3000)) + b"+OK\r\n", OK, OK),
    reply("arrays in arrays, 5000 deep", b"*1\r\n" * 5000 + b":1\r\n" + b"+OK\r\n", OK, OK),
    reply("types of RESP 3", b"_\r\n#t\r\n#f\r\n,1.5\r\n,-inf\r\n,nan\r\n(123456789012345678901234567890\r\n=7\r\ntxt:abc\r\n", *[OK] * 8),
    reply("a bulk error", b"!21\r\nSYNTAX invalid syntax\r\n+OK\r\n", error("SYNTAX"), OK),
    reply("a long bulk error", b"!3000\r\nERR " + b"x" * 2996 + b"\r\n+OK\r\n", error("ERR"), OK),
    reply("maps and sets", pair_count(b"%", bulk("a"), LIST, b"+b\r\n", b"#t\r\n") + array(b":1\r\n", b":2\r\n", sign=b"~") + b"%0\r\n", OK, OK, OK),
    reply("an attribute before a reply", pair_count(b"|", b"+ttl\r\n", b":3600\r\n") + b"-ERR x\r\n", error("ERR")),
    reply("attributes within a reply", array(b":1\r\n", pair_count(b"|", b"+ttl\r\n", b":3\r\n") + b":2\r\n") + b"+OK\r\n", OK, OK),
    reply("a push before and behind a reply", array(bulk("invalidate"), array(bulk("k")), sign=b">") + b"+OK\r\n" + array(bulk("invalidate"), b"_\r\n", sign=b">"), OK),
    reply("a long simple string", b"+" + b"x" * 3000 + b"\r\n+OK\r\n", OK, OK),
    reply("a long error", b"-ERR " + b"x" * 3000 + b"\r\n+OK\r\n", error("ERR"), OK),
    reply("errors within an answer to EXEC", array(b"+OK\r\n", b"-ERR not an integer\r\n"), {**OK, "transaction": NONE}, hints=(hint(EXEC),)),
    reply("a transaction", b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n", {"transaction": OPEN}, {"transaction": OPEN}, {"transaction": NONE},
        hints=(hint(MULTI), hint(PLAIN), hint(EXEC))),
    reply("EXECABORT", b"-EXECABORT Transaction discarded because of previous errors.\r\n", {**error("EXECABORT"), "transaction": NONE}, hints=(hint(EXEC),)),
    # databases
    reply("the database of a connection seen from its start", b"+PONG\r\n", {"attributes": {"db.namespace": "0"}}, before=BEGIN, hints=(hint(PING),)),
    reply("the database that was selected", b"+OK\r\n:1\r\n", *[{"attributes": {"db.namespace": "12"}}] * 2,
        before=((CLIENT, cmd("SELECT", "12") + cmd("DBSIZE"), 0),), hints=(hint(SELECT, 12, 1), hint(PLAIN, 0, 1))),
    reply("an answer to what was sent before SELECT", b":1\r\n+OK\r\n:2\r\n", *[{"attributes": {"db.namespace": n}} for n in ("0", "1", "1")],
        before=((CLIENT, cmd("DBSIZE") + cmd("SELECT", "1") + cmd("DBSIZE"), 0),), hints=(hint(PLAIN), hint(SELECT, 1, 1), hint(PLAIN, 0, 1))),
    reply("a SELECT that failed", b"-ERR DB index is out of range\r\n:1\r\n", *[{"attributes": {"db.namespace": "0"}}] * 2,
        before=((CLIENT, cmd("SELECT", "99") + cmd("DBSIZE"), 0),), hints=(hint(SELECT, 99, 1), hint(PLAIN, 0, 1))),
    reply("a SELECT that is queued", b"+QUEUED\r\n*1\r\n+OK\r\n:1\r\n", *[{"attributes": {"db.namespace": None}}] * 3,
        before=((CLIENT, cmd("SELECT", "3") + cmd("EXEC") + cmd("DBSIZE"), 0),), hints=(hint(SELECT, 3, 1), hint(EXEC, 0, 1), hint(PLAIN, 0, 1))),
    reply("a SELECT whose answer was not seen", b":1\r\n", {"attributes": {"db.namespace": None}},
        before=((CLIENT, cmd("SELECT", "3") + cmd("DBSIZE"), 0),), hints=(hint(PLAIN, 0, 1),)),
    reply("RESET", b"+RESET\r\n:1\r\n", {"attributes": {"db.namespace": "0"}, "transaction": NONE}, {"attributes": {"db.namespace": "0"}},
        before=((CLIENT, cmd("SELECT", "3"), 0), (SERVER, b"+OK\r\n", hint(SELECT, 3, 1)), (CLIENT, cmd("RESET") + cmd("DBSIZE"), 0)),
        hints=(hint(RESET, 0, 2), hint(PLAIN, 0, 2))),
    # publish and subscribe
    reply("each channel is confirmed by itself", confirm("subscribe", "a", 1) + confirm("subscribe", "b", 2) + MESSAGE + PMESSAGE, OK, hints=(hint(SUBSCRIBE, 2),)),
    reply("a message between confirmations", confirm("subscribe", "a", 1) + MESSAGE + confirm("subscribe", "b", 2), OK, hints=(hint(SUBSCRIBE, 2),)),
    reply("confirmations of RESP 3", array(bulk("message"), bulk("a"), bulk("b"), sign=b">") + confirm("subscribe", "a", 1, b">") + b"+OK\r\n", OK, OK, hints=(hint(SUBSCRIBE, 1), hint(PLAIN))),
    reply("a SUBSCRIBE that failed", b"-NOPERM no permissions\r\n", error("NOPERM"), hints=(hint(SUBSCRIBE, 3),)),
    reply("UNSUBSCRIBE from all channels", b"".join(confirm("unsubscribe", c, n) for c, n in (("a", 2), ("b", 1))) + b"+PONG\r\n", OK, OK,
        before=((CLIENT, cmd("SUBSCRIBE", "a", "b") + cmd("PSUBSCRIBE", "p*"), 0), (SERVER, confirm("subscribe", "a", 1) + confirm("subscribe", "b", 2), hint(SUBSCRIBE, 2)),
                (SERVER, confirm("psubscribe", "p*", 3), hint(SUBSCRIBE, 1))),
        hints=(hint(UNSUBSCRIBE), hint(PING))),
    reply("UNSUBSCRIBE from nothing", confirm("unsubscribe", None, 0) + b"+OK\r\n", OK, OK, hints=(hint(UNSUBSCRIBE), hint(PLAIN))),
    reply("PING while it listens", MESSAGE + array(bulk("pong"), bulk("")) + MESSAGE, OK, before=LISTENS, hints=(hint(PING),)),
    reply("a command that is refused while it listens", MESSAGE + b"-ERR Can't execute 'get'\r\n", error("ERR"), before=LISTENS),
    reply("a list that looks like a message", MESSAGE, OK),
    reply("a list that looks like a message, when nothing listens any more", confirm("unsubscribe", "news", 0) + MESSAGE, OK, OK, before=LISTENS,
        hints=(hint(UNSUBSCRIBE, 1), hint(PLAIN))),
    reply("messages of a connection that was joined late", MESSAGE + PMESSAGE, hints=(0,)),
    reply("a channel with a name of 2 KB", confirm("subscribe", "c" * 2000, 1) + MESSAGE, OK, hints=(hint(SUBSCRIBE, 1),)),
    reply("something else than the confirmation that is due", confirm("subscribe", "a", 1) + b"+OK\r\n", {"complete": False}, hints=(hint(SUBSCRIBE, 2),), end="invalid"),
    # connections that become something else
    reply("the feed of MONITOR", b'+OK\r\n+1795279602.962749 [0 127.0.0.1:51040] "PING"\r\n+1.2 [0 lua] "SET" "k" "' + b"v" * 2000 + b'"\r\n+PONG\r\n', OK, OK, hints=(hint(MONITOR), hint(PING))),
    reply("PSYNC", b"\n\n+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 0\r\n$10\r\n", OK, hints=(hint(REPLICATE),), end="opaque"),
    reply("SYNC", b"$EOF:0123456789012345678901234567890123456789\r\nREDIS", OK, hints=(hint(REPLICATE),), end="opaque"),
    reply("a PSYNC that failed", b"-NOMASTERLINK Can't SYNC\r\n", error("NOMASTERLINK"), hints=(hint(REPLICATE),)),
    # what is no reply
    reply("no type", b"HTTP/1.1 400\r\n", end="invalid"),
    reply("a number with letters", b":12a\r\n", end="invalid"),
    reply("a line that ends in LF alone", b"+OK\n", end="invalid"),
    reply("a null map", b"%-1\r\n", end="invalid"),
    reply("a length of -2", b"$-2\r\n", end="invalid"),
    reply("a bulk string longer than it says", b"$2\r\nabc\r\n", OK, end="invalid"),
    reply("a push within a reply", b"*1\r\n>1\r\n+x\r\n", {"complete": False}, end="invalid"),
    reply("a streamed string, which no server sends", b"$?\r\n;1\r\na\r\n;0\r\n", end="invalid"),
]  # fmt: skip


class TestContract(Contract):
    protocol = "redis"
    cases: ClassVar = [*REQUESTS, *REPLIES]


SIDE = Side("redis", CLIENT, KIND_CLIENT, remote=REDIS)
ANSWERS = replace(SIDE, sender=SERVER)


@pytest.mark.parametrize(
    ("data", "asks", "answers"),
    [
        (cmd("SET", "k", "v") * 20, True, False),
        (cmd("SET", "k", "v")[:12], True, False),
        (cmd("SET", "k", "v" * 9000)[:4000], True, False),
        (cmd("JSON.GET", "k"), False, True),  # not in the table: it may be a list of words
        (array(bulk("some"), bulk("words")), False, True),
        (MESSAGE, False, True),
        (confirm("subscribe", "news", 1), False, True),
        (confirm("subscribe", "news", 1)[:16], False, True),
        (b"+OK\r\n" * 9 + b"-ERR x\r\n$5\r\nhel", False, True),
        (array(bulk("x" * 9000))[:4000], False, True),
        (b"+ not a reply\r\n", False, False),
        (b"-- \r\nsignature\r\n", False, False),
        (b"$5\r\nhello world", False, False),
        (b"+OK\r\nsomething else", False, False),
        (b"GET k\r\n", False, False),
    ],
)
def test_a_stream_is_found_again_only_at_what_is_well_formed(data, asks, answers):
    assert (driver().resync(SIDE, data) == 0) == asks
    assert (driver().resync(ANSWERS, data) == 0) == answers


def test_the_table_of_commands_is_in_the_order_in_which_it_is_searched():
    source = (ROOT / "agent/core/redis_commands.c").read_text()
    names = re.findall(r'(?:\bC|KIND|GROUP)\("([^"]+)"', source)
    assert names == sorted(set(names))
    assert len(names) > 200


def test_what_is_asked_again_has_the_same_hash_and_what_is_alike_the_same_shape():
    def hashes(data: bytes) -> tuple[int, int]:
        (step,) = driver().stream(SIDE, data)["steps"]
        return step["shape"], step["exact"]

    shape, exact = hashes(cmd("GET", "a"))
    assert shape and exact
    assert hashes(cmd("get", "a")) == (shape, exact)
    assert hashes(b"GET a\r\n") == (shape, exact)
    assert hashes(cmd("GET", "b"))[0] == shape
    assert hashes(cmd("GET", "b"))[1] != exact
    assert hashes(cmd("INCR", "a"))[0] != shape
    assert hashes(cmd("CONFIG", "GET", "a"))[0] != hashes(cmd("CONFIG", "SET", "a"))[0]
    assert hashes(cmd("MGET", "a", "b"))[1] != hashes(cmd("MGET", "ab", ""))[1]
    assert hashes(cmd("SET", "a", "x" * 300))[1] == 0, "not all of it was read"
