# SPDX-License-Identifier: Apache-2.0
"""The layouts that Python writes down by hand are those of the C compiler."""

import re
import struct
import subprocess
from pathlib import Path

from agent import kernel

from .conftest import CHUNK, CLOSE, HEADER, OPEN

BPF = Path(__file__).parents[2] / "bpf"


def compiled(expressions: list[str], folder: Path) -> list[int]:
    """Values of C expressions over events.h and protocols.h, from the compiler."""
    prints = "".join(f'printf("%zu\\n", (size_t)({each}));' for each in expressions)
    source = folder / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        f'#include "{BPF}/events.h"\n#include "{BPF}/protocols.h"\nint main(void) {{ {prints} }}\n'
    )
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", folder / "layout", source], check=True)
    out = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in out.split()]


def offsets(layout: struct.Struct) -> list[int]:
    """Offset of each value of a struct format."""
    parts = re.findall(r"\d*[a-zA-Z]", layout.format[1:])
    found, at = [], 0
    for part in parts:
        if not part.endswith("x"):
            found.append(at)
        at += struct.calcsize("=" + part)
    return found


def test_python_formats_have_the_offsets_of_the_compiler(tmp_path: Path) -> None:
    fields = {
        "event_header": (HEADER, 0, "kind flags direction protocol tid ktime_ns conn_id"),
        "open_event": (
            OPEN,
            24,
            "tgid netns local_address remote_address local_port remote_port role "
            "transport path_size peer_tgid",
        ),
        "chunk_event": (
            CHUNK,
            24,
            "pos size tgid offset head tail quiet_chunks "
            "unsent_chunks[0] unsent_chunks[1] shed_chunks quiet_bytes",
        ),
        "close_event": (
            CLOSE,
            24,
            "bytes[0] bytes[1] chunks[0] chunks[1] unsent_bytes[0] unsent_bytes[1] unsent_chunks[0] "
            "unsent_chunks[1] quiet_chunks[0] quiet_chunks[1] quiet_bytes[0] quiet_bytes[1] "
            "shed_chunks",
        ),
        "process_event": (kernel.PROCESS_EVENT, 0, "kind traced port tgid parent_tgid netns ktime_ns comm"),
    }
    for name, (layout, base, members) in fields.items():
        expressions = [f"offsetof(struct {name}, {member})" for member in members.split()]
        *expected, size = compiled([*expressions, f"sizeof(struct {name})"], tmp_path)
        assert [base + each for each in offsets(layout)] == expected, name
        assert base + layout.size == size, name


def test_counter_names_stand_at_their_places(tmp_path: Path) -> None:
    names = kernel.counter_names()
    named = [name for name in names if name]
    expected = compiled([f"offsetof(struct kernel_counters, {name})" for name in named], tmp_path)
    assert [8 * names.index(name) for name in named] == expected
    assert [8 * len(names)] == compiled(["sizeof(struct kernel_counters)"], tmp_path)


def test_kinds_are_those_of_the_header(tmp_path: Path) -> None:
    numbers = compiled([f"EVENT_{name.upper()}" for name in kernel.KINDS.values()], tmp_path)
    assert numbers == list(kernel.KINDS)
