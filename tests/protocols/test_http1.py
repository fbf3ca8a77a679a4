# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (a table: one case, one line where it can be)
"""HTTP/1.0 and 1.1: framing by RFC 9112, meaning by RFC 9110, spans by the semantic conventions.

Expected values are those of the specifications; where h11 reads the same input, it is asked too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import h11
import pytest

from tests.contract import (
    CLIENT,
    KIND_CLIENT,
    KIND_SERVER,
    SERVER,
    TO_END,
    Case,
    Contract,
    Options,
    Side,
    driver,
)

HEAD, CONNECT, OTHER = 2, 3, 1  # enum http_hint
ANSWERED, CLOSED, RESET, TIMEOUT = range(4)  # enum outcome
CURL = b"GET /a?b=1 HTTP/1.1\r\nHost: example.com:8080\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request(name: str, data: bytes, *messages: dict[str, Any], **more: Any) -> Case:
    return Case(name, CLIENT, data, list(messages), **more)


def response(name: str, data: bytes, *messages: dict[str, Any], **more: Any) -> Case:
    return Case(name, SERVER, data, list(messages), **more)


def get(*fields: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *fields, b"", b""])


def post(*fields: bytes) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: h", *fields, b"", b""])


def answer(*fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", b""])


LONG_TARGET = b"/" + b"x" * 8191

REQUESTS = [
    request(
        "as curl sends it",
        CURL,
        {
            "body": 0,
            "complete": True,
            "attributes": {
                "http.request.method": "GET",
                "http.request.method_original": None,
                "url.path": "/a",
                "url.query": "b=1",
                "url.scheme": "http",
                "url.full": None,
                "server.address": "example.com",
                "server.port": 8080,
                "client.address": "192.0.2.7",
                "user_agent.original": "curl/8.0",
                "network.protocol.version": "1.1",
                "network.peer.address": "192.0.2.7",
                "network.peer.port": 41234,
            },
        },
    ),
    request(
        "HTTP/1.0 without any field",
        b"GET / HTTP/1.0\r\n\r\n",
        {"attributes": {"network.protocol.version": "1.0", "server.address": None, "server.port": None}},
    ),
    request("empty lines before the request", b"\r\n\n\r\n" + CURL, {"body": 0}),
    request("an empty line behind a body", post(b"Content-Length: 2") + b"ab\r\n" + CURL, {"body": 2}, {}),
    request("lines that end in LF alone", CURL.replace(b"\r\n", b"\n"), {"attributes": {"url.path": "/a"}}),
    request("field names in capitals", post(b"CONTENT-LENGTH: 3") + b"abc", {"body": 3}),
    request("an obsolete fold", get(b"Host: a", b"User-Agent: one", b"\ttwo", b"  three"), {
        "attributes": {"user_agent.original": "one   two    three"},
    }),
    request("Content-Length", post(b"Content-Length: 5") + b"hello" + CURL, {"body": 5}, {"body": 0}),
    request("Content-Length 0", post(b"Content-Length: 0") + CURL, {"body": 0}, {"body": 0}),
    request("Content-Length with leading zeros", post(b"Content-Length: 0005") + b"hello", {"body": 5}),
    request("Content-Length twice the same", post(b"Content-Length: 5", b"Content-Length: 5") + b"hello", {"body": 5}),
    request("Content-Length as a list of equals", post(b"Content-Length: 5, 5") + b"hello", {"body": 5}),
    request(
        "the greatest Content-Length",
        post(b"Content-Length: 9223372036854775807"),
        {"body": 2**63 - 1},
        end="need",
    ),
    request(
        "chunked",
        post(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n" + CURL,
        {"body": 15},
        {"body": 0},
    ),
    request(
        "chunk extensions and trailers",
        post(b"Transfer-Encoding: chunked")
        + b'5;a=b;c="d"\r\nhello\r\n0003;x\r\nabc\r\n000;last\r\nDigest: x\r\nMore: y\r\n\r\n',
        {"body": 8, "complete": True},
    ),
    request("the greatest chunk", post(b"Transfer-Encoding: chunked") + b"007fffFFFFffffFFFF\r\n", {"body": 2**63 - 1}, end="need"),
    request("spaces behind a chunk size", post(b"Transfer-Encoding: chunked") + b"3  \r\nabc\r\n0\t;x\r\n\r\n", {"body": 3}),
    request("Transfer-Encoding wins", post(b"Content-Length: 99", b"Transfer-Encoding: gzip, Chunked") + b"0\r\n\r\n", {"body": 0}),
    request("Transfer-Encoding on two lines", post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", {"body": 0}),
    request("pipelined", CURL * 50, *[{"body": 0}] * 50),
    request("a target of 8 KiB", get(b"Host: h", target=LONG_TARGET), {"attributes": {"url.path": LONG_TARGET.decode()}}),
    request("a target longer than 8 KiB is cut", get(target=LONG_TARGET + b"yz"), {"attributes": {"url.path": LONG_TARGET.decode()}}),
    request(
        "a header block of 64 KiB with traceparent last",
        get(b"Host: h", *[b"X-%d: " % i + b"y" * 1000 for i in range(64)], b"traceparent: " + PARENT),
        {"trace_id": "0af7651916cd43dd8448eb211c80319c", "parent_id": "b7ad6b7169203331", "flags": 1},
    ),
    request(
        "absolute-form",
        b"GET HTTP://u:p@example.org/x/y?q#frag HTTP/1.1\r\nHost: other\r\n\r\n",
        {
            "attributes": {
                "url.path": "/x/y",
                "url.query": "q",
                "url.scheme": "http",
                "server.address": "example.org",
                "server.port": 80,
            }
        },
    ),
    request("absolute-form without a path", b"GET https://[2001:db8::1] HTTP/1.1\r\nHost: h\r\n\r\n", {
        "attributes": {"url.path": "/", "url.scheme": "https", "server.address": "2001:db8::1", "server.port": 443},
    }),
    request("authority-form", b"CONNECT db.example:5432 HTTP/1.1\r\nHost: x\r\n\r\n", {
        "hint": CONNECT,
        "attributes": {"server.address": "db.example", "server.port": 5432, "url.path": None},
    }),
    request("asterisk-form", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {"attributes": {"url.path": "*", "url.query": None}}),
    request("HEAD", b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", {"hint": HEAD}),
    request("a method nobody knows", b"get-it! / HTTP/1.1\r\nHost: h\r\n\r\n", {
        "hint": OTHER,
        "attributes": {"http.request.method": "_OTHER", "http.request.method_original": "get-it!"},
    }),
    request("methods are case-sensitive", b"Get / HTTP/1.1\r\nHost: h\r\n\r\n", {
        "attributes": {"http.request.method": "_OTHER", "http.request.method_original": "Get"},
    }),
    request("an empty query", get(target=b"/a?"), {"attributes": {"url.path": "/a", "url.query": ""}}),
    request("bytes above 127 in the target", get(target="/caf\u00e9".encode() + b"/\xe9"), {
        "attributes": {"url.path": "/caf\u00e9/\ufffd"},
    }),
    request(
        "secrets in the query",
        get(target=b"/?sig=abc&Sig=def&AWSAccessKeyId=AK&x=sig&sig&Signature=&n=1"),
        {"attributes": {"url.query": "sig=REDACTED&Sig=def&AWSAccessKeyId=REDACTED&x=sig&sig&Signature=REDACTED&n=1"}},
    ),
    request("no list of secrets", get(target=b"/?sig=abc"), {"attributes": {"url.query": "sig=abc"}}, options=Options(redact=())),
    request(
        "captured headers, several of a name",
        get(b"X-A: 1", b"Cookie: c", b"x-a: two  ", b"Accept: \xff\x01"),
        {
            "attributes": {
                "http.request.header.x-a": ["1", "two"],
                "http.request.header.accept": ["\ufffd\ufffd"],
                "http.request.header.x-b": None,
            }
        },
        options=Options(request_headers=("x-a", "accept", "x-b"), response_headers=("x-a",)),
    ),
    request("Expect changes nothing", post(b"Content-Length: 3", b"Expect: 100-continue") + b"abc", {"body": 3}),
]  # fmt: skip

FORWARDED = [
    request("Forwarded", get(
        b'Forwarded: for="[2001:db8:cafe::17]:4711";proto=HTTPS;host="shop.example:8443", for=10.0.0.9;host=b',
        b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Host: c", b"X-Forwarded-Proto: http", b"Host: inner"), {
        "attributes": {"client.address": "2001:db8:cafe::17", "server.address": "shop.example",
                       "server.port": 8443, "url.scheme": "https"},
    }),
    request("X-Forwarded", get(b"X-Forwarded-For: 203.0.113.195, 70.41.3.18", b"X-Forwarded-Host: a.example, b",
                               b"X-Forwarded-Proto: https", b"Host: inner:81"), {
        "attributes": {"client.address": "203.0.113.195", "server.address": "a.example",
                       "server.port": 443, "url.scheme": "https"},
    }),
    request("X-Forwarded-For with a bare IPv6 address", get(b"X-Forwarded-For: 2001:db8::1:80"), {
        "attributes": {"client.address": "2001:db8::1:80"},
    }),
    request("X-Forwarded-For with a port", get(b"X-Forwarded-For: 203.0.113.195:5555"), {
        "attributes": {"client.address": "203.0.113.195"},
    }),
    request("a hidden client", get(b"Forwarded: for=_hidden;proto=gopher", b"Host: h"), {
        "attributes": {"client.address": "192.0.2.7", "url.scheme": "http", "server.address": "h"},
    }),
    request("Forwarded with an unfinished quote", get(b'Forwarded: for="1.2.3.4', b"Host: h"), {
        "attributes": {"server.address": "h"},
    }),
]  # fmt: skip

CLIENT_SIDE = [
    request(
        "as its client",
        CURL,
        {
            "attributes": {
                "url.full": "http://example.com:8080/a?b=1",
                "server.address": "example.com",
                "server.port": 8080,
                "url.path": None,
                "url.query": None,
                "url.scheme": None,
                "client.address": None,
                "user_agent.original": None,
                "network.peer.address": "192.0.2.7",
                "network.peer.port": 41234,
            }
        },
        kind=KIND_CLIENT,
    ),
    request("as its client, no port", get(b"Host: example.com"), {
        "attributes": {"url.full": "http://example.com/", "server.address": "example.com", "server.port": 80},
    }, kind=KIND_CLIENT),
    request("as its client, no host", b"GET /x HTTP/1.0\r\n\r\n", {
        "attributes": {"url.full": "http://192.0.2.7:41234/x", "server.address": "192.0.2.7", "server.port": 41234},
    }, kind=KIND_CLIENT),
    request("as its client, credentials and secrets", get(b"Host: proxy", target=b"https://u:p@w@a.example:444/x?sig=1&b=2"), {
        "attributes": {"url.full": "https://REDACTED:REDACTED@a.example:444/x?sig=REDACTED&b=2",
                       "server.address": "a.example", "server.port": 444},
    }, kind=KIND_CLIENT),
    request("as its client, another scheme", get(b"Host: proxy", target=b"ftp://a.example/x"), {
        "attributes": {"url.full": "ftp://a.example/x", "server.address": "a.example", "server.port": None},
    }, kind=KIND_CLIENT),
    request("as its client, an endless scheme", get(b"Host: proxy", target=b"x" * 30000 + b"://a.example/x"), {
        "attributes": {"url.full": "x" * 32 + "://a.example/x"},
    }, kind=KIND_CLIENT),
    request("as its client, everything too long", get(target=b"http://" + b"h" * 9000 + b"/" + b"p" * 9000 + b"?" + b"q" * 9000), {
        "attributes": {"url.full": "http://" + "h" * 512 + "/" + "p" * 8191 + "?" + "q" * 8192,
                       "server.address": "h" * 255},
    }, kind=KIND_CLIENT),
    request("as its client, IPv6 and no host", b"GET /x HTTP/1.0\r\n\r\n", {
        "attributes": {"url.full": "http://[2001:db8::7]:65535/x", "server.address": "2001:db8::7", "server.port": 65535},
    }, kind=KIND_CLIENT, remote=("2001:db8::7", 65535)),
    request("as its client, CONNECT", b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", {
        "attributes": {"url.full": "http://a.example:443", "server.address": "a.example", "server.port": 443},
    }, kind=KIND_CLIENT),
    request("as its client, asterisk", b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", {
        "attributes": {"url.full": "http://a.example", "server.address": "a.example"},
    }, kind=KIND_CLIENT),
]  # fmt: skip

RESPONSES = [
    response("Content-Length in a response", answer(b"Content-Length: 5") + b"hello", {
        "status": 200, "body": 5, "failed": 0, "attributes": {"http.response.status_code": 200},
    }),
    response("two responses at once", (answer(b"Content-Length: 1") + b"x") * 2, {"body": 1}, {"body": 1}),
    response("until close", answer(b"Content-Type: text/plain") + b"anything", {"body": TO_END}, end="until close"),
    response("no reason phrase", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", {"status": 200}),
    response("not even a space behind the status", b"HTTP/1.0 404\r\nContent-Length: 0\r\n\r\n", {"status": 404, "failed": 1}),
    response("chunked in a response", answer(b"transfer-encoding:chunked") + b"1\r\nx\r\nff\r\n" + b"y" * 255 + b"\r\n0\r\n\r\n", {"body": 256}),
    response("a space before the colon", answer(b"Content-Length : 2") + b"ab", {"body": 2}),
    response("a transfer coding that is not chunked", answer(b"Transfer-Encoding: chunked, gzip", b"Content-Length: 1") + b"xyz", {"body": TO_END}, end="until close"),
    response("100 before 200", answer(status=b"100 Continue") + answer(b"Link: x", status=b"103 Early Hints") + answer(b"Content-Length: 0"),
             {"interim": 1, "attributes": {"http.response.status_code": None}}, {"interim": 1, "status": 103},
             {"interim": 0, "status": 200}, hints=(OTHER,)),
    response("101 leaves the protocol", answer(b"Upgrade: websocket", status=b"101 Switching Protocols") + b"\x81\x05hello",
             {"status": 101, "interim": 0, "opaque": 1, "complete": True}, end="opaque"),
    response("HEAD has no content", answer(b"Content-Length: 500") + answer(b"Content-Length: 1") + b"x",
             {"body": 0}, {"body": 1}, hints=(HEAD, OTHER)),
    response("HEAD and chunked", answer(b"Transfer-Encoding: chunked"), {"body": 0, "complete": True}, hints=(HEAD,)),
    response("204", answer(b"Content-Length: 5", status=b"204 No Content"), {"body": 0, "complete": True}),
    response("304", answer(b"Content-Length: 5", status=b"304 Not Modified"), {"body": 0, "complete": True}),
    response("CONNECT that succeeds", answer(b"Content-Length: 5", status=b"200 Connection established") + b"\x16\x03\x01",
             {"body": 0, "opaque": 1}, end="opaque", hints=(CONNECT,)),
    response("CONNECT that fails", answer(b"Content-Length: 2", status=b"407 No") + b"no", {"body": 2, "opaque": 0}, hints=(CONNECT,)),
    response("captured headers of a response", answer(b"Content-Length: 0", b"Vary: a", b"Vary: b"), {
        "attributes": {"http.response.header.vary": ["a", "b"]},
    }, options=Options(request_headers=("vary",), response_headers=("vary",))),
]  # fmt: skip

INVALID = {
    "conflicting lengths": post(b"Content-Length: 5", b"Content-Length: 6"),
    "a list of conflicting lengths": post(b"Content-Length: 5, 6"),
    "a negative length": post(b"Content-Length: -1"),
    "a length with a plus": post(b"Content-Length: +1"),
    "a hexadecimal length": post(b"Content-Length: 0x10"),
    "no length": post(b"Content-Length: "),
    "a length of 2^63": post(b"Content-Length: 9223372036854775808"),
    "a length of 30 digits": post(b"Content-Length: " + b"9" * 30),
    "a transfer coding of unknown end": post(b"Transfer-Encoding: gzip"),
    "chunked and then another": post(b"Transfer-Encoding: chunked, identity"),
    "a chunk size of 2^63": post(b"Transfer-Encoding: chunked") + b"8000000000000000\r\n",
    "a chunk size of 2^64": post(b"Transfer-Encoding: chunked") + b"10000000000000000\r\n",
    "a negative chunk size": post(b"Transfer-Encoding: chunked") + b"-5\r\n",
    "a chunk size of nothing": post(b"Transfer-Encoding: chunked") + b"\r\n",
    "a chunk size of letters": post(b"Transfer-Encoding: chunked") + b"5x\r\n",
    "an endless chunk extension": post(b"Transfer-Encoding: chunked") + b"5;" + b"x" * 5000,
    "a space before the colon in a request": get(b"Host : h"),
    "a field without a colon": get(b"Host"),
    "a field without a name": get(b": h"),
    "a fold with nothing to fold": get(b" Host: h"),
    "HTTP/0.9": b"GET /\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.x with two digits": b"GET / HTTP/1.10\r\n\r\n",
    "a version in lower case": b"GET / http/1.1\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\n\r\n",
    "a target with a control character": b"GET /a\x01b HTTP/1.1\r\n\r\n",
    "a target that is no URL": b"GET index.html HTTP/1.1\r\n\r\n",
    "a very long method": b"A" * 33 + b" / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "zeros": bytes(100),
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an endless line": b"GET /" + b"a" * 70000,
    "a header bomb": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000,
    "an endless field": b"GET / HTTP/1.1\r\nA: " + b"b" * 70000,
}
INVALID_RESPONSES = {
    "a length that is no number in a response": answer(b"Content-Length: abc"),
    "lengths in conflict in a response": answer(b"Content-Length: 1", b"Content-Length: 2"),
    "HTTP/2 in a status line": b"HTTP/2.0 200 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "a request where a response should be": CURL,
    "ICY": b"ICY 200 OK\r\n\r\n",
    "endless fields of a response": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000,
}


# A head that announces chunks is read before its chunks turn out to be none.
REFUSED = [
    *[
        request(name, data, *[{}] * data.count(b"chunked\r\n"), end="invalid")
        for name, data in INVALID.items()
    ],
    *[response(name, data, end="invalid") for name, data in INVALID_RESPONSES.items()],
]


class TestContract(Contract):
    protocol = "http1"
    cases: ClassVar = [*REQUESTS, *FORWARDED, *CLIENT_SIDE, *RESPONSES, *REFUSED]


def test_an_empty_line_is_no_part_of_the_request_behind_it() -> None:
    """The request's time is that of its own first byte."""
    empty, head = driver().stream(Side("http1"), b"\r\n" + CURL)["steps"]
    assert (empty["consumed"], empty["begins"], empty["ends"], empty["attributes"]) == (2, 0, 0, {})
    assert (head["consumed"], head["begins"], head["ends"]) == (len(CURL), 1, 1)


