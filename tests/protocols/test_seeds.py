# SPDX-License-Identifier: Apache-2.0
"""The seeds are whole, small, of every feature, and begin as their protocols' specifications say."""

from __future__ import annotations

import struct

import pytest

from tests.protocols import capture, seeds

ALL = [name for protocol in capture.PROTOCOLS for name in seeds.names(protocol)]


def test_each_feature_that_is_captured_has_its_seed_and_nothing_else_is_there():
    wanted = {
        f"{protocol}/{client}-{feature}"
        for protocol, (_, clients) in capture.PROTOCOLS.items()
        for client, features in clients.items()
        for feature in features
    }
    more_connections = {name for name in ALL if name[-1].isdigit() and name[-2] == "-"}
    assert set(ALL) - more_connections == wanted


def test_they_stay_small():
    sizes = [path.stat().st_size for path in seeds.FOLDER.glob("*/*.bin")]
    assert max(sizes) <= capture.FILE_BYTES
    assert sum(sizes) <= 300_000


@pytest.mark.parametrize("name", ALL)
def test_a_seed_begins_as_its_protocol_does(name):
    chunks = seeds.load(name)
    sender, first = chunks[0]
    match name.partition("/")[0]:
        case "postgres":  # https://www.postgresql.org/docs/15/protocol-message-formats.html
            length, code = struct.unpack(">II", first[:8])
            versions = {196608: "StartupMessage", 80877103: "SSLRequest", 80877102: "CancelRequest"}
            assert (sender, length) == (0, len(first))
            assert code in versions
        case "mysql":  # https://mariadb.com/kb/en/connection/: length, sequence number, protocol version
            assert (sender, first[:3], first[3], first[4]) == (
                1,
                (len(first) - 4).to_bytes(3, "little"),
                0,
                10,
            )
        case "redis":
            assert sender == 0
            assert first.startswith(b"*") or name.endswith("inline")


def test_what_is_saved_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "FOLDER", tmp_path)
    chunks = [(0, b"a"), (1, b"\0" * 70_000), (1, b"b"), (0, b"c")]
    path = seeds.save("p/f", chunks)
    assert seeds.load("p/f") == chunks
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"chunk 3 ends wrong"):
        seeds.load("p/f")
