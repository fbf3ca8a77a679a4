# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the fuzz targets: python -m tests.fuzz.run --seconds 60

The corpus is kept in build/fuzz; that of a protocol starts with the cases of its contract tests. Exits
with 1 when an input broke a promise; libFuzzer then has written it to build/fuzz and its report to the
terminal.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.contract import (
    CLIENT,
    CORE,
    KIND_CLIENT,
    KIND_SERVER,
    ROOT,
    SOURCES,
    Case,
    compile_c,
    protocol_names,
)
from tests.core.sql_cases import CONFORMANCE, DIALECT, MY
from tests.protocols import seeds

TARGETS = ROOT / "tests" / "fuzz"
# Of conversation.h: options, and how a chunk comes.
PARAMETERIZED, FROM_START, SERVER_SIDE = 2, 4, 8
AFTER_LOSS = 2
# Warnings are judged by the build, which is another compiler's.
FLAGS = ("-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-Wno-error")


def compiler() -> str:
    """libFuzzer comes with clang; Debian 12 has it as clang-14."""
    for name in (os.environ.get("CLANG", ""), "clang", "clang-14"):
        if name and shutil.which(name):
            return name
    raise SystemExit("no clang found\nhint: apt install clang-14 libclang-rt-14-dev, or set CLANG")


def write_seeds(corpus: Path, cases: list[Case]) -> None:
    for case in cases:
        control = bytes((case.sender | (case.kind == 2) << 1, case.hints[0] if case.hints else 0, 1, 0))
        for flags in (0, 4):  # without and with cursor.seen
            seed = bytes((control[0] | flags,)) + control[1:] + case.data
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def write_events(corpus: Path, protocol: str, cases: list[Case]) -> None:
    """Seeds of the stream target, in its own small language: a connection, then what is said in chunks."""
    talks = [
        (KIND_SERVER, [*((s, data) for s, data, _ in case.before), (case.sender, case.data)])
        for case in cases
    ]
    talks += [(KIND_CLIENT, seeds.load(name)) for name in seeds.names(protocol)]
    for kind, chunks in talks:
        connection = 2 if kind == KIND_SERVER else 1  # which accepts, which connects
        seed = bytes((connection << 4, 16, 0, 0))
        for sender, data in chunks:
            sends = (sender == CLIENT) == (kind == KIND_CLIENT)
            for at in range(0, len(data), 1500):
                piece = data[at : at + 1500]
                seed += (
                    bytes((connection << 4 | sends << 6 | 4 | 8, 1))
                    + len(piece).to_bytes(2, "little")
                    + piece
                )
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def write_statements(corpus: Path) -> None:
    official = [(False, statement) for statement, _, _ in CONFORMANCE]
    for mysql, statement in official + [(case.dialect == MY, case.statement) for case in DIALECT]:
        seed = bytes((1 | mysql << 1,)) + statement.encode()
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def write_conversations(corpus: Path, protocol: str, cases: list[Case]) -> None:
    """Seeds of conversation.h: what was recorded, and cases with what was said before; also with losses."""
    talks = [(KIND_CLIENT, seeds.load(name)) for name in seeds.names(protocol)]
    for case in cases:
        said = [(sender, data) for sender, data, _ in case.before]
        talks.append((case.kind, [*said, (case.sender, case.data)]))
    for kind, chunks in talks:
        options = PARAMETERIZED | FROM_START | (SERVER_SIDE if kind == KIND_SERVER else 0)
        lossy = [(sender | AFTER_LOSS, data) for sender, data in chunks]
        for variant in (chunks, [*chunks[:2], *lossy[2:]], lossy):
            said = seeds.packed(variant)
            digest = hashlib.sha256(said)  # cuts each in other pieces
            (corpus / digest.hexdigest()[:16]).write_bytes(bytes((options,)) + digest.digest()[:2] + said)


def write_frames(corpus: Path) -> None:
    """Seeds of fuzz_compression.c: what was recorded behind the connection phase; the same text by zstd."""
    for name in (name for name in seeds.names("mysql") if name.endswith("compressed")):
        frames = [data for _, data in seeds.load(name)[3:]]
        for sent in (*frames, b"".join(frames)):
            for options in (0, 2):
                seed = bytes((options, 7, 7)) + sent
                (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    for text in (b"SELECT 1" * 20, bytes(100_000)):
        payload = zstandard.compress(text)
        header = struct.pack("<I", len(payload))[:3] + b"\0" + struct.pack("<I", len(text))[:3]
        for options, begin in (
            (1, payload[:4]),
            (3, payload[:4]),
            (1, b"\x27\xb5\x2f\xfd"),
        ):  # an older format
            seed = bytes((options, 7, 7)) + header + begin + payload[4:]
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def fuzz(name: str, seconds: int) -> int:
    """A target named after a protocol stands on that parser alone, sql on itself, any other on the core."""
    out = ROOT / "build" / "fuzz" / name
    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if name in protocol_names():
        sources = [*SOURCES, CORE / "protocols" / f"{name}.c"]
        cases = importlib.import_module(f"tests.protocols.test_{name}").TestContract.cases
        if seeds.names(name):
            write_conversations(corpus, name, cases)
        else:
            write_seeds(corpus, cases)
    elif name == "sql":
        sources = [CORE / "sql.c"]
        write_statements(corpus)
    elif name == "compression":
        sources = [CORE / f"{part}.c" for part in ("compression", "engine", "routes")]
        write_frames(corpus)
    else:
        for protocol in protocol_names():
            module = importlib.import_module(f"tests.protocols.test_{protocol}")
            write_events(corpus, protocol, module.TestContract.cases)
        sources = sorted({*CORE.glob("*.c"), *CORE.glob("protocols/*.c")} - {CORE / "_core.c"})
    target = compile_c(f"fuzz_{name}", [*sources, TARGETS / f"fuzz_{name}.c"], *FLAGS, compiler=compiler())
    options = [f"-max_total_time={seconds}", "-max_len=16384", "-timeout=10", "-print_final_stats=1"]
    words = TARGETS / f"{protocol_names()[0] if name == 'stream' else name}.dict"
    if words.exists():
        options.append(f"-dict={words}")
    return subprocess.run([target, *options, f"-artifact_prefix={out}/", corpus], check=False).returncode


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    targets = sorted(path.stem.removeprefix("fuzz_") for path in TARGETS.glob("fuzz_*.c"))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("target", nargs="*", default=targets, help=f"of {', '.join(targets)} (default: all)")
    arguments = parser.parse_args()
    failed = [name for name in arguments.target if fuzz(name, arguments.seconds)]
    if failed:
        print(f"fuzzing found a broken promise in: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
