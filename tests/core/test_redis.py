# SPDX-License-Identifier: Apache-2.0
"""Whole conversations of Redis clients through the engine: spans, times, outcomes, and what losses may cost.

What seeds must give is read from them by a second reader of RESP, the recursive one below.
"""

from __future__ import annotations

import mmap
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from agent.core._core import ffi, lib

from benchmarks.databases import redis
from tests.contract import driver
from tests.core.harness import CLIENT, IN, OUT, SERVER, Core
from tests.protocols import seeds
from tests.protocols.test_redis import LIST, MESSAGE, SIDE, array, bulk, cmd, confirm, pair_count

UNSET, ERROR = 0, 2  # enum span_status


def connect(core: Core, **more: Any):
    more = {"local": ("10.0.0.1", 40000), "remote": ("10.0.0.2", 6379), **more}
    return core.open(CLIENT, protocol=lib.PROTOCOL_REDIS, **more)


def spans_of(*calls: bytes, core: Core | None = None, **more: Any):
    """Spans of calls that alternate: the client's, the server's. Their times are 2000, 2001..."""
    core = core or Core()
    c = connect(core, **more)
    for number, data in enumerate(calls):
        if data:
            c.chunk(IN if number % 2 else OUT, data, at=2000 + number)
    return core.spans()


def texts(spans) -> list[str | None]:
    return [span["db.query.text"] for span in spans]


def outcomes(spans) -> list[tuple[str, str | None, str | None]]:
    return [(s["db.query.text"], s["db.response.status_code"], s["db.namespace"]) for s in spans]


# --- one connection ---------------------------------------------------------------------------------------


def test_a_command_is_a_client_span():
    (span,) = spans_of(cmd("GET", "user:1"), bulk("secret"))
    assert (span.name, span.kind, span.status, span.start, span.end) == ("GET", 3, UNSET, 2000, 2001)
    assert span.attributes == {
        "db.system.name": "redis",
        "db.operation.name": "GET",
        "db.query.text": "GET user:1",
        "db.namespace": "0",
        "server.address": "10.0.0.2",
        "network.peer.address": "10.0.0.2",
        "network.peer.port": 6379,
    }


def test_an_error_is_told_by_its_prefix():
    (span,) = spans_of(cmd("LPUSH", "e", "x"), b"-WRONGTYPE Operation against a key\r\n")
    assert (span.status, span["db.response.status_code"], span["error.type"]) == (
        ERROR,
        "WRONGTYPE",
        "WRONGTYPE",
    )


def test_names_have_the_procedure_and_never_the_database():
    sha = "6ffb25e57b850dab1b731a0412edcba4cae659fe"
    spans = spans_of(cmd("EVALSHA", sha, "0") + cmd("config", "get", "save"), b":1\r\n" + LIST)
    assert [span.name for span in spans] == [f"EVALSHA {sha}", "CONFIG GET"]


def test_a_pipeline_is_a_span_for_each_command_with_the_size_of_the_batch():
    spans = spans_of(cmd("INCR", "a") * 1000, b"".join(b":%d\r\n" % i for i in range(1000)))
    assert len(spans) == 1000
    assert {(s["db.operation.batch.size"], s.start, s.end) for s in spans} == {(1000, 2000, 2001)}


@pytest.mark.parametrize("answered", [1, 500, 3000])
def test_more_commands_than_may_wait_are_never_paired_wrongly(answered):
    core = Core({"pending_max": 1024})
    asked = [cmd("GET", f"k{i}") for i in range(3100)]
    answers = [b"-E%d no\r\n" % i for i in range(3100)]
    c = connect(core)
    for i in range(0, 3000, 1000):
        c.send(b"".join(asked[i : i + 1000]))
    for i in range(0, answered, 500):
        c.receive(b"".join(answers[i : min(i + 500, answered)]))
    c.send(b"".join(asked[3000:]))
    for i in range(answered, 3100, 500):
        c.receive(b"".join(answers[i : i + 500]))
    spans = core.spans()
    assert len(spans) >= min(answered, 1024)
    assert all(s["db.query.text"] == f"GET k{s['db.response.status_code'][1:]}" for s in spans)


@pytest.mark.parametrize("at", range(1, len(cmd("SET", "key", "va\r\nlue") + cmd("GET", "key"))))
def test_a_call_cut_at_any_byte(at):
    asked = cmd("SET", "key", "va\r\nlue") + cmd("GET", "key")
    spans = spans_of(asked[:at], b"", asked[at:], b"+OK\r\n" + bulk("value"))
    assert outcomes(spans) == [("SET key ?", None, "0"), ("GET key", None, "0")]
    assert spans[0].start == 2000


