# SPDX-License-Identifier: Apache-2.0
"""classify.h, compiled for the host: what begins a message, what does not, and what is too short to tell."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import protocol_names

BPF = Path(__file__).parents[2] / "bpf"
NO, MAYBE, YES, GUESS = 0, 1, 2, 3
ENCRYPTED, HTTP1 = 1, 3
POSTGRESQL, MYSQL, REDIS = (HTTP1 + protocol_names().index(n) for n in ("postgresql", "mysql", "redis"))
Classify = Callable[..., tuple[int, int]]

HTTP_STARTS = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"HEAD /a HTTP/1.0\r\n",
    b"POST /x?y=1 HTTP/1.1",
    b"PUT /long/path/that/goes/on HTTP/1.1",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET http://proxy.example/ HTTP/1.1",
    b"GET HTTP://PROXY/ HTTP/1.1",
    b"CONNECT example.org:443 HTTP/1.1",
    b"PROPFIND /dav HTTP/1.1",
    b"M-SEARCH * HTTP/1.1",
    b"MY_METHOD /x HTTP/1.1",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 404 Not Found\r\n",
]
MYSQL_STARTS = [
    b"\x4a\0\0\0\x0a8.0.36\0" + bytes(64),  # a greeting, then the same in MariaDB's words
    b"\x68\0\0\0\x0a5.5.5-10.11.6-MariaDB\0" + bytes(80),
    b"\x60\0\0\0\x0a11.4.2-MariaDB-log\0" + bytes(73),
    b"\x09\0\0\0\x03SELECT 1",
    b"\x08\0\0\0\x03/*a*/ 1",
    b"\x0b\0\0\0\x03\0\1SELECT 1",
    b"\x09\0\0\0\x16SELECT ?",
    b"\x0a\0\0\0\x17\1\0\0\0\0\1\0\0\0",
    b"\1\0\0\0\x0e",
]
TLS_STARTS = [
    bytes.fromhex("16030100f8010000f40303"),  # ClientHello, record version 1.0
    bytes.fromhex("160303007a0200007603030000000000"),  # ServerHello
]
REDIS_STARTS = [
    b"*1\r\n$4\r\nPING\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n",
    b"*12345\r\n$4\r\nMGET\r\n",
]
# Of a connection, and from its client.
INLINE_STARTS = [
    b"PING\r\n",
    b"ping\n",
    b"PING hello\r\n",
    b"INFO\r\n",
    b"info replication\r\n",
    b"AUTH secret\r\nPING\r\n",
    b"AuTh user secret\r\n",
    b"AUTH /secret\r\n",  # a method and a path, elsewhere
    b"ECHO hello\r\n",
    b"HELLO 3\r\n",
    b"SELECT 1\r\n",
]
NOT_INLINE = [
    b"PINGX\r\n",
    b"PING\t\r\n",
    b"PING\rX",
    b"PONG\r\n",
    b"PI\0G\r\n",
    b"0ING\r\n",  # 0x30: 'p' but for one bit
    b" PING\r\n",
    b"\0AUTH EXTERNAL\r\n",  # D-Bus
    b"AUTHENTICATE\r\n",
    b"HELL\r\n",
    b"HELLOO\r\n",
    b"SELECTOR\r\n",
    b"select\0",
    b"GET a\r\n",  # memcached, and so on
    b"set a 0 0 1\r\n",
    b"incr a 1\r\n",
    b"version\r\n",
    b"stats\r\n",
    b"quit\r\n",
    b"SUB a 1\r\n",  # NATS
    b"EHLO a\r\n",
    b"USER a\r\n",
    b"/docs\r\n",  # gopher
    b"root\r\n",  # finger
    b"example.org\r\n",  # whois
]
POSTGRESQL_STARTS = [
    b"\0\0\0\x08\x04\xd2\x16\x2f",  # SSLRequest
    b"\0\0\0\x08\x04\xd2\x16\x30",  # GSSENCRequest
    b"\0\0\0\x10\x04\xd2\x16\x2e" + bytes(8),  # CancelRequest
    b"\0\0\0\x12\0\3\0\0user\0ada\0\0",  # StartupMessage
    b"\0\0\0\x12\0\3\0\2user\0ada\0\0",  # of protocol 3.2
    b"Q\0\0\0\x0dSELECT 1\0",
    b"Q\0\0\0\x0aBEGIN\0",
    b"P\0\0\0\x10\0SELECT 1\0\0\0E",
    b"P\0\0\0\x14__s1\0SELECT 1\0\0\0",
    b"B\0\0\0\x0c\0\0\0\0\0\0\0\0E",
    b"B\0\0\0\x0e\0s1\0\0\0\0\0\0\0E",
]
NOTHING_OF_OURS = [
    b"*0\r\n$4\r\nPING\r\n",
    b"*-1\r\n",
    b"*1\n$4\nPING\n",
    b"*1\r\n:1\r\n",
    b"*1x\r\n$4\r\nPING\r\n",
    b"* a list\r\n",
    b"*1234567890\r\n$4\r\n",  # nobody sends so many arguments
    b"PING\r\n",  # but where it opens a connection
    b"get / HTTP/1.1\r\n\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET x HTTP/1.1\r\n\r\n",
    b"GE / HTTP/1.1\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n",
    b"HTTPX1.1 200 OK\r\n",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    b"\x00\x00\x00\x09\x04\xd2\x16\x2f\0\0\0\0\0\0\0\0",  # an SSLRequest that is too long
    b"\x00\x00\x00\x20\x00\x02\x00\x00user\0ada",  # PostgreSQL, protocol 2
    b"\x00\x00\x30\x00\x00\x03\x00\x00user\0ada",  # no startup is so long
    b"Q\0\0\0\x0dSELECT 1\0Q\0",  # more than a Query
    b"Q\0\0\0\x0d\1\2LECT 1\0",
    b"Q\1\0\0\x0dSELECT 1\0",
    b"P\0\0\0\x10\0\1SELECT 1\0\0\0\0",
    b"B\0\0\0\x0cportal\0\0\0\0\0\0",
    b"B\0\0\0\x80\0\0\0\0\0\0\0",  # longer than the call
    b"CONNECT \x01 HTTP/1.1",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"220 mail.example ESMTP\r\n",
    b"\x08\0\0\0\x03SELECT 1",  # MySQL: a length that is not that of the call
    b"\x09\0\0\1\x03SELECT 1",  # not the first of a command
    b"\x09\0\0\0\x17SELECT 1     ",  # no execution
    b"\x10\0\0\0\x0a8.0.36\0" + bytes(8),  # too short for a greeting
    b"\x4a\0\0\0\x0ax.0.36\0" + bytes(64),  # no version
    b"\0\0\0\0\x0e\0\0\0",
    bytes.fromhex("1503030002020a") + bytes(9),  # TLS alert: no opening record
    bytes.fromhex("16030500f80100") + bytes(9),  # no such version
    bytes.fromhex("160303ffff0100") + bytes(9),  # record too long
    bytes.fromhex("1603030010090000") + bytes(8),  # neither hello
]


# What stands in the midst of a pipeline, and what does not.
PIPELINES = [
    (REDIS, b"alue\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),
    (REDIS, b"\r\n*21\r\n$4\r\nMSET"),
    (POSTGRESQL, b"\0\0\0\x011\0\0E\0\0\0\x09\0\0\0\0\0B\0\0"),
    (POSTGRESQL, b"E\0\0\0\x09\0\0\0\0\x64"),  # a hundred rows
]
NO_PIPELINES = [
    (REDIS, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),  # the end of the one before is not in sight
    (REDIS, b"\r\n*2\r\n:1\r\n"),
    (REDIS, b"\r\n*123\r\n$4\r\nMSET"),
    (POSTGRESQL, b"E\0\0\0\x0bs_1\0\0\0\0\0"),  # of a portal that has a name
    (POSTGRESQL, b"\r\n*2\r\n$3\r\nGET"),
    (MYSQL, b"\x09\0\0\0\x03SELECT 1"),
    (HTTP1, b"GET / HTTP/1.1\r\n\r\n"),
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("ends")
    source, library = folder / "ends.c", folder / "ends.so"
    source.write_text(
        "#include <stdbool.h>\n#include <stdint.h>\n"
        f'#include "{BPF}/protocols.h"\n#include "{BPF}/ends.h"\n'
        "int pipeline(int protocol, const uint8_t *end) { return ends_in_pipeline(protocol, end); }\n"
        "int error(int protocol, const uint8_t *end) { return error_at_end(protocol, end); }\n"
    )
    strict = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", *strict, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize(
    ("protocol", "data", "wanted"), [(*p, True) for p in PIPELINES] + [(*p, False) for p in NO_PIPELINES]
)
def test_what_goes_on_in_a_pipeline(ends: ctypes.CDLL, protocol: int, data: bytes, wanted: bool) -> None:
    """Wherever it stands among the bytes looked at; what is cut off at their end tells nothing."""
    for before in (0, 1, 100, 512 - len(data)):
        assert ends.pipeline(protocol, (b"x" * before + data).ljust(512, b"x")) == wanted
    assert not ends.pipeline(protocol, b"x" * 506 + data), "no more than 512 bytes"


def refusal(text: bytes) -> bytes:
    """https://www.postgresql.org/docs/15/protocol-message-formats.html: ErrorResponse."""
    fields = b"SERROR\0VERROR\0C22012\0M" + text + b"\0\0"
    return b"E" + (4 + len(fields)).to_bytes(4, "big") + fields


