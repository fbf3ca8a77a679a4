# SPDX-License-Identifier: Apache-2.0
"""A good service name out of a command line: the module, the script, the jar, the program.

One table row per runtime: which executables, which of its options take a value, how its program is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

NAME_MAX = 200
PACKAGE_BYTES_MAX = 256 * 1024  # a package.json of a large application has 10 KiB


class Directory(Protocol):
    """The working directory of the target."""

    def name(self) -> str:
        """Its last component."""

    def read(self, name: str, size: int) -> bytes:
        """The start of a plain file in it, b"" when there is none."""


Cwd = Callable[[], Directory]
Found = tuple[str, str]  # name, version; empty where nothing is known
NOTHING: Found = ("", "")


@dataclass(frozen=True, slots=True)
class Runtime:
    """One interpreter or virtual machine."""

    exe: re.Pattern[str]
    language: str  # telemetry.sdk.language; well-known values where there are
    runtime: str  # process.runtime.name; "" where the executable does not tell
    name: Callable[[Sequence[str], Cwd], Found]


def service_from_command(exe_name: str, args: Sequence[str], cwd: Cwd) -> Found:
    """(name, version) for an executable called exe_name run with args (args[0] is the program itself)."""
    title = _title(args)
    if title:
        return (title, "")
    runtime = _runtime(exe_name)
    if runtime is None:
        return (clean(exe_name), "")
    name, version = runtime.name(args[1:], cwd)
    return (clean(name), version)


def runtime_of(exe_name: str) -> tuple[str, str]:
    """(language, process.runtime.name) of an executable, empty where it does not tell."""
    runtime = _runtime(exe_name)
    return (runtime.language, runtime.runtime) if runtime else NOTHING


def clean(name: str) -> str:
    """A name that is safe to show: names come from strangers' command lines."""
    return "".join(c for c in name if c.isprintable()).strip()[:NAME_MAX]


def _runtime(exe_name: str) -> Runtime | None:
    return next((r for r in RUNTIMES if r.exe.fullmatch(exe_name)), None)


def stem(path: str) -> str:
    """`/srv/app/shop.py` -> `shop`."""
    name = path.rstrip("/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


# Titles: gunicorn, puma and celery overwrite their command line.
_TITLE = re.compile(
    r"^(?:gunicorn: (?:master|worker) \[(?P<gunicorn>[^\]]+)\]"
    r"|puma(?:: cluster worker \d+: \d+)?[^\[]*\[(?P<puma>[^\]]+)\]"
    r"|\[celeryd[^\]]*\].*\s(?:-A|--app)[= ](?P<celery>[\w.:]+))"
)


def _title(args: Sequence[str]) -> str:
    match = _TITLE.match(" ".join(args)[:1000]) if args else None
    return clean(_application(next(v for v in match.groups() if v))) if match else ""


# Python: https://docs.python.org/3/using/cmdline.html

# Programs that run an application which is named in their arguments, by the options that name it.
_PYTHON_LAUNCHERS: dict[str, tuple[str, ...]] = {
    "gunicorn": (),
    "uvicorn": (),
    "hypercorn": (),
    "daphne": (),
    "granian": (),
    "waitress-serve": (),
    "celery": ("-A", "--app"),
    "flask": ("-A", "--app"),
    "fastapi": (),
}
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\(.*\))?")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")
_GENERIC_MODULES = {"wsgi", "asgi", "main", "app", "application", "server", "celery", "__main__"}


def _application(target: str) -> str:
    """`shop.wsgi:application` -> `shop`, `shop:app` -> `shop`, `app:app` -> `app`."""
    module = target.partition(":")[0].removesuffix(".py")
    while module.rpartition(".")[2] in _GENERIC_MODULES and "." in module:
        module = module.rpartition(".")[0]
    return module


def _launched(launcher: str, args: Sequence[str], cwd: Cwd) -> Found:
    options = _PYTHON_LAUNCHERS[launcher]
    for option in options:
        for i, arg in enumerate(args):
            if arg == option and i + 1 < len(args):
                return (_application(args[i + 1]), "")
            if arg.startswith(option + "="):
                return (_application(arg[len(option) + 1 :]), "")
    if options:
        return (cwd().name() or launcher, "")  # flask and celery then look for app.py here
    for arg in args:
        if _TARGET.fullmatch(arg):
            return (_application(arg), "")
    if launcher == "fastapi":
        script = next((arg for arg in args if arg.endswith(".py")), "")
        return (_script(script, cwd) if script else cwd().name() or launcher, "")
    last = args[-1] if args else ""
    alone = len(args) < 2 or not args[-2].startswith("-") or "=" in args[-2]
    return (_application(last) if _MODULE.fullmatch(last) and alone else launcher, "")