@pytest.mark.parametrize("answer", [bulk("v" * 40), LIST, pair_count(b"%", LIST, LIST), b"-ERR no\r\n"])
def test_an_answer_cut_at_any_byte_ends_with_its_last(answer):
    for at in range(1, len(answer)):
        spans = spans_of(cmd("GET", "a"), answer[:at], b"", answer[at:], cmd("GET", "b"), b"$-1\r\n")
        assert [(s["db.query.text"], s.start, s.end) for s in spans] == [
            ("GET a", 2000, 2003),
            ("GET b", 2004, 2005),
        ]


def test_a_big_value_is_not_copied_and_ends_when_it_has_passed():
    core = Core()
    c = connect(core)
    c.send(cmd("GET", "big"), at=2000)
    c.receive(b"$10000000\r\n" + b"x" * 89, size=4096, head=100, at=2001)
    for at in range(2002, 2012):
        c.receive(b"", size=900_000, head=0, at=at)
    c.receive(b"", size=10_000_013 - 4096 - 9_000_000, head=0, at=2020)
    c.send(cmd("PING"), at=2021)
    c.receive(b"+PONG\r\n", at=2022)
    assert [(s.name, s.start, s.end) for s in core.spans()] == [("GET", 2000, 2020), ("PING", 2021, 2022)]


def test_a_list_that_is_not_copied_to_its_end_ends_when_it_was_last_seen():
    core = Core()
    c = connect(core)
    c.send(cmd("LRANGE", "long", "0", "-1"), at=2000)
    data = array(*[bulk("v" * 100)] * 1000)
    c.receive(data[:60_000], head=4000, at=2001)
    c.receive(data[60_000:], head=256, at=2002)
    c.send(cmd("PING"), at=2003)
    c.receive(b"+PONG\r\n", at=2004)
    assert [(s.name, s.start, s.end) for s in core.spans()] == [("LRANGE", 2000, 2002), ("PING", 2003, 2004)]


def test_what_is_shown_by_the_option():
    for option, text in (
        (lib.QUERY_TEXT_OFF, None),
        (lib.QUERY_TEXT_SANITIZED, "MSET ? ? ? ?"),
        (lib.QUERY_TEXT_PARAMETERIZED, "MSET a ? b ?"),
    ):
        core = Core({"query_text": option})
        (span,) = spans_of(cmd("MSET", "a", "1", "b", "2"), b"+OK\r\n", core=core)
        assert span["db.query.text"] == text
        assert span.name == "MSET"


def test_the_database_is_the_one_that_was_selected():
    spans = spans_of(
        cmd("PING") + cmd("SELECT", "1") + cmd("GET", "a"), b"+PONG\r\n+OK\r\n$-1\r\n",
        cmd("SELECT", "99"), b"-ERR DB index is out of range\r\n",
        cmd("GET", "b") + cmd("RESET") + cmd("GET", "c"), b"$-1\r\n+RESET\r\n$-1\r\n",
    )  # fmt: skip
    assert [s["db.namespace"] for s in spans] == ["0", "1", "1", "1", "1", "0", "0"]


def test_a_connection_joined_late_has_no_database_until_it_selects_one():
    calls = cmd("GET", "a"), b"$-1\r\n", cmd("SELECT", "2"), b"+OK\r\n", cmd("GET", "b"), b"$-1\r\n"
    spans = spans_of(*calls, late=True)
    assert outcomes(spans) == [("GET a", None, None), ("SELECT ?", None, "2"), ("GET b", None, "2")]


@pytest.mark.parametrize(
    ("lost", "expected"), [(OUT, [("GET b", None, None)]), (IN, [("GET b", None, None)])]
)
def test_a_lost_select_or_its_answer_leaves_the_database_unknown(lost, expected):
    core = Core()
    c = connect(core)
    c.send(cmd("PING"))
    c.receive(b"+PONG\r\n")
    for direction, data in ((OUT, cmd("SELECT", "5")), (IN, b"+OK\r\n")):
        c.lose(direction, data) if direction == lost else c.chunk(direction, data)
    c.send(cmd("GET", "b"))
    c.receive(b"$-1\r\n")
    assert [o for o in outcomes(core.spans()) if o[0] == "GET b"] == expected