def err(text: bytes) -> bytes:
    """https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_err_packet.html."""
    packet = b"\xff\x28\x04#42000" + text
    return len(packet).to_bytes(3, "little") + b"\x07" + packet


READY = b"Z\0\0\0\x05I"


@pytest.mark.parametrize("length", [0, 1, 20, 200, 247, 248, 249, 400, 470])
@pytest.mark.parametrize(
    ("protocol", "error"),
    [
        (POSTGRESQL, refusal),
        (POSTGRESQL, lambda text: refusal(text) + READY),
        (POSTGRESQL, lambda text: refusal(b"inner E\0\0\1\2" + text)),
        (MYSQL, err),
        (MYSQL, lambda text: err(text[1:] + b"#")),
    ],
)
def test_an_error_at_the_end_of_rows_is_found(ends: ctypes.CDLL, protocol, error, length: int) -> None:
    message = error(b"t" * length)
    for rows in (b"x", b"\0", b"\xff", b"#", b"E\0\0\0\4", b"\4\0\0\1\xff\0\0#"):
        data = rows * 512 + message
        assert ends.error(protocol, data[-512:]) == (len(message) if len(message) <= 512 else 0)
        for cut in (1, 2, 5):
            assert not ends.error(protocol, data[-512 - cut : -cut]), "it ends with the call, or is none"


