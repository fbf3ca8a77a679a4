# SPDX-License-Identifier: Apache-2.0
"""Debian's generic kernel for the virtual machine, out of its package into a cache folder.

It is not installed: no boot loader is touched, and the machine keeps its own kernel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-amd64"
# What the meta package depends on. Not `-cloud-`, which has no 9p; not `-unsigned`, the same once more.
IMAGE_PACKAGE = re.compile(r"^\s*\|?Depends: (linux-image-(\d[\w.+]*-\d+-amd64))\s*$", re.MULTILINE)


class KernelImageError(RuntimeError):
    """There is no kernel to boot. The message says why, and what to do."""


@dataclass(frozen=True)
class KernelImage:
    """A kernel in the cache; its modules lie beside it, where virtme-ng looks for them."""

    release: str
    vmlinuz: Path


def package_of(depends: str) -> tuple[str, str]:
    """(package, kernel release) from the output of `apt-cache depends linux-image-amd64`."""
    found = IMAGE_PACKAGE.search(depends)
    if found is None:
        raise KernelImageError(
            f"apt names no kernel package that {META_PACKAGE} depends on; it said: {depends.strip()!r}\n"
            "hint: the VM takes its kernel from Debian (bookworm: linux-image-6.1.*-amd64); run it there"
        )
    return found[1], found[2]


def kernel_image(cache: Path) -> KernelImage:
    """The newest kernel that apt knows of; from `cache` when it is there, else downloaded (70 MB)."""
    try:
        package, release = package_of(_run(["apt-cache", "depends", META_PACKAGE]))
    except KernelImageError:
        _run(["apt-get", "update"])  # a fresh container has no package lists
        package, release = package_of(_run(["apt-cache", "depends", META_PACKAGE]))
    folder = cache / package
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="partial-", dir=cache) as scratch:
            _extract(package, release, Path(scratch))
            # Under its own name only when it is whole.
            (Path(scratch) / "kernel").rename(folder)
    return KernelImage(release, folder / "boot" / f"vmlinuz-{release}")


def _extract(package: str, release: str, scratch: Path) -> None:
    # As root apt would drop its rights to a user who may not write here, and warn.
    download = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
    print(f"downloading {package}", flush=True)
    try:
        _run(download, scratch)
    except KernelImageError:
        _run(["apt-get", "update"])  # the mirror has replaced what the lists name
        _run(download, scratch)
    (archive,) = scratch.glob("*.deb")
    _run(["dpkg-deb", "-x", str(archive), "kernel"], scratch)
    archive.unlink()
    # The package leaves the list of dependencies to its installation; 9p, the root of the guest, is a module.
    _run([shutil.which("depmod") or "/usr/sbin/depmod", "-b", "kernel", release], scratch)


def _run(command: list[str], folder: Path | None = None) -> str:
    """Standard output of a command; KernelImageError with its words when it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelImageError(
            f"{command[0]} was not found\nhint: `make test-vm` installs what it needs, on Debian"
        ) from None
    if done.returncode != 0:
        raise KernelImageError(
            f"`{' '.join(command)}` ended with status {done.returncode}: {done.stderr.strip()[-1000:]}\n"
            "hint: is a Debian mirror reachable?"
        )
    return done.stdout