def test_a_transaction():
    core = Core()
    spans = spans_of(
        cmd("MULTI") + cmd("SET", "a", "1") + cmd("INCR", "a") + cmd("EXEC"),
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-ERR value is not an integer\r\n",
        cmd("MULTI"), b"+OK\r\n", cmd("NOPE"), b"-ERR unknown command\r\n",
        cmd("EXEC"), b"-EXECABORT Transaction\r\n",
        core=core,
    )  # fmt: skip
    assert [(s.name, s.status) for s in spans] == [
        ("MULTI", 0), ("SET", 0), ("INCR", 0), ("EXEC", 0), ("MULTI", 0), ("NOPE", 2), ("EXEC", 2)
    ]  # fmt: skip


def test_subscriptions_are_answered_once_and_messages_are_nobodys():
    core = Core()
    spans = spans_of(
        cmd("SUBSCRIBE", "a", "b"), confirm("subscribe", "a", 1) + confirm("subscribe", "b", 2),
        b"", MESSAGE * 3,
        cmd("PING"), MESSAGE + array(bulk("pong"), bulk("")),
        cmd("UNSUBSCRIBE"), MESSAGE + confirm("unsubscribe", "a", 1) + confirm("unsubscribe", "b", 0),
        cmd("LRANGE", "l", "0", "-1"), MESSAGE,
        core=core,
    )  # fmt: skip
    assert [(s.name, s.start, s.end) for s in spans] == [
        ("SUBSCRIBE", 2000, 2001), ("PING", 2004, 2005), ("UNSUBSCRIBE", 2006, 2007), ("LRANGE", 2008, 2009)
    ]  # fmt: skip
    assert core.stats().responses_unmatched == 0


def test_commands_without_answers_end_with_themselves():
    spans = spans_of(
        cmd("CLIENT", "REPLY", "OFF") + cmd("SET", "a", "1"), b"",
        cmd("SET", "b", "2"), b"",
        cmd("CLIENT", "REPLY", "ON"), b"+OK\r\n",
        cmd("GET", "b"), bulk("2"),
    )  # fmt: skip
    assert [(s["db.query.text"], s.start, s.end, s.status) for s in spans] == [
        ("CLIENT REPLY ?", 2000, 2000, UNSET),
        ("SET a ?", 2000, 2000, UNSET),
        ("SET b ?", 2002, 2002, UNSET),
        ("CLIENT REPLY ?", 2004, 2005, UNSET),
        ("GET b", 2006, 2007, UNSET),
    ]


def test_monitor_is_answered_and_its_feed_is_nobodys():
    core = Core()
    feed = b'+1795279602.962749 [0 127.0.0.1:51040] "PING"\r\n'
    spans = spans_of(cmd("MONITOR"), b"+OK\r\n" + feed, b"", feed * 9, cmd("RESET"), b"+RESET\r\n", core=core)
    assert [(s.name, s.end) for s in spans] == [("MONITOR", 2001), ("RESET", 2005)]
    assert core.stats().responses_unmatched == 0


def test_a_replication_stream_is_left_alone():
    core = Core()
    spans = spans_of(
        cmd("PING"), b"+PONG\r\n",
        cmd("REPLCONF", "listening-port", "6380"), b"+OK\r\n",
        cmd("PSYNC", "?", "-1"), b"+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 0\r\n",
        cmd("REPLCONF", "ACK", "0"), b"$10\r\n0123456789" + cmd("SET", "k", "v"),
        core=core,
    )  # fmt: skip
    assert [s.name for s in spans] == ["PING", "REPLCONF", "PSYNC"]
    assert core.stats().messages_invalid == 0


def test_a_command_that_is_never_answered_ends_with_the_connection():
    core = Core()
    c = connect(core)
    c.send(cmd("BLPOP", "q", "0"), at=2000)
    c.close(at=2100)
    (span,) = core.spans()
    assert (span["db.query.text"], span["error.type"], span.end) == ("BLPOP q ?", "connection_closed", 2100)


def test_the_role_is_told_by_the_command():
    for direction, kind in ((OUT, 3), (IN, 2)):
        core = Core({"database_servers": 1})
        c = connect(core, unknown_role=True, late=True)
        c.chunk(direction, cmd("GET", "a"))
        c.chunk(IN if direction == OUT else OUT, b"$-1\r\n")
        assert [(s.name, s.kind) for s in core.spans()] == [("GET", kind)]