def _script(path: str, cwd: Cwd) -> str:
    """The script's name; for names that every project has, that of its directory."""
    name = stem(path)
    if name in ("__main__", "manage", "index"):
        parent = path.rstrip("/").rpartition("/")[0]
        return parent.rpartition("/")[2] if parent not in ("", ".") else cwd().name() or name
    return name


def _python(args: Sequence[str], cwd: Cwd) -> Found:
    i = 0
    while i < len(args):
        arg = args[i]
        if arg.startswith("--"):
            i += 2 if arg == "--check-hash-based-pycs" else 1
            continue
        if arg == "-" or not arg.startswith("-"):
            break
        for at, letter in enumerate(
            arg[1:], start=2
        ):  # `-Im` is `-I -m`; a letter that takes a value ends it
            if letter == "m":
                rest = ([arg[at:]] if arg[at:] else []) + list(args[i + 1 :])
                return _python_module(rest, cwd)
            if letter == "c":
                return NOTHING
            if letter in "WX":
                i += 0 if arg[at:] else 1
                break
        i += 1
    if i >= len(args) or args[i] == "-":
        return NOTHING
    launcher = stem(args[i]) if stem(args[i]) in _PYTHON_LAUNCHERS else args[i].rpartition("/")[2]
    if launcher in _PYTHON_LAUNCHERS:
        return _launched(launcher, args[i + 1 :], cwd)
    return (_script(args[i], cwd), "")


def _python_module(rest: Sequence[str], cwd: Cwd) -> Found:
    if not rest:
        return NOTHING
    module = rest[0].removesuffix(".__main__")
    return _launched(module, rest[1:], cwd) if module in _PYTHON_LAUNCHERS else (module, "")


# Java: https://docs.oracle.com/en/java/javase/21/docs/specs/man/java.html

_JAVA_WITH_VALUE = {
    "-cp",
    "-classpath",
    "--class-path",
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--add-opens",
    "--add-exports",
    "--add-reads",
    "--patch-module",
    "--limit-modules",
    "--enable-native-access",
    "--source",
}
_JAVA_PROPERTIES = ("-Dotel.service.name=", "-Dspring.application.name=")
_VERSION = re.compile(r"^(?P<name>.+?)-(?P<version>v?\d+(?:\.\d+)+[\w.+-]*)$")


def _java(args: Sequence[str], cwd: Cwd) -> Found:
    program = NOTHING
    i = 0
    while i < len(args):
        arg = args[i]
        if arg == "-jar" and i + 1 < len(args):
            name = stem(args[i + 1])
            match = _VERSION.match(name)
            program = (match["name"], match["version"]) if match else (name, "")
            break
        if (arg in ("-m", "--module") and i + 1 < len(args)) or arg.startswith("--module="):
            module = args[i + 1] if not arg.startswith("--module=") else arg[9:]
            program = (_simple(module.partition("/")[2] or module), "")
            break
        if not arg.startswith(("-", "@")):
            program = (stem(arg) if arg.endswith(".java") else _simple(arg), "")
            break
        i += 2 if arg in _JAVA_WITH_VALUE else 1
    for prefix in _JAVA_PROPERTIES:
        for arg in args:
            if arg.startswith(prefix) and arg[len(prefix) :]:
                return (arg[len(prefix) :], program[1])
    return program


def _simple(class_name: str) -> str:
    return class_name.replace("/", ".").rpartition(".")[2].replace("$", ".")


# The others: the first argument that is no option, nor the value of one.


def _first(args: Sequence[str], with_value: frozenset[str], no_script: frozenset[str]) -> int:
    """Index of the script in args, or -1."""
    i = 0
    while i < len(args):
        arg = args[i]
        if arg in no_script:
            return -1
        if not arg.startswith("-") or arg == "-":
            return i if arg != "-" else -1
        if arg == "--":
            return i + 1 if i + 1 < len(args) else -1
        i += 2 if arg in with_value else 1
    return -1


