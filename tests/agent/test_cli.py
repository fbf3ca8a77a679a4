# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: output, messages and exit status."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent import __version__, cli
from agent.config import Config
from agent.errors import AgentError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OTEL_", "EBPF_OTLP_TRACER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that the keeper would have been started with."""
    configs: list[Config] = []
    monkeypatch.setattr(cli, "become_keeper", configs.append)
    monkeypatch.setattr(cli, "_check_privileges", lambda: None)
    return configs


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


# run


@pytest.mark.parametrize("arguments", [["run", "--port", "80"], ["--port", "80"]])
def test_run_is_the_verb_that_may_be_left_out(
    arguments: Sequence[str], started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(capsys, *arguments) == (0, "", "")
    assert started[0]["select.port"] == (80,)
    assert started[0].source("select.port") == "--port"


def test_every_selector_may_be_given_more_than_once(
    started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    me = str(os.getpid())
    arguments = (
        "--pid ME --port 1 --port 65535 --exe a --exe /b/* --service c --container ff --all --exporter none"
    )
    assert invoke(capsys, *arguments.replace("ME", me).split())[0] == 0
    config = started[0]
    assert config["select.pid"] == (os.getpid(),)
    assert config["select.port"] == (1, 65535)
    assert config["select.exe"] == ("a", "/b/*")
    assert (config["select.service"], config["select.container"]) == (("c",), ("ff",))
    assert config["select.all"] is True
    assert config["exporters"] == ("none",)


@pytest.mark.parametrize(
    ("flag", "level"),
    [((), "info"), (("-v",), "debug"), (("-q",), "warn"), (("--set", "log.level=error"), "error")],
)
def test_how_much_is_said(
    flag: Sequence[str], level: str, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(capsys, "--all", *flag)[0] == 0
    assert started[0]["log.level"] == level


def test_selectors_of_the_file_are_enough(
    tmp_path: Path, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("select: {port: 8080}\n")
    assert invoke(capsys, "--config", str(path))[0] == 0
    assert started[0].source("select.port") == f"{path}:1"


def test_warnings_are_said_unless_only_errors_are_wanted(
    monkeypatch: pytest.MonkeyPatch, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "half")
    assert "warn: OTEL_TRACES_SAMPLER_ARG" in invoke(capsys, "--all")[2]
    assert invoke(capsys, "--all", "--set", "log.level=error")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, ["nothing is selected", "--port 8080", "ebpf-otlp-tracer ps"]),
        (["-v"], 2, ["nothing is selected"]),
        (["--port", "0"], 2, ["--port", "0", "1<=x<=65535"]),
        (["--port", "65536"], 2, ["65536"]),
        (["--port", "http"], 2, ["--port", "'http'"]),
        (["--pid", "0"], 2, ["--pid"]),
        (["--prot", "80"], 2, ["--prot", "--port"]),
        (["--port"], 2, ["--port"]),
        (["-v", "-q", "--all"], 2, ["-v and -q"]),
        (["prnt-config"], 2, ["'prnt-config'", "did you mean print-config?"]),
        (["zzz"], 2, ["'zzz'", "run, ps, status, doctor, validate, print-config"]),
        (["run", "extra"], 2, ["extra"]),
        (["--all", "--set", "core.hold_ms"], 2, ["--set core.hold_ms", "KEY=VALUE"]),
        (["--all", "--set", "core.hold=1"], 78, ["'core.hold'", "did you mean core.hold_ms?"]),
        (["--all", "--set", "core.hold_ms=x"], 78, ["core.hold_ms", "'x'", "from 0 to 1000"]),
        (["--all", "--config", "/nonexistent.yaml"], 78, ["/nonexistent.yaml", "No such file"]),
        (["--container", "web"], 78, ["'web'", "docker ps"]),
        (["--all", "--exporter", "oltp"], 78, ["'oltp'", "did you mean otlp?"]),
        (["--pid", "4194304"], 1, ["there is no process 4194304", "ebpf-otlp-tracer ps"]),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_the_next_step(
    arguments: Sequence[str],
    status: int,
    words: Sequence[str],
    started: list[Config],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = invoke(capsys, *arguments)
    assert (code, out, started) == (status, "", [])
    assert err.startswith("error: ") and "hint: " in err
    for word in words:
        assert word in err


def test_every_pid_that_is_not_there_is_named_and_a_thread_gets_its_process(tmp_path: Path) -> None:
    from tests.agent.fake_proc import add_process

    add_process(tmp_path, 10, ["a"], exe="/a")
    add_process(tmp_path, 12, ["a"], exe="/a")
    (tmp_path / "12/status").write_text("Name:\tx\nTgid:\t10\nPid:\t12\n")
    cli.check_pids((10,), tmp_path)
    with pytest.raises(AgentError) as caught:
        cli.check_pids((10, 11, 12), tmp_path)
    assert caught.value.message == "there is no process 11; 12 is a thread of process 10: use --pid 10"
    assert caught.value.exit_code == 1


def test_a_real_thread_is_not_taken_for_a_process() -> None:
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        ready.wait()
        with pytest.raises(AgentError, match=f"use --pid {os.getpid()}"):
            cli.check_pids((thread.native_id or 0,))
    finally:
        done.set()
        thread.join()


def test_missing_privileges_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "become_keeper", None)  # never from a test
    monkeypatch.setattr("agent.permissions.missing_capabilities", lambda: ["CAP_BPF", "CAP_PERFMON"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, _, err = invoke(capsys, "--all")
    assert code == 77
    assert err == "error: tracing needs root: CAP_BPF, CAP_PERFMON missing\nhint: run it with sudo\n"


def test_validate_reads_the_variables_of_the_exporter_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")
    code, _, err = invoke(capsys, "validate", "--all")
    assert code == 78 and "OTEL_EXPORTER_OTLP_ENDPOINT=collector" in err


@pytest.mark.parametrize("value", ["true", "TRUE"])
def test_a_disabled_sdk_is_said_and_no_failure(
    value: str, monkeypatch: pytest.MonkeyPatch, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    assert invoke(capsys, "--all") == (0, "", "OTEL_SDK_DISABLED=true: nothing is traced\n")
    assert started == []


def test_only_true_disables(
    monkeypatch: pytest.MonkeyPatch, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "1")
    assert invoke(capsys, "--all")[0] == 0
    assert len(started) == 1


def test_the_keeper_is_given_the_configuration_in_a_memory_file(tmp_path: Path) -> None:
    """A stand-in for agent.keeper reads it, in the same process, with nothing of click left."""
    (tmp_path / "sitecustomize.py").write_text("")
    code = (
        "import os, sys; from agent import cli; from agent.config_load import load\n"
        "cli.keeper_command = lambda fd: [sys.executable, '-c', "
        "'import os, sys; print(os.getpid(), os.read(int(sys.argv[1]), 100000).decode())', str(fd)]\n"
        "print(os.getpid()); cli.become_keeper(load({'select.port': ('--port', (8080,))}, {}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    pid, _, text = after.partition(" ")
    assert pid == before
    assert Config.from_json(text)["select.port"] == (8080,)


def test_modules_are_not_taken_from_the_directory_that_root_stands_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.keeper_command(5) == [sys.executable, "-P", "-m", "agent.keeper", "--config-fd", "5"]
    monkeypatch.chdir(ROOT)
    assert cli.keeper_command(5)[1:] == ["-m", "agent.keeper", "--config-fd", "5"]


# The other verbs.


def test_help_fits_one_screen_and_shows_every_verb_and_selector(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, "--help")
    assert code == 0
    assert len(out.splitlines()) <= 30 and max(map(len, out.splitlines())) <= 80
    for word in (
        *cli.cli.commands,
        "--pid",
        "--port",
        "--exe",
        "--service",
        "--container",
        "--all",
        "Examples:",
    ):
        assert word in out


def test_help_of_every_verb_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.cli.commands:
        code, out, _ = invoke(capsys, verb, "-h")
        assert code == 0 and "--config" in out and "--set" in out


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, flag)
    assert code == 0
    assert re.fullmatch(
        rf"ebpf-otlp-tracer {re.escape(__version__)} \(Python 3\.\d+\.\S+, Linux \S+, BTF (yes|no)\)\n", out
    )


def test_ps_shows_a_listener_and_what_would_select_it(capsys: pytest.CaptureFixture[str]) -> None:
    """In the own process tree only: this test process, run as another agent would see it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"from agent.cli import main; main(['ps', '--port', '{port}', '--port', '1'])"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
    header, first = done.stdout.splitlines()[:2]
    assert header.split() == ["PID", "SERVICE", "EXE", "PORTS", "TRACED", "WHY"]
    assert first.split()[0] == str(os.getpid())
    assert first.endswith(f"yes     --port {port}")
    assert "--port 1: nobody listens yet; waiting" in done.stdout