def test_the_framing_of_chunks_is_asked_for_whole() -> None:
    data = post(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
    head, chunk, last = driver().stream(Side("http1"), data)["steps"]
    assert [(step["begins"], step["ends"], step["whole"]) for step in (head, chunk, last)] == [
        (1, 0, 1),
        (0, 0, 1),
        (0, 1, 0),
    ]
    assert [(step["skip"], step["body"]) for step in (head, chunk, last)] == [(0, 0), (7, 5), (0, 0)]


# --- a second implementation ---------------------------------------------------------------------------


def read_by_h11(case: Case) -> list[tuple[str | int, int]]:
    """(target or status, bytes of content) of each message."""
    found: list[tuple[str | int, int]] = []
    data, answers = case.data, 0
    while True:
        connection = h11.Connection(h11.SERVER if case.sender == CLIENT else h11.CLIENT, 1 << 20)
        if case.sender == SERVER:
            hint = case.hints[answers] if answers < len(case.hints) else OTHER
            method = {HEAD: "HEAD", CONNECT: "CONNECT", OTHER: "GET"}[hint]
            connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
            connection.send(h11.EndOfMessage())
            answers += 1
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                found.append((event.target.decode("latin-1"), 0))
            elif isinstance(event, (h11.Response, h11.InformationalResponse)):
                found.append((event.status_code, 0))
            elif isinstance(event, h11.Data):
                found[-1] = (found[-1][0], found[-1][1] + len(event.data))
            elif event is h11.NEED_DATA:
                connection.receive_data(b"")  # the end of the connection
            else:
                break
        data = connection.trailing_data[0]
        if not data or event is h11.PAUSED:
            return found


# h11 refuses these, or has no notion of them; the reason is in RFC 9112 where it lets a recipient choose.
NOT_FOR_H11 = {
    "empty lines before the request": "h11 takes none",
    "an empty line behind a body": "h11 takes none",
    "spaces behind a chunk size": "h11 takes none in front of an extension",
    "a space before the colon": "h11 is as strict as a server",
    "Transfer-Encoding wins": "h11 takes chunked alone",
    "Transfer-Encoding on two lines": "h11 takes chunked alone",
    "a transfer coding that is not chunked": "h11 takes chunked alone",
    "bytes above 127 in the target": "not by the grammar",
    "captured headers, several of a name": "a control character in a value",
    "the greatest chunk": "the content never comes",
    "the greatest Content-Length": "the content never comes",
    "100 before 200": "read below by hand",
    "101 leaves the protocol": "h11 is done with it",
    "CONNECT that succeeds": "h11 is done with it",
    "HEAD and chunked": "only the head matters",
    "until close": "its length is known at the end",
}


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in REQUESTS + RESPONSES
        if c.name not in NOT_FOR_H11 and b"\nHost:" in c.data + b"\nHost:" * c.sender
    ],
    ids=lambda case: case.name.replace(" ", "_"),
)
def test_h11_reads_the_same_messages(case: Case) -> None:
    run = driver().use(case.options).stream(case.side("http1"), case.data, None, case.hints)
    ours, at = [], 0
    for step in run["steps"]:
        if step["begins"]:
            line = case.data[at:].lstrip(b"\r\n").split(b"\n")[0].split(b" ")
            ours.append([int(line[1]) if case.sender == SERVER else line[1].decode("latin-1"), 0])
        if step["body"]:
            ours[-1][1] += step["body"]
        at += step["consumed"] + step["skip"]
    assert [tuple(message) for message in ours] == read_by_h11(case)


