# SPDX-License-Identifier: Apache-2.0
"""The text form of resource attributes, `key=value,key2=value2`, of OTEL_RESOURCE_ATTRIBUTES.

https://opentelemetry.io/docs/specs/otel/resource/sdk/#specifying-resource-information-via-an-environment-variable
"""

from __future__ import annotations

import re

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPES = re.compile(rb"%([0-9A-Fa-f]{2})")


def parse_attributes(text: str) -> dict[str, str]:
    """The attributes; later ones win. "In case of any error … the entire environment variable value

    SHOULD be discarded": raises ValueError that names the bad pair (its key only, values may be secret).
    """
    attributes: dict[str, str] = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise ValueError(f"{key or '='!r} is not key=value")
        attributes[_decode(key, key)] = _decode(value, key)
    return attributes


def _decode(text: str, key: str) -> str:
    # urllib.parse would leave a bad escape as it stands, and costs the keeper an import.
    if _BAD_ESCAPE.search(text):
        raise ValueError(f"the value of {key!r} has a % that is not followed by two hexadecimal digits")
    try:
        return _ESCAPES.sub(lambda m: bytes([int(m[1], 16)]), text.encode()).decode()
    except UnicodeError:
        raise ValueError(f"the value of {key!r} is not UTF-8 after percent-decoding") from None
