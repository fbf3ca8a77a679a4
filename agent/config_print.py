# SPDX-License-Identifier: Apache-2.0
"""The effective configuration as text, with the source of each value and without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agent.config import OPTIONS, Config, Option

REDACTED = "REDACTED"
_SECRET_VARIABLE = re.compile(r"HEADERS|PASSWORD|TOKEN|SECRET")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


def as_yaml(config: Config, environ: Mapping[str, str]) -> str:
    """YAML that can be given back with --config, each line with its source as comment."""
    lines: list[str] = []
    open_section = ""
    for option in OPTIONS:
        section, _, key = option.name.rpartition(".")
        if section and section != open_section:
            lines.append(f"{section}:")
        open_section = section
        # JSON is YAML; a $ would be read as the start of a reference.
        text = json.dumps(_shown(option, config[option.name]), ensure_ascii=False).replace("$", "$$")
        lines.append(f"{'  ' if section else ''}{key}: {text}  # {config.source(option.name)}")
    variables = environment(environ)
    if variables:
        lines += ["", "# Read by the exporters:", *(f"# {name}={value}" for name, value in variables.items())]
    return "\n".join(lines) + "\n"


def as_json(config: Config, environ: Mapping[str, str]) -> str:
    """`{"options": {name: {"value": …, "source": …}}, "environment": {…}}`."""
    options = {
        option.name: {"value": _shown(option, config[option.name]), "source": config.source(option.name)}
        for option in OPTIONS
    }
    return json.dumps({"options": options, "environment": environment(environ)}, indent=2) + "\n"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The OTEL_EXPORTER_* variables that are set, which have no option of their own."""
    found = {}
    for name in sorted(environ):
        if name.startswith("OTEL_EXPORTER_") and environ[name]:
            text = (
                REDACTED if _SECRET_VARIABLE.search(name) else _USER_INFO.sub(REDACTED + "@", environ[name])
            )
            found[name] = "".join(c if c.isprintable() else "?" for c in text)
    return found


def _shown(option: Option, value: Any) -> Any:
    if option.secret and value:
        return REDACTED
    return list(value) if isinstance(value, tuple) else value