_NODE_WITH_VALUE = frozenset(
    ("-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--env-file")
)
_NODE_NO_SCRIPT = frozenset(("-e", "--eval", "-p", "--print", "-pe", "-i", "--interactive"))


def _node(args: Sequence[str], cwd: Cwd) -> Found:
    at = _first(args, _NODE_WITH_VALUE, _NODE_NO_SCRIPT)
    if at < 0:
        return NOTHING
    try:
        package = json.loads(cwd().read("package.json", PACKAGE_BYTES_MAX) or b"{}")
    except (ValueError, RecursionError):
        package = {}
    if isinstance(package, dict) and isinstance(package.get("name"), str) and clean(package["name"]):
        version = package.get("version")
        return (package["name"], clean(version) if isinstance(version, str) else "")
    return (_script(args[at], cwd), "")


def _deno(args: Sequence[str], cwd: Cwd) -> Found:
    verbs = {"run", "serve", "start", "task"}
    rest = args[1:] if args and args[0] in verbs else args
    return _node(rest, cwd)


_RUBY_LAUNCHERS = {"rails", "puma", "rackup", "unicorn", "passenger", "sidekiq", "rake"}


def _ruby(args: Sequence[str], cwd: Cwd) -> Found:
    at = _first(args, frozenset(("-C", "-I", "-r", "-E")), frozenset(("-e",)))
    if at < 0:
        return NOTHING
    if stem(args[at]) == "bundle" and args[at + 1 : at + 2] == ["exec"]:
        return _ruby(list(args[at + 2 :]), cwd)
    name = stem(args[at])
    return (cwd().name() or name if name in _RUBY_LAUNCHERS else _script(args[at], cwd), "")


def _php(args: Sequence[str], cwd: Cwd) -> Found:
    at = _first(args, frozenset(("-S", "-t", "-d", "-c", "-z")), frozenset(("-r", "-R", "-B", "-E", "-a")))
    if "-S" in args or (at >= 0 and stem(args[at]) == "artisan"):
        return (cwd().name(), "")  # the built-in server serves a directory
    return (_script(args[at], cwd), "") if at >= 0 else NOTHING


def _perl(args: Sequence[str], cwd: Cwd) -> Found:
    at = _first(args, frozenset(("-I", "-M")), frozenset(("-e", "-E")))
    return (_script(args[at], cwd), "") if at >= 0 else NOTHING


def _shell(args: Sequence[str], cwd: Cwd) -> Found:
    at = _first(args, frozenset(("-o", "+o")), frozenset(("-c", "-s", "-lc", "-ec", "-xc")))
    return (_script(args[at], cwd), "") if at >= 0 else NOTHING


def _dotnet(args: Sequence[str], cwd: Cwd) -> Found:
    if args and args[0] in ("run", "watch"):
        return (cwd().name(), "")
    at = _first(
        args[1:] if args[:1] == ["exec"] else args, frozenset(("--depsfile", "--runtimeconfig")), frozenset()
    )
    path = (args[1:] if args[:1] == ["exec"] else args)[at] if at >= 0 else ""
    return (stem(path), "") if path else NOTHING


RUNTIMES: tuple[Runtime, ...] = (
    Runtime(re.compile(r"python(\d(\.\d+)?)?[dt]?"), "python", "cpython", _python),
    Runtime(re.compile(r"pypy(\d(\.\d+)?)?"), "python", "pypy", _python),
    Runtime(re.compile(r"java"), "java", "", _java),
    Runtime(re.compile(r"node(js)?(\d+)?"), "nodejs", "nodejs", _node),
    Runtime(re.compile(r"deno|bun"), "", "", _deno),
    Runtime(re.compile(r"ruby(\d(\.\d+)?)?"), "ruby", "", _ruby),
    Runtime(re.compile(r"php(\d(\.\d+)?)?"), "php", "", _php),
    Runtime(re.compile(r"perl(5(\.\d+)*)?"), "perl", "perl", _perl),
    Runtime(re.compile(r"dotnet"), "dotnet", "", _dotnet),
    Runtime(re.compile(r"sh|bash|dash|zsh|ksh|busybox"), "", "", _shell),
)
