# SPDX-License-Identifier: Apache-2.0
"""How long to wait for what must come: seconds on an ordinary machine, times TESTS_TIME_FACTOR.

Only for limits that say "something is broken" when they pass. An emulated machine (tests/vm) is ten times
slower and sets the factor; the limits of everybody else stay short.
"""

from __future__ import annotations

import math
import os

VARIABLE = "TESTS_TIME_FACTOR"


def patience(seconds: float) -> float:
    """`seconds` times the factor, which is 1 unless the environment says otherwise."""
    text = os.environ.get(VARIABLE) or "1"
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= 1000:
        raise ValueError(f"{VARIABLE}={text!r} is no number from 1 to 1000\nhint: unset it, or set it to 10")
    return seconds * factor
