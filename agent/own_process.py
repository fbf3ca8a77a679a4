# SPDX-License-Identifier: Apache-2.0
"""What one of the agent's processes costs: CPU time and private memory. No numpy: the keeper asks too."""

from __future__ import annotations

import os
import resource
import time

LOOK_S = 5.0  # walking the page tables is not free


class OwnProcess:
    """What this process costs. smaps_rollup is opened once: after the drop it could not be opened."""

    def __init__(self) -> None:
        self._smaps = os.open("/proc/self/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
        self._private_bytes = 0
        self._next_look = 0.0

    def figures(self) -> dict[str, int | float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        now = time.monotonic()
        if now >= self._next_look:
            self._private_bytes = private_bytes(os.pread(self._smaps, 4096, 0))
            self._next_look = now + LOOK_S
        return {"cpu_s": usage.ru_utime + usage.ru_stime, "private_bytes": self._private_bytes}


def private_bytes(smaps_rollup: bytes) -> int:
    """Private_Clean and Private_Dirty of a smaps_rollup, in bytes."""
    lines = (line.split() for line in smaps_rollup.splitlines() if line.startswith(b"Private_"))
    return 1024 * sum(int(fields[1]) for fields in lines if fields[0] != b"Private_Hugetlb:")