def test_the_servers_side_is_read_when_it_is_wanted():
    for wanted, names in ((1, ["GET"]), (0, [])):
        core = Core({"database_servers": wanted})
        c = core.open(SERVER, protocol=lib.PROTOCOL_REDIS, local=("10.0.0.2", 6379))
        c.receive(cmd("GET", "a"))
        c.send(b"$-1\r\n")
        assert [s.name for s in core.spans()] == names


def test_a_loss_that_ends_one_value_takes_the_rest_of_its_batch_with_it():
    """It might have been the rest of the value alone, for all that is known when it is told."""
    core = Core()
    c = connect(core)
    c.send(cmd("GET", "a") + cmd("GET", "b") + cmd("GET", "c"))
    value = bulk("x" * 29)
    c.receive(value[:10])
    c.lose(IN, value[10:] + bulk("b") + bulk("c"))
    c.lose(OUT, cmd("SET", "a", "1") + cmd("LPUSH", "a", "1"))
    c.receive(b"+OK\r\n-WRONGTYPE no\r\n")
    assert texts(core.spans()) == ["GET a"]


# --- seeds ------------------------------------------------------------------------------------------------


def read(data: bytes, at: int) -> tuple[Any, int]:
    """A value of RESP, as (type, value), and where it ends."""
    sign = data[at : at + 1]
    line_end = data.index(b"\r\n", at)
    line, at = data[at + 1 : line_end], line_end + 2
    if sign in b"+-:_#,(" or line == b"-1":
        return (sign, line), at
    if sign in b"$=!":
        return (sign, data[at : at + int(line)]), at + int(line) + 2
    values = []
    for _ in range(int(line) * (2 if sign in b"%|" else 1)):
        value, at = read(data, at)
        values.append(value)
    return (sign, values), at


def read_all(chunks, sender: int) -> list[tuple[Any, int, int]]:
    """Values with the times of the chunks that they begin and end in."""
    data = b"".join(data for who, data in chunks if who == sender)
    times = [2000 + n for n, (who, part) in enumerate(chunks) if who == sender for _ in part]
    values, at = [], 0
    while at < len(data):
        value, end = read(data, at)
        values.append((value, times[at], times[end - 1]))
        at = end
    return values


def expected(chunks) -> list[tuple[str, int, int, str | None]]:
    """Name, times and code of each exchange, in order."""
    first_words = (b"message", b"pmessage", b"invalidate")
    commands = read_all(chunks, 0)
    replies = [
        (value, end)
        for value, _, end in read_all(chunks, 1)
        if not (isinstance(value[1], list) and value[1] and value[1][0][1] in first_words)
        and not (value[0] == b"+" and value[1][:1].isdigit())
    ]
    assert len(commands) == len(replies)
    return [
        (
            command[1][0][1].decode().upper(),
            start,
            end,
            reply[1].split(b" ")[0].decode() if reply[0] == b"-" else None,
        )
        for (command, start, _), (reply, end) in zip(commands, replies, strict=True)
    ]


def replay(chunks, lost: set[int] = frozenset(), **more: Any):
    core = Core()
    c = connect(core, **more)
    for number, (sender, data) in enumerate(chunks):
        direction = IN if sender else OUT
        if number in lost:
            c.lose(direction, data)
        else:
            c.chunk(direction, data, at=2000 + number)
    return core.spans()


ALL = seeds.names("redis")
ARRAYS = [name for name in ALL if not name.endswith("inline")]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_seed_gives_what_a_second_reader_reads(name):
    chunks = seeds.load(name)
    spans = replay(chunks)
    found = [
        (s["db.operation.name"].split(" ")[0], s.start, s.end, s["db.response.status_code"]) for s in spans
    ]
    assert found == expected(chunks)
    assert all((s.status == ERROR) == bool(s["db.response.status_code"]) for s in spans)


def test_the_inline_seed():
    spans = replay(seeds.load("redis/redis-inline"))
    assert texts(spans) == ["PING", "SET inline ?", "GET inline", "EXISTS inline inline"]


@pytest.mark.parametrize("name", ALL)
def test_a_seed_in_other_pieces_gives_the_same(name):
    chunks = seeds.load(name)
    whole = outcomes(replay(chunks))
    for seed in range(20):
        rng = random.Random(seed)
        pieces = []
        for sender, data in chunks:
            while data:
                size = rng.choice((1, 2, 5, 17, 100, len(data)))
                pieces.append((sender, data[:size]))
                data = data[size:]
        assert outcomes(replay(pieces)) == whole


