# SPDX-License-Identifier: Apache-2.0
"""Findings in the core, through findings_driver.c: what is told, what is only counted, and for whom."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from agent.core._core import ffi, lib

from agent.engine import FINDINGS
from agent.spans import keys_of, read_attributes
from tests.contract import CORE, ROOT, SANITIZE, compile_c

SECOND = 1_000_000_000
SLOW, N_PLUS_ONE = lib.FINDING_SLOW_STATEMENT, lib.FINDING_N_PLUS_ONE


def run(*commands: str, per_second: int = 20) -> list[Any]:
    """The answers of the commands that have one."""
    sources = [path for path in CORE.glob("*.c") if path.name != "_core.c"]
    sources += [*(CORE / "protocols").glob("*.c"), ROOT / "tests/core/findings_driver.c"]
    driver = compile_c("findings_driver", sorted(sources), *SANITIZE, "-Wno-unknown-pragmas")
    done = subprocess.run(
        [driver, str(per_second)],
        input="\n".join(commands),
        env=dict(os.environ, ASAN_OPTIONS="detect_leaks=1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_finding_keeps_what_it_was_given() -> None:
    (rows,) = run(f"at {SECOND}", f"add 1 100 {SLOW} 77 5", f"add 1 200 {N_PLUS_ONE} 78 6", "take")
    first, second = rows
    for row, path in ((first, "xxxxx"), (second, "xxxxxx")):
        data = bytes.fromhex(row.pop("list"))
        assert dict(read_attributes(memoryview(data), 0, len(data), keys_of(lib, ffi))) == {
            "ebpf_otlp_tracer.finding.span_ids": ["00f067aa0ba902b7", "b7ad6b7169203331"],
            "url.path": path,
        }
    assert first == {
        "tgid": 100,
        "finding": "slow_statement",
        "ktime_ns": 77,
        "severity": 13,
        "trace": "ab" * 16,
    }
    assert (second["tgid"], second["finding"], second["ktime_ns"]) == (200, "n_plus_one", 78)


def test_findings_are_taken_once() -> None:
    taken = run(f"at {SECOND}", f"add 2 100 {SLOW} 1 1", "take", f"add 1 100 {SLOW} 2 1", "take", "take")
    assert [[row["ktime_ns"] for row in rows] for rows in taken] == [[1, 1], [2], []]


def test_what_was_taken_stays_while_others_come() -> None:
    add = f"add 2 100 {SLOW} 1 1"
    taken, again = run(f"at {SECOND}", add, "take", f"add 2 200 {N_PLUS_ONE} 2 9", "again")
    assert taken == again


def test_a_second_has_a_cap_of_each_kind_and_what_is_over_it_is_counted() -> None:
    rows, count, later = run(
        f"at {5 * SECOND}",
        f"add 15 100 {SLOW} 1 1",
        f"at {5 * SECOND + SECOND - 1}",
        f"add 8 100 {SLOW} 1 1",
        f"add 2 100 {N_PLUS_ONE} 1 1",
        "take",
        "count 100",
        f"at {6 * SECOND}",
        f"add 3 100 {SLOW} 1 1",
        "take",
    )
    assert [row["finding"] for row in rows] == ["slow_statement"] * 20 + ["n_plus_one"] * 2
    assert count == {"findings": 25, "left_out": 3, "by_name": {"slow_statement": 23, "n_plus_one": 2}}
    assert len(later) == 3


def test_without_a_rate_all_are_only_counted() -> None:
    rows, count = run(f"at {SECOND}", f"add 7 100 {SLOW} 1 1", "take", "count 100", per_second=0)
    assert rows == []
    assert count == {"findings": 7, "left_out": 7, "by_name": {"slow_statement": 7}}


def test_a_batch_that_nobody_takes_has_a_cap_of_rows() -> None:
    adds = f"add 1500 100 {SLOW} 1 1"
    rows, count, more = run(f"at {SECOND}", adds, "take", "count 100", adds, "take", per_second=9999)
    assert len(rows) == len(more) == 1024
    assert (count["findings"], count["left_out"]) == (1500, 1500 - 1024)


def test_a_batch_that_nobody_takes_has_a_cap_of_bytes() -> None:
    adds = [f"add 2 100 {SLOW} 1 {100 * 1024}", f"add 1 100 {SLOW} 2 {100 * 1024}", f"add 1 100 {SLOW} 3 9"]
    rows, count = run(f"at {SECOND}", *adds, "take", "count 100")
    assert [row["ktime_ns"] for row in rows] == [1, 1, 3]
    assert (count["findings"], count["left_out"]) == (4, 1)


def test_counts_are_by_process_and_go_with_it() -> None:
    commands = [f"at {SECOND}", f"add 2 100 {SLOW} 1 1", f"add 3 200 {SLOW} 1 1"]
    one, two, gone, again = run(
        *commands, "count 100", "count 200", "drop 100", "count 100", f"add 1 100 {SLOW} 1 1", "count 100"
    )
    assert [each["by_name"] for each in (one, two, gone, again)] == [
        {"slow_statement": 2},
        {"slow_statement": 3},
        {},
        {"slow_statement": 1},
    ]


def test_every_finding_has_a_name_and_a_sentence() -> None:
    assert len({finding.name for finding in FINDINGS}) == lib.FINDING_COUNT == len(FINDINGS)
    for finding in FINDINGS:
        assert finding.sentence[0].isupper() and finding.sentence.endswith(".")
    assert FINDINGS[SLOW].name == "slow_statement"
    assert ffi.string(lib.finding_name(lib.FINDING_COUNT)) == b""
