# SPDX-License-Identifier: Apache-2.0
"""Every program passes this kernel's verifier and is attached; the maps stay small; errors are clear."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent import btf, kernel, loader
from agent.errors import AgentError

from . import conftest

MIB = 1024 * 1024


def test_every_program_loads_and_attaches(loaded: kernel.Kernel) -> None:
    assert loaded.refused == []
    names = {program["name"] for program in loaded.facts["programs"]}
    hooks = {name for name in loader.TARGETS if "probe" not in name or loaded.backend.kprobes}
    assert hooks < names
    assert names - hooks == {
        "raw_inet_sock_set_state",
        "raw_tcp_destroy_sock",
        "raw_sched_process_fork",
        "raw_sched_process_exec",
        "raw_sched_process_exit",
    }


def test_maps_of_the_default_configuration_take_less_than_24_mib(loaded: kernel.Kernel) -> None:
    total = 0
    for fd in loaded.maps.values():
        total += int(re.findall(r"memlock:\s+(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())[0])
    assert 4 * MIB < total < 24 * MIB


def test_nothing_is_left_of_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with conftest.load():
        children = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
        )
        assert "loader.py" not in children.stdout
        assert not list(tmp_path.iterdir())


def test_maps_that_are_shared_are_the_ones_of_the_contract(loaded: kernel.Kernel) -> None:
    assert {"events", "process_events", "demands", "control", "counters", "traced"} <= set(loaded.maps)


def test_smallest_configuration_loads() -> None:
    small = {
        "ring_bytes": 4096,
        "process_ring_bytes": 4096,
        "allowance_bytes": 256,
        "tail_bytes": 0,
        "connections_max": 16,
        "unix_connections_max": 16,
        "threads_max": 64,
        "processes_max": 16,
    }
    with conftest.load(**small) as each:
        assert each.refused == []


def test_largest_tail_loads() -> None:
    with conftest.load(tail_bytes=256) as each:
        assert each.refused == []


def test_ring_size_that_is_no_power_of_two_is_named(loaded: kernel.Kernel) -> None:
    with pytest.raises(AgentError) as caught:
        kernel.load(kernel.Settings(ring_bytes=5000))
    assert "5000" in caught.value.message and "power of two" in caught.value.hint


def test_python_without_bcc_is_named(loaded: kernel.Kernel) -> None:
    python = sys.executable  # of a virtual environment: BCC is the distribution's alone
    if subprocess.run([python, "-c", "from bcc import BPF"], capture_output=True).returncode == 0:
        pytest.skip("this Python has BCC")
    with pytest.raises(AgentError) as caught:
        kernel.load(kernel.Settings(loader_python=python))
    assert "BCC is not installed" in caught.value.message and "python3-bpfcc" in caught.value.hint


def test_missing_field_is_named() -> None:
    with pytest.raises(btf.BtfError, match=r"no field tcp_sock\.copied_sequence"):
        btf.offsets([("tcp_sock", "copied_sequence")])


def test_missing_btf_is_named() -> None:
    with pytest.raises(btf.BtfError, match="/nowhere"):
        btf.offsets([("tcp_sock", "copied_seq")], path="/nowhere")


def test_fields_inside_anonymous_members_are_found() -> None:
    found = btf.offsets(
        [("sock_common", "skc_daddr"), ("sock_common", "skc_rcv_saddr"), ("sock_common", "skc_dport")]
    )
    assert list(found.values()) == [0, 4, 12]


def test_program_that_the_verifier_refuses_is_named_with_its_reason(
    loaded: kernel.Kernel, tmp_path: Path
) -> None:
    """The rest is loaded: here a program that reads through an address is put behind the real ones."""
    script = tmp_path / "broken.py"
    script.write_text(
        f"import json, sys; sys.path.insert(0, {str(loader.BPF_FOLDER.parent / 'agent')!r})\n"
        "import loader\n"
        "join = loader.join_includes\n"
        "broken = 'int raw_broken(void *ctx) { return *(int *)bpf_ktime_get_ns(); }'\n"
        "loader.join_includes = lambda path, seen=None: join(path, seen) + (broken if seen is None else '')\n"
        "answer, fds = loader.load(json.loads(sys.argv[1]))\n"
        "print(json.dumps(answer))\n"
    )
    settings = json.dumps(
        {**kernel.asdict(kernel.Settings()), "syscalls": 1, "kprobes": 0, "kprobes_for_all": 0}
    )
    out = subprocess.run(["/usr/bin/python3", script, settings], capture_output=True, text=True, check=True)
    answer = json.loads(out.stdout)
    assert [each["name"] for each in answer["refused"]] == ["raw_broken"]
    assert "invalid mem access" in answer["refused"][0]["reason"]
    assert len(answer["programs"]) == len([name for name in loader.TARGETS if "probe" not in name]) + 5


def test_a_kprobe_that_the_kernel_refuses_leaves_nobody_to_the_others() -> None:
    """Processes with io_uring are seen by all of the kprobes or go on to be seen by their system calls."""
    with conftest.load() as each:
        each.backend = dataclasses.replace(each.backend, kprobes=True)
        missing = {"name": "kprobe_send", "kind": "kprobe", "targets": ["no_such_function"]}
        each._kprobe_names.add("no_such_function")
        each._programs.append((missing, os.dup(each.maps["traced"])))
        before = len(each.refused)
        assert each.attach_kprobes() is False and each.attach_kprobes() is False
        assert [r["name"] for r in each.refused[before:]] == ["no_such_function"]