@pytest.mark.parametrize("name", ALL)
def test_a_seed_with_losses_gives_no_other_pairs(name):
    for seed in range(180):
        rng = random.Random(seed)
        chunks = seeds.load(name)
        if seed % 3:
            chunks = seeds.cut(chunks, rng, rng.choice((10, 50, 200, 1000)))
        truth = replay(chunks)
        lost = {n for n in range(len(chunks)) if rng.random() < rng.choice((0.03, 0.15, 0.3))}
        for span in replay(chunks, lost):
            if span["error.type"] in ("connection_closed", "timeout"):
                continue
            same = [each for each in truth if each.start == span.start]
            own = outcomes(each for each in same if seed % 3 or each.end == span.end)
            ((*told, database),) = outcomes([span])
            assert any(told == [*whole] and database in (true, None) for *whole, true in own), (seed, told)


def commands_of_the_server() -> list[tuple[str, int, set[bytes], int, int, int]]:
    """Name, arity, flags, first and last key and the step between, of each command that is no container."""
    with redis(log=False) as server, socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(cmd("COMMAND"))
        data = b""
        while True:
            part = connection.recv(65536)
            assert part
            data += part
            try:
                (_, entries), _ = read(data, 0)
                break
            except (ValueError, IndexError):
                continue
    found = []
    for _, entry in entries:
        name, arity, flags, first, last, step, *_, subcommands = (value for _, value in entry[:10])
        if not subcommands:
            flag_names = {flag for _, flag in flags}
            found.append((name.decode().upper(), int(arity), flag_names, int(first), int(last), int(step)))
    return found


def test_keys_and_reads_are_those_that_the_server_tells():
    """Of commands whose keys stand at places of their own; names of fields and channels are shown, too."""
    moves_on = {"LOLWUT", "RANDOMKEY", "SRANDMEMBER", "HRANDFIELD", "ZRANDMEMBER", "TOUCH", "XREAD"}
    commands = commands_of_the_server()
    assert len(commands) > 200
    for name, arity, flags, first, last, step in commands:
        words = [f"w{i}" for i in range(1, arity if arity > 0 else 10)]
        run = driver().stream(SIDE, cmd(name, *words))
        (asked,) = run["steps"]
        assert asked["attributes"]["db.operation.name"] == name
        assert bool(asked["traits"] & 1) == (b"readonly" in flags and name not in moves_on), name
        shown = {word for word in asked["attributes"]["db.query.text"].split(" ") if word.startswith("w")}
        end = len(words) + 1 + last if last < 0 else last
        keys = {words[at - 1] for at in range(first, end + 1, step)} if first else set()
        if b"movablekeys" in flags or name.startswith("H") or b"pubsub" in flags:
            assert shown >= keys - {words[0]} if b"movablekeys" in flags else shown >= keys, name
        else:
            assert shown == keys, name


# --- connections that begin with an inline command --------------------------------------------------------


def opened(*calls: tuple[int, bytes], core: Core | None = None, close: bool = True, **more: Any):
    """Calls in order on a connection of which the kernel side knows no protocol; then its end."""
    core = core or Core()
    c = connect(core, **more)
    c.protocol = lib.PROTOCOL_UNDECIDED
    for number, (direction, data) in enumerate(calls):
        c.chunk(direction, data, at=2000 + number)
    if close:
        c.close(at=2100)
    return core.spans()


@pytest.mark.parametrize("cut", range(len(b"PING\r\nGET a\r\n")))
def test_a_connection_may_begin_with_an_inline_command(cut):
    asked = b"PING\r\nGET a\r\n"
    calls = [(OUT, part) for part in (asked[:cut], asked[cut:]) if part]
    spans = opened(*calls, (IN, b"+PONG\r\n"), (IN, b"$-1\r\n"))
    assert outcomes(spans) == [("PING", None, "0"), ("GET a", None, "0")]
    assert spans[0].start == 2000


def test_byte_by_byte_both_sides_are_read_from_their_first():
    asked, answers = b"ping\nSELECT 2\r\nget a\r\n", b"+PONG\r\n+OK\r\n$-1\r\n"
    calls = [(OUT, bytes([b])) for b in asked] + [(IN, bytes([b])) for b in answers]
    core = Core()
    spans = opened(*calls, core=core)
    assert outcomes(spans) == [("PING", None, "0"), ("SELECT ?", None, "2"), ("GET a", None, "2")]
    assert core.ledger()["bytes"] == {"parsed": len(asked + answers)}


