# SPDX-License-Identifier: Apache-2.0
"""OTEL_EXPORTER_OTLP_*: every variable, its per-signal form, and what is wrong with bad values."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from agent.errors import ConfigError
from exporters.otlp_settings import SIGNALS, OtlpSettings, SignalSettings, endpoint_is_set, read_settings

PREFIX = "OTEL_EXPORTER_OTLP_"
PEM = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


def traces(**variables: str) -> SignalSettings:
    return read_settings({PREFIX + key: value for key, value in variables.items()}).signals["traces"]


def metrics(**variables: str) -> SignalSettings:
    return read_settings({PREFIX + key: value for key, value in variables.items()}).signals["metrics"]


def logs(**variables: str) -> SignalSettings:
    return read_settings({PREFIX + key: value for key, value in variables.items()}).signals["logs"]


def test_defaults() -> None:
    settings = read_settings({})
    assert settings.temporality == "cumulative"
    assert settings.signals["traces"] == SignalSettings(
        "http://localhost:4318/v1/traces", {}, 10.0, gzip=False, json=False, ca="", client_pem=""
    )
    assert settings.signals["metrics"].url == "http://localhost:4318/v1/metrics"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp", "https://c/otlp/v1/traces"),
        ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ("HTTP://c", "http://c/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ("  http://c  ", "http://c/v1/traces"),
        ("", "http://localhost:4318/v1/traces"),
    ],
)
def test_base_endpoint_gets_the_signals_path(base: str, url: str) -> None:
    assert traces(ENDPOINT=base).url == url


@pytest.mark.parametrize(
    ("own", "url"),
    [
        ("http://c:4318", "http://c:4318/"),
        ("http://c:4318/", "http://c:4318/"),
        ("https://c/custom", "https://c/custom"),
        ("https://c/v1/traces?key=1", "https://c/v1/traces?key=1"),
        ("", "http://base/v1/traces"),
    ],
)
def test_a_signals_own_endpoint_is_used_as_it_is(own: str, url: str) -> None:
    assert traces(ENDPOINT="http://base", TRACES_ENDPOINT=own).url == url
    assert metrics(ENDPOINT="http://base", TRACES_ENDPOINT=own).url == "http://base/v1/metrics"


def test_logs_have_variables_of_their_own() -> None:
    general = {"ENDPOINT": "http://base", "HEADERS": "a=1", "TIMEOUT": "5000", "COMPRESSION": "gzip"}
    assert logs(**general) == SignalSettings("http://base/v1/logs", {"a": "1"}, 5.0, True, False, "", "")
    own = {"LOGS_ENDPOINT": "http://c/x", "LOGS_HEADERS": "b=2", "LOGS_TIMEOUT": "70"}
    own |= {"LOGS_COMPRESSION": "none", "LOGS_PROTOCOL": "http/json"}
    assert logs(**general, **own) == SignalSettings("http://c/x", {"b": "2"}, 0.07, False, True, "", "")
    assert traces(**general, **own) == traces(**general)
    assert endpoint_is_set({PREFIX + "LOGS_ENDPOINT": "http://c"})


@pytest.mark.parametrize("url", ["localhost:4318", "c", "ftp://c", "http://", "http://c:port", "http://[::1"])
def test_an_endpoint_that_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match=f"{PREFIX}ENDPOINT=.*") as error:
        traces(ENDPOINT=url)
    assert "http://localhost:4318" in error.value.hint


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as error:
        traces(ENDPOINT="http://user:secret@c")
    assert "secret" not in str(error.value)
    assert "HEADERS" in error.value.hint


def test_headers_are_percent_decoded(caplog: pytest.LogCaptureFixture) -> None:
    text = "api-key=a%20b%2Cc , Authorization=Basic%20dTpw=, empty=,x=sp%C3%A4th"
    headers = traces(HEADERS=text).headers
    assert headers["api-key"] == "a b,c"
    assert headers["Authorization"] == "Basic dTpw="
    assert headers["empty"] == ""
    assert headers["x"].encode("latin-1").decode() == "späth"
    assert not caplog.records


@pytest.mark.parametrize(
    "bad", ["novalue", "=v", "bad name=v", "k=a%0d%0aX: y", "Content-Length=3", "host=a"]
)
def test_bad_headers_are_ignored_with_a_warning_that_shows_no_value(
    bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert traces(HEADERS=f"{bad},good=1").headers == {"good": "1"}
    assert len(caplog.records) == len(SIGNALS)  # each reads it
    assert f"{PREFIX}HEADERS" in caplog.text
    assert "X: y" not in caplog.text


def test_own_headers_replace_the_general_ones() -> None:
    assert traces(HEADERS="a=1,b=2", TRACES_HEADERS="c=3").headers == {"c": "3"}
    assert metrics(HEADERS="a=1", TRACES_HEADERS="c=3").headers == {"a": "1"}


@pytest.mark.parametrize(
    ("text", "seconds", "warned"),
    [("2500", 2.5, False), ("0", 0.0, False), ("", 10.0, False), ("-1", 10.0, True), ("10s", 10.0, True)],
)
def test_timeout_is_in_milliseconds(
    text: str, seconds: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert traces(TIMEOUT="77", TRACES_TIMEOUT=text).timeout_s == (seconds if text else 0.077)
    assert bool(caplog.records) == warned


@pytest.mark.parametrize(
    ("text", "gzip"), [("gzip", True), ("GZIP", True), ("none", False), ("", False), ("zstd", False)]
)
def test_compression(text: str, gzip: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert traces(COMPRESSION=text).gzip is gzip
    assert ("zstd" in caplog.text) == (text == "zstd")


def test_protocols() -> None:
    assert traces(PROTOCOL="http/json").json
    assert not traces(PROTOCOL="http/protobuf").json
    assert not traces(PROTOCOL="http/json", TRACES_PROTOCOL="http/protobuf").json
    assert not traces(PROTOCOL="carrier-pigeon").json


def test_grpc_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc") as error:
        traces(TRACES_PROTOCOL="grpc")
    assert "http/protobuf" in error.value.hint


def test_certificates_are_read_at_once(tmp_path: Path) -> None:
    for name in ("ca", "crt", "key"):
        (tmp_path / name).write_text(PEM.replace("abc", name))
    settings = traces(
        CERTIFICATE=str(tmp_path / "ca"),
        CLIENT_CERTIFICATE=str(tmp_path / "crt"),
        TRACES_CLIENT_KEY=str(tmp_path / "key"),
        METRICS_CLIENT_KEY=str(tmp_path / "key"),
        LOGS_CLIENT_KEY=str(tmp_path / "key"),
    )
    assert settings.ca == PEM.replace("abc", "ca")
    assert "crt" in settings.client_pem
    assert "key" in settings.client_pem


def test_certificate_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CERTIFICATE=/nowhere: No such file"):
        traces(CERTIFICATE="/nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="is not a PEM file"):
        traces(CERTIFICATE=str(tmp_path / "text"))


@pytest.mark.parametrize("name", ["CLIENT_KEY", "CLIENT_CERTIFICATE"])
def test_half_of_a_client_pair_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{PREFIX}{name} is set without its partner"):
        traces(**{name: "/x"})


def test_insecure_changes_nothing_over_http() -> None:
    assert traces(INSECURE="true", ENDPOINT="https://c").url == "https://c/v1/traces"


def test_temporality_preference(caplog: pytest.LogCaptureFixture) -> None:
    name = PREFIX + "METRICS_TEMPORALITY_PREFERENCE"
    assert read_settings({name: "Delta"}).temporality == "delta"
    assert read_settings({name: "lowmemory"}).temporality == "lowmemory"
    assert read_settings({name: "often"}).temporality == "cumulative"
    assert f"{name}=often is ignored" in caplog.text


def test_exponential_histograms_are_declined(caplog: pytest.LogCaptureFixture) -> None:
    read_settings({PREFIX + "METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"})
    assert "explicit buckets" in caplog.text


def test_settings_pass_through_json() -> None:
    settings = read_settings({PREFIX + "HEADERS": "a=1", PREFIX + "COMPRESSION": "gzip"})
    assert OtlpSettings.from_plain(json.loads(json.dumps(settings.to_plain()))) == settings


def test_endpoint_is_set() -> None:
    assert not endpoint_is_set({})
    assert not endpoint_is_set({PREFIX + "ENDPOINT": " "})
    assert endpoint_is_set({PREFIX + "ENDPOINT": "http://c"})
    assert endpoint_is_set({PREFIX + "METRICS_ENDPOINT": "http://c"})


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
