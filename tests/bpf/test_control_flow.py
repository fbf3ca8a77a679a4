# SPDX-License-Identifier: Apache-2.0
"""A rule of older verifiers that newer ones no longer have, held on any kernel: how a loop may close.

check_cfg() of Linux 6.1 takes the step back of a loop from a jump only. Where the loop's last instruction
stands before its first one and falls into it, the program is refused with "back-edge from insn 2262 to
2263", before anything else is looked at. Clang makes such a step when it moves a load from the head of the
loop to its end. (tests/vm loads the programs on a real Linux 6.1; this takes seconds, on any kernel.)
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import kernel, loader

pytestmark = pytest.mark.kernel

BOTH = {"syscalls": 1, "kprobes": 1, "kprobes_for_all": 0}  # as `auto` has it where there are kprobes
JUMP, JUMP32, LOAD_WIDE = 0x05, 0x06, 0x18  # classes; the one instruction of two slots
ALWAYS, CALL, EXIT = 0x00, 0x80, 0x90
COMPILE = """
import ctypes, json, sys
sys.path.insert(0, {agent!r})
import loader
found, load = {{}}, loader.load_program
def keep(lib, module, name, kind, tails):
    code = name.encode()
    start, size = lib.bpf_function_start(module, code), lib.bpf_function_size(module, code)
    found[name] = ctypes.string_at(start, size).hex()
    return load(lib, module, name, kind, tails)
loader.load_program = keep
loader.load(json.loads(sys.argv[1]))
print(json.dumps(found))
"""


def steps(code: bytes, at: int) -> list[tuple[int, bool]]:
    """(next instruction, by a jump?) of the instruction `at`, in the order in which the verifier looks."""
    opcode, offset = code[8 * at], int.from_bytes(code[8 * at + 2 : 8 * at + 4], "little", signed=True)
    kind, operation = opcode & 0x07, opcode & 0xF0
    if kind not in (JUMP, JUMP32) or operation == CALL:
        return [(at + 1, False)]
    if operation == EXIT:
        return []
    if operation == ALWAYS:
        return [(at + 1 + offset, True)]
    return [(at + 1, True), (at + 1 + offset, True)]


def refused_steps(code: bytes) -> list[tuple[int, int]]:
    """What check_cfg() of Linux 6.1 calls back-edges: the walk of that function, depth first."""
    open_, done = {0}, set[int]()
    walk: list[tuple[int, Iterator[tuple[int, bool]]]] = [(0, iter(steps(code, 0)))]
    refused = []
    while walk:
        at, rest = walk[-1]
        for target, by_jump in rest:
            if target in open_ and not by_jump:
                refused.append((at, target))
            elif target not in open_ and target not in done:
                open_.add(target)
                walk.append((target, iter(steps(code, target))))
                break
        else:
            walk.pop()
            open_.remove(at)
            done.add(at)
    return refused


def instruction(opcode: int, offset: int = 0) -> bytes:
    return bytes([opcode, 0]) + offset.to_bytes(2, "little", signed=True) + bytes(4)


def test_the_walk_tells_a_jump_back_from_a_fall_into_the_loop() -> None:
    add, leave = instruction(0x07), instruction(0x95)
    less, always = (lambda to: instruction(0xA5, to)), (lambda to: instruction(0x05, to))
    assert refused_steps(add + less(-2) + leave) == []
    assert refused_steps(add + always(-2)) == []
    # enters at 2, jumps back to 1, and falls from there into 2
    assert refused_steps(always(1) + add + add + less(-3) + leave) == [(1, 2)]


@pytest.mark.parametrize("settings", [{}, {"tail_bytes": 0, "allowance_bytes": 256}, {"tail_bytes": 256}])
def test_loops_close_with_a_jump(loaded: kernel.Kernel, tmp_path: Path, settings: dict[str, int]) -> None:
    script = tmp_path / "compile.py"
    script.write_text(COMPILE.format(agent=str(loader.BPF_FOLDER.parent / "agent")))
    wanted = json.dumps({**kernel.asdict(kernel.Settings(**settings)), **BOTH})
    out = subprocess.run(["/usr/bin/python3", script, wanted], capture_output=True, text=True, check=True)
    programs = {name: bytes.fromhex(code) for name, code in json.loads(out.stdout).items()}
    assert set(loader.TARGETS) < set(programs)
    assert {name: refused_steps(code) for name, code in programs.items() if refused_steps(code)} == {}
