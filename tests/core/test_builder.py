# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (byte literals side by side)
"""builder.c: text becomes valid UTF-8 as Python's own decoder makes it; an attribute is there whole or not."""

from __future__ import annotations

import ipaddress
import random
import re
import struct
from typing import Any

import pytest

from tests.contract import CORE, Options, address_bytes, driver

KEYS = re.findall(r"^    X\((\w+), ", (CORE / "attributes.h").read_text(), re.MULTILINE)
URL_PATH, URL_QUERY, STATUS = (
    KEYS.index(key) + 1 for key in ("URL_PATH", "URL_QUERY", "HTTP_RESPONSE_STATUS_CODE")
)
CAPTURED = 1024  # KEY_CAPTURED


def clean(data: bytes, limit: int = 1 << 16) -> str:
    return driver().call(b"T", struct.pack("<I", limit), data)["text"]


def expected(data: bytes) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", data.decode(errors="replace"))


def built(capacity: int, *operations: tuple[str, int, int, bytes | int]) -> dict[str, Any]:
    """(kind, key, limit, value): kind t a text, s an element of a list of texts, i an integer."""
    job = struct.pack("<I", capacity)
    for kind, key, limit, value in operations:
        data = struct.pack("<q", value) if isinstance(value, int) else value
        job += struct.pack("<cHII", kind.encode(), key, limit, len(data)) + data
    return driver().use(Options(request_headers=("a", "b"))).call(b"B", job)


@pytest.mark.parametrize("data", [
    b"", b"plain", b"eight by", b"exactly sixteen.", b"nine byte", "gr\u00fc\u00df \u4e2d \U0001f600".encode(),
    b"\x00\x1f\x7f\x80\xff", b"tab\tline\r\n", b"\xc2\x80\xc2\x9f\xc2\xa0", b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80",
    b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xf0\x9f\x98x", b"\xe4\xb8\xc3\xa9",
    b"12345678\x0112345678901234567890", b"12345678\xe2\x8212345678",
])  # fmt: skip
def test_text_is_what_python_decodes(data: bytes) -> None:
    assert clean(data) == expected(data)


def test_random_bytes_are_what_python_decodes() -> None:
    rng = random.Random(23)
    bytes_of_interest = b"abcdefgh \x00\x1f\x7f\x80\x8f\x90\x9f\xa0\xbf\xc2\xc3\xe0\xe4\xed\xef\xf0\xf4\xff"
    for _ in range(3000):
        data = bytes(rng.choice(bytes_of_interest) for _ in range(rng.randrange(40)))
        assert clean(data) == expected(data)


def test_text_is_cut_at_a_character() -> None:
    data = "abc\u00fc\u4e2d\U0001f600xyz01234567".encode()
    for limit in range(len(data) + 1):
        assert clean(data, limit) == data[:limit].decode(errors="ignore")


@pytest.mark.parametrize("text", [
    "0.0.0.0", "127.0.0.1", "255.249.10.99", "::", "::1", "1::", "2001:db8::1", "2001:db8:0:1:1:1:1:1",
    "2001:0:0:1::1", "2001:db8::1:0:0:1", "1:2:3:4:5:6:7:8", "fe80::abcd:0:12", "::1:2:3:4:5:6:7", "1:2:3:4:5:6:7::",
    "::102:304", "64:ff9b::c000:201", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
])  # fmt: skip
def test_addresses_are_written_by_rfc_5952(text: str) -> None:
    assert driver().call(b"A", address_bytes(text))["text"] == str(ipaddress.ip_address(text))


def test_random_addresses_are_written_as_python_writes_them() -> None:
    rng = random.Random(23)
    for _ in range(500):
        packed = b"".join(rng.choice((b"\0\0", b"\0\1", rng.randbytes(2))) for _ in range(8))
        if packed[:12] != bytes(10) + b"\xff\xff":
            assert driver().call(b"A", packed)["text"] == str(ipaddress.IPv6Address(packed))


def test_attributes_lie_behind_each_other_padded_to_eight_bytes() -> None:
    found = built(200, ("t", URL_PATH, 99, b"/abc"), ("i", STATUS, 0, -5), ("t", URL_QUERY, 99, b"12345678"))
    assert found == {
        "size": 16 + 16 + 16,
        "left_out": 0,
        "attributes": {"url.path": "/abc", "http.response.status_code": -5, "url.query": "12345678"},
    }


def test_texts_of_one_key_in_a_row_are_one_list() -> None:
    found = built(
        200,
        *[("s", CAPTURED, 99, text) for text in (b"one", b"", b"three and more")],
        ("s", CAPTURED + 1, 3, b"cut off"),
    )
    assert found["attributes"] == {
        "http.request.header.a": ["one", "", "three and more"],
        "http.request.header.b": ["cut"],
    }


def test_what_does_not_fit_is_left_out_whole_and_counted() -> None:
    """In a list of every size; address sanitizer watches its end."""
    operations = [
        ("t", URL_PATH, 99, b"/abcdefgh"),
        ("s", CAPTURED, 99, b"one"),
        ("s", CAPTURED, 99, "tw\u00f6".encode()),
        ("i", STATUS, 0, 7),
    ]
    texts = {
        "url.path": "/abcdefgh",
        "http.request.header.a": ["one", "tw\u00f6"],
        "http.response.status_code": 7,
    }
    sizes = {}
    for capacity in range(100):
        found = built(capacity, *operations)
        sizes[capacity] = found["size"]
        assert found["size"] <= capacity
        elements = sum(len(v) if isinstance(v, list) else 1 for v in found["attributes"].values())
        assert elements + found["left_out"] == 4
        for key, value in found["attributes"].items():
            assert value in (texts[key], ["one"], ["tw\u00f6"])
    assert (sizes[0], sizes[7], sizes[99]) == (0, 0, 24 + 24 + 16)


def test_a_text_longer_than_its_limit_is_cut_and_not_left_out() -> None:
    assert built(24, ("t", URL_PATH, 10, b"x" * 100)) == {
        "size": 24,
        "left_out": 0,
        "attributes": {"url.path": "x" * 10},
    }
    assert built(23, ("t", URL_PATH, 10, b"x" * 100)) == {"size": 0, "left_out": 1, "attributes": {}}
