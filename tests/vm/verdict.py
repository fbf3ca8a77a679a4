# SPDX-License-Identifier: Apache-2.0
"""What a run in the virtual machine came to, read from the files that the guest left."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|.)")
NO_VERDICT = 3  # of the machine, not of the tests; pytest's "internal error"


def verdict(share: Path) -> tuple[str, int]:
    """("6.1.0-56-amd64: 81 passed, 1 failed", exit status of pytest in the guest).

    Never good without tests: a status of 0 with no test in the report, or with a failed one, is no success.
    """
    release = (share / "release").read_text().strip()
    text = (share / "status").read_text().strip()
    status = int(text) if text.isdigit() else NO_VERDICT
    try:
        counts = count(share / "report.xml")
    except (OSError, ElementTree.ParseError) as error:
        return (
            f"{release}: pytest ended with status {text!r} and left no report ({error})",
            status or NO_VERDICT,
        )
    parts = [f"{number} {word}" for word, number in counts.items() if number or word == "passed"]
    if status == 0 and (not counts["passed"] or counts["failed"] or counts["errors"]):
        status = NO_VERDICT
    if status > 1:  # 1: tests failed, which the counts say
        parts.append(f"pytest ended with status {text}")
    return f"{release}: {', '.join(parts)}", status


def count(report: Path) -> dict[str, int]:
    """Tests by outcome, from a JUnit report."""
    totals = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        failed, errors, skipped = (int(suite.get(key, "0")) for key in ("failures", "errors", "skipped"))
        totals["failed"] += failed
        totals["errors"] += errors
        totals["skipped"] += skipped
        totals["passed"] += int(suite.get("tests", "0")) - failed - errors - skipped
    return totals


def last_lines(console: Path, lines: int) -> str:
    """The end of the console, without colours and cursor movements."""
    text = console.read_bytes().decode(errors="replace").replace("\r", "")
    kept = [line.rstrip() for line in TERMINAL_CODES.sub("", text).splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
