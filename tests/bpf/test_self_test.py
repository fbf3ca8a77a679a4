# SPDX-License-Identifier: Apache-2.0
"""The self-test of the capture passes here, leaves nothing behind, and refuses a kernel of other layouts.

The other layouts are made by telling the loader that a field is where another one is. Real ones differ so
when the type information is not of the kernel that runs.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent import loader, self_test
from agent.errors import AgentError
from agent.log import Log

from . import conftest
from .conftest import Tracer, load

pytestmark = pytest.mark.kernel


def python_with(folder: Path, patch: str) -> str:
    """An interpreter for capture.loader_python under which `patch` runs before the loader does."""
    patched = folder / "patched.py"
    patched.write_text(
        f"import sys; sys.path.insert(0, {str(loader.BPF_FOLDER.parent / 'agent')!r})\n"
        f"import loader\n{patch}\nsys.exit(loader.main(sys.argv))\n"
    )
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec /usr/bin/python3 -E {patched} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def field_at(wrong: str, instead: str) -> str:
    """`wrong` gets the offset of `instead`."""
    read, other = (tuple(each.split(".")) for each in (wrong, instead))
    return (
        "real = loader.btf.read\n"
        "def read(fields, *rest):\n"
        f"    (found, numbers), other = real(fields, *rest), {other!r}\n"
        f"    assert {read!r} in found, 'the programs do not read this field'\n"
        f"    found[{read!r}] = real([other])[0][other]\n"
        "    return found, numbers\n"
        "loader.btf.read = read\n"
    )


def test_it_passes_here_and_nothing_of_it_remains(capfd: pytest.CaptureFixture[str]) -> None:
    """On a kernel side of its own: it sets the counters to zero, from which connections are numbered."""
    with load() as fresh:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            self_test.run(fresh, Log("debug"))
        assert "IPv4, IPv6, IPv4 in IPv6" in capfd.readouterr().err
        assert set(fresh.counters().values()) == {0}
        assert set(os.listdir("/proc/self/fd")) == before
        assert Tracer(fresh).read() == []
        assert [e for e in fresh.process_events() if e.tgid == os.getpid()] == []
        assert not fresh.is_traced(os.getpid())


@pytest.mark.parametrize(
    ("wrong", "instead", "words"),
    [
        ("sock_common.skc_dport", "sock_common.skc_num", ["remote port"]),
        ("inet_sock.inet_sport", "sock_common.skc_dport", ["local port"]),
        ("sock_common.skc_daddr", "sock_common.skc_rcv_saddr", ["remote address", "127.0.0.2", "127.0.0.1"]),
        ("sock_common.skc_v6_rcv_saddr", "sock_common.skc_v6_daddr", ["local address"]),
        ("sock_common.skc_net", "sock_common.skc_prot", ["network namespace"]),
        ("tcp_sock.copied_seq", "tcp_sock.rcv_nxt", ["position"]),
        ("tcp_sock.write_seq", "tcp_sock.snd_nxt", ["position"]),
        ("pt_regs.si", "pt_regs.dx", ["no byte of it was seen"]),
        ("sock_common.skc_family", "sock_common.skc_num", ["no byte of it was seen"]),
    ],
)
def test_a_kernel_of_other_layouts_is_refused(
    tmp_path: Path, wrong: str, instead: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with conftest.load(loader_python=python_with(tmp_path, field_at(wrong, instead))) as each:
        with pytest.raises(AgentError) as caught:
            self_test.run(each, Log("debug"))
        assert not each.is_traced(os.getpid())
    said = caught.value.message
    assert os.uname().release in said and "wrong, of a connection of our own" in said
    assert all(word in said for word in words), said
    assert "uname -r" in caught.value.hint
    assert "reads this kernel right" not in capfd.readouterr().err


def test_the_run_ends_with_that_sentence_before_anything_is_traced(tmp_path: Path) -> None:
    python = python_with(tmp_path, field_at("sock_common.skc_dport", "sock_common.skc_num"))
    command = [sys.executable, "-m", "agent", "run", "--pid", str(os.getpid()), "--exporter", "none"]
    ended = subprocess.run(
        [*command, "--set", f"capture.loader_python={python}", "--set", "self.listen="],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert re.search(
        r'msg="the kernel programs read this kernel .* remote port: read \d+, is \d+', ended.stderr
    )
    assert "hint=" in ended.stderr and "ready" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_missing_hook_is_no_wrong_layout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """sendto and recvfrom are not there: the test talks by other calls; what else works is kept."""
    patch = (
        "loader.TARGETS['exit_send'] = tuple(c.replace('sendto', 'sendto_') for c in loader.SENDS)\n"
        "loader.TARGETS['exit_receive'] = ('read', 'readv', 'recvfrom_', 'recvmsg')\n"
    )
    with conftest.load(loader_python=python_with(tmp_path, patch)) as each:
        assert [e["name"] for e in each.refused] == [
            "syscalls/sys_exit_recvfrom_",
            "syscalls/sys_exit_sendto_",
        ]
        each.refused = [{**e, "name": e["name"].rstrip("_")} for e in each.refused]
        self_test.run(each, Log("debug"))
    assert "reads this kernel right" in capfd.readouterr().err


REFUSE_RECEIVES = (
    "real = loader.load_program\n"
    "def load_program(lib, module, name, kind, *rest):\n"
    "    refused = -1, 'Invalid argument; unknown func bpf_probe_read_kernel#113'\n"
    "    return refused if name == 'exit_receive' else real(lib, module, name, kind, *rest)\n"
    "loader.load_program = load_program\n"
)


@pytest.mark.parametrize(("mode", "hint"), [("", "doctor"), ("confidentiality", "boot with lockdown")])
def test_a_program_without_which_nothing_can_be_traced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, hint: str
) -> None:
    """As under lockdown, where the verifier does not know the helpers that read memory."""
    monkeypatch.setattr(self_test, "lockdown", lambda: mode)
    monkeypatch.setattr(self_test, "why_refused", lambda: "boot with lockdown=integrity")
    with conftest.load(loader_python=python_with(tmp_path, REFUSE_RECEIVES)) as each:
        with pytest.raises(AgentError) as caught:
            self_test.run(each, Log("error"))
    assert "nothing can be traced: exit_receive is off (Invalid argument; unknown" in caught.value.message
    assert "not seen: everything that is received" in caught.value.message
    assert hint in caught.value.hint


def test_without_a_loopback_it_is_skipped_with_a_word() -> None:
    """In a network namespace of its own, where lo is down."""
    code = (
        "from agent import kernel, self_test\n"
        "from agent.log import Log\n"
        "with kernel.load(kernel.Settings()) as k:\n"
        "    k.attach(); self_test.run(k, Log('debug')); print(k.counters()['chunks'])\n"
    )
    conftest.load().close()
    ended = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr
    assert "level=warn" in ended.stderr and "the capture is not tested" in ended.stderr
    assert "reads this kernel right" not in ended.stderr


def test_other_numbers_of_processes_are_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a process namespace of its own the filter never matches."""
    assert self_test._hint([]) == self_test.HINT
    monkeypatch.setattr(self_test, "FIRST_PID_NAMESPACE", 1)
    assert "--pid=host" in self_test._hint([])
