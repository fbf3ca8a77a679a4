# SPDX-License-Identifier: Apache-2.0
"""Protobuf's wire format, as far as OTLP needs it: write a message's fields, read a small answer.

https://protobuf.dev/programming-guides/encoding/
Writers return the bytes of one field; a message is their concatenation in the order of field numbers.
Proto3 leaves out a field that has its default value; `optional` and `oneof` fields are always written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from agent.spans import AttributeValue

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_U64 = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Base 128 of a 64-bit number; negative ones as two's complement."""
    value &= _U64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """A string; half surrogates, which UTF-8 cannot hold, become '?'. Empty: no field."""
    return bytes_field(number, value.encode("utf-8", "replace")) if value else b""


def fixed64_field(number: int, value: int) -> bytes:
    return varint(number << 3 | FIXED64) + struct.pack("<Q", value & _U64)


def double_field(number: int, value: float) -> bytes:
    return varint(number << 3 | FIXED64) + struct.pack("<d", value)


def packed_field(number: int, code: str, values: Sequence[int] | Sequence[float]) -> bytes:
    """Repeated fixed64 (code "Q") or double ("d"). Empty: no field."""
    return bytes_field(number, struct.pack(f"<{len(values)}{code}", *values)) if values else b""


def any_value(value: AttributeValue) -> bytes:
    """opentelemetry.proto.common.v1.AnyValue, without its length."""
    if isinstance(value, str):
        return bytes_field(1, value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return varint_field(2, value)
    if isinstance(value, int):
        return varint_field(3, value)
    if isinstance(value, float):
        return double_field(4, value)
    return bytes_field(5, b"".join(bytes_field(1, any_value(item)) for item in value))


def attributes_field(number: int, attributes: Mapping[str, AttributeValue]) -> bytes:
    """Repeated KeyValue."""
    return b"".join(
        bytes_field(number, text_field(1, key) + bytes_field(2, any_value(value)))
        for key, value in attributes.items()
    )


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: int for varint and fixed, bytes for the rest.

    Raises ValueError where the message is not protobuf.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        if wire == BYTES:
            size, at = _read_varint(message, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(message) - at:
            raise ValueError(f"{size} bytes announced at byte {at}, {len(message) - at} there")
        part = message[at : at + size]
        at += size
        yield tag >> 3, part if wire == BYTES else int.from_bytes(part, "little")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, at
    raise ValueError(f"no end of the number at byte {at}")
