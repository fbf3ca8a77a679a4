# SPDX-License-Identifier: Apache-2.0
"""classify.h, compiled for the host: what begins a message, what does not, and what is too short to tell."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

BPF = Path(__file__).parents[2] / "bpf"
NO, MAYBE, YES = 0, 1, 2
ENCRYPTED, HTTP1, POSTGRESQL = 1, 3, 4
Classify = Callable[[bytes], tuple[int, int]]

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
TLS_STARTS = [
    bytes.fromhex("16030100f8010000f40303"),  # ClientHello, record version 1.0
    bytes.fromhex("160303007a0200007603030000000000"),  # ServerHello
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
    b"get / HTTP/1.1\r\n\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET x HTTP/1.1\r\n\r\n",
    b"GE / HTTP/1.1\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n",
    b"HTTPX1.1 200 OK\r\n",
    b"*1\r\n$4\r\nPING\r\n\r\n",
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
    bytes.fromhex("1503030002020a") + bytes(9),  # TLS alert: no opening record
    bytes.fromhex("16030500f80100") + bytes(9),  # no such version
    bytes.fromhex("160303ffff0100") + bytes(9),  # record too long
    bytes.fromhex("1603030010090000") + bytes(8),  # neither hello
]


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    """(verdict, protocol) of some bytes. What lies behind them is rubbish, as in the kernel program."""
    folder = tmp_path_factory.mktemp("classify")
    source = folder / "classify.c"
    source.write_text(
        "#include <stdbool.h>\n#include <stdint.h>\n"
        f'#include "{BPF}/protocols.h"\n#include "{BPF}/classify.h"\n'
        "int run(const uint8_t *bytes, uint32_t n, uint32_t size, uint8_t *protocol)\n"
        "{ return classify(bytes, n, size, protocol); }\n"
    )
    library = folder / "classify.so"
    strict = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")  # clang's unroll
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", *strict, "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).run

    def run(data: bytes) -> tuple[int, int]:
        known = data[:16]
        protocol = ctypes.c_uint8(0)
        told = ctypes.byref(protocol)
        verdicts = {
            (function(known + filler * (16 - len(known)), len(known), len(data), told), protocol.value)
            for filler in (b"\0", b"/", b" ", b"A", b"\xff", b"\x16")
        }
        assert len(verdicts) == 1, f"bytes behind the end were looked at: {data!r}"
        return verdicts.pop()

    return run


@pytest.mark.parametrize("data", HTTP_STARTS)
def test_http1_message_starts_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, HTTP1)


@pytest.mark.parametrize("data", TLS_STARTS)
def test_tls_hellos_are_encrypted(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, ENCRYPTED)


@pytest.mark.parametrize("data", POSTGRESQL_STARTS)
def test_postgresql_connections_and_statements_are_found(classify: Classify, data: bytes) -> None:
    assert classify(data) == (YES, POSTGRESQL)


@pytest.mark.parametrize("data", NOTHING_OF_OURS)
def test_other_bytes_are_nothing_of_ours(classify: Classify, data: bytes) -> None:
    assert classify(data)[0] == NO


@pytest.mark.parametrize("data", HTTP_STARTS + TLS_STARTS)
def test_no_prefix_of_a_start_is_refused(classify: Classify, data: bytes) -> None:
    verdicts = [classify(data[:n])[0] for n in range(1, min(len(data), 16) + 1)]
    assert NO not in verdicts
    assert verdicts == sorted(verdicts), "once told, told"


def test_no_bytes_are_too_few(classify: Classify) -> None:
    assert classify(b"")[0] == MAYBE


def test_a_method_longer_than_what_is_looked_at_is_refused(classify: Classify) -> None:
    assert classify(b"A" * 16)[0] == NO
    assert classify(b"A" * 14 + b" /")[0] == YES
