# SPDX-License-Identifier: Apache-2.0
"""Real containers: podman, runc and netavark in namespaces of their own, which end with one process.

What podman keeps (images, locks, networks, its bridge, its firewall rules) lies in a mount and a network
namespace that nobody else sees, and its processes in a pid namespace below ours: when the first process of
that one ends, however we end, the kernel ends the rest. Only control groups are shared with the machine:
they stand below one of our own, and are removed (a run that is killed leaves them, empty).

The image has one program, no shell and no library: it is imported from a tar archive in a fraction of a
second.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Child
from tests.end_to_end.namespaces import IN_PID_NAMESPACE, Network, peer_program
from tests.end_to_end.test_lifecycle import wait_until

IMAGE = "localhost/peer:1"
CONFIG = """\
[containers]
# More than the machine allows its root may be refused.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
# crun 1.8 fails where both versions of control groups are mounted.
runtime = "runc"
events_logger = "file"
[network]
network_backend = "netavark"
"""
# The first process of the pid namespace: it also takes the processes whose parents have ended.
HOLDER = """
set -e
for place in /run /var /dev/shm; do mount -t tmpfs tmpfs $place; done
mkdir /var/tmp
ip link set lo up
echo up
while sleep 1000; do :; done
"""


def hierarchies() -> list[Path]:
    """Where control groups are mounted: one place (v2), or one for each controller (v1), or both."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Path(fields[1]) for line in lines if (fields := line.split())[2] in ("cgroup", "cgroup2")]


@dataclass
class Podman:
    """The engine.

    network: where its bridge is; a process in there reaches every container.
    init: the first process of its pid namespace.
    """

    network: Network
    init: int
    environment: dict[str, str]
    cgroup: str

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """The standard output of one podman command."""
        entered = ["nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--"]
        variables = ["env", *(f"{name}={value}" for name, value in self.environment.items())]
        ran = subprocess.run(
            [*entered, *variables, "podman", *arguments], input=stdin, capture_output=True, timeout=60
        )
        assert ran.returncode == 0, f"podman {' '.join(arguments)}: {ran.stderr.decode()}"
        return ran.stdout.decode().strip()

    def import_image(self, files: dict[str, bytes]) -> None:
        """IMAGE, with peer.c's program as /usr/bin/node, and these files."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in {"usr/bin/node": peer_program().read_bytes(), **files}.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        self("import", "--quiet", "-", IMAGE, stdin=archive.getvalue())

    def create(self, *command: object, options: tuple[str, ...] = ()) -> Container:
        """A container of IMAGE that is not started yet, with an address on podman's bridge."""
        parent = f"--cgroup-parent=/{self.cgroup}"
        arguments = [IMAGE, "/usr/bin/node", *map(str, command)]
        return Container(self, self("create", parent, *options, *arguments))

    def serve(self, port: int, *more: str, options: tuple[str, ...] = ()) -> Container:
        return self.create("server.js", "serve", "0.0.0.0", port, *more, options=options)


@dataclass
class Container:
    podman: Podman
    id: str

    def start(self) -> None:
        self.podman("start", self.id)

    def remove(self) -> None:
        self.podman("rm", "--force", "--time=0", self.id)

    @property
    def inspected(self) -> dict[str, Any]:
        (found,) = json.loads(self.podman("inspect", self.id))
        return dict(found)

    @property
    def address(self) -> str:
        return str(self.inspected["NetworkSettings"]["IPAddress"])

    @property
    def cgroups(self) -> list[Path]:
        """Its control groups, in every hierarchy that has one."""
        found = [top / self.podman.cgroup / f"libpod-{self.id}" for top in hierarchies()]
        return [path for path in found if path.is_dir()]

    @property
    def pids(self) -> set[int]:
        """Its processes, as the host sees them: podman itself knows those of its own pid namespace."""
        return {int(pid) for path in self.cgroups for pid in (path / "cgroup.procs").read_text().split()}


@contextmanager
def podman(folder: Path, files: dict[str, bytes]) -> Iterator[Podman]:
    """The engine, with an image of peer.c's program and these files."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    missing = [name for name in ("podman", "runc", "iptables") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    (folder / "containers.conf").write_text(CONFIG)
    cgroup = f"ebpf-otlp-tracer-{uuid.uuid4().hex[:12]}"
    command = [*IN_PID_NAMESPACE, "--mount", "--net", "sh", "-c", HOLDER]
    child = Child(command, log=folder / "podman.log", stdout=subprocess.PIPE)
    try:
        assert child.first_line() == "up"
        environment = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "STORAGE_DRIVER": "vfs",
            "HOME": "/run",
        }
        engine = Podman(Network(child), child.pids[1], environment, cgroup)
        engine.import_image(files)
        yield engine
    finally:
        child.stop(signal.SIGKILL)
        wait_until(lambda: _removed(cgroup), f"the end of the control groups {cgroup}")


def _removed(cgroup: str) -> bool:
    """Removes our control groups where they are empty by now; whether none is left."""
    for top in hierarchies():
        for path in sorted((top / cgroup).rglob("*/"), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            (top / cgroup).rmdir()
    return not any((top / cgroup).exists() for top in hierarchies())
