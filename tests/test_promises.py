# SPDX-License-Identifier: Apache-2.0
"""What the documents promise is there, and what is there is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from agent.core._core import ffi, lib

from agent.cli import cli
from agent.config import OPTIONS
from agent.self_metrics import FIGURES
from exporters import NAMES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))


def protocols() -> list[str]:
    return re.findall(r"X\([A-Z0-9_]+, (\w+), [01]\)", (ROOT / "bpf/protocols.h").read_text())


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_command_is_in_the_readme_and_tested(verb):
    assert verb in README
    assert re.search(rf'"{verb}"', TESTS)


@pytest.mark.parametrize("option", [o.flag for o in OPTIONS if o.flag])
def test_every_flag_is_in_the_readme_and_tested(option):
    assert option in README or option in ("--exporter",)
    assert option in TESTS


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_every_option_has_a_sentence(option):
    assert option.help.endswith(".")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_every_metric_has_a_unit_and_a_sentence(figure):
    assert figure.unit
    assert figure.help.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_exporter_is_in_the_readme(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", protocols())
def test_every_protocol_has_a_parser_tests_and_a_fuzz_target(name):
    for path in (
        f"agent/core/protocols/{name}.c",
        f"tests/protocols/test_{name}.py",
        f"tests/fuzz/fuzz_{name}.c",
    ):
        assert (ROOT / path).exists(), path


def test_every_protocol_of_the_core_has_the_name_of_its_file():
    known = [ffi.string(lib.protocol_name(i)).decode() for i in range(lib.PROTOCOL_COUNT)]
    assert known[-len(protocols()) :] == protocols()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w[\w-]*)", README + CONTRIBUTING))))
def test_every_make_target_that_is_named_exists(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:agent|bpf|exporters)/[\w./-]+\.\w+)`", ARCHITECTURE)))
)
def test_every_file_that_the_architecture_names_exists(path):
    assert (ROOT / path).exists()


def test_no_shipped_dependency_is_the_other_bcc():
    project = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r'^\s*"bcc\b', project, re.MULTILINE)
