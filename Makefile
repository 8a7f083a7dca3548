# The front door: everything that a person does here.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Everything made by the tools lies here; `make clean` removes it.
export CACHE := $(CURDIR)/.cache
export CARGO_TARGET_DIR ?= $(CURDIR)/target
VENV := $(CACHE)/venv
SDK := sdk/python
export PYRIGHT_PYTHON_CACHE_DIR := $(CACHE)/pyright
DENY_VERSION := 0.20
# Branch that the contracts must not break; a clone has it as origin/main.
BASE := $(shell git rev-parse --verify --quiet origin/main >/dev/null 2>&1 && echo refs/remotes/origin/main || echo refs/heads/main)

.PHONY: help
help: ## list what can be done here
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z0-9-]*:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing on this machine
	@tests/setup/tools.sh test

.PHONY: tools
tools:
	@tests/setup/tools.sh run

.PHONY: build
build: ## build the release binary into bin/, with the roles' names beside it
	cargo build --release --locked --bin cloud-sandbox
	mkdir -p bin
	install -m 755 "$(CARGO_TARGET_DIR)/release/cloud-sandbox" bin/cloud-sandbox
	for role in gateway scheduler session-manager; do ln -sfn cloud-sandbox "bin/$$role"; done

.PHONY: demo
demo: tools build ## start a server, walk through what it does, and stop it
	@deploy/local/demo.sh

.PHONY: run
run: build ## run everything in one process, on http://localhost:8080
	@exec bin/cloud-sandbox serve

.PHONY: run-all
run-all: tools build ## run each role as a process of its own, in the background
	@deploy/local/run-all.sh

.PHONY: stop
stop: ## stop what run-all started
	@deploy/local/stop.sh

# Most tests wait for processes, timeouts and connections more than they work.
TEST_THREADS := $(shell echo $$((2 * $$(nproc))))

.PHONY: test
test: setup ## run every test (CLOUD_SANDBOX_TEST_SKIP=redis,postgres,s3,registry,docker,podman,vm leaves out parts)
	cargo nextest run --locked --workspace --no-run
	$(MAKE) --no-print-directory --jobs 3 --output-sync test-kernels test-vm test-sdk
	tests/setup/docker.py $(MAKE) --no-print-directory test-rust

.PHONY: test-kernels
test-kernels:
	/usr/bin/python3 -m unittest discover --start-directory tests/kernels

# With the server that `make test` has built; its machine keeps one processor busy.
.PHONY: test-vm
test-vm:
	@if [[ ",$${CLOUD_SANDBOX_TEST_SKIP:-}," == *,vm,* ]]; then echo "left out: tests/vm"; \
	else tests/vm/cgroup2.sh "$(CARGO_TARGET_DIR)/debug/cloud-sandbox"; fi

# Beneath the engine of the tests, with what `make test` has built.
.PHONY: test-rust
test-rust:
	cargo nextest run --locked --workspace --test-threads $(TEST_THREADS)
	tests/containers/agent.sh runc runsc

# With the server that `make test` has built.
.PHONY: test-sdk
test-sdk: $(VENV)/.sdk
	CLOUD_SANDBOX_BINARY="$(CARGO_TARGET_DIR)/debug/cloud-sandbox" $(VENV)/bin/pytest --quiet $(SDK)/tests

# Not a part of `make test`: the emulated machine takes a minute or two, and several beside other work.
.PHONY: test-cgroup2-containers
test-cgroup2-containers: setup ## test containers by runc and crun under cgroup v2, in a virtual machine
	cargo build --locked --bin cloud-sandbox
	tests/vm/containers.sh "$(CARGO_TARGET_DIR)/debug/cloud-sandbox"

.PHONY: sdk
sdk: $(VENV)/.sdk ## generate what in the Python SDK is made from contracts and docstrings
	@cd $(SDK) && $(VENV)/bin/python -m generate

.PHONY: lint
lint: lint-rust lint-proto lint-deps lint-python ## check formatting, lints, contracts, dependencies

.PHONY: lint-rust
lint-rust:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: lint-proto
lint-proto: $(VENV)/bin/buf
	$(VENV)/bin/buf lint
	@if git cat-file -e "$(BASE):proto" 2>/dev/null; then \
	  echo "buf breaking against $(BASE)"; $(VENV)/bin/buf breaking --against ".git#ref=$(BASE)"; \
	else echo "no contracts in $(BASE) yet: nothing to break"; fi

.PHONY: lint-deps
lint-deps: $(CACHE)/cargo/bin/cargo-deny
	$(CACHE)/cargo/bin/cargo-deny --locked check bans licenses sources
	@if $(CACHE)/cargo/bin/cargo-deny fetch db 2>/dev/null; then \
	  $(CACHE)/cargo/bin/cargo-deny --locked check advisories; \
	else echo "advisories not checked: their database cannot be fetched from here"; fi

.PHONY: lint-python
lint-python: $(VENV)/bin/ruff lint-sdk
	@for folder in tests/bench tests/blackbox/egress tests/kernels tests/setup crates/node/src/contexts; do \
	  if [ -n "$$(find $$folder -name '*.py' -print -quit)" ]; then \
	    $(VENV)/bin/ruff check $$folder; $(VENV)/bin/ruff format --check $$folder; \
	    $(VENV)/bin/mypy --strict $$folder; \
	  fi; \
	done

.PHONY: lint-sdk
lint-sdk: $(VENV)/.sdk
	cd $(SDK) && $(VENV)/bin/python -m generate --check
	cd $(SDK) && $(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	cd $(SDK) && $(VENV)/bin/mypy
	cd $(SDK) && $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

.PHONY: bench
bench: setup build ## measure speed and write docs/benchmarks.md
	@RCLONE="$$(command -v rclone || echo $(VENV)/bin/rclone)" python3 tests/bench/bench.py --binary bin/cloud-sandbox --output docs/benchmarks.md
	@$(MAKE) --no-print-directory bench-docker

.PHONY: bench-docker
bench-docker: setup build ## measure containers beside the daemon's own tools and write that section of docs/benchmarks.md
	@CLOUD_SANDBOX_TEST_SKIP=podman tests/setup/docker.py python3 tests/bench/docker.py --binary bin/cloud-sandbox --output docs/benchmarks.md

.PHONY: bench-sdk
bench-sdk: build $(VENV)/.sdk ## measure the Python SDK and write its section of docs/benchmarks.md
	@$(VENV)/bin/python tests/bench/sdk.py --binary bin/cloud-sandbox --output docs/benchmarks.md

.PHONY: bench-noisy-neighbour
bench-noisy-neighbour: build ## measure what neighbours at their limits cost and write that section of docs/benchmarks.md
	@python3 tests/bench/neighbours.py --binary bin/cloud-sandbox --output docs/benchmarks.md

.PHONY: clean
clean: stop ## remove everything that was built or fetched here
	cargo clean
	rm -rf bin .cache

$(VENV)/bin/pip:
	python3 -m venv $(VENV)

$(VENV)/bin/buf: $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check 'buf-bin~=1.50'

$(VENV)/bin/ruff: $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check 'ruff~=0.9' 'mypy~=1.14'

$(VENV)/.sdk: $(SDK)/pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '$(SDK)[dev]'
	touch $@

$(CACHE)/cargo/bin/cargo-deny:
	cargo install --locked --root $(CACHE)/cargo --version '^$(DENY_VERSION)' cargo-deny