@pytest.mark.parametrize("name", [
    "conflicting lengths", "a list of conflicting lengths", "a negative length", "a length with a plus",
    "a hexadecimal length", "no length", "a length of 30 digits", "a transfer coding of unknown end",
    "a chunk size of letters", "a chunk size of nothing", "a negative chunk size", "a field without a colon",
    "a space before the colon in a request", "a field without a name", "a target with a space",
    "a version in lower case", "TLS", "Redis",
])  # fmt: skip
def test_h11_refuses_what_is_invalid_here(name: str) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(INVALID[name] + b"\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError):
        while True:
            event = connection.next_event()
            assert not isinstance(event, (h11.EndOfMessage, h11.NEED_DATA)) and event is not h11.NEED_DATA


# --- trace context -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    PARENT,
    b"  " + PARENT + b"\t",
    PARENT.replace(b"00-", b"01-", 1) + b"-and-more",
    PARENT.replace(b"00-", b"cc-", 1),
])  # fmt: skip
def test_a_valid_traceparent_is_adopted(value: bytes) -> None:
    run = driver().stream(
        Side("http1"), get(b"TraceParent:" + value, b"tracestate: a=1,b=2", b"tracestate: c=3")
    )
    (step,) = run["steps"]
    assert (step["trace_id"], step["parent_id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert step["flags"] == 1
    assert bytes.fromhex(step["tracestate"]) == b"a=1,b=2"


@pytest.mark.parametrize("value", [
    b"",
    PARENT[:-1],
    PARENT + b"0",
    PARENT + b"-more",
    PARENT.upper(),
    PARENT.replace(b"00-", b"ff-", 1),
    PARENT.replace(b"00-", b"01-", 1) + b"x",
    PARENT.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32),
    PARENT.replace(b"b7ad6b7169203331", b"0" * 16),
    PARENT.replace(b"b7ad", b"b7xd"),
    PARENT.replace(b"-", b"_"),
    PARENT[:-2] + b"0g",
    b"0g" + PARENT[2:],
])  # fmt: skip
def test_an_invalid_traceparent_and_its_state_are_ignored(value: bytes) -> None:
    run = driver().stream(Side("http1"), get(b"traceparent: " + value, b"tracestate: a=1"))
    (step,) = run["steps"]
    assert (step["trace_id"], step["parent_id"], step["tracestate"]) == ("", "", "")


def test_two_traceparents_are_none() -> None:
    run = driver().stream(Side("http1"), get(b"traceparent: " + PARENT, b"traceparent: " + PARENT))
    assert run["steps"][0]["trace_id"] == ""


# --- finding a start again -----------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "data", "start", "expected"), [
    (CLIENT, CURL, 0, 0),
    (CLIENT, CURL + CURL, 1, len(CURL)),
    (CLIENT, b"rest of a body\r\n" + CURL, 0, 16),
    (CLIENT, b'{"the": "rest"}' + CURL, 0, 15),
    (CLIENT, b"ne: of a head\r\n\r\n" + CURL, 0, 17),
    (CLIENT, b'10.0.0.1 "GET /log HTTP/1.1" 200\n' + CURL, 0, 33),
    (CLIENT, b"body\r\nGET /a HT", 0, 6),
    (CLIENT, b"GET /a HT", 0, 0),
    (CLIENT, get(target=b"/" + b"x" * 60000), 0, 0),
    (CLIENT, answer(b"A: b"), 0, len(answer(b"A: b"))),
    (CLIENT, b"HTTP/1.1 2", 0, 10),
    (SERVER, CURL, 0, len(CURL)),
    (CLIENT, b"GET /quoted HTTP/1.1\r\nis no request\r\n\r\n" + CURL, 0, 39),
    (CLIENT, b"binary\0\xff without anything", 0, 25),
    (CLIENT, b"lower case text\nand a second line", 0, 33),
    (CLIENT, b"", 0, 0),
    (SERVER, b"rest</html>" + answer(b"A: b"), 0, 11),
    (SERVER, answer(b"A: b") + answer(b"A: b"), 1, len(answer(b"A: b"))),
    (SERVER, b"the page says HTTP/1.1 is old, and HTTP/1.1 200 OK\nis text\n", 0, 59),
    (SERVER, b"restHTTP/1", 0, 4),
    (SERVER, b"rest of it", 0, 10),
])  # fmt: skip
def test_resync_finds_the_next_start(sender: int, data: bytes, start: int, expected: int) -> None:
    assert driver().resync(Side("http1", sender), data, start) == expected


