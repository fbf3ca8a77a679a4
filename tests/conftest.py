# SPDX-License-Identifier: Apache-2.0
"""Rules for all tests: with CI set, a test that cannot run has failed; a slow machine has more time."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from benchmarks.patience import patience


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.timeout is None:  # pytest-timeout's; the command line leads, as always
        config.option.timeout = patience(float(config.getini("timeout")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"could not run, and CI is set: {report.longrepr}"
    return report
