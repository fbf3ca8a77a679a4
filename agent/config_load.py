# SPDX-License-Identifier: Apache-2.0
"""Flags, environment and file into one `Config`: everything that is wrong is said at once.

Only the command line imports this (YAML costs memory); the keeper is given the result as JSON.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config import BY_NAME, ENV_PREFIX, OPTIONS, Config, Option
from agent.errors import ConfigError
from agent.resource_text import parse_attributes

CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
ENDPOINT_VARIABLES = tuple(f"OTEL_EXPORTER_OTLP_{s}ENDPOINT" for s in ("", "TRACES_", "METRICS_"))
FILE_BYTES_MAX = 1 << 20  # a configuration is a page; this is somebody's log file
NULL = "tag:yaml.org,2002:null"
SECTIONS = {name.rpartition(".")[0] for name in BY_NAME} - {""}

# Kubernetes puts these into every pod of a namespace with a Service called "ebpf-otlp-tracer".
_SERVICE_LINK = re.compile(ENV_PREFIX + r"(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?$")


class OptionError(ValueError):
    """A value that an option cannot take; the text says what it takes."""


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Config:
    """The effective configuration: flags > environ > file > defaults.

    flags: option name -> (source, value): text of `--set` or a value that click has typed.
    path: the file; without it the one that EBPF_OTLP_TRACER_CONFIG names, if any.
    Raises ConfigError with every error found, not only the first.
    """
    environ = environ or {}
    found = _Found()
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    if path is not None:
        _read_file(path, environ, found)
    _read_environment(environ, found)
    for name, (source, value) in (flags or {}).items():
        option = BY_NAME.get(name)
        if option is None:
            found.errors.append(f"{source}: no option {name!r}{_nearest(name, BY_NAME)}")
        else:
            found.put(option, source, value, from_text if isinstance(value, str) else from_yaml)
    values = {o.name: found.values.get(o.name, o.default) for o in OPTIONS}
    if not values["exporters"]:
        endpoint = next((v for v in ENDPOINT_VARIABLES if environ.get(v, "").strip()), "")
        values["exporters"] = ("console", "otlp") if endpoint else ("console",)
        found.sources["exporters"] = f"default, {endpoint} is set" if endpoint else "default"
    found.errors += _contradictions(values, found.sources)
    if found.errors:
        count = len(found.errors)
        message = found.errors[0] if count == 1 else "\n  ".join([f"{count} errors:", *found.errors])
        raise ConfigError(message, "correct it, then check with: ebpf-otlp-tracer validate")
    return Config(values, found.sources, tuple(found.warnings))


@dataclass
class _Found:
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def put(self, option: Option, source: str, value: Any, read: Callable[[Option, Any], Any]) -> None:
        try:
            self.values[option.name] = _checked(option, read(option, value))
        except OptionError as wrong:
            self.errors.append(f"{source}: {option.name}: {wrong}")
        else:
            self.sources[option.name] = source


# Values.


def from_text(option: Option, text: str) -> Any:
    """A value out of an environment variable or `--set`; lists are split at commas."""
    text = text.strip()
    try:
        if option.type is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        if option.type in (int, float):
            return option.type(text)
        if option.type == "ints":
            return tuple(int(part) for part in text.split(",") if part.strip())
    except (ValueError, KeyError):
        raise OptionError(f"expected {expected(option)}, got {text!r}") from None
    if option.type == "strs":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def from_yaml(option: Option, value: Any) -> Any:
    """A value that YAML (or click) has given a type already; a list of one may be written as a scalar."""
    if option.type in ("ints", "strs"):
        items = value if isinstance(value, (list, tuple)) else [value]
        kind = int if option.type == "ints" else str
        if all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
            return tuple(items)
    elif option.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, option.type) and (option.type is bool or not isinstance(value, bool)):
        return value
    raise OptionError(f"expected {expected(option)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a word such as on, off, yes or no needs quotes to be text)"
    return repr(value)


def expected(option: Option) -> str:
    """What the option takes, in words: "a whole number, at least 1"."""
    if option.choices:
        return "one of " + ", ".join(option.choices)
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        "ints": "whole numbers",
        "strs": "a list of texts",
    }[option.type]
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"{words} from {low:.15g} to {high:.15g}"
    if low is not None:
        return f"{words}, at least {low:.15g}"
    return words if high is None else f"{words}, at most {high:.15g}"


def _checked(option: Option, value: Any) -> Any:
    if option.choices:
        # "Enum values SHOULD be interpreted in a case-insensitive manner": the OpenTelemetry specification.
        value = value.lower()
        value = {"warning": "warn"}.get(value, value) if option.name == "log.level" else value
        if value not in option.choices:
            near = _nearest(value, option.choices)
            raise OptionError(f"expected {expected(option)}, got {value!r}{near}")
    for number in value if option.type == "ints" else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            low = -math.inf if option.minimum is None else option.minimum
            high = math.inf if option.maximum is None else option.maximum
            if not math.isfinite(number) or not low <= number <= high:
                raise OptionError(f"expected {expected(option)}, got {number}")
    check = _CHECKS.get(option.name)
    if check is not None:
        check(value)
    return value


def _power_of_two(value: int) -> None:
    if value & (value - 1):
        raise OptionError(f"expected a power of two, got {value}; the next one is {1 << value.bit_length()}")


def _attributes(value: str) -> None:
    try:
        parse_attributes(value)
    except ValueError as error:
        raise OptionError(f"{error}; write key=value,key2=value2 (percent-encode , = and %)") from None


def _exporters(values: tuple[str, ...]) -> None:
    for value in values:
        kind, colon, path = value.partition(":")
        if kind in ("jsonl", "sdk"):
            if not path:
                what = "a path: jsonl:/var/log/spans.jsonl" if kind == "jsonl" else "a name: sdk:zipkin_json"
                raise OptionError(f"{value!r} needs {what}")
        elif kind not in ("console", "otlp", "none") or colon:
            near = _nearest(kind, ("console", "jsonl", "otlp", "sdk", "none"))
            raise OptionError(
                f"no exporter {value!r}{near}; there are console, jsonl:PATH, otlp, sdk:NAME and none"
            )
    if "none" in values and len(values) > 1:
        raise OptionError(f"none cannot stand beside another exporter, got {', '.join(values)}")


def _containers(values: tuple[str, ...]) -> None:
    for value in values:
        if not re.fullmatch(r"[0-9a-f][0-9a-f-]*", value):
            raise OptionError(
                f"expected a container id (hexadecimal, a prefix will do), got {value!r}; "
                "docker ps, podman ps and crictl ps show ids"
            )


def _listen(value: str) -> None:
    host, _, port = value.rpartition(":")
    if value and not (host and port.isdecimal() and int(port) <= 65535):
        raise OptionError(f"expected HOST:PORT such as 127.0.0.1:9465, or nothing, got {value!r}")


def _not_blank(values: tuple[str, ...]) -> None:
    if any(not value.strip() for value in values):
        raise OptionError("an empty text selects nothing; leave it out, or write * to select everything")


def _header_names(values: tuple[str, ...]) -> None:
    for value in values:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):  # RFC 9110, 5.6.2: token
            raise OptionError(f"{value!r} is not the name of a header")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "capture.ring_bytes": _power_of_two,
    "resource.attributes": _attributes,
    "exporters": _exporters,
    "select.container": _containers,
    "select.exe": _not_blank,
    "select.service": _not_blank,
    "self.listen": _listen,
    "http.request_headers": _header_names,
    "http.response_headers": _header_names,
}

# (smaller, larger): pairs of which the first may not exceed the second.
_ORDERED = (
    ("capture.wake_bytes", "capture.ring_bytes"),
    ("capture.allowance_bytes", "capture.ring_bytes"),
    ("core.stream_bytes_max", "core.buffer_bytes_max"),
)


def _contradictions(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    return [
        f"{sources.get(small) or sources.get(large, 'default')}: "
        f"{small} is {values[small]}, more than {large}, which is {values[large]}"
        for small, large in _ORDERED
        if values[small] > values[large]
    ]


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# Environment.


def _read_environment(environ: Mapping[str, str], found: _Found) -> None:
    """Our own variables must be right; a wrong OTEL_* value is warned about and ignored, as specified."""
    for option in OPTIONS:
        if environ.get(option.env_name):  # "an empty value … MUST be treated as unset"
            found.put(option, option.env_name, environ[option.env_name], from_text)
            continue
        for variable in option.env:
            if not environ.get(variable):
                continue
            trial = _Found()
            trial.put(option, variable, environ[variable], from_text)
            found.values.update(trial.values)
            found.sources.update(trial.sources)
            found.warnings += [f"{error}; ignored" for error in trial.errors]
            break
    ours = {option.env_name for option in OPTIONS} | {CONFIG_VARIABLE}
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in ours and not _SERVICE_LINK.match(variable):
            found.warnings.append(f"{variable}: no such option{_nearest(variable, ours)}; ignored")


# The file.


def _read_file(path: Path, environ: Mapping[str, str], found: _Found) -> None:
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigError(
                f"{path}: larger than {FILE_BYTES_MAX} bytes", "name the YAML file of this agent"
            )
        root = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
    except OSError as error:
        hint = f"give --config an existing file, or unset {CONFIG_VARIABLE}"
        raise ConfigError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(
            _yaml_error(path, error), "correct it, then run: ebpf-otlp-tracer validate"
        ) from None
    if root is None or root.tag == NULL:
        return
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        found.errors.append(
            f"{path}:{line}: expected sections such as `core:`, got {type(root).__name__[:-4].lower()}"
        )
        return
    _File(path, environ, found).section("", root)


def _yaml_error(path: Path, error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{path}:{mark.line + 1}: {problem}" if mark else f"{path}: {problem}"


_REFERENCE = re.compile(
    r"\$\$|\$\{(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}\n]*))?\}|\$\{"
)


class _File:
    """One YAML document against the table; positions come from the nodes."""

    def __init__(self, path: Path, environ: Mapping[str, str], found: _Found) -> None:
        self.path, self.environ, self.found = path, environ, found
        self.lines: dict[str, int] = {}

    def section(self, prefix: str, node: Any) -> None:
        import yaml

        for key_node, value_node in node.value:
            where = f"{self.path}:{key_node.start_mark.line + 1}"
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            name = prefix + key
            if name in self.lines:
                self.found.errors.append(f"{where}: {name}: set before, in line {self.lines[name]}")
                continue
            self.lines[name] = key_node.start_mark.line + 1
            if name in BY_NAME:
                self.option(BY_NAME[name], where, value_node)
            elif name in SECTIONS and isinstance(value_node, yaml.MappingNode):
                self.section(name + ".", value_node)
            elif name in SECTIONS:
                if value_node.tag != NULL:
                    self.found.errors.append(f"{where}: {name}: expected keys below it, got a value")
            else:
                self.found.errors.append(f"{where}: unknown key {name!r}{self.suggestion(prefix, key)}")

    def suggestion(self, prefix: str, key: str) -> str:
        """The nearest key: first among its neighbours, then by its last word anywhere, then by likeness."""
        here = {n.removeprefix(prefix) for n in {*BY_NAME, *SECTIONS} if n.startswith(prefix)}
        near = _nearest(key, here)
        if near:
            return near.replace("did you mean ", f"did you mean {prefix}")
        same = [n for n in BY_NAME if n.rpartition(".")[2] == key]
        return f"; did you mean {same[0]}?" if same else _nearest(prefix + key, {*BY_NAME, *SECTIONS})

    def option(self, option: Option, where: str, node: Any) -> None:
        try:
            value = self.value(node)
        except OptionError as wrong:
            self.found.errors.append(f"{where}: {option.name}: {wrong}")
            return
        if value is not None:  # `key:` and `${UNSET}` leave the default
            self.found.put(option, where, value, from_yaml)

    def value(self, node: Any) -> Any:
        """The value of a node, `${VAR}` replaced in scalars only: a variable never adds structure."""
        import yaml

        if isinstance(node, yaml.SequenceNode):
            return [self.value(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return {}
        text = _REFERENCE.sub(self.replacement, node.value)
        tag = node.tag
        if text != node.value and node.style is None:
            resolve: Callable[..., str] = yaml.SafeLoader("").resolve  # untyped in the stubs
            tag = resolve(yaml.ScalarNode, text, (True, False))
        try:
            return yaml.SafeLoader("").construct_object(yaml.ScalarNode(tag, text))
        except (yaml.YAMLError, ValueError) as error:
            raise OptionError(getattr(error, "problem", None) or str(error)) from None

    def replacement(self, match: re.Match[str]) -> str:
        """Substitution of the OpenTelemetry declarative configuration: ${VAR}, ${env:VAR}, ${VAR:-x}, $$."""
        if match[0] == "$$":
            return "$"
        if match["name"] is None:
            raise OptionError("a reference is written ${VARIABLE} or ${VARIABLE:-default}; $$ stands for $")
        return self.environ.get(match["name"]) or match["default"] or ""


# What else is made from the table.


def schema() -> dict[str, Any]:
    """JSON Schema of the YAML file, for editors. A value may be a `${VARIABLE}` everywhere."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ebpf-otlp-tracer configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for option in OPTIONS:
        *sections, key = option.name.split(".")
        level = root
        for section in sections:
            level = level["properties"].setdefault(
                section, {"type": ["object", "null"], "additionalProperties": False, "properties": {}}
            )
        level["properties"][key] = _option_schema(option)
    return root


def _option_schema(option: Option) -> dict[str, Any]:
    kind = {
        int: "integer",
        float: "number",
        bool: "boolean",
        str: "string",
        "ints": "integer",
        "strs": "string",
    }
    value: dict[str, Any] = {"type": kind[option.type]}
    if option.choices:
        value["enum"] = list(option.choices)
    if option.minimum is not None:
        value["minimum"] = option.minimum
    if option.maximum is not None:
        value["maximum"] = option.maximum
    reference = {"type": "string", "pattern": r"\$\{"}
    either = {"anyOf": [value, reference, {"type": "null"}]}
    if option.type in ("ints", "strs"):
        either["anyOf"].insert(0, {"type": "array", "items": {"anyOf": [value, reference]}})
    default = list(option.default) if isinstance(option.default, tuple) else option.default
    return {"description": option.help, "default": default, **either}
