# SPDX-License-Identifier: Apache-2.0
"""Builds the small C and Go programs, installs what Python and Node programs need, once, into a cache folder.

What is built carries the hash of its sources in its name, so nothing stale is ever used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
C_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
C_HINT = "apt install gcc libc6-dev zlib1g-dev"


class BuildError(RuntimeError):
    """A program could not be built. The message says which, why, and what to install."""


def cache_folder() -> Path:
    """`benchmarks/.build`, or BENCHMARKS_CACHE. Created when missing."""
    folder = Path(os.environ.get("BENCHMARKS_CACHE", HERE / ".build"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def c_program(source: Path, *libraries: str) -> Path:
    """The program of one C file, compiled with the C compiler on the path ($CC, else cc)."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise BuildError(f"no C compiler {compiler!r} to build {source}\nhint: {C_HINT}")
    target = _target(source.stem, [source], *C_FLAGS, *libraries)
    if not target.exists():
        _run([compiler, *C_FLAGS, "-o", str(_fresh(target)), str(source), *libraries], source, hint=C_HINT)
        _publish(target)
    return target


def go_program(source: Path) -> Path:
    """The program of one Go file that needs the standard library only."""
    if shutil.which("go") is None:
        raise BuildError(f"no Go toolchain to build {source}\nhint: apt install golang-go")
    target = _target(source.stem, [source])
    if not target.exists():
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
        _run(["go", "build", "-o", str(_fresh(target)), str(source)], source, environment)
        _publish(target)
    return target


def virtual_environment(requirements: Path) -> Path:
    """The interpreter of an environment with exactly what `requirements` pins (needs the network once)."""
    target = _target(requirements.stem, [requirements], sys.version)
    if not target.exists():
        # Not made under another name and moved: scripts in a virtual environment hold its path.
        shutil.rmtree(unfinished := target.with_suffix(".venv"), ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(unfinished)], requirements)
        pip = [str(unfinished / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--no-deps", "-r", str(requirements)], requirements)
        target.touch()
    return target.with_suffix(".venv") / "bin" / "python"


def node_modules(package: Path) -> Path:
    """The folder of what a package.json asks for (needs the network once): a NODE_PATH."""
    target = _target(package.parent.name, [package])
    if not target.exists():
        if shutil.which("npm") is None:
            raise BuildError(f"no npm to install what {package} asks for\nhint: apt install npm")
        fresh = _fresh(target)
        fresh.mkdir()
        shutil.copy(package, fresh)
        quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        _run(["npm", "install", "--prefix", str(fresh), *quiet], package)
        _publish(target)
    return target / "node_modules"


def _target(name: str, sources: list[Path], *more: str) -> Path:
    digest = hashlib.sha256("\0".join(more).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return cache_folder() / f"{name}-{digest.hexdigest()[:12]}"


def _fresh(target: Path) -> Path:
    return target.with_name(f"{target.name}.{os.getpid()}")


def _publish(target: Path) -> None:
    """Moved into place when whole: two builds at once do no harm."""
    _fresh(target).rename(target)


def _run(command: list[str], what: Path, environment: dict[str, str] | None = None, hint: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        hint = f"\nhint: {hint}" if hint else ""
        raise BuildError(f"cannot build {what}: {' '.join(command)}\n{said}{hint}")
