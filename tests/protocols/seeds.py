# SPDX-License-Identifier: Apache-2.0
"""Recorded conversations of real clients with real servers: cases for the parsers, corpora for the fuzzers.

    recorded/PROTOCOL/FEATURE[-CONNECTION].bin, made by `python -m tests.protocols.capture`

A file is chunks, in the order in which a relay between the two received them, each as one receive gave it:

    1 byte   sender: 0 client, 1 server
    4 bytes  length, big endian
    length   bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from random import Random

FOLDER = Path(__file__).resolve().parent / "recorded"
FOLDERS = {"postgresql": "postgres"}  # of protocols that have another name than the servers recorded
_HEAD = struct.Struct(">BI")

Chunk = tuple[int, bytes]


def names(protocol: str) -> list[str]:
    """What `load` takes: "postgres/simple", "postgres/notify-2"..."""
    folder = FOLDERS.get(protocol, protocol)
    return sorted(f"{folder}/{path.stem}" for path in (FOLDER / folder).glob("*.bin"))


def load(name: str) -> list[Chunk]:
    """The chunks of a conversation: (sender, bytes)."""
    data = (FOLDER / f"{name}.bin").read_bytes()
    chunks: list[Chunk] = []
    at = 0
    while at < len(data):
        sender, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if sender not in (0, 1) or length == 0 or at + length > len(data):
            raise ValueError(f"{name}.bin is no seed: chunk {len(chunks)} ends wrong")
        chunks.append((sender, data[at : at + length]))
        at += length
    return chunks


def cut(chunks: list[Chunk], rng: Random, most: int) -> list[Chunk]:
    """In pieces of 1 to `most` bytes, but for the first chunk: a protocol is known by how it begins."""
    pieces = chunks[:1]
    for sender, data in chunks[1:]:
        at = 0
        while at < len(data):
            size = rng.randint(1, most)
            pieces.append((sender, data[at : at + size]))
            at += size
    return pieces


def packed(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(_HEAD.pack(sender, len(data)) + data for sender, data in chunks)


def save(name: str, chunks: Iterable[Chunk]) -> Path:
    path = FOLDER / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(chunks))
    return path
