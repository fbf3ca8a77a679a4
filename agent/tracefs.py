# SPDX-License-Identifier: Apache-2.0
"""Where the kernel's list of tracepoints is; mounted for this process alone when it is mounted nowhere.

Containers and minimal systems have no tracefs mounted. A mount of our own is attached to no folder
(fsmount(2), Linux 5.2): it is seen by nobody else, and gone with this process.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from agent.errors import AgentError, PrivilegeError
from agent.permissions import why_refused

PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432  # the same on every architecture
FSCONFIG_CMD_CREATE, CLOEXEC = 6, 1

_libc = ctypes.CDLL(None, use_errno=True)
_own: Path | None = None


def tracefs() -> Path:
    """The folder that has `events`. Raises AgentError where there is none to be had."""
    global _own
    for path in PLACES:
        if (path / "events").is_dir():
            return path
    if _own is None:
        try:
            _own = Path(f"/proc/self/fd/{_mount()}")
        except PermissionError as error:
            reason = f"tracefs is not mounted at {PLACES[0]}, and may not be mounted: {error.strerror}"
            raise PrivilegeError(reason, _hint(why_refused())) from error
        except OSError as error:
            reason = f"tracefs is not mounted at {PLACES[0]}, and cannot be mounted: {error.strerror}"
            raise AgentError(reason, _hint("the kernel needs CONFIG_TRACING")) from error
    return _own


def _hint(why: str) -> str:
    return f"mount -t tracefs tracefs {PLACES[0]}; in a container, mount it from the host ({why})"


def _mount() -> int:
    """A descriptor of the root of a tracefs that is mounted nowhere."""
    context = _call(SYS_FSOPEN, b"tracefs", CLOEXEC)
    try:
        _call(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(SYS_FSMOUNT, context, CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: bytes | int | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
