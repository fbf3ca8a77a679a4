# SPDX-License-Identifier: Apache-2.0
"""The OTEL_EXPORTER_OTLP_* variables, read as the specification says, into plain settings.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/
Each variable also exists per signal (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), and that one wins. Empty is
unset; a number or a choice that cannot be read is warned about and ignored; what would send data to the
wrong place or without the certificate asked for is an error.

Read in a process that still has its privileges: settings hold the contents of certificate files, not their
paths, and can be passed to another process (`to_plain`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agent.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "OTEL_EXPORTER_OTLP_"
SIGNALS = ("traces", "metrics", "logs")
PEM_BYTES_MAX = 1024 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OURS = frozenset(("content-type", "content-encoding", "content-length", "transfer-encoding", "host"))


@dataclass(frozen=True)
class SignalSettings:
    """How one signal is sent. timeout_s is per try, 0: none. Certificates are PEM text, empty: none."""

    url: str
    headers: dict[str, str]
    timeout_s: float
    gzip: bool
    json: bool
    ca: str
    client_pem: str  # certificate chain and key in one text


@dataclass(frozen=True)
class OtlpSettings:
    signals: dict[str, SignalSettings]
    temporality: str

    def to_plain(self) -> dict[str, Any]:
        """JSON types only. Holds secrets (headers), but not the client's key: that goes as a descriptor."""
        plain = asdict(self)
        for signal in plain["signals"].values():
            signal["client_pem"] = ""
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> OtlpSettings:
        signals = {name: SignalSettings(**signal) for name, signal in plain["signals"].items()}
        return cls(signals, plain["temporality"])


def read_settings(environ: Mapping[str, str]) -> OtlpSettings:
    """Raises ConfigError."""
    signals = {signal: _signal(_Variables(environ, signal)) for signal in SIGNALS}
    metrics = _Variables(environ, "metrics")
    histogram = metrics.choice(
        "DEFAULT_HISTOGRAM_AGGREGATION",
        ("explicit_bucket_histogram", "base2_exponential_bucket_histogram"),
        only=True,
    )
    if histogram == "base2_exponential_bucket_histogram":
        log.warning(
            "%sMETRICS_DEFAULT_HISTOGRAM_AGGREGATION=%s: durations are counted in explicit buckets here",
            PREFIX,
            histogram,
        )
    temporality = metrics.choice("TEMPORALITY_PREFERENCE", ("cumulative", "delta", "lowmemory"), only=True)
    return OtlpSettings(signals, temporality)


def endpoint_is_set(environ: Mapping[str, str]) -> bool:
    """Whether the user named an OTLP receiver."""
    return any(_Variables(environ, signal).get("ENDPOINT")[1] for signal in SIGNALS)


class _Variables:
    """The variables of one signal."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        self.environ, self.signal = environ, signal

    def get(self, name: str, only: bool = False) -> tuple[str, str]:
        """(variable that is set, its value), the signal's own first; only: no other. ("", "") if unset."""
        for variable in (f"{PREFIX}{self.signal.upper()}_{name}", *(() if only else (PREFIX + name,))):
            value = self.environ.get(variable, "").strip()
            if value:
                return variable, value
        return "", ""

    def choice(self, name: str, choices: tuple[str, ...], only: bool = False) -> str:
        """One of the choices, the first when unset or unknown."""
        variable, value = self.get(name, only)
        if value and value.lower() not in choices:
            log.warning("%s=%s is ignored: not one of %s", variable, value, ", ".join(choices))
        return value.lower() if value.lower() in choices else choices[0]


def _signal(variables: _Variables) -> SignalSettings:
    protocol = variables.choice("PROTOCOL", ("http/protobuf", "http/json", "grpc"))
    if protocol == "grpc":
        raise ConfigError(
            f"{variables.get('PROTOCOL')[0]}=grpc: OTLP over gRPC is not in this build",
            "unset it or set it to http/protobuf, and use the receiver's HTTP port (4318)",
        )
    return SignalSettings(
        url=_url(variables),
        headers=_headers(*variables.get("HEADERS")),
        timeout_s=_timeout_s(*variables.get("TIMEOUT")),
        gzip=variables.choice("COMPRESSION", ("none", "gzip")) == "gzip",
        json=protocol == "http/json",
        ca=_pem(*variables.get("CERTIFICATE")),
        client_pem=_client_pem(variables),
    )


def _url(variables: _Variables) -> str:
    """The base URL gets the signal's path; the signal's own URL is used as it is."""
    variable, value = variables.get("ENDPOINT")
    per_signal = variable.startswith(f"{PREFIX}{variables.signal.upper()}_")
    value = value or "http://localhost:4318"
    try:
        parts = urlsplit(value)
        scheme, host, _ = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"{variable}={value}: {error}", "give a URL such as http://localhost:4318"
        ) from None
    if scheme not in ("http", "https") or not host:
        raise ConfigError(f"{variable}={value} is not a URL", "give a URL such as http://localhost:4318")
    if parts.username is not None:
        raise ConfigError(
            f"{variable}: a user name in the URL is not supported",
            f"set {PREFIX}HEADERS=Authorization=Basic%20<base64 of user:password>",
        )
    path = parts.path if per_signal else parts.path.rstrip("/") + "/v1/" + variables.signal
    return parts._replace(scheme=scheme, path=path or "/", fragment="").geturl()


def _headers(variable: str, value: str) -> dict[str, str]:
    """k=v,k2=v2: W3C baggage without properties, values percent-encoded UTF-8.

    Values are not shown in warnings: they hold credentials.
    """
    headers: dict[str, str] = {}
    for member in filter(None, (member.strip() for member in value.split(","))):
        key, equals, text = (part.strip() for part in member.partition("="))
        text = unquote(text, errors="replace")
        if not equals or not _TOKEN.fullmatch(key):
            log.warning("%s: a member is ignored: not of the form name=value", variable)
        elif any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
            log.warning("%s: %s is ignored: its value has control characters", variable, key)
        elif key.lower() in _OURS:
            log.warning("%s: %s is ignored: the exporter sets it", variable, key)
        else:
            headers[key] = text.encode().decode("latin-1")  # http.client sends latin-1: so UTF-8 goes out
    return headers


def _timeout_s(variable: str, value: str) -> float:
    """Milliseconds, unlike OpenTelemetry's Python SDK, which reads seconds."""
    if not value:
        return 10.0
    if not re.fullmatch(r"[0-9]{1,10}", value):
        log.warning("%s=%s is ignored: not a whole number of milliseconds", variable, value)
        return 10.0
    return int(value) / 1000


def _pem(variable: str, path: str) -> str:
    """Contents of the file that a variable names; empty when unset."""
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{variable}={path}: {error.strerror}", "give the path of a PEM file that this user may read"
        ) from None
    if len(content) > PEM_BYTES_MAX or b"-----BEGIN " not in content:
        raise ConfigError(
            f"{variable}={path} is not a PEM file", "it has lines such as -----BEGIN CERTIFICATE-----"
        )
    return content.decode("utf-8", "replace")


def _client_pem(variables: _Variables) -> str:
    certificate, key = variables.get("CLIENT_CERTIFICATE"), variables.get("CLIENT_KEY")
    if bool(certificate[0]) != bool(key[0]):
        raise ConfigError(
            f"{certificate[0] or key[0]} is set without its partner",
            f"set both {PREFIX}CLIENT_CERTIFICATE and {PREFIX}CLIENT_KEY, or none",
        )
    return _pem(*certificate) + "\n" + _pem(*key) if key[0] else ""