# --- the span ------------------------------------------------------------------------------------------


def finished(
    kind: int, status: int | None, outcome: int = ANSWERED, path: bytes = b"/users/42", **more: Any
) -> Any:
    data = b"" if status is None else answer(b"Content-Length: 0", status=b"%d X" % status)
    return (
        driver()
        .use(more.pop("options", Options()))
        .finish(Side("http1", kind=kind), get(b"Host: h", target=path), data, outcome, **more)
    )


@pytest.mark.parametrize(("kind", "status", "outcome", "is_error", "error_type"), [
    (KIND_SERVER, 200, ANSWERED, 0, None),
    (KIND_SERVER, 302, ANSWERED, 0, None),
    (KIND_SERVER, 400, ANSWERED, 0, None),
    (KIND_SERVER, 500, ANSWERED, 2, "500"),
    (KIND_SERVER, 200, RESET, 2, "connection_reset"),
    (KIND_SERVER, 503, CLOSED, 2, "503"),
    (KIND_SERVER, None, CLOSED, 2, "connection_closed"),
    (KIND_CLIENT, 200, ANSWERED, 0, None),
    (KIND_CLIENT, 404, ANSWERED, 2, "404"),
    (KIND_CLIENT, 999, ANSWERED, 2, "999"),
    (KIND_CLIENT, None, RESET, 2, "connection_reset"),
    (KIND_CLIENT, None, TIMEOUT, 2, "timeout"),
])  # fmt: skip
def test_status_and_error_type(
    kind: int, status: int | None, outcome: int, is_error: int, error_type: str | None
) -> None:
    span = finished(kind, status, outcome)
    assert span["status"] == is_error
    assert span["attributes"].get("error.type") == error_type
    assert span["attributes"].get("http.response.status_code") == status
    assert span["metric"] == (0 if kind == KIND_SERVER else 1)


