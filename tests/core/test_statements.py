# SPDX-License-Identifier: Apache-2.0
"""The cache of statements against a model of it: never another statement's text, never above its cap."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from tests.contract import CORE, ROOT, SANITIZE, compile_c

ROOM = 1 << 20
TABLES = 8
PREPARED_MAX = 1024  # agent/core/statements.h


def run(commands: list[str], bytes_max: int = ROOM) -> list[str]:
    sources = [CORE / "statements.c", CORE / "sql.c", ROOT / "tests/core/statements_driver.c"]
    driver = compile_c("statements_driver", sources, *SANITIZE)
    done = subprocess.run(
        [driver, str(bytes_max)],
        input="\n".join(commands),
        env=dict(os.environ, ASAN_OPTIONS="detect_leaks=1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def counts(line: str) -> dict[str, int]:
    names = ("bytes", "read", "found", "refused", "forgotten")
    return dict(zip(names, map(int, line.split()), strict=True))


def test_a_statement_is_read_once() -> None:
    *texts, told = run(["sql 1", "sql 2", "sql 1", "sql 1", "counts"])
    assert texts == ["SELECT table_1", "SELECT table_2", "SELECT table_1", "SELECT table_1"]
    assert (counts(told)["read"], counts(told)["found"]) == (2, 2)


def test_what_is_prepared_is_found_by_its_key_alone() -> None:
    said = run(
        ["put 0 5 1", "put 1 5 2", "get 0 5", "get 1 5", "get 0 6", "remove 0 5", "get 0 5", "get 1 5"]
    )
    assert said[2:] == ["SELECT table_1", "SELECT table_2", "none", "removed", "none", "SELECT table_2"]


def test_a_name_whose_text_is_not_known_hides_the_one_before() -> None:
    assert run(["put 0 5 1", "put 0 5 -1", "get 0 5"])[-1] == "none"


def test_above_the_most_of_one_connection_the_first_is_forgotten() -> None:
    said = run([*(f"put 0 {n + 1} {n}" for n in range(PREPARED_MAX + 2)), "get 0 2", "get 0 3", "counts"])
    assert said[-3:-1] == ["none", "SELECT table_2"]
    assert counts(said[-1])["forgotten"] == 2


def test_without_room_a_statement_has_no_text() -> None:
    said = run(["sql 1", "put 0 1 1", "get 0 1", "counts"], bytes_max=20)
    assert said[:3] == ["none", "put", "none"]
    assert counts(said[3])["bytes"] == 0 and counts(said[3])["refused"] == 3


@pytest.mark.parametrize("bytes_max", [4_000, 30_000, ROOM])
@pytest.mark.parametrize("seed", range(8))
def test_against_a_model(seed: int, bytes_max: int) -> None:
    """Random use. With room enough every answer is known; with little it is the right one, or none."""
    rng = random.Random(seed)
    commands, expected = [], []
    model: dict[tuple[int, int], int] = {}
    for _ in range(3000):
        table, key, n = rng.randrange(TABLES), rng.randrange(1, 30), rng.randrange(120)
        match rng.choice("ssppppggggrc" if rng.random() < 0.99 else "C"):
            case "s":
                commands.append(f"sql {n}")
                expected.append(f"SELECT table_{n}")
            case "p":
                commands.append(f"put {table} {key} {n}")
                expected.append("put")
                model[table, key] = n
            case "g":
                commands.append(f"get {table} {key}")
                expected.append(f"SELECT table_{model[table, key]}" if (table, key) in model else "none")
            case "r":
                commands.append(f"remove {table} {key}")
                expected.append("removed")
                model.pop((table, key), None)
            case "c":
                commands.append("counts")
                expected.append("")
            case "C":
                commands.append(f"clear {table}")
                expected.append("cleared")
                model = {place: m for place, m in model.items() if place[0] != table}
    for command, said, wanted in zip(commands, run(commands, bytes_max), expected, strict=True):
        if command == "counts":
            assert counts(said)["bytes"] <= bytes_max
        elif bytes_max == ROOM or said != "none":
            assert said == wanted, command