def test_it_goes_on_in_either_form():
    spans = opened((OUT, b"PING\r\n"), (IN, b"+PONG\r\n"), (OUT, cmd("GET", "a")), (IN, b"$-1\r\n"))
    assert texts(spans) == ["PING", "GET a"]


@pytest.mark.parametrize(
    "line", [b"AUTH s3cret", b"AUTH me s3cret", b"HELLO 3 AUTH me s3cret", b"ECHO s3cret"]
)
def test_the_secret_of_an_inline_command_is_shown_nowhere(line):
    for option in (lib.QUERY_TEXT_PARAMETERIZED, lib.QUERY_TEXT_SANITIZED, lib.QUERY_TEXT_OFF):
        core = Core({"query_text": option})
        spans = opened((OUT, line + b"\r\nPING\r\n"), (IN, b"+OK\r\n+PONG\r\n"), core=core)
        assert [span.name for span in spans] == [line.split()[0].decode(), "PING"]
        assert "s3cret" not in repr(spans)


@contextmanager
def demand_table(core: Core) -> Iterator[Callable[[int], Any]]:
    """What the core asks of the kernel side, by connection."""
    size = lib.DEMAND_SLOTS * ffi.sizeof("struct demand")
    fd = os.memfd_create("demands")
    try:
        os.ftruncate(fd, size)
        assert lib.core_map_demands(core.core, fd) == 0
        with mmap.mmap(fd, size) as memory:
            slots = ffi.from_buffer("struct demand[]", memory)
            yield lambda conn_id: slots[conn_id % lib.DEMAND_SLOTS]
            ffi.release(slots)
    finally:
        os.close(fd)


NATS_INFO = b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n'
NOT_REDIS = {
    # https://docs.nats.io/reference/reference-protocols/nats-protocol
    "NATS, where the client does not wait": [(OUT, b"PING\r\n"), (IN, NATS_INFO), (IN, b"PONG\r\n")],
    "the pings of NATS": [(OUT, b"PING\r\n"), (IN, b"PONG\r\n"), (OUT, b"PING\r\n"), (IN, b"PONG\r\n")],
    # RFC 1436, RFC 1288, clamd(8), spamd/PROTOCOL of SpamAssassin, RFC 862
    "gopher": [(OUT, b"INFO\r\n"), (IN, b"iWelcome\tx\ta.org\t70\r\n"), (IN, b".\r\n")],
    "finger": [(OUT, b"echo\r\n"), (IN, b"Login: echo\r\n"), (IN, b"Never logged in.\r\n")],
    "clamd": [(OUT, b"PING\n"), (IN, b"PONG\n")],
    "spamd": [(OUT, b"PING SPAMC/1.2\r\n\r\n"), (IN, b"SPAMD/1.5 0 PONG\r\n")],
    "echo": [(OUT, b"PING\r\n"), (IN, b"PING\r\n")],
    "no CR": [(OUT, b"PING\r\n"), (IN, b"+"), (IN, b"PONG\n"), (OUT, b"PING\r\n"), (IN, b"+PONG\n")],
    "a second line that is none": [(OUT, b"PING\r\n"), (OUT, b"{}\r\n"), (IN, b"+PONG\r\n")],
    "silence": [(OUT, b"PING\r\n"), (OUT, b"PING\r\n")],
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_REDIS)
def test_what_is_answered_in_another_protocol_leaves_no_span_and_is_left_alone(name):
    core, calls = Core(), NOT_REDIS[name]
    wrong = name != "silence"
    with demand_table(core) as demand_of:
        assert opened(*calls, core=core, close=False) == []
        demand = demand_of(core.connections)
        assert (demand.protocol == lib.PROTOCOL_UNKNOWN) == wrong
        assert [mode == lib.DEMAND_NOTHING for mode in demand.mode] == [wrong, wrong]
    ledger = core.ledger()
    assert sum(ledger["bytes"].values()) == sum(len(data) for _, data in calls)
    assert ledger["bytes"].get("unknown", 0) >= sum(len(data) for d, data in calls if d == IN)
    assert ledger["requests"] == ledger["orphans"] + (0 if wrong else 2)
    assert (ledger["spans"], core.stats().messages_invalid, ledger["gaps"]) == (0, 0, {})


