# SPDX-License-Identifier: Apache-2.0
"""The command line that measurements share: how thorough, where the figures go, what the exit status says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.agent import needs_root
from benchmarks.harness import Report

NO_PERMISSION = 77  # EX_NOPERM


def parser(name: str, description: str | None, profiles: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Of `python -m benchmarks NAME`; the caller adds what is its own."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=description)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--profile", choices=profiles, default="short", help="how thorough (default: short)")
    made.add_argument("--json", type=Path, help="write everything there, raw windows too")
    made.add_argument("--strict", action="store_true", help="exit with 1 when a goal is not reached")
    return made


def measure(
    options: argparse.Namespace,
    profile: Any,
    own: Sequence[str],
    run: Callable[[Any], Report],
) -> int:
    """Measures and reports; the exit status. own: options that replace the profile's field of that name."""
    problem = needs_root()
    if problem:
        print(problem, file=sys.stderr)
        return NO_PERMISSION
    report = run(replace(profile, **{key: getattr(options, key) for key in own if getattr(options, key)}))
    print(report.text())
    if options.json:
        report.write(options.json)
    failed = [figure for figure in report.figures if figure.outcome.startswith("not")]
    return 1 if options.strict and failed else 0