def test_ps_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, "ps", "--json", "--exe", "nothing-has-this-name")
    assert code == 0
    found = json.loads(out)
    assert found["pending"] == ["--exe nothing-has-this-name: no such process yet; waiting"]
    me = next(row for row in found["processes"] if row["pid"] == os.getpid())
    assert (me["traced"], me["reason"]) == (False, "the agent itself")
    assert set(me) == {"pid", "service", "exe", "ports", "container", "traced", "reason"}


def test_a_table_shows_no_control_characters_and_keeps_its_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.print_table(("A", "B"), [("\x1b[31mred", "x"), ("y" * 100, "z\nz")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A".ljust(48) + "  B", "?[31mred".ljust(48) + "  x", "…" + "y" * 47 + "  z?z"]


def test_validate_says_what_a_run_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(
        capsys, "validate", "--port", "8080", "--all", "--set", "traces.sampler=traceidratio"
    )
    assert code == 0
    assert out.splitlines() == [
        "the configuration is valid",
        "traces:    --port 8080, --all",
        "exports:   console",
        "keeps:     traceidratio (1)",
        "listens:   127.0.0.1:9465 (/metrics, /status, /healthz)",
        "set:       select.port, select.all, traces.sampler",
    ]


def test_validate_says_every_error_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("core:\n  hold_msec: 1\n  poll_ms: x\n")
    code, out, err = invoke(capsys, "validate", "--config", str(path))
    assert (code, out) == (78, "")
    assert err.splitlines() == [
        "error: 2 errors:",
        f"  {path}:2: unknown key 'core.hold_msec'; did you mean core.hold_ms?",
        f"  {path}:3: core.poll_ms: expected a number from 1 to 10000, got 'x'",
        "hint: correct it, then check with: ebpf-otlp-tracer validate",
    ]


def test_print_config_in_both_forms_and_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  port: [8080]  # --port\n" in invoke(capsys, "print-config", "--port", "8080")[1]
    assert (
        json.loads(invoke(capsys, "print-config", "--format", "json")[1])["options"]["core.hold_ms"]["value"]
        == 5.0
    )
    assert json.loads(invoke(capsys, "print-config", "--schema")[1])["additionalProperties"] is False


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_when_something_is_missing(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agent.doctor import Row

    monkeypatch.setattr(
        "agent.doctor.diagnose", lambda *_: [Row("BCC", status, "not found", "apt install it")]
    )
    found, out, _ = invoke(capsys, "doctor")
    assert found == code and "BCC: apt install it" in out
    found, out, _ = invoke(capsys, "doctor", "--json")
    assert found == code
    assert json.loads(out)["checks"] == [
        {"name": "BCC", "status": status, "found": "not found", "hint": "apt install it"}
    ]


def test_a_reader_that_goes_away_is_no_failure() -> None:
    code = "import sys; from agent.cli import main; sys.exit(main(['print-config', '--schema']))"
    shell = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_heavy_modules_wait_for_the_verb_that_needs_them() -> None:
    code = (
        "import sys; from agent import cli\n"
        "print(sorted({'yaml', 'numpy', 'urllib3', 'agent.discovery', 'agent.doctor'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_agent_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "nope"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'nope'")