@pytest.mark.parametrize("close", [True, False])
def test_a_guess_that_nobody_answers_is_no_span(close):
    core = Core({"request_timeout_ns": 50 * 1_000_000})
    assert opened((OUT, b"PING\r\n"), core=core, close=close) == []
    core.feed(now_ms=9000)
    assert core.spans() == []
    assert core.ledger()["orphans"] == 1


@pytest.mark.parametrize(
    ("calls", "more"),
    [
        ([(IN, NATS_INFO), (OUT, b'CONNECT {"verbose":true}\r\nPING\r\n'), (IN, b"+OK\r\nPONG\r\n")], {}),
        ([(IN, NATS_INFO), (OUT, b"PING\r\n"), (IN, b"+OK\r\n")], {}),
        ([(OUT, b"PING\r\n"), (IN, b"+PONG\r\n")], {"late": True}),
        ([(OUT, b"PING\r\n"), (IN, b"+PONG\r\n")], {"again": True}),
        ([(OUT, b"PING\r\n"), (IN, b"+PONG\r\n")], {"unknown_role": True}),
        ([(IN, b"PING\r\n"), (OUT, b"+PONG\r\n")], {}),  # the server asks
        ([(OUT, b"hello?\r\n"), (OUT, b"PING\r\n"), (IN, b"+PONG\r\n")], {}),
        ([(OUT, b"version\r\n"), (IN, b"VERSION 1.6.18\r\n")], {}),
    ],
)
def test_only_what_opens_a_connection_is_guessed(calls, more):
    core = Core()
    assert opened(*calls, core=core, **more) == []
    ledger = core.ledger()
    assert ledger["requests"] == core.stats().responses_unmatched == 0
    assert "parsed" not in ledger["bytes"]
    assert sum(ledger["bytes"].values()) == sum(len(data) for _, data in calls)


def test_what_the_server_says_first_does_not_count_against_the_client():
    spans = opened((IN, b"INFO {}\r\n"), (OUT, cmd("GET", "a")), (IN, b"$-1\r\n"))
    assert texts(spans) == ["GET a"]


def test_an_answer_after_a_lost_one_still_tells():
    core = Core()
    c = connect(core)
    c.protocol = lib.PROTOCOL_UNDECIDED
    c.send(b"PING\r\n")
    c.lose(IN, b"+PONG\r\n")
    c.send(cmd("GET", "a"))
    c.receive(b"$-1\r\n")
    assert texts(core.spans()) == ["GET a"]


def test_the_servers_side_of_a_guess_is_unknown_unless_it_is_wanted():
    for wanted, names, account in ((1, ["PING"], "parsed"), (0, [], "unknown")):
        core = Core({"database_servers": wanted})
        c = core.open(SERVER, protocol=lib.PROTOCOL_UNDECIDED)
        c.receive(b"PING\r\n")
        c.send(b"+PONG\r\n")
        assert [s.name for s in core.spans()] == names
        assert list(core.ledger()["bytes"]) == [account]


# --- losses -----------------------------------------------------------------------------------------------


def test_the_database_is_not_known_when_the_first_call_is_lost():
    core = Core()
    c = connect(core)
    c.lose(OUT, cmd("SELECT", "5"))
    c.receive(b"+OK\r\n")
    c.send(cmd("GET", "a"))
    c.receive(b"$-1\r\n")
    assert outcomes(core.spans()) == [("GET a", None, None)]


def test_a_request_that_is_lost_while_another_waits_makes_a_batch():
    core = Core()
    c = connect(core)
    c.send(cmd("GET", "a"))
    c.lose(OUT, cmd("GET", "b"))
    c.receive(b"-A no\r\n")
    c.send(cmd("GET", "c"))  # before the answer to b
    c.receive(b"-B no\r\n-C no\r\n")
    assert outcomes(core.spans()) == [("GET a", "A", "0")]