def test_a_server_span_is_named_by_method_and_route() -> None:
    span = finished(KIND_SERVER, 200)
    assert span["name"] == "GET /users/{id}"
    assert span["attributes"]["http.route"] == "/users/{id}"


def test_a_client_span_is_named_by_method() -> None:
    span = finished(KIND_CLIENT, 200)
    assert span["name"] == "GET"
    assert "http.route" not in span["attributes"]


def test_an_unknown_path_has_no_route() -> None:
    span = finished(KIND_SERVER, 404)
    assert (span["name"], "http.route" in span["attributes"]) == ("GET", False)


def test_routes_can_be_switched_off() -> None:
    assert finished(KIND_SERVER, 200, options=Options(route_heuristic=False))["name"] == "GET"


def test_a_route_above_the_cap_is_none() -> None:
    assert finished(KIND_SERVER, 200, options=Options(routes_max=0))["name"] == "GET"


def test_an_unknown_method_is_named_http() -> None:
    span = driver().use(Options()).finish(Side("http1"), b"BREW /pot HTTP/1.1\r\n\r\n", answer())
    assert span["name"] == "HTTP /pot"


def test_options_asterisk_has_no_route() -> None:
    span = driver().use(Options()).finish(Side("http1"), b"OPTIONS * HTTP/1.1\r\n\r\n", answer())
    assert span["name"] == "OPTIONS"


def test_body_sizes_are_written_when_they_are_known() -> None:
    span = finished(KIND_SERVER, 200, bodies=(0, 12345678901))
    assert span["attributes"]["http.request.body.size"] == 0
    assert span["attributes"]["http.response.body.size"] == 12345678901
    span = finished(KIND_SERVER, 200)
    assert not [key for key in span["attributes"] if key.endswith("body.size")]
