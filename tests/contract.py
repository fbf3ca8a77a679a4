# SPDX-License-Identifier: Apache-2.0
"""The checks that every protocol of the core passes, from its list of cases alone.

A test file gives its cases and names its protocol:

    class TestContract(Contract):
        protocol = "redis"
        cases: ClassVar = [Case("ping", CLIENT, b"*1\\r\\n$4\\r\\nPING\\r\\n", [{"body": 0}])]

and gets: whole, byte by byte, in random pieces, with bytes behind it, changed at random. The parser runs
in `tests/core/contract_driver.c`, built with address and undefined-behaviour sanitizers, on windows that
lie against a page that cannot be read; `tests/core/checked.h` says what is checked at every step.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import ipaddress
import json
import os
import random
import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "agent" / "core"
BUILD = ROOT / "build" / "tests"
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

CLIENT, SERVER = 0, 1  # enum sender
KIND_SERVER, KIND_CLIENT = 2, 3  # enum span_kind
TO_END = 2**64 - 1  # SKIP_TO_END

# What protocols/*.c stand on; the engine is not among it.
SHARED = "builder", "url", "http", "routes", "exchange", "sql", "statements", "database", "redis_commands"
SOURCES = [CORE / f"{name}.c" for name in SHARED]


def protocol_names() -> list[str]:
    """In the order of bpf/protocols.h, which numbers them for the driver too."""
    define = re.search(r"#define PROTOCOLS\(X\)((?:.*\\\n)*.*)", (ROOT / "bpf/protocols.h").read_text())
    assert define is not None
    return re.findall(r"X\(\w+, (\w+), [01]\)", define[1])


def compile_c(name: str, sources: list[Path], *flags: str, compiler: str = "cc") -> Path:
    """An executable in build/tests, made again when a source, a header or a flag is another."""
    folders = CORE, ROOT / "bpf", ROOT / "tests/core", ROOT / "tests/fuzz"
    headers = sorted(path for folder in folders for path in folder.glob("*.h"))
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    out = BUILD / f"{name}-{digest.hexdigest()[:16]}"
    if not out.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(f".{os.getpid()}")
        include = [f"-I{path}" for path in (*folders, ROOT)]
        command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, *include]
        subprocess.run([*command, *map(str, sources), "-lz", "-lzstd", "-o", str(partial)], check=True)
        partial.rename(out)
    return out


def driver_sources() -> list[Path]:
    parsers = [CORE / "protocols" / f"{name}.c" for name in protocol_names()]
    return [*SOURCES, *parsers, ROOT / "tests/core/contract_driver.c"]


@dataclass(frozen=True)
class Options:
    """struct protocol_options; the defaults are those of the semantic conventions."""

    route_heuristic: bool = True
    routes_max: int = 100
    redact: tuple[str, ...] = (
        "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId",
        "Signature", "sig", "X-Goog-Signature",
    )  # fmt: skip
    methods: tuple[str, ...] = (
        "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
    )  # fmt: skip
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()

    def packed(self) -> bytes:
        out = struct.pack("<BI", self.route_heuristic, self.routes_max)
        for strings in (self.redact, self.methods, self.request_headers, self.response_headers):
            out += struct.pack("<I", len(strings))
            out += b"".join(struct.pack("<I", len(s)) + s.encode() for s in strings)
        return out


def address_bytes(text: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


@dataclass(frozen=True)
class Side:
    """Who sends, who watches, and from where to where."""

    protocol: str
    sender: int = CLIENT
    kind: int = KIND_SERVER
    local: tuple[str, int] = ("10.0.0.1", 8080)
    remote: tuple[str, int] = ("192.0.2.7", 41234)

    def packed(self, use_seen: bool = False) -> bytes:
        head = (protocol_names().index(self.protocol), self.sender, self.kind, use_seen)
        ports = struct.pack("<4BHH", *head, self.local[1], self.remote[1])
        return ports + address_bytes(self.local[0]) + address_bytes(self.remote[0])


class Driver:
    """One process of contract_driver.c; a call is a line of JSON out of it."""

    def __init__(self) -> None:
        path = compile_c("contract_driver", driver_sources(), *SANITIZE)
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.options: Options | None = None
        atexit.register(self.process.kill)

    def call(self, command: bytes, *parts: bytes) -> Any:
        job = command + b"".join(parts)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(struct.pack("<I", len(job)) + job)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            driver.cache_clear()
            pytest.fail(f"the driver ended with {self.process.wait()}: its report is on stderr")
        return json.loads(line)

    def use(self, options: Options) -> Driver:
        if options != self.options:
            self.call(b"O", options.packed())
            self.options = options
        return self

    def stream(
        self,
        side: Side,
        data: bytes,
        pieces: list[int] | None = None,
        hints: tuple[int, ...] = (),
        use_seen: bool = False,
        before: tuple[tuple[int, bytes, int], ...] = (),
    ) -> dict[str, Any]:
        """Steps that the engine would see when `data` comes in pieces of these sizes.

        before: what both sides had said: sender, bytes, and for answers the hint of what they answer.
        """
        pieces = [len(data)] if pieces is None else pieces
        lists = struct.pack(f"<I{len(hints)}I", len(hints), *hints)
        lists += struct.pack(f"<I{len(pieces)}I", len(pieces), *pieces)
        lists += struct.pack("<I", len(before))
        for sender, said, hint in before:
            lists += struct.pack("<BII", sender, hint, len(said)) + said
        run: dict[str, Any] = self.call(b"S", side.packed(use_seen), lists, data)
        return run

    def garbage(self, side: Side, data: bytes, seed: int, rounds: int) -> None:
        self.call(b"G", side.packed(), struct.pack("<QI", seed, rounds), data)

    def resync(self, side: Side, data: bytes, start: int = 0) -> int:
        return int(self.call(b"R", side.packed(), struct.pack("<I", start), data)["start"])

    def finish(
        self,
        side: Side,
        request: bytes,
        response: bytes = b"",
        outcome: int = 0,
        bodies: tuple[int, int] = (-1, -1),
    ) -> dict[str, Any]:
        sizes = struct.pack("<BqqII", outcome, *bodies, len(request), len(response))
        span: dict[str, Any] = self.call(b"F", side.packed(), sizes, request, response)
        return span


@functools.cache
def driver() -> Driver:
    return Driver()


@dataclass(frozen=True)
class Case:
    """Bytes of one direction and the messages in them.

    A message is a dict of what is expected: `body` (bytes of content, TO_END: until close), any field of
    struct step, and `attributes`, of which those given are compared; None: must not be there.
    `end`: "between" messages, "until close", "opaque", "invalid", or "need" more.
    """

    name: str
    sender: int
    data: bytes
    messages: list[dict[str, Any]]
    end: str = "between"
    hints: tuple[int, ...] = ()
    before: tuple[tuple[int, bytes, int], ...] = ()
    kind: int = KIND_SERVER
    remote: tuple[str, int] = ("192.0.2.7", 41234)
    options: Options = field(default_factory=Options)

    def side(self, protocol: str) -> Side:
        return Side(protocol, self.sender, self.kind, remote=self.remote)


def messages(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a stream put together: one dict for each message, with the sum of its body."""
    out: list[dict[str, Any]] = []
    open_message = False
    for step in run["steps"]:
        if step["begins"]:
            if open_message:
                out[-1]["complete"] = True
            out.append({**step, "body": 0, "complete": False})
            open_message = True
        elif open_message:
            last = out[-1]
            last["attributes"].update(step["attributes"])
            last.update({name: last[name] | step[name] for name in ("hint", "traits", "failed")})
            last.update({name: step[name] for name in ("silent", "unanswered")})
            last.update({name: step[name] or last[name] for name in ("status", "transaction", "shape")})
            last["exact"] = step["exact"] if step["shape"] else last["exact"]
        if step["body"]:
            assert open_message, "content outside of a message"
            out[-1]["body"] += step["body"]
        if step["ends"]:
            assert open_message, "an end without a beginning"
            out[-1]["complete"] = True
            open_message = False
    for message in out:
        for detail in ("consumed", "window", "skip", "whole", "begins", "ends"):
            del message[detail]
    return out


