# Every way to build, try and test the project. `make help` lists them.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMPS := build/stamps
# BCC belongs to the distribution's Python; the agent runs in any Python from 3.11 on.
BASE_PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

RUN_PACKAGES := python3-bpfcc linux-libc-dev python3-venv python3-dev gcc libc6-dev zlib1g-dev libzstd-dev
DEMO_PACKAGES := nginx-light util-linux
TEST_PACKAGES := nginx-light curl openssl clang-14 libclang-rt-14-dev bpftool util-linux iproute2 \
	podman runc netavark iptables postgresql mariadb-server redis-server libmariadb-dev
VM_PACKAGES := qemu-system-x86 kmod busybox-static nginx-light curl util-linux iproute2
CORE_SOURCES := $(wildcard agent/core/*.c agent/core/*.h agent/core/*.py agent/core/protocols/*.c \
	bpf/events.h bpf/protocols.h bpf/classify.h exporters/*.c exporters/*.h exporters/build.py agent/layouts.py)
# For each of seven targets, so 4 minutes in CI: breaks made on purpose are found by the seeds at once, or within
# 30 s as a rule. What takes longer is for long runs at hand.
FUZZ_SECONDS ?= $(if $(CI),30,10)

.PHONY: help build demo test test-fast lint test-vm format fuzz sanitize bench compare clean packages-run

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: packages-run $(STAMPS)/venv ## everything the agent needs: .venv/bin/ebpf-otlp-tracer

demo: build ## nginx before a Python service, traced live (root)
	@packaging/debian-packages.sh $(DEMO_PACKAGES)
	@$(PYTHON) -m benchmarks demo

test: build $(STAMPS)/venv-test ## all that must hold: lint, sanitizers, fuzzing, tests (root)
	@packaging/debian-packages.sh $(TEST_PACKAGES)
	@command -v node >/dev/null 2>&1 || packaging/debian-packages.sh nodejs
	@command -v npm >/dev/null 2>&1 || packaging/debian-packages.sh npm
	@command -v go >/dev/null 2>&1 || packaging/debian-packages.sh golang-go
	@$(MAKE) --no-print-directory lint sanitize fuzz
	$(PYTHON) -m pytest

test-fast: $(STAMPS)/venv-test ## the tests that need no kernel
	$(PYTHON) -m pytest -m "not kernel and not slow"

test-vm: build $(STAMPS)/venv-test ## the kernel side on Debian's own kernel, emulated (root, 6 minutes)
	@packaging/debian-packages.sh $(VM_PACKAGES)
	$(PYTHON) -m tests.vm.run

lint: $(STAMPS)/venv-test ## ruff, mypy, who may import whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMPS)/venv-test ## ruff's formatter
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

fuzz: $(STAMPS)/venv-test ## parsers, streams, frames and SQL lexer under libFuzzer, FUZZ_SECONDS each
	$(PYTHON) -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

sanitize: $(STAMPS)/venv-test ## tests of the core and the encoder on builds with ASan and UBSan
	$(PYTHON) -m tests.sanitize

bench: build ## what tracing costs (root, 6 minutes)
	$(PYTHON) -m benchmarks cost --profile short

compare: build ## this agent beside OpenTelemetry's own instrumentation (root)
	$(PYTHON) -m benchmarks compare

clean: ## removes what was built
	rm -rf build $(VENV) *.egg-info agent/core/_core.* exporters/_encode.*.so exporters/_encode.c

packages-run:
	@packaging/debian-packages.sh $(RUN_PACKAGES)

$(VENV)/bin/python:
	@test -n "$(BASE_PYTHON)" || { echo "no Python from 3.11 on; hint: make BASE_PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(VENV) with $(BASE_PYTHON)"
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(PYTHON) -m pip install -q -U pip "setuptools>=77" wheel cffi

$(STAMPS)/venv: $(VENV)/bin/python pyproject.toml setup.py $(CORE_SOURCES)
	@mkdir -p $(STAMPS)
	@echo "building the C core and encoder"
	@PYTHONWARNINGS=ignore $(PYTHON) -m pip install -q --no-build-isolation -e .
	@touch $@

$(STAMPS)/venv-test: $(STAMPS)/venv
	@echo "installing what the tests need"
	@PYTHONWARNINGS=ignore $(PYTHON) -m pip install -q --no-build-isolation -e ".[test]"
	@touch $@
