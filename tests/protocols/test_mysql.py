# SPDX-License-Identifier: Apache-2.0
"""The MySQL parser: cases written from the protocol's documentation, packet by packet.

https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html
https://mariadb.com/kb/en/clientserver-protocol/
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import pytest

from tests.contract import CLIENT, KIND_CLIENT, SERVER, Case, Contract, Options, Side, driver, messages

REMOTE = ("192.0.2.7", 3306)
RESULT, PREPARED, SIMPLE, TEXT, ROWS, AUTHENTICATION = range(1, 7)  # enum answer

# Capabilities (mysql_com.h)
CONNECT_WITH_DB, COMPRESS, PROTOCOL_41, SSL = 1 << 3, 1 << 5, 1 << 9, 1 << 11
SECURE_CONNECTION, PLUGIN_AUTH, LENENC_AUTH = 1 << 15, 1 << 19, 1 << 21
SESSION_TRACK, DEPRECATE_EOF, ZSTD, QUERY_ATTRIBUTES = 1 << 23, 1 << 24, 1 << 26, 1 << 27
USUAL = CONNECT_WITH_DB | PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH
ALL = (1 << 32) - 1
# Status flags
IN_TRANS, AUTOCOMMIT, MORE, CURSOR, DROPPED, CHANGED = 1, 2, 8, 0x40, 0x100, 0x4000


def hint(answer: int, number: int, first: int = 1) -> int:
    """How a request is answered, its place among the requests, the answer's first sequence number."""
    return answer | first << 8 | number << 16


def packet(sequence: int, *payload: bytes) -> bytes:
    data = b"".join(payload)
    return struct.pack("<I", len(data))[:3] + bytes([sequence % 256]) + data


def packets(*payloads: bytes, first: int = 1) -> bytes:
    """With numbers in a row."""
    return b"".join(packet(first + i, payload) for i, payload in enumerate(payloads))


def lenenc(n: int) -> bytes:
    if n < 251:
        return bytes([n])
    return b"\xfc" + struct.pack("<H", n) if n < 1 << 16 else b"\xfd" + struct.pack("<I", n)[:3]


def string(text: bytes) -> bytes:
    return lenenc(len(text)) + text


def ok(affected: int = 0, status: int = AUTOCOMMIT, *, header: int = 0, more: bytes = b"") -> bytes:
    return bytes([header]) + lenenc(affected) + b"\0" + struct.pack("<HH", status, 0) + more


def eof(status: int = AUTOCOMMIT) -> bytes:
    return b"\xfe" + struct.pack("<HH", 0, status)


def err(code: int, state: bytes = b"42000", message: bytes = b"no") -> bytes:
    return b"\xff" + struct.pack("<H", code) + b"#" + state + message


def column(name: bytes = b"c") -> bytes:
    names = string(b"def") + string(b"db") + 2 * string(b"t") + 2 * string(name)
    return names + b"\x0c" + struct.pack("<HIBHBxx", 45, 11, 3, 0, 0)


def rows(*values: bytes, status: int = AUTOCOMMIT, columns: int = 1, deprecate: bool = False) -> list[bytes]:
    """The payloads of a result set with these rows."""
    end = ok(status=status, header=0xFE) if deprecate else eof(status)
    between = [] if deprecate else [eof(status)]
    return [lenenc(columns), *[column()] * columns, *between, *values, end]


def greeting(version: bytes = b"8.0.36", capabilities: int = ALL, status: int = AUTOCOMMIT) -> bytes:
    low, high = capabilities & 0xFFFF, capabilities >> 16
    head = b"\x0a" + version + b"\0" + struct.pack("<I", 7) + b"12345678\0"
    middle = struct.pack("<HBHHB", low, 45, status, high, 21) + bytes(10)
    return packet(0, head, middle, b"123456789012\0caching_sha2_password\0")


def response(
    capabilities: int = USUAL, database: bytes = b"shop", sequence: int = 1, password: bytes = b"secret"
) -> bytes:
    """HandshakeResponse41"""
    data = struct.pack("<IIB23x", capabilities, 1 << 24, 45) + b"user\0"
    if capabilities & (LENENC_AUTH | SECURE_CONNECTION):
        data += string(password)
    else:
        data += password + b"\0"
    if capabilities & CONNECT_WITH_DB:
        data += database + b"\0"
    return packet(sequence, data, b"caching_sha2_password\0")


def query(sql: bytes) -> bytes:
    return packet(0, b"\x03", sql)


def prepare(sql: bytes) -> bytes:
    return packet(0, b"\x16", sql)