def random_pieces(length: int, rng: random.Random) -> list[int]:
    pieces = []
    while length:
        pieces.append(min(length, rng.choice((1, 1, 2, 3, 7, 40, 300, length))))
        length -= pieces[-1]
    return pieces


def bytewise(length: int) -> list[int]:
    """One by one; in a long case only where it is not all alike."""
    if length <= 6000:
        return [1] * length
    return [1] * 3000 + [499] * ((length - 6000) // 499) + [1] * (3000 + (length - 6000) % 499)


class Contract:
    """Give it `protocol` and `cases`."""

    protocol: ClassVar[str]
    cases: ClassVar[list[Case]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cases = metafunc.cls.cases
        metafunc.parametrize("case", cases, ids=[case.name.replace(" ", "_") for case in cases])

    def run(self, case: Case, pieces: list[int] | None = None, use_seen: bool = False) -> dict[str, Any]:
        core = driver().use(case.options)
        return core.stream(case.side(self.protocol), case.data, pieces, case.hints, use_seen, case.before)

    def test_whole(self, case: Case) -> None:
        run = self.run(case)
        found = messages(run)
        assert run["end"] == case.end
        assert len(found) == len(case.messages)
        for message, expected in zip(found, case.messages, strict=True):
            for name, value in expected.items():
                if name == "attributes":
                    assert {key: message["attributes"].get(key) for key in value} == value
                else:
                    assert message[name] == value, name

    def test_every_prefix_needs_more_and_reads_nothing(self, case: Case) -> None:
        """Byte by byte each step is read at its own last byte, not before and not later."""
        whole = self.run(case)
        for use_seen in (False, True):
            run = self.run(case, bytewise(len(case.data)), use_seen)
            if case.end == "invalid":  # it may be found out before all is there
                assert run["end"] == "invalid"
                assert messages(run) == messages(whole)[: len(messages(run))]
                continue
            assert (messages(run), run["end"]) == (messages(whole), whole["end"])
            if len(case.data) <= 6000:
                assert [step["window"] for step in run["steps"]] == [
                    step["consumed"] for step in run["steps"]
                ]

    def test_random_pieces_give_the_same_messages(self, case: Case) -> None:
        whole = messages(self.run(case))
        rng = random.Random(case.name)
        for round_number in range(12):
            run = self.run(case, random_pieces(len(case.data), rng), use_seen=bool(round_number % 2))
            assert run["end"] == case.end
            if case.end != "invalid":
                assert messages(run) == whole

    def test_bytes_behind_a_message_are_not_touched(self, case: Case) -> None:
        if case.end != "between":
            return
        whole = self.run(case)
        for behind in (b"\0", b"\xff" * 300, case.data):
            core = driver().use(case.options)
            data = case.data + behind
            run = core.stream(case.side(self.protocol), data, None, case.hints, before=case.before)
            assert run["steps"][: len(whole["steps"])] == [
                {**step, "window": step["window"] + len(behind)} for step in whole["steps"]
            ]

    def test_garbage_ends_and_reads_nothing_outside(self, case: Case) -> None:
        rounds = 300 if len(case.data) < 2000 else 20
        driver().use(case.options).garbage(case.side(self.protocol), case.data, len(case.data), rounds)


def bench() -> None:
    """Nanoseconds per parse and per route: python -m tests.contract"""
    subprocess.run([compile_c("bench", driver_sources(), "-O2"), "bench"], check=True)


if __name__ == "__main__":
    bench()
