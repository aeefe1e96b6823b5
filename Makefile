# Two commands matter: `make run` and `make test`. Both set up a virtual environment from the lock files first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: run test prove profile setup setup-dev lint config lock bench clean

run: setup
	@$(BIN)/shortener serve

test: setup-dev
	@$(BIN)/python -m pytest

# What takes minutes: 1,000 links with 50 racing clicks each, outages of a minute.
prove: setup-dev
	@PROVE_LINKS=1000 PROVE_CLICKS=50 PROVE_OUTAGE=60 $(BIN)/python -m pytest -o faulthandler_timeout=0 \
		tests/acceptance/test_scale_out.py tests/acceptance/test_faults.py

setup: $(VENV)/.runtime

setup-dev: $(VENV)/.dev

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Written from the code; tests compare them.
config: setup
	@$(BIN)/python -c "from shortener.settings import as_toml; print(as_toml(), end='')" > config/shortener.toml
	@$(BIN)/python -c "from shortener.settings import as_markdown; print(as_markdown(), end='')" > docs/reference/settings.md

# Pins every dependency with hashes, for every supported Python; --no-emit-* keeps download addresses out.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock: setup-dev
	@echo "setuptools>=80" | $(LOCK) --output-file requirements.lock pyproject.toml -
	@$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

# Speed, as ratios to a bare ASGI application in the same run; needs wrk. OPTIONS="--quick" for a short one.
bench: setup-dev
	@$(BIN)/python -m benchmarks.bench $(OPTIONS)

# Where the time goes in each of these works.
profile: setup-dev
	@$(BIN)/python -m benchmarks.profiles $(OPTIONS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	@echo "Installing the locked dependencies ..."
	@$(PIP) --require-hashes --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable . 2>/dev/null
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing the locked dependencies of the tests ..."
	@$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@
