# SPDX-License-Identifier: Apache-2.0
"""Giving up every privilege, for good, in the order in which the kernel lets one do it.

What remains is a process of another user without a capability, that cannot gain one (no_new_privs), that
nobody of that user may inspect (not dumpable), that dies with its parent and that makes only the system
calls of agent/core/sandbox.c.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from typing import Any

# include/uapi/linux/prctl.h, include/uapi/linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def drop(user: int, parent: int, lib: Any) -> None:
    """Leaves this process with no privilege. Everything that needs one must be done, and imported, before.

    user: user and group id from now on.
    parent: process id that this process dies with; when it is gone already, SystemExit.
    lib: the core, for `sandbox_enter`.
    Raises OSError when a step fails: the caller must not go on then.
    Threads that run already keep their capabilities until they change user with this one, and their own
    no_new_privs is set by the filter: call it before the first thread all the same.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _drop_bounding_set()
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    # The change of user cleared an earlier one; the parent may have died before this call.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)
    error = lib.sandbox_enter()
    if error:
        raise OSError(-error, f"seccomp: {os.strerror(-error)}")


def _drop_bounding_set() -> None:
    capability = 0
    while _libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _prctl(PR_CAPBSET_DROP, capability)
        capability += 1


def _drop_capabilities() -> None:
    """Effective and permitted went with the user id; inheritable did not."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        raise _os_error("capset")


def _prctl(option: int, value: int) -> None:
    arguments = [ctypes.c_ulong(x) for x in (value, 0, 0, 0)]
    if _libc.prctl(option, *arguments) != 0:
        raise _os_error(f"prctl({option}, {value})")


def _os_error(call: str) -> OSError:
    error = ctypes.get_errno()
    return OSError(error, f"{call}: {os.strerror(error)}")