def prepare_ok(number: int, columns: int = 0, parameters: int = 0, *, metadata: bytes = b"") -> bytes:
    return b"\0" + struct.pack("<IHHBH", number, columns, parameters, 0, 0) + metadata


def execute(number: int, values: bytes = b"") -> bytes:
    return packet(0, b"\x17", struct.pack("<IBI", number, 0, 1), values)


def with_attributes(sql: bytes, *attributes: tuple[bytes, int, bytes]) -> bytes:
    """COM_QUERY with query attributes: name, type, value as it is sent."""
    data = lenenc(len(attributes)) + b"\x01"
    if attributes:
        data += bytes((len(attributes) + 7) // 8) + b"\x01"
        data += b"".join(struct.pack("<H", kind) + string(name) for name, kind, _ in attributes)
        data += b"".join(value for _, _, value in attributes)
    return packet(0, b"\x03", data, sql)


def connected(capabilities: int = USUAL, version: bytes = b"8.0.36", status: int = AUTOCOMMIT) -> Any:
    """What both sides said until commands may come: request 1."""
    return (
        (SERVER, greeting(version, status=status), 0),
        (CLIENT, response(capabilities), 0),
        (SERVER, packet(2, ok()), hint(AUTHENTICATION, 1, 2)),
    )


CONNECTED = connected()
SILENT = {"silent": 1, "unanswered": 0}
NEVER_ANSWERED = {"silent": 1, "unanswered": 1}


def said(sql: bytes, answer: bytes, number: int, kind: int = RESULT) -> Any:
    return ((CLIENT, query(sql), 0), (SERVER, answer, hint(kind, number)))


def asks(name: str, data: bytes, *expected: dict[str, Any], **more: Any) -> Case:
    more = {"before": CONNECTED, "kind": KIND_CLIENT, "remote": REMOTE, **more}
    return Case(name, CLIENT, data, list(expected), **more)


def answers(name: str, data: bytes, *expected: dict[str, Any], request: Any = (), **more: Any) -> Case:
    """request: bytes, how it is answered."""
    before = (*more.pop("connected", CONNECTED), *((CLIENT, data, 0) for data, _ in request))
    hints = tuple(hint(kind, 2 + i) for i, (_, kind) in enumerate(request))
    more = {"before": before, "hints": hints, "kind": KIND_CLIENT, "remote": REMOTE, **more}
    return Case(name, SERVER, data, list(expected), **more)


SELECT = (query(b"SELECT 1"), RESULT)
LONG = b"SELECT '" + b"x" * 20_000 + b"'"

CONNECTING = [
    asks(
        "a response to the greeting",
        response(),
        {
            **SILENT,
            "complete": True,
            "hint": hint(AUTHENTICATION, 1, 2),
            "attributes": {
                "db.system.name": "mysql",
                "db.namespace": "shop",
                "db.operation.name": "Connect",
                "server.address": "192.0.2.7",
                "server.port": None,
                "network.peer.port": 3306,
            },
        },
        before=CONNECTED[:1],
    ),
    asks(
        "of mariadb, without a database, a password of its own length",
        response(USUAL & ~CONNECT_WITH_DB | LENENC_AUTH, password=b"x" * 300),
        {**SILENT, "attributes": {"db.system.name": "mariadb", "db.namespace": None}},
        before=((SERVER, greeting(b"11.4.2-MariaDB"), 0),),
    ),
    asks(
        "the older versions of mariadb say that they are replicas of mysql 5.5",
        response(),
        {"attributes": {"db.system.name": "mariadb", "db.namespace": "shop"}},
        before=((SERVER, greeting(b"5.5.5-10.11.6"), 0),),
    ),
    asks(
        "what follows is encrypted",
        packet(1, response(USUAL | SSL)[4:36]),
        before=CONNECTED[:1],
        end="opaque",
    ),
    asks("a client of before 4.1", packet(1, b"\x85\xa4" + bytes(40)), before=CONNECTED[:1], end="opaque"),
    asks(
        "more of the authentication, then a command",
        packet(3, b"scrambled") + query(b"SELECT 1"),
        {"complete": True, "attributes": {"db.query.text": "SELECT ?"}},
        before=(
            *CONNECTED[:2],
            (SERVER, packet(2, b"\xfemysql_native_password\0salt\0"), hint(AUTHENTICATION, 1, 2)),
        ),
    ),
    answers("a greeting", greeting(), connected=()),
    answers("too many connections", packet(0, err(1040)), connected=(), end="between", request=()),
    answers(
        "authentication in three steps",
        packet(2, b"\xfemysql_native_password\0salt\0") + packet(4, b"\x01\x04") + packet(6, ok()),
        {"complete": True, "failed": 0},
        connected=CONNECTED[:2],
        hints=(hint(AUTHENTICATION, 1, 2),),
    ),
    answers(
        "access denied",
        packet(2, err(1045, b"28000")),
        {
            "complete": True,
            "failed": 1,
            "status": 1045,
            "attributes": {"db.response.status_code": "1045", "error.type": "1045"},
        },
        connected=CONNECTED[:2],
        hints=(hint(AUTHENTICATION, 1, 2),),
    ),
    answers(
        "compressed from here on",
        packet(2, ok()),
        {"failed": 0, "compression": 1},
        connected=connected(USUAL | COMPRESS)[:2],
        hints=(hint(AUTHENTICATION, 1, 2),),
    ),
    answers(
        "compressed by the other algorithm",
        packet(2, ok()),
        {"failed": 0, "compression": 2},
        connected=connected(USUAL | ZSTD)[:2],
        hints=(hint(AUTHENTICATION, 1, 2),),
    ),
]

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

COMMANDS = [
    asks(
        "a query",
        query(b"SELECT name FROM pets WHERE id = 7"),
        {
            "complete": True,
            "silent": 0,
            "unanswered": 0,
            "hint": hint(RESULT, 2),
            "traits": 1,
            "attributes": {
                "db.system.name": "mysql",
                "db.namespace": "shop",
                "db.query.text": "SELECT name FROM pets WHERE id = ?",
                "db.query.summary": "SELECT pets",
                "db.operation.name": None,
            },
        },
    ),
    asks("an empty query", query(b""), {"complete": True, "hint": hint(RESULT, 2)}),
    asks(
        "a query of which only the beginning counts",
        query(LONG),
        {"complete": True, "hint": hint(RESULT, 2), "attributes": {"db.query.summary": "SELECT"}},
    ),
    asks(
        "several at once",
        query(b"SELECT 1") + execute(9) + query(b"SELECT 2"),
        {"hint": hint(RESULT, 2), "attributes": {"db.query.text": "SELECT ?"}},
        {"hint": hint(RESULT, 3), "attributes": {"db.query.text": None}},
        {"hint": hint(RESULT, 4), "attributes": {"db.query.text": "SELECT ?"}},
    ),
    asks(
        "several statements",
        query(b"SELECT 1; SELECT 2"),
        {"attributes": {"db.operation.batch.size": 2}},
    ),
    asks(
        "a query with no query attributes where they are agreed",
        with_attributes(b"SELECT 1"),
        {"attributes": {"db.query.text": "SELECT ?"}},
        before=connected(USUAL | QUERY_ATTRIBUTES),
    ),
    asks(
        "a query with attributes of every kind, one of them a trace context",
        with_attributes(
            b"SELECT 1",
            (b"tiny", 1, b"\x03"),
            (b"year", 13, b"\x03\x03"),
            (b"double", 5, b"12345678"),
            (b"float", 4, b"1234"),
            (b"date", 10, b"\x04\x01\x02\x03\x04"),
            (b"traceparent", 254, string(TRACEPARENT)),
            (b"", 253, string(b"SELECT 'another'")),
        ),
        {
            "attributes": {"db.query.text": "SELECT ?"},
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "parent_id": "b7ad6b7169203331",
        },
        before=connected(USUAL | QUERY_ATTRIBUTES),
    ),
    asks(
        "a query attribute that is null has no value",
        packet(0, b"\x03\x02\x01\x01\x01", 2 * (b"\xfd\x00" + string(b"a")), string(b"b"), b"SELECT 1"),
        {"attributes": {"db.query.text": "SELECT ?"}},
        before=connected(USUAL | QUERY_ATTRIBUTES),
    ),
    asks(
        "query attributes that lie about their length: no text",
        packet(0, b"\x03\x01\x01\x00\x01\xfd\x00", string(b"a"), b"\xfd\xff\xff\xffSELECT 1"),
        {"complete": True, "attributes": {"db.query.text": None, "db.system.name": "mysql"}},
        before=connected(USUAL | QUERY_ATTRIBUTES),
    ),
    asks(
        "another database",
        packet(0, b"\x02", b"second"),
        {
            "silent": 0,
            "hint": hint(SIMPLE, 2),
            "attributes": {"db.namespace": "shop", "db.query.summary": "USE second", "db.query.text": None},
        },
    ),
    asks(
        "commands that make no span",
        b"".join(
            packet(0, data) for data in (b"\x0e", b"\x09", b"\x1b\0\0", b"\x1f", b"\x1a\1\0\0\0", b"\x0d")
        ),
        *({**SILENT, "complete": True, "hint": hint(TEXT if i == 1 else SIMPLE, 2 + i)} for i in range(6)),
    ),
    asks("a fetch", packet(0, b"\x1c", struct.pack("<II", 1, 10)), {**SILENT, "hint": hint(ROWS, 2)}),
    asks("definitions of a table", packet(0, b"\x04pets\0"), {**SILENT, "hint": hint(ROWS, 2)}),
    asks(
        "commands without an answer",
        packet(0, b"\x18", struct.pack("<IH", 1, 0), b"v" * 9000)
        + packet(0, b"\x19", struct.pack("<I", 1))
        + packet(0, b"\x01"),
        *[{**NEVER_ANSWERED, "complete": True}] * 3,
    ),
    asks(
        "a prepare",
        prepare(b"SELECT ? FROM pets"),
        {
            **SILENT,
            "hint": hint(PREPARED, 2),
            "attributes": {"db.query.text": "SELECT ? FROM pets", "db.query.summary": "SELECT pets"},
        },
    ),
    asks(
        "another user with another database",
        packet(0, b"\x11user\0", string(b"secret"), b"second\0\x2d\0plugin\0"),
        {
            **SILENT,
            "hint": hint(AUTHENTICATION, 2),
            "attributes": {"db.operation.name": "Change user", "db.namespace": "second"},
        },
    ),
    asks("replication", packet(0, b"\x12", struct.pack("<IHI", 4, 0, 1), b"log"), end="opaque"),
    asks(
        "joined late",
        query(b"SELECT 1")
        + query(b"\0\1SELECT 2")
        + packet(0, b"\xfa", struct.pack("<IH", 1, 0))
        + query(b"SELECT 3"),
        {"attributes": {"db.system.name": "mysql", "db.namespace": None, "db.query.text": "SELECT ?"}},
        {"attributes": {"db.query.summary": "SELECT"}},
        {"attributes": {"db.system.name": "mariadb"}},
        {"attributes": {"db.system.name": "mariadb"}},
        before=(),
    ),
    asks("not a command", packet(0, b"\x40abc"), end="invalid"),
    asks("a command of the wrong length", packet(0, b"\x0eabc"), end="invalid"),
    asks("an empty command", packet(0, b""), end="invalid"),
    asks("a command with a number of its own", packet(5, b"\x03SELECT 1"), end="invalid"),
    asks("of a query only the header", query(b"SELECT 1")[:4], end="need"),
    asks("HTTP on the port", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", end="invalid"),
    asks("Redis on the port", b"*1\r\n$4\r\nPING\r\n", end="invalid"),
]

RESULTS = [
    answers("done", packet(1, ok(3)), {"complete": True, "attributes": {
        "ebpf_otlp_tracer.db.affected_rows": 3, "db.response.returned_rows": None}}, request=[SELECT]),
    answers(
        "failed",
        packet(1, err(1146, b"42S02")),
        {
            "complete": True,
            "failed": 1,
            "status": 1146,
            "attributes": {"db.response.status_code": "1146", "error.type": "1146"},
        },
        request=[SELECT],
    ),
    answers(
        "rows",
        packets(*rows(b"\x011", b"\x012", b"\xfb")),
        {
            "complete": True,
            "failed": 0,
            "attributes": {"db.response.returned_rows": 3, "ebpf_otlp_tracer.db.affected_rows": None},
        },
        request=[SELECT],
    ),
    answers(
        "no rows",
        packets(*rows(columns=3)),
        {"complete": True, "attributes": {"db.response.returned_rows": 0}},
        request=[SELECT],
    ),
    answers(
        "rows that no EOF is between",
        packets(*rows(b"\x011", b"\xfb", deprecate=True)),
        {"complete": True, "attributes": {"db.response.returned_rows": 2}},
        request=[SELECT],
        connected=connected(USUAL | DEPRECATE_EOF),
    ),
    answers(
        "no rows and no EOF",
        packets(*rows(deprecate=True)),
        {"complete": True, "attributes": {"db.response.returned_rows": 0}},
        request=[SELECT],
        connected=connected(USUAL | DEPRECATE_EOF),
    ),
    answers(
        "rows, joined late: whether there are EOFs they tell themselves",
        packets(*rows(b"\x011", b"\xfb", deprecate=True)) + packets(*rows(b"\x011")),
        {"complete": True, "attributes": {"db.response.returned_rows": 2}},
        {"complete": True, "attributes": {"db.response.returned_rows": 1}},
        connected=(),
        hints=(hint(RESULT, 1), hint(RESULT, 2)),
    ),
    answers(
        "metadata that the client has already",
        packets(b"\x02\0", eof(), b"\0\0\x01a", eof()) + packets(b"\x02\0", b"\0\0\x01a", ok(header=0xFE)),
        *[{"complete": True, "attributes": {"db.response.returned_rows": 1}}] * 2,
        request=[(execute(1), RESULT)] * 2,
    ),
    answers(
        "an error among the rows",
        packets(*rows(b"\x011")[:-1], err(1317)),
        {"complete": True, "failed": 1, "status": 1317, "attributes": {"db.response.returned_rows": None}},
        request=[SELECT],
    ),
    answers(
        "more rows than there are sequence numbers",
        packets(*rows(*[string(b"%d" % i) for i in range(600)])),
        {"complete": True, "attributes": {"db.response.returned_rows": 600}},
        request=[SELECT],
    ),
    answers(
        "a long row that begins like an EOF, and one that begins like an error",
        packets(*rows(b"\xfc\x40\x9c" + b"\xff" * 40_000, b"\xfb" * 4)),
        {"complete": True, "attributes": {"db.response.returned_rows": 2}},
        request=[SELECT],
    ),
    answers(
        "results behind each other",
        packets(*rows(b"\x011", status=MORE), ok(5, MORE), *rows(b"\x012", b"\x013")),
        {
            "complete": True,
            "attributes": {"db.response.returned_rows": 3, "ebpf_otlp_tracer.db.affected_rows": 5},
        },
        request=[SELECT],
    ),
    answers(
        "a procedure",
        packets(*rows(b"\x011", status=MORE), *rows(b"\x012", status=MORE), ok()),
        {"complete": True, "attributes": {"db.response.returned_rows": 2}},
        request=[SELECT],
    ),
    answers(
        "an error behind a result",
        packets(*rows(b"\x011", status=MORE), err(1054)),
        {"complete": True, "failed": 1, "status": 1054},
        request=[SELECT],
    ),
    answers(
        "answers of several requests",
        packet(1, ok(1)) + packets(*rows(b"\x011")) + packet(1, err(1064)) + packet(1, ok()),
        {"complete": True, "failed": 0},
        {"complete": True, "failed": 0, "attributes": {"db.response.returned_rows": 1}},
        {"complete": True, "failed": 1},
        {"complete": True, "failed": 0},
        request=[SELECT] * 3 + [(packet(0, b"\x0e"), SIMPLE)],
    ),
    answers("in a transaction", packet(1, ok(status=IN_TRANS)), {"transaction": 2}, request=[SELECT]),
    answers("in no transaction", packets(*rows(b"\x011")), {"transaction": 1}, request=[SELECT]),
    answers(
        "a cursor: rows come when they are fetched",
        packets(b"\x01", column(), eof(AUTOCOMMIT | CURSOR)),
        {"complete": True, "attributes": {"db.response.returned_rows": None}},
        request=[(execute(1), RESULT)],
    ),
    answers(
        "fetched rows",
        packets(b"\0\0\1", b"\0\0\2", eof(CURSOR)),
        {"complete": True, "attributes": {"db.response.returned_rows": None}},
        request=[(packet(0, b"\x1c", bytes(8)), ROWS)],
    ),
    answers(
        "a prepared statement with parameters and columns",
        packets(prepare_ok(1, 2, 1), column(b"?"), eof(), column(), column(), eof()),
        {"complete": True},
        request=[(prepare(b"SELECT ?, 2"), PREPARED)],
    ),
    answers(
        "a prepared statement without EOFs",
        packets(prepare_ok(1, 2, 1), column(b"?"), column(), column()) + packet(1, ok()),
        {"complete": True},
        {"complete": True},
        request=[(prepare(b"SELECT ?, 2"), PREPARED), SELECT],
        connected=connected(USUAL | DEPRECATE_EOF),
    ),
    answers(
        "prepared statements of which neither is known, the last EOF comes by itself",
        packets(prepare_ok(1, 1, 1), column(b"?"), eof(), column(), eof())
        + packets(prepare_ok(2), first=1)
        + packets(prepare_ok(3, 0, 1), column(), eof()),
        *[{"complete": True}] * 3,
        connected=(),
        hints=tuple(hint(PREPARED, 1 + i) for i in range(3)),
    ),
    answers(
        "a prepared statement without metadata",
        packets(prepare_ok(1, 2, 1, metadata=b"\0")),
        {"complete": True},
        request=[(prepare(b"SELECT ?, 2"), PREPARED)],
    ),
    answers(
        "a statement that cannot be prepared",
        packet(1, err(1064)),
        {"complete": True, "failed": 1},
        request=[(prepare(b"SELEC"), PREPARED)],
    ),
    answers(
        "answers of a few bytes",
        packet(1, ok()) + packet(1, b"Uptime: 2  Threads: 1") + packet(1, eof()) + packet(1, ok(header=0xFE)),
        *[{"complete": True, "failed": 0, "attributes": {"ebpf_otlp_tracer.db.affected_rows": None}}] * 4,
        request=[
            (packet(0, b"\x0e"), SIMPLE),
            (packet(0, b"\x09"), TEXT),
            (packet(0, b"\x1b\0\0"), SIMPLE),
            (packet(0, b"\x0d"), SIMPLE),
        ],
    ),
    answers(
        "the server wants a file",
        packet(1, b"\xfb/etc/hostname"),
        {"complete": False},
        request=[SELECT],
    ),
    answers(
        "how far a long command has come is no error",
        packet(1, b"\xff\xff\xff\1\1\2\0\0\0") + packet(2, b"\xff\xff\xff\1\1\2\0\0\0") + packet(3, ok(7)),
        {"complete": True, "failed": 0, "attributes": {"ebpf_otlp_tracer.db.affected_rows": 7}},
        request=[SELECT],
    ),
    answers("a long error", packet(1, err(1064, message=b"m" * 6000)), {"complete": True, "status": 1064},
            request=[SELECT]),
    answers("a number is left out", packets(b"\x01", column()) + packet(4, eof()), {"complete": False},
            request=[SELECT], end="invalid"),
    answers("an OK that is cut short", packet(1, ok()[:5]), request=[SELECT], end="invalid"),
    answers("an empty packet", packet(1), request=[SELECT], end="invalid"),
    answers("an empty packet behind rows", packets(*rows(b"\x01a"))[:-9] + packet(5), {"complete": False},
            request=[SELECT], end="invalid"),
    answers("no columns", packet(1, b"\x01\x01\x01"), request=[SELECT], end="invalid"),
    answers("a definition that is none", packets(b"\x01", b"\x04abcd"), {"complete": False},
            request=[SELECT], end="invalid"),
    answers("the greeting comes again", greeting(), request=[SELECT], end="invalid"),
    answers("results that nobody asked for have no end",
            packets(b"\x01a", eof(MORE), *rows(b"\x01b"), first=4)),
    answers("half a packet", packets(*rows(b"\x01a"))[:-3], {"complete": False}, request=[SELECT],
            end="need"),
]  # fmt: skip


class TestContract(Contract):
    protocol = "mysql"
    cases: ClassVar[list[Case]] = CONNECTING + COMMANDS + RESULTS


# --- what a conversation leaves behind ------------------------------------------------------------------


def asked(data: bytes, *before: Any, capabilities: int = USUAL) -> list[dict[str, Any]]:
    """The attributes of these requests behind what was said before."""
    core = driver().use(Options())
    side = Side("mysql", CLIENT, KIND_CLIENT, remote=REMOTE)
    run = core.stream(side, data, before=(*connected(capabilities), *before))
    assert run["end"] == "between"
    return [message["attributes"] for message in messages(run)]


def namespace(*before: Any) -> str | None:
    return asked(query(b"SELECT 1"), *before)[0].get("db.namespace")


USES = [
    (b"USE second", "second"),
    (b"use `second` ; ", "second"),
    (b"/* where */ USE second -- and why\n;", None),
    (b"# where\nUSE second", "second"),
    (b"-- where\n  USE second", "second"),
    (b"USE `sec``ond`", None),
    (b"SELECT 1; USE second", None),
    (b"SELECT 'so; use it'", "shop"),
    (b"SELECT 'so; use it'; SELECT 2", None),
    (b"SELECT user FROM users", "shop"),
    (b"USER second", "shop"),
]


@pytest.mark.parametrize(("sql", "expected"), USES)
def test_the_database_changes_when_a_use_has_succeeded(sql: bytes, expected: str | None) -> None:
    assert namespace(*said(sql, packet(1, ok()), 2)) == expected


def test_a_use_that_failed_changes_nothing() -> None:
    assert namespace(*said(b"USE second", packet(1, err(1049)), 2)) == "shop"
    assert namespace(*said(b"SELECT 1; USE second", packet(1, err(1049)), 2)) is None


def test_while_a_use_is_not_answered_the_database_is_not_known() -> None:
    first, second = asked(query(b"USE second") + query(b"SELECT 1"))
    assert first["db.namespace"] == "shop" and "db.namespace" not in second


def test_init_db_and_change_user_change_the_database() -> None:
    done = packet(1, ok())
    assert namespace((CLIENT, packet(0, b"\x02second"), 0), (SERVER, done, hint(SIMPLE, 2))) == "second"
    user = packet(0, b"\x11user\0", string(b"secret"), b"second\0\x2d\0plugin\0")
    assert namespace((CLIENT, user, 0), (SERVER, done, hint(AUTHENTICATION, 2))) == "second"


def test_the_server_tells_of_a_database() -> None:
    """SESSION_TRACK_SCHEMA behind SESSION_TRACK_SYSTEM_VARIABLES, and SERVER_STATUS_DB_DROPPED"""
    variable = b"\0" + string(string(b"autocommit") + string(b"ON"))
    changed = string(b"") + string(variable + b"\x01" + string(string(b"third")))
    assert namespace(*said(b"CALL f()", packet(1, ok(status=CHANGED, more=changed)), 2)) == "third"
    assert namespace(*said(b"DROP DATABASE shop", packet(1, ok(status=DROPPED)), 2)) is None
    lie = string(b"") + string(b"\x01\x05\xfc\xff\xffthird")
    assert namespace(*said(b"CALL f()", packet(1, ok(status=CHANGED, more=lie)), 2)) == "shop"


def prepared(sql: bytes, answer: bytes, number: int) -> Any:
    return ((CLIENT, prepare(sql), 0), (SERVER, answer, hint(PREPARED, number)))


def text(*before: Any, statement: int = 7) -> str | None:
    return asked(execute(statement), *before)[0].get("db.query.text")


def test_an_execute_has_the_text_that_was_prepared_under_its_number() -> None:
    one = prepared(b"SELECT 1 FROM a", packet(1, prepare_ok(7)), 2)
    other = prepared(b"SELECT 1 FROM b", packet(1, prepare_ok(8)), 3)
    assert text(*one, *other) == "SELECT ? FROM a"
    assert text(*one, *other, statement=8) == "SELECT ? FROM b"
    assert text(*one, *other, statement=9) is None
    assert text(*one, (CLIENT, packet(0, b"\x19", struct.pack("<I", 7)), 0)) is None
    assert text(*prepared(b"SELECT 1 FROM a", packet(1, err(1064)), 2)) is None


def test_a_new_session_of_the_connection_knows_no_statements() -> None:
    one = prepared(b"SELECT 1 FROM a", packet(1, prepare_ok(7)), 2)
    assert text(*one, (CLIENT, packet(0, b"\x1f"), 0)) is None
    assert text(*one, (CLIENT, packet(0, b"\x11user\0\0\0\x2d\0"), 0)) is None


def test_prepared_without_waiting_each_answer_names_its_own() -> None:
    both = (CLIENT, prepare(b"SELECT 1 FROM a") + prepare(b"SELECT 1 FROM b"), 0)
    first = (SERVER, packet(1, err(1146)), hint(PREPARED, 2))
    second = (SERVER, packet(1, prepare_ok(7)), hint(PREPARED, 3))
    assert text(both, first, second) == "SELECT ? FROM b"
    assert text(both, second) == "SELECT ? FROM b"


def test_mariadb_executes_what_was_prepared_last_by_no_number() -> None:
    last = 0xFFFFFFFF
    one = prepared(b"SELECT 1 FROM a", packet(1, prepare_ok(7)), 2)
    other = prepared(b"SELECT 1 FROM b", packet(1, prepare_ok(8)), 3)
    assert text(*one, *other, statement=last) == "SELECT ? FROM b"
    assert text(*one, other[0], statement=last) == "SELECT ? FROM b"
    assert text(*one, *other, (CLIENT, packet(0, b"\x19", struct.pack("<I", 8)), 0), statement=last) is None


def test_the_status_tells_what_a_backslash_is() -> None:
    """SERVER_STATUS_NO_BACKSLASH_ESCAPES, 0x200: the backslash does not keep the quote open."""
    sql = b"SELECT 'a\\', 'b' FROM t"
    core, side = driver().use(Options()), Side("mysql", CLIENT, KIND_CLIENT, remote=REMOTE)
    literal = core.stream(side, query(sql), before=connected(status=0x200)[:2])
    assert literal["steps"][0]["attributes"]["db.query.text"] == "SELECT ?, ? FROM t"
    escapes = core.stream(side, query(sql), before=connected()[:2])
    assert escapes["steps"][0]["attributes"].get("db.query.text") != "SELECT ?, ? FROM t"


def test_a_file_is_passed_over_until_its_end_and_then_answered() -> None:
    core = driver().use(Options())
    loads = (query(b"LOAD DATA LOCAL INFILE 'f' INTO TABLE t"), packet(1, b"\xfbf"))
    before = (*CONNECTED, (CLIENT, loads[0], 0), (SERVER, loads[1], hint(RESULT, 2)))
    side = Side("mysql", CLIENT, KIND_CLIENT, remote=REMOTE)
    file = b"".join(packet(2 + i, b"\x03SELECT 1\n") for i in range(300)) + packet(302, b"")
    run = core.stream(side, file + query(b"SELECT 1"), before=before)
    assert len(messages(run)) == 1 and run["end"] == "between"
    side = Side("mysql", SERVER, KIND_CLIENT, remote=REMOTE)
    run = core.stream(
        side, packet(303, ok(300)), hints=(hint(RESULT, 2),), before=(*before, (CLIENT, file, 0))
    )
    assert [step["ends"] for step in run["steps"]] == [1]
    assert run["steps"][0]["attributes"] == {"ebpf_otlp_tracer.db.affected_rows": 300}


def test_a_command_of_more_than_a_packet_holds() -> None:
    """0xffffff bytes are followed by another packet, so this does not end it (and see tests/core)."""
    core = driver().use(Options())
    side = Side("mysql", CLIENT, KIND_CLIENT, remote=REMOTE)
    sql = b"\x03SELECT '" + b"x" * (0xFFFFFF - 9)
    (step,) = core.stream(side, packet(0, sql)[:10_000], before=CONNECTED)["steps"]
    assert (step["skip"], step["begins"], step["ends"]) == (0xFFFFFF + 4 - 10_000, 1, 0)


def test_executes_with_the_same_values_are_alike() -> None:
    before = prepared(b"SELECT ? FROM a", packet(1, prepare_ok(7, 0, 0)), 2)
    core, side = driver().use(Options()), Side("mysql", CLIENT, KIND_CLIENT, remote=REMOTE)
    one, two = b"\0\1\3\0\1\0\0\0", b"\0\1\3\0\2\0\0\0"
    long_data = packet(0, b"\x18", struct.pack("<IH", 7, 0), b"v")
    asks = execute(7, one) + execute(7, one) + execute(7, two) + long_data + execute(7, one) + execute(7, one)
    steps = core.stream(side, asks, before=(*CONNECTED, *before))["steps"]
    first, again, other, _, unknown, last = (step["exact"] for step in steps)
    assert first == again == last != other
    assert unknown == 0, "some of its values were sent before"
    assert len({step["shape"] for step in steps if not step["silent"]}) == 1


RESYNC = [
    (CLIENT, query(b"SELECT 1"), True),
    (CLIENT, packet(0, b"\x19\1\0\0\0") + query(b"SELECT 1"), True),
    (CLIENT, query(LONG)[:5000], True),
    (CLIENT, execute(1, b"x" * 100)[:40], True),
    (CLIENT, LONG[5000:6000], False),
    (CLIENT, packet(2, b"file"), False),
    (CLIENT, greeting()[:16], False),
    (CLIENT, bytes(100), False),
    (CLIENT, packet(0, b"\x0e") + b"rubbish", False),
    (SERVER, greeting()[:16], True),
    (SERVER, packet(1, ok()), True),
    (SERVER, packets(*rows(b"\x011")), True),
    (SERVER, packets(*rows(*[b"\x011"] * 9), first=200), True),
    (SERVER, packets(*rows(*[b"\x011"] * 9))[7:], False),
    (SERVER, query(b"SELECT 1"), False),
    (SERVER, b"HTTP/1.1 200 OK\r\n\r\n", False),
    (SERVER, bytes(100), False),
]


@pytest.mark.parametrize(("sender", "data", "begins"), RESYNC)
def test_where_a_message_may_begin(sender: int, data: bytes, begins: bool) -> None:
    assert (driver().resync(Side("mysql", sender, KIND_CLIENT), data) == 0) == begins