@pytest.mark.parametrize(
    ("protocol", "end"),
    [
        (POSTGRESQL, b"C\0\0\0\x0dSELECT 1\0" + READY),
        (POSTGRESQL, READY),
        (POSTGRESQL, err(b"of another protocol")),
        (MYSQL, refusal(b"of another protocol")),
        (MYSQL, b"\5\0\0\6\xfe\0\0\2\0"),  # EOF
        (MYSQL, b"\x0d\0\0\1\xff\x28\x04too many"),  # no SQLSTATE: before the login
        (REDIS, b"-ERR no\r\n"),
        (HTTP1, b"HTTP/1.1 500 E\r\n\r\n"),
    ],
)
def test_other_ends_are_no_error(ends: ctypes.CDLL, protocol: int, end: bytes) -> None:
    for rows in (b"x", b"\0", b"\xff"):
        assert ends.error(protocol, (rows * 512 + end)[-512:]) == 0


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    """(verdict, protocol) of some bytes. What lies behind them is rubbish, as in the kernel program."""
    folder = tmp_path_factory.mktemp("classify")
    source = folder / "classify.c"
    source.write_text(
        "#include <stdbool.h>\n#include <stdint.h>\n"
        f'#include "{BPF}/protocols.h"\n#include "{BPF}/classify.h"\n'
        "int run(const uint8_t *bytes, uint32_t n, uint32_t size, bool opens, uint8_t *protocol)\n"
        "{ struct classified found = {0}; int verdict = classify(bytes, n, size, opens, &found);"
        "  *protocol = found.protocol; return verdict; }\n"
    )
    library = folder / "classify.so"
    strict = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")  # clang's unroll
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", *strict, "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).run

    def run(data: bytes, opens: bool = False) -> tuple[int, int]:
        known = data[:16]
        protocol = ctypes.c_uint8(0)
        verdicts = {
            (
                function(
                    known + filler * (16 - len(known)), len(known), len(data), opens, ctypes.byref(protocol)
                ),
                protocol.value,
            )
            for filler in (b"\0", b"/", b" ", b"A", b"\xff", b"\x16", b"\n")
        }
        assert len(verdicts) == 1, f"bytes behind the end were looked at: {data!r}"
        return verdicts.pop()

    return run


