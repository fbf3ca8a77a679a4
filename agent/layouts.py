# SPDX-License-Identifier: Apache-2.0
"""C struct -> numpy dtype, and C headers -> cffi declarations: each layout is declared once, in C."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any


def declarations(*headers: Path, include: tuple[Path, ...] = ()) -> str:
    """What cffi is told: the headers after the C preprocessor, without asserts and functions' bodies.

    System headers are cut out by their line marks, so that cffi sees our declarations only.
    """
    flags = [part for header in headers for part in ("-include", str(header))]
    flags += [f"-I{folder}" for folder in include]
    text = subprocess.run(
        ["cc", "-E", "-D_Static_assert(...)=", *flags, "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    ours, kept = False, []
    for line in text.splitlines():
        mark = re.match(r'# \d+ "([^"]*)"', line)
        if mark:
            ours = not mark[1].startswith(("/usr/", "<"))
        elif ours and line.strip() not in ("", ";"):
            kept.append(line)
    return "\n".join(kept) + "\n"


def dtype_of(ffi: Any, ctype: Any) -> Any:
    """numpy dtype of a C struct of fixed-width numbers, at the C compiler's offsets."""
    import numpy as np

    if isinstance(ctype, str):
        ctype = ffi.typeof(ctype)
    if ctype.kind == "array":
        return np.dtype((dtype_of(ffi, ctype.item), ctype.length))
    if ctype.kind == "struct":
        names, fields = zip(*ctype.fields, strict=True)
        return np.dtype(
            {
                "names": names,
                "formats": [dtype_of(ffi, field.type) for field in fields],
                "offsets": [field.offset for field in fields],
                "itemsize": ffi.sizeof(ctype),
            }
        )
    if ctype.cname in ("double", "float"):
        return np.dtype(f"f{ffi.sizeof(ctype)}")
    return np.dtype(f"{'u' if ctype.cname.startswith('u') else 'i'}{ffi.sizeof(ctype)}")
