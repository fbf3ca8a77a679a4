# SPDX-License-Identifier: Apache-2.0
"""What surrounds the virtual machine, without one: the kernel's package, the verdict, a failing machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.patience import patience
from tests.vm import run
from tests.vm.kernel_image import KernelImage, KernelImageError, package_of
from tests.vm.verdict import NO_VERDICT, last_lines, verdict

DEPENDS = "linux-image-amd64\n  Depends: {}\n"
IMAGE = KernelImage("6.1.0-0-amd64", Path("/nowhere/boot/vmlinuz-6.1.0-0-amd64"))


def test_the_package_is_what_the_meta_package_depends_on() -> None:
    package = "linux-image-6.1.0-56-amd64"
    assert package_of(DEPENDS.format(package)) == (package, "6.1.0-56-amd64")
    backport = "linux-image-6.12.9+bpo-1-amd64"
    assert package_of(DEPENDS.format(backport)) == (backport, "6.12.9+bpo-1-amd64")


@pytest.mark.parametrize(
    "other", ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-amd64-unsigned", "linux-base"]
)
def test_other_flavours_are_not_taken(other: str) -> None:
    with pytest.raises(KernelImageError, match=other):
        package_of(DEPENDS.format(other))


def report(share: Path, status: str, cases: str, counts: str) -> Path:
    (share / "release").write_text("6.1.0-56-amd64\n")
    (share / "status").write_text(f"{status}\n")
    (share / "report.xml").write_text(
        f'<testsuites><testsuite name="pytest" {counts}>{cases}</testsuite></testsuites>'
    )
    return share


def test_counts_and_status_are_those_of_the_guest(tmp_path: Path) -> None:
    share = report(tmp_path, "1", "", 'tests="82" failures="2" errors="1" skipped="0"')
    assert verdict(share) == ("6.1.0-56-amd64: 79 passed, 2 failed, 1 errors", 1)


def test_all_passed(tmp_path: Path) -> None:
    share = report(tmp_path, "0", "", 'tests="82" failures="0" errors="0" skipped="0"')
    assert verdict(share) == ("6.1.0-56-amd64: 82 passed", 0)


def test_no_test_at_all_is_no_success(tmp_path: Path) -> None:
    empty = 'tests="0" failures="0" errors="0" skipped="0"'
    assert verdict(report(tmp_path, "0", "", empty))[1] == NO_VERDICT
    sentence, status = verdict(report(tmp_path, "5", "", empty))
    assert (sentence, status) == ("6.1.0-56-amd64: 0 passed, pytest ended with status 5", 5)


def test_a_report_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "release").write_text("6.1.0-56-amd64\n")
    (tmp_path / "status").write_text("0\n")
    sentence, status = verdict(tmp_path)
    assert "left no report" in sentence and status == NO_VERDICT


def test_the_end_of_the_console_is_readable(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_bytes(b"first\r\n\x1b[31msecond\x1b[0m\r\n\r\n" + b"third\xff\r\n")
    assert last_lines(console, 2) == "second\nthird\ufffd"


def test_the_guest_is_told_what_to_run(tmp_path: Path) -> None:
    """The script is valid, keeps arguments whole, and its exit status is written last."""
    script = run.guest_script(["-k", "a or b", "tests/x.py::t[c d]"], tmp_path)
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert "-k 'a or b' 'tests/x.py::t[c d]'" in script
    assert script.splitlines()[-1] == f"echo $? > {tmp_path}/status"
    assert "export CI=1" in script


@pytest.mark.parametrize(
    ("machine", "wrong"),
    [
        ("echo Kernel panic; exit 7", "it did not boot (virtme-ng ended with status 7)"),
        ("echo 6.1 > {share}/release", "it died while the tests ran (virtme-ng ended with status 0)"),
        ("echo 6.1 > {share}/release; echo 0 > {share}/status", ""),
        ("sleep 100 & echo $! > {share}/child; wait", "it had not booted after 1 s, and was killed"),
        (
            "sleep 100 & echo $! > {share}/child; echo 6.1 > {share}/release; wait",
            "it was not done after 2 s, and was killed",
        ),
    ],
)
def test_what_the_machine_did_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, wrong: str
) -> None:
    monkeypatch.setattr(run, "command", lambda *_: ["sh", "-c", machine.format(share=tmp_path)])
    monkeypatch.setattr(run, "BOOT_LIMIT_S", 1.0)
    monkeypatch.setattr(run, "LIMIT_S", 2.0)
    assert run.boot(IMAGE, [], tmp_path) == wrong
    if (tmp_path / "child").exists():  # killed with the machine: nothing is left behind
        gone(int((tmp_path / "child").read_text()))


def gone(pid: int) -> None:
    deadline = time.monotonic() + patience(5)
    status = Path(f"/proc/{pid}/stat")
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_what_is_selected_exists() -> None:
    """A test that is renamed must not fall out of the VM's selection in silence."""
    tests = [*run.SELECTION, *run.DESELECTED]
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-2000:]


@pytest.mark.parametrize("factor", ["ten", "0", "-1", "1e9"])
def test_a_time_factor_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, factor: str) -> None:
    monkeypatch.setenv("TESTS_TIME_FACTOR", factor)
    with pytest.raises(ValueError, match=f"TESTS_TIME_FACTOR='{factor}'"):
        patience(1)


def test_the_time_factor_stretches_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_TIME_FACTOR", "10")
    assert patience(3) == 30
    monkeypatch.delenv("TESTS_TIME_FACTOR")
    assert patience(3) == 3
