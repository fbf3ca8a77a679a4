# SPDX-License-Identifier: Apache-2.0
"""A /proc made of files, as `man 5 proc` describes the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

DEFAULT_NETNS = 4026531840


def add_process(
    proc: Path,
    pid: int,
    args: Sequence[str] = (),
    *,
    exe: str = "",
    comm: str = "",
    ppid: int = 1,
    start_ticks: int = 100,
    state: str = "S",
    flags: int = 0x400000,
    uid: int = 1000,
    cgroup: str = "0::/init.scope\n",
    environ: Mapping[str, str] | None = None,
    netns: int = DEFAULT_NETNS,
    sockets: Sequence[int] = (),
    mountinfo: str = "",
    mount_namespace: int = 1,
) -> Path:
    """One process; `sockets` are inodes that it has open, `listen` says which of them listen."""
    base = proc / str(pid)
    for folder in ("ns", "net", "fd"):
        (base / folder).mkdir(parents=True)
    (base / "stat").write_text(
        f"{pid} ({comm or exe.rpartition('/')[2] or 'x'}) {state} {ppid} {pid} {pid} 0 -1 {flags} "
        + "0 " * 12
        + f"{start_ticks} "
        + "0 " * 30
        + "\n"
    )
    (base / "status").write_text(f"Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nUid:\t{uid}\t0\t0\t0\n")
    (base / "cmdline").write_bytes("".join(arg + "\0" for arg in args).encode())
    (base / "cgroup").write_text(cgroup)
    (base / "environ").write_bytes("".join(f"{k}={v}\0" for k, v in (environ or {}).items()).encode())
    (base / "mountinfo").write_text(mountinfo)
    if exe:
        (base / "exe").symlink_to(exe)
    (base / "ns/net").symlink_to(f"net:[{netns}]")
    (base / "ns/mnt").symlink_to(f"mnt:[{mount_namespace}]")
    for fd, inode in enumerate(sockets, start=3):
        (base / "fd" / str(fd)).symlink_to(f"socket:[{inode}]")
    (base / "fd" / "0").symlink_to("/dev/null")
    own = proc / "self/ns"
    if not own.exists():
        own.mkdir(parents=True)
        (own / "mnt").symlink_to("mnt:[1]")
    return base


def listen(proc: Path, pids: Sequence[int], ports: Mapping[int, int], table: str = "tcp") -> None:
    """Writes the socket table of the given processes: port -> inode, all listening, then one connection."""
    address = "0100007F" if table == "tcp" else "0" * 32
    lines = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    ]
    lines += [
        f"   {i}: {address}:{port:04X} {'0' * len(address)}:0000 0A 00000000:00000000 00:00000000 00000000"
        f"  1000        0 {inode} 1 0000000000000000 100 0 0 10 0"
        for i, (port, inode) in enumerate(ports.items())
    ]
    lines.append(
        f"   9: {address}:9999 {address}:01BB 01 00000000:00000000 00:00000000 00000000"
        "  1000        0 777 1 0000000000000000 20 4 30 10 -1"
    )
    for pid in pids:
        (proc / str(pid) / "net" / table).write_text("\n".join(lines) + "\n")
