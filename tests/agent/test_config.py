# SPDX-License-Identifier: Apache-2.0
"""One precedence, and messages that name the place, the key, the value and what to write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent import config_print
from agent.config import BY_NAME, OPTIONS, Config
from agent.config_load import from_text, load, schema
from agent.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return path


def wrong(text: str = "", environ: dict[str, str] | None = None, tmp_path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, environ or {}, write(tmp_path, text) if tmp_path else None)
    assert caught.value.exit_code == 78
    return caught.value.message.replace(f"{tmp_path}/", "")


# The table.


def test_the_table_is_whole() -> None:
    kinds = {int: int, float: float, bool: bool, str: str, "ints": tuple, "strs": tuple}
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)
    variables = [option.env_name for option in OPTIONS]
    assert len(set(variables)) == len(variables)
    for option in OPTIONS:
        assert type(option.default) is kinds[option.type], option.name
        assert option.help.endswith("."), option.name
        assert not option.choices or option.default in option.choices, option.name
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)?", option.name)


def test_every_default_passes_its_own_checks() -> None:
    for option in OPTIONS:
        text = (
            ",".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)
        )
        assert from_text(option, text) == option.default, option.name
        if text:
            loaded = load(None, {option.env_name: text})
            assert loaded[option.name] == option.default
            assert loaded.source(option.name) == option.env_name


# Precedence.


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "core:\n  hold_ms: 1\n  poll_ms: 1\n  pending_max: 1\n")
    environ = {"EBPF_OTLP_TRACER_CORE_HOLD_MS": "2", "EBPF_OTLP_TRACER_CORE_POLL_MS": "2"}
    config = load({"core.hold_ms": ("--set", "3")}, environ, path)
    names = ["core.hold_ms", "core.poll_ms", "core.pending_max", "core.series_max"]
    assert [config[name] for name in names] == [3.0, 2.0, 1, 2000]
    assert [config.source(name) for name in names] == [
        "--set",
        "EBPF_OTLP_TRACER_CORE_POLL_MS",
        f"{path}:4",
        "default",
    ]


def test_our_own_variable_wins_over_that_of_opentelemetry() -> None:
    config = load(None, {"OTEL_LOG_LEVEL": "error", "EBPF_OTLP_TRACER_LOG_LEVEL": "debug"})
    assert config["log.level"] == "debug"
    assert load(None, {"OTEL_LOG_LEVEL": "WARNING"})["log.level"] == "warn"


def test_an_empty_variable_is_unset() -> None:
    assert load(None, {"EBPF_OTLP_TRACER_CORE_HOLD_MS": "", "OTEL_LOG_LEVEL": ""}) == load(None, {})


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    path = write(tmp_path, "log: {level: warn}")
    assert load(None, {"EBPF_OTLP_TRACER_CONFIG": str(path)})["log.level"] == "warn"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("console",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("console", "otlp")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, ("console", "otlp")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ("console",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ("none",)),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ("otlp", "console")),
        ({"EBPF_OTLP_TRACER_EXPORTERS": "jsonl:/tmp/x.jsonl,sdk:x"}, ("jsonl:/tmp/x.jsonl", "sdk:x")),
    ],
)
def test_where_spans_go(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert load(None, environ)["exporters"] == expected


def test_the_result_survives_the_way_to_the_keeper() -> None:
    config = load({"select.port": ("--port", (8080, 80))}, {})
    again = Config.from_json(config.to_json())
    assert dict(again) == dict(config)
    assert again["select.port"] == (8080, 80)
    assert isinstance(json.loads(config.to_json()), dict)


# The environment.


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "half"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_LOG_LEVEL", "loud"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_a_wrong_value_of_opentelemetry_is_warned_about_and_ignored(variable: str, value: str) -> None:
    config = load(None, {variable: value})
    assert dict(config) == dict(load(None, {}))
    assert len(config.warnings) == 1
    assert variable in config.warnings[0] and value in config.warnings[0] and "ignored" in config.warnings[0]


def test_a_wrong_value_of_ours_is_an_error() -> None:
    message = wrong(environ={"EBPF_OTLP_TRACER_CORE_HOLD_MS": "fast"})
    assert message == (
        "EBPF_OTLP_TRACER_CORE_HOLD_MS: core.hold_ms: expected a number from 0 to 1000, got 'fast'"
    )


def test_a_variable_that_sets_nothing_is_named_with_the_nearest() -> None:
    warnings = load(None, {"EBPF_OTLP_TRACER_CORE_HOLD_S": "1"}).warnings
    assert warnings == (
        "EBPF_OTLP_TRACER_CORE_HOLD_S: no such option; did you mean EBPF_OTLP_TRACER_CORE_HOLD_MS?; ignored",
    )


def test_the_service_links_of_kubernetes_are_not_options() -> None:
    links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "PORT", "PORT_9465_TCP_ADDR")
    assert load(None, {f"EBPF_OTLP_TRACER_{link}": "x" for link in links}).warnings == ()


# The file.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core:\n  hold_msec: 5\n", "2: unknown key 'core.hold_msec'; did you mean core.hold_ms?"),
        ("cor:\n  hold_ms: 5\n", "1: unknown key 'cor'; did you mean core?"),
        ("hold_ms: 5\n", "1: unknown key 'hold_ms'; did you mean core.hold_ms?"),
        ("zzz: 5\n", "1: unknown key 'zzz'"),
        ("core: 5\n", "1: core: expected keys below it, got a value"),
        (
            "\ncore:\n  hold_ms: fast\n",
            "3: core.hold_ms: expected a number from 0 to 1000, got 'fast'",
        ),
        ("core: {hold_ms: 1001}", "1: core.hold_ms: expected a number from 0 to 1000, got 1001.0"),
        ("core: {hold_ms: .nan}", "1: core.hold_ms: expected a number from 0 to 1000, got nan"),
        (
            "core: {pending_max: 1.5}",
            "1: core.pending_max: expected a whole number, at least 1, got 1.5",
        ),
        (
            "core: {pending_max: {a: 1}}",
            "1: core.pending_max: expected a whole number, at least 1, got a mapping",
        ),
        ("select: {port: 0}", "1: select.port: expected whole numbers from 1 to 65535, got 0"),
        (
            "select: {port: [80, http]}",
            "1: select.port: expected whole numbers from 1 to 65535, got [80, 'http']",
        ),
        ("select: {all: 1}", "1: select.all: expected true or false, got 1"),
        (
            "select: {exe: ['']}",
            "1: select.exe: an empty text selects nothing; leave it out, or write * to select everything",
        ),
        (
            "http: {route: huristic}",
            "1: http.route: expected one of heuristic, unset, got 'huristic'; did you mean heuristic?",
        ),
        (
            "capture: {ring_bytes: 5000000}",
            "1: capture.ring_bytes: expected a power of two, got 5000000; the next one is 8388608",
        ),
        ("exporters: [jsonl]", "1: exporters: 'jsonl' needs a path: jsonl:/var/log/spans.jsonl"),
        (
            "exporters: [oltp]",
            "1: exporters: no exporter 'oltp'; did you mean otlp?; "
            "there are console, jsonl:PATH, otlp, sdk:NAME and none",
        ),
        (
            "exporters: [none, console]",
            "1: exporters: none cannot stand beside another exporter, got none, console",
        ),
        (
            "self: {listen: localhost}",
            "1: self.listen: expected HOST:PORT such as 127.0.0.1:9465, or nothing, got 'localhost'",
        ),
        (
            "http: {request_headers: ['x y']}",
            "1: http.request_headers: 'x y' is not the name of a header",
        ),
        ("core:\n  hold_ms: 1\n  hold_ms: 2\n", "3: core.hold_ms: set before, in line 2"),
        (
            "core: {stream_bytes_max: 99999999}",
            "1: core.stream_bytes_max is 99999999, more than core.buffer_bytes_max, which is 33554432",
        ),
        ("- core\n", "1: expected sections such as `core:`, got sequence"),
        (
            "log: {level: '${nope'}",
            "1: log.level: a reference is written ${VARIABLE} or ${VARIABLE:-default}; $$ stands for $",
        ),
        ("log: {level: !!python/object:os.system x}", None),
        ("core: [\n", None),
        ("a: b: c\n", None),
        ("log: {level: *unknown}", None),
        ("\t", None),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, message: str | None) -> None:
    found = wrong(text, tmp_path=tmp_path)
    assert re.match(r"agent\.yaml:\d+: ", found)
    assert message is None or found == f"agent.yaml:{message}"


def test_resource_attributes_are_read_before_the_run(tmp_path: Path) -> None:
    assert "resource.attributes" in wrong("resource: {attributes: 'a'}", tmp_path=tmp_path)


def test_a_container_is_an_id_not_a_name(tmp_path: Path) -> None:
    assert "docker ps, podman ps and crictl ps show ids" in wrong(
        "select: {container: web}", tmp_path=tmp_path
    )


def test_every_error_is_said_at_once(tmp_path: Path) -> None:
    text = "core:\n  hold_ms: fast\n  nope: 1\nlog:\n  level: loud\n"
    found = wrong(text, {"EBPF_OTLP_TRACER_CORE_POLL_MS": "x"}, tmp_path)
    lines = found.split("\n")
    assert lines[0] == "4 errors:"
    assert [line.split(":")[1] for line in lines[1:4]] == ["2", "3", "5"]
    assert "EBPF_OTLP_TRACER_CORE_POLL_MS" in lines[4]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "core:\n", "core:\n  hold_ms:\n", "core: {hold_ms: ~}"]
)
def test_an_empty_file_section_or_value_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    assert dict(load(None, {}, write(tmp_path, text))) == dict(load(None, {}))


def test_a_list_of_one_may_be_a_scalar(tmp_path: Path) -> None:
    config = load(None, {}, write(tmp_path, "select: {port: 80, exe: nginx}\nexporters: otlp\n"))
    assert (config["select.port"], config["select.exe"], config["exporters"]) == (
        (80,),
        ("nginx",),
        ("otlp",),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${HOLD}", 7.0),
        ("${env:HOLD}", 7.0),
        ("${UNSET}", 5.0),  # the default
        ("${UNSET:-9}", 9.0),
        ("${EMPTY:-9}", 9.0),
        ("1${HOLD}", 17.0),
    ],
)
def test_variables_are_put_in_with_their_type(tmp_path: Path, value: str, expected: float) -> None:
    path = write(tmp_path, f"core:\n  hold_ms: {value}\n")
    assert load(None, {"HOLD": "7", "EMPTY": ""}, path)["core.hold_ms"] == expected


def test_a_variable_cannot_add_structure_and_two_dollars_are_one(tmp_path: Path) -> None:
    path = write(tmp_path, "resource:\n  attributes: ${A}\nselect:\n  service: ['$${A}']\n")
    config = load(None, {"A": "k=v\nlog: {level: error}"}, path)
    assert config["resource.attributes"] == "k=v\nlog: {level: error}"
    assert config["select.service"] == ("${A}",)
    assert config["log.level"] == "info"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"x" * (2 << 20)])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "agent.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(None, {}, path)
    assert str(path) in caught.value.message and caught.value.hint


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        load(None, {}, tmp_path)


def test_random_bytes_never_end_in_anything_but_a_config_error(tmp_path: Path) -> None:
    import random

    alphabet = "core: {}[]\n\t-&*!|>'\"%@`$a1,?#~\x00\u2028"
    rng = random.Random(7)
    path = tmp_path / "agent.yaml"
    for _ in range(500):
        path.write_text("".join(rng.choice(alphabet) for _ in range(rng.randrange(30))))
        try:
            load(None, {}, path)
        except ConfigError as error:
            assert str(path) in error.message


# What is printed.


def test_print_config_can_be_given_back(tmp_path: Path) -> None:
    config = load({"select.exe": ("--exe", ("a: b", "é*", "${x}"))}, {"EBPF_OTLP_TRACER_CORE_HOLD_MS": "7"})
    text = config_print.as_yaml(config, {})
    assert dict(load(None, {}, write(tmp_path, text))) == dict(config)
    assert "  hold_ms: 7.0  # EBPF_OTLP_TRACER_CORE_HOLD_MS\n" in text
    assert "  poll_ms: 100.0  # default\n" in text


def test_print_config_as_json_has_value_and_source() -> None:
    printed = json.loads(config_print.as_json(load(None, {}), {}))
    assert printed["options"]["core.hold_ms"] == {"value": 5.0, "source": "default"}
    assert list(printed["options"]) == [option.name for option in OPTIONS]


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    options = tuple(replace(o, secret=True) if o.name == "resource.attributes" else o for o in OPTIONS)
    monkeypatch.setattr(config_print, "OPTIONS", options)
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=hunter2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:hunter2@collector:4318",
        "PASSWORD": "hunter2",
    }
    config = load({"resource.attributes": ("--set", "k=hunter2")}, environ)
    for text in (config_print.as_yaml(config, environ), config_print.as_json(config, environ)):
        assert "hunter2" not in text
        assert "https://REDACTED@collector:4318" in text


def test_the_schema_knows_every_option_and_takes_what_loads() -> None:
    made = schema()
    validator = jsonschema.Draft202012Validator(made)
    validator.check_schema(made)
    nested: dict[str, Any] = {}
    for option in OPTIONS:
        section, _, key = option.name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = (
            list(option.default) if isinstance(option.default, tuple) else option.default
        )
    validator.validate(nested)
    validator.validate({"core": {"hold_ms": "${HOLD:-5}"}, "select": None, "exporters": "otlp"})
    for bad in ({"core": {"nope": 1}}, {"cor": {}}, {"core": {"hold_ms": -1}}, {"http": {"route": "x"}}):
        assert list(validator.iter_errors(bad)), bad


def test_the_yaml_library_is_used_safely() -> None:
    assert yaml.safe_load(config_print.as_yaml(load(None, {}), {}))["core"]["hold_ms"] == 5.0
    assert BY_NAME["core.hold_ms"].env_name == "EBPF_OTLP_TRACER_CORE_HOLD_MS"
