# Everything runs from a clean checkout: each target sets up what is missing.
#   make serve    run the cache on port 3000 (PORT, CACHE_DIR, DEBUG, CACHEYD_CONFIG as usual)
#   make check    format, lint, types, unit tests (under a minute)
#   make test     every test; installs the real clients where it may
#   make lowest   the tests of what touches a dependency, with the lowest versions that pyproject.toml allows
#   make soak     kills the cache by the thousand, and all bad luck at once (KILLS=3000, SOAK_SECONDS=300, SEED as printed)
#   make docs     the tables of settings and metrics in docs/, from the code
#   make bench    cacheyd side by side with docker-registry and nginx
#   make outdated what is behind: the locked version, the newest, and who holds it back
#   make lock     the lock files after a change of pyproject.toml (make upgrade: everything at its newest)
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.locked
LOWEST := .venv-lowest
# What touches a dependency directly.
LOWEST_TESTS := $(patsubst %,tests/unit/%.py,$(addprefix proxy/test_,mitmproxy_contract head intake link listener names replies server) \
  store/test_index observe/test_metrics terminal/test_images)
CLIENTS := containerd docker-registry skopeo nginx podman dockerd curl wrk

# The newest of the supported Pythons that really starts (a pyenv shim may exist without its version).
PYTHON ?= $(shell for p in python3.13 python3.12 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { echo $$p; break; }; done)

FIND_PYTHON = test -n "$(PYTHON)" || { echo "cacheyd needs Python 3.12 or newer (3.13 is what it is tested on); none was found. Name one with PYTHON=…"; exit 1; }

# The cache is started some hundred times by the tests; it need not be compiled each time, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup serve check lint unit test lowest soak docs bench clients lock upgrade outdated format clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(FIND_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

serve: setup
	$(BIN)/cacheyd serve

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Side by side: they share nothing, and none of them needs a core for itself.
unit: setup
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal tests/unit

# One after the other: many of them measure time, memory or the CPU of what they start.
test: setup clients unit
	$(BIN)/pytest --ignore=tests/unit

# With the lowest version of each dependency that pyproject.toml allows.
lowest: $(LOWEST)/.locked
	$(LOWEST)/bin/pytest -p no:cacheprovider $(LOWEST_TESTS)

$(LOWEST)/.locked: requirements-lowest.lock
	@$(FIND_PYTHON)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-lowest.lock
	@touch $@

soak: setup
	KILLS=$(KILLS) SOAK_SECONDS=$(SOAK_SECONDS) SEED=$(SEED) $(BIN)/pytest -m soak -s tests/faults/test_crashes.py tests/hostile

# A folder is called docs, too: the target is phony.
docs: setup
	$(PY) -m tools.docs

bench: setup clients
	$(PY) -m tests.bench

# The real clients and servers that the tests and the benchmark run. As root on a Debian they are installed, without
# starting their services (invoke-rc.d asks policy-rc.d); elsewhere they are named and their tests are skipped visibly,
# except with CI=true, where a missing one fails the tests.
clients:
	@missing=""; for c in $(CLIENTS); do command -v $$c >/dev/null || [ -x /usr/sbin/$$c ] || missing="$$missing $$c"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing:$$missing"; \
	  policy=/usr/sbin/policy-rc.d; \
	  if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $$(echo "$$missing" | sed 's/nginx/nginx-light/; s/dockerd/docker.io/') >/dev/null; \
	else echo "missing (their tests are skipped):$$missing"; fi

# The lock files, after a change of pyproject.toml: what is locked stays as it is where it still may. Anew at the newest:
# make upgrade. The lowest one has the lower end of each range in pyproject.toml.
COMPILE = $(BIN)/uv pip compile pyproject.toml --generate-hashes --no-emit-index-url --python-version 3.12 --universal --no-header --quiet

lock: $(BIN)/uv
	$(COMPILE) $(UPGRADE) -o requirements.lock
	$(COMPILE) $(UPGRADE) --group dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --upgrade --group test --resolution lowest-direct -o requirements-lowest.lock

upgrade:
	$(MAKE) lock UPGRADE=--upgrade

$(BIN)/uv:
	$(MAKE) setup

outdated: setup
	@$(PY) -m tests.support.outdated

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