@pytest.mark.parametrize("data", HTTP_STARTS)
def test_http1_message_starts_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, HTTP1)


@pytest.mark.parametrize("data", MYSQL_STARTS)
def test_mysql_greetings_and_commands_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, MYSQL)
    assert classify(data[:4])[0] == MAYBE, "a client may read the header by itself"


@pytest.mark.parametrize("data", MYSQL_STARTS[:3])
def test_no_prefix_of_a_greeting_is_refused(classify: Classify, data: bytes) -> None:
    assert [classify(data[:n])[0] for n in range(1, 17)] == [MAYBE] * 6 + [YES] * 10


@pytest.mark.parametrize("data", REDIS_STARTS)
def test_redis_commands_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, REDIS)


@pytest.mark.parametrize("data", INLINE_STARTS)
def test_an_inline_command_is_a_guess_where_a_connection_opens(classify: Classify, data: bytes) -> None:
    assert classify(data, True) == (GUESS, REDIS)
    word = len(data.split()[0])
    ends = word + (2 if data[word] == ord("\r") else 1)
    verdicts = [classify(data[:n], True)[0] for n in range(1, 17)]
    assert verdicts == [MAYBE] * (ends - 1) + [GUESS] * (17 - ends)
    assert classify(data)[1] != REDIS


@pytest.mark.parametrize("data", NOT_INLINE)
def test_other_lines_open_nothing_of_ours(classify: Classify, data: bytes) -> None:
    assert classify(data, True)[0] == NO


@pytest.mark.parametrize("data", HTTP_STARTS + MYSQL_STARTS + REDIS_STARTS + POSTGRESQL_STARTS + TLS_STARTS)
def test_what_is_certain_is_no_guess_where_a_connection_opens(classify: Classify, data: bytes) -> None:
    assert classify(data, True) == classify(data)
    assert classify(data)[0] == YES


@pytest.mark.parametrize("data", TLS_STARTS)
def test_tls_hellos_are_encrypted(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, ENCRYPTED)


@pytest.mark.parametrize("data", POSTGRESQL_STARTS)
def test_postgresql_connections_and_statements_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, POSTGRESQL)


@pytest.mark.parametrize("data", NOTHING_OF_OURS)
def test_other_bytes_are_nothing_of_ours(classify: Classify, data: bytes) -> None:
    assert classify(data)[0] == NO


@pytest.mark.parametrize("data", HTTP_STARTS + REDIS_STARTS + TLS_STARTS)
def test_no_prefix_of_a_start_is_refused(classify: Classify, data: bytes) -> None:
    verdicts = [classify(data[:n])[0] for n in range(1, min(len(data), 16) + 1)]
    assert NO not in verdicts
    assert verdicts == sorted(verdicts), "once told, told"


def test_no_bytes_are_too_few(classify: Classify) -> None:
    assert classify(b"")[0] == MAYBE


def test_a_method_longer_than_what_is_looked_at_is_refused(classify: Classify) -> None:
    assert classify(b"A" * 16)[0] == NO
    assert classify(b"A" * 14 + b" /")[0] == YES
