# SPDX-License-Identifier: Apache-2.0
"""cursor.h: lines are read whole or not at all, and never past the window (which ends at a guard page)."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.contract import driver

OK, NEED_MORE, INVALID = range(3)  # enum parse_status


def line(data: bytes, limit: int = 100) -> dict[str, Any]:
    return driver().call(b"L", struct.pack("<I", limit), data)


@pytest.mark.parametrize(("data", "text", "read"), [
    (b"abc\r\nrest", b"abc", 5),
    (b"abc\nrest", b"abc", 4),
    (b"\r\n", b"", 2),
    (b"\n", b"", 1),
    (b"a\rb\r\r\n", b"a\rb\r", 6),
])  # fmt: skip
def test_a_line_is_read_without_its_end(data: bytes, text: bytes, read: int) -> None:
    assert line(data) == {"status": OK, "need": 0, "at": read, "line": text.hex()}


@pytest.mark.parametrize("data", [b"", b"a", b"abc\r", b"x" * 100])
def test_a_line_without_an_end_needs_one_byte_more_at_least(data: bytes) -> None:
    assert line(data) == {"status": NEED_MORE, "need": len(data) + 1, "at": 0, "line": ""}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_the_limit_is_read_and_a_longer_one_is_invalid(end: bytes) -> None:
    assert line(b"x" * 10 + end, limit=10)["status"] == OK
    assert line(b"x" * 11 + end, limit=10)["status"] == INVALID


def test_an_endless_line_is_invalid_as_soon_as_its_end_would_be_too_late() -> None:
    assert line(b"x" * 10 + b"\r", limit=10)["status"] == NEED_MORE
    assert line(b"x" * 12, limit=10)["status"] == INVALID