def spoken(rng: random.Random, waits: bool) -> tuple[list[tuple[int, bytes]], dict[str, tuple[str, str]]]:
    """Calls, some of them cut, and the code and database that each text (it comes once) is answered with."""
    calls: list[tuple[int, bytes]] = []
    truth: dict[str, tuple[str, str]] = {}
    database, number, open_answers = 0, 0, b""
    for _ in range(30):
        asked, answers = b"", b""
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            number += 1
            kind = rng.random()
            if kind < 0.15:
                database = rng.randrange(16)
                asked += cmd("SELECT", str(database))
                answers += b"+OK\r\n"
            elif kind < 0.3:
                asked += cmd("LRANGE", f"list{number}", "0", "-1")
                answers += array(*[bulk("v" * rng.choice((1, 50, 600))) for _ in range(9)])
            else:
                asked += cmd("GET", f"key{number}", "x" * rng.choice((0, 300)))
                answers += b"-E%d no\r\n" % number
                truth[f"GET key{number} ?"] = (f"E{number}", str(database))
        calls += pieces(rng, 0, asked)
        if waits:
            calls += pieces(rng, 1, answers)
        else:  # the answers to what was asked before come while the next is asked
            calls += pieces(rng, 1, open_answers)
            open_answers = answers
    return calls + pieces(rng, 1, open_answers), truth


def pieces(rng: random.Random, sender: int, data: bytes) -> list[tuple[int, bytes]]:
    if not data or rng.random() < 0.7:
        return [(sender, data)] if data else []
    at = rng.randrange(1, len(data)) if len(data) > 1 else 1
    return [(sender, part) for part in (data[:at], data[at:]) if part]


@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("waits", [True, False])
def test_losses_never_give_an_answer_or_a_database_to_another_command(seed, waits):
    """A client that does not wait is seen to before anything is lost; else it looks like one that does."""
    rng = random.Random(seed * 2 + waits)
    calls, truth = spoken(rng, waits)
    lost = {n for n in range(0 if waits else 12, len(calls)) if rng.random() < (0, 0.02, 0.1)[seed % 3]}
    spans = [s for s in replay(calls, lost) if s.name == "GET" and s["error.type"] != "connection_closed"]
    for span in spans:
        code, database = truth[span["db.query.text"]]
        assert span["db.response.status_code"] == code
        assert span["db.namespace"] in (database, None)
    assert len({span["db.query.text"] for span in spans}) == len(spans)
    if not lost:
        assert len(spans) == len(truth)
        assert all(span["db.namespace"] for span in spans)


# --- deep pipelines ---------------------------------------------------------------------------------------


def seconds_per_command(depth: int, kind: int) -> float:
    """Of CPU, for commands that all wait before the first answer, at both ends, linked to each other."""
    core = Core({"pending_max": depth, "batch_spans_max": 2 * depth, "database_servers": 1, "hold_ns": 0})
    redis_port = {"protocol": lib.PROTOCOL_REDIS, "tid": 7}
    client = core.open(
        CLIENT, local=("127.0.0.1", 40000), remote=("127.0.0.1", 6379), pos=(7000, 3000), **redis_port
    )
    server = core.open(
        SERVER, local=("127.0.0.1", 6379), remote=("127.0.0.1", 40000), pos=(3000, 7000), **redis_port
    )
    ends = [(client, OUT), (server, IN)] if kind == SERVER else [(client, OUT)]
    asked = [b"".join(cmd("INCR", str(i)) for i in range(at, at + 100)) for at in range(0, depth, 100)]
    for end, direction in ends:
        for data in asked:
            end.chunk(direction, data)
    for end, direction in reversed(ends):
        for _ in asked:
            end.chunk(1 - direction, b":1\r\n" * 100)
    before = time.process_time()
    core.feed()
    took = time.process_time() - before
    spans = core.spans()
    assert len(spans) == depth * len(ends) and {s["db.operation.batch.size"] for s in spans} == {depth}
    assert core.stats().links_connection == depth * (len(ends) - 1)
    return took / depth


@pytest.mark.parametrize("kind", [CLIENT, SERVER])
def test_a_command_of_a_deep_pipeline_costs_what_one_of_a_short_one_costs(kind: int) -> None:
    """What walked over all that wait would cost 50 times as much."""
    short = min(seconds_per_command(1000, kind) for _ in range(5))
    assert seconds_per_command(50_000, kind) < 8 * short


def test_memory_bounds_what_waits_and_what_is_behind_is_counted() -> None:
    core = Core({"pending_max": 1 << 20, "buffer_bytes_max": 1 << 20})
    c = connect(core)
    for at in range(0, 10_000, 100):
        c.send(b"".join(cmd("INCR", str(i)) for i in range(at, at + 100)))
    c.receive(b":1\r\n" * 10_000)
    spans = core.spans()
    assert 2000 < len(spans) == 10_000 - core.stats().requests_dropped < 10_000
    assert {s["db.operation.batch.size"] for s in spans} == {None}
