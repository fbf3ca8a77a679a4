# SPDX-License-Identifier: Apache-2.0
"""Builds `exporters._encode`, the C encoder of rows (cffi, API mode).

setup.py lists it as "exporters/build.py:ffi"; by hand: python exporters/build.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # an isolated build does not have the source tree on its path

from agent.layouts import declarations  # noqa: E402

ffi = FFI()
ffi.cdef(declarations(ROOT / "exporters/encode.h", include=(ROOT, ROOT / "agent/core")))
ffi.set_source(
    "exporters._encode",
    '#include "exporters/encode.h"',
    sources=["exporters/encode.c"],
    include_dirs=[str(ROOT), str(ROOT / "agent/core")],
    depends=["exporters/encode.h", "agent/core/span.h", "agent/core/attributes.h"],
    extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter"],
    libraries=["m"],
)
