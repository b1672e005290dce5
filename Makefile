# `make run` needs Python 3.11 or newer and make; everything else is fetched by hash from requirements.lock.
# Every target starts from a fresh clone. A second start is at once: stamps in .venv remember what is installed.

ARGS   ?=
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest
# Processes that run tests at once: three, since many wait for a clock or a server; or TEST_PROCESSES=auto for one per core.
TEST_PROCESSES ?= 3

.DELETE_ON_ERROR:
.PHONY: help run test test-fast check fuzz bench lock clean

help:
	@echo 'make run        serve the demo: embedded Valkey, SQLite, simulated models (ARGS="--listen HOST:PORT …")'
	@echo 'make test       every test (as root it installs redis-server and npm packages that are missing)'
	@echo 'make test-fast  the tests that pip alone can serve'
	@echo 'make check      ruff, mypy --strict, import and size rules'
	@echo 'make fuzz       thousands of invented requests to the billing and admin APIs (EXAMPLES=60 per operation)'
	@echo 'make bench      Tollgate beside its peers (two cores, a quarter of an hour; ARGS=--quick for a smoke run)'
	@echo 'make lock       renew requirements.lock and requirements-dev.lock from pyproject.toml'

run: $(VENV)/.installed
	@exec $(VENV)/bin/tollgate serve --demo $(ARGS)

test: $(VENV)/.installed-dev
	@.ci/tools test
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadgroup

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadgroup -m 'not apt and not npm'
	@echo 'left out: tests marked apt (a real Redis 7) and npm (mock providers that others wrote); make test runs them'

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) tests/tidy -q -p no:xdist -p no:cacheprovider

# Requests that schemathesis invents, per operation of both OpenAPI documents: EXAMPLES=60 makes about 15,000.
EXAMPLES ?= 60
fuzz: $(VENV)/.installed-dev
	TOLLGATE_FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/billing/test_openapi.py -q -s -n 0

bench: $(VENV)/.installed
	@.ci/tools bench
	$(VENV)/bin/python -m bench $(ARGS)

LOCK := $(VENV)/bin/uv pip compile pyproject.toml --group build --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --quiet

lock: $(VENV)/.installed-dev
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo 'Tollgate needs Python 3.11 or newer: make run PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'this Python cannot make a virtual environment (Debian: apt install python3-venv)' >&2; exit 1; }

# The project itself comes last and apart: an editable install cannot carry hashes. It downloads nothing,
# because its build backend is in the lock.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo 'installing from requirements.lock …'
	@$(PIP) install --quiet --require-hashes --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo 'installing from requirements-dev.lock …'
	@$(PIP) install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@
