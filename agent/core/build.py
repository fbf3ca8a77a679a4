# SPDX-License-Identifier: Apache-2.0
"""Builds the core as `agent.core._core` with cffi in API mode, from the headers that C includes."""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

CORE = Path(__file__).resolve().parent
ROOT = CORE.parent.parent
sys.path.insert(0, str(ROOT))

from agent.layouts import declarations  # noqa: E402

HEADERS = (ROOT / "bpf" / "events.h", ROOT / "bpf" / "protocols.h", CORE / "span.h", CORE / "core.h")
SOURCES = sorted(CORE.glob("*.c")) + sorted((CORE / "protocols").glob("*.c"))

INCLUDES = "#include <stdint.h>\n#include <stdbool.h>\n#include <stddef.h>\n"


def python_declarations() -> str:
    """The part of the C side that Python may use: layouts, constants, and the functions of core.h."""
    return declarations(Path("stdint.h"), Path("stdbool.h"), *HEADERS)


ffi = FFI()
ffi.cdef(python_declarations(), packed=False)
ffi.set_source(
    "agent.core._core",
    INCLUDES + '#include "bpf/events.h"\n#include "bpf/protocols.h"\n#include "agent/core/core.h"\n',
    sources=[str(path.relative_to(ROOT)) for path in SOURCES if path.name != "_core.c"],
    include_dirs=[str(ROOT)],
    libraries=["z", "zstd"],
    depends=[str(path.relative_to(ROOT)) for folder in (CORE, ROOT / "bpf") for path in folder.glob("*.h")],
    extra_compile_args=[
        "-std=gnu11",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-fno-strict-aliasing",
        "-Wno-unknown-pragmas",
        "-Werror=implicit",
    ],
)
