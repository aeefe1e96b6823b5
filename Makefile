# Two commands matter: `make run` and `make test`. Both first set up a virtual environment from the lock files.
# PYTHON: the interpreter, 3.11 to 3.14. VENV: the folder of the virtual environment. WORKERS: test processes in parallel.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 4
BIN := $(VENV)/bin
# An empty PYTHONDONTWRITEBYTECODE makes Python store compiled modules. Otherwise each test process would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: run test test-fast prove profile instructions setup setup-dev lint config lock bench clean vendor

run: setup
	@SHORTENER_LOG_FORMAT=$${SHORTENER_LOG_FORMAT:-text} $(BIN)/shortener serve

# The files of the suite are distributed over the test processes, in the order of their folders: the slowest tests, which are in
# tests/acceptance, begin first. Options of pytest: OPTIONS="-k redirect".
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# The whole suite.
test: setup-dev
	@$(PYTEST) $(OPTIONS)

# Unit tests and tests of one process on SQLite: no PostgreSQL, no `shortener` processes.
test-fast: setup-dev
	@$(PYTEST) -m "not postgresql and not acceptance and not slow" \
		--ignore tests/acceptance --hypothesis-profile fast $(OPTIONS)

# Tests that take minutes: 1,000 links with 50 concurrent clicks each, outages of a minute, 2,000 hostile connections, 2,000 rewrites
# by 40 callers, 2,000 hits a second without database and Redis, a minute of mixed load with faults on each engine, kill -9 at 30
# points of transactions on each engine, 10,000 messages through a gateway while it and the service are killed, and eight failovers of
# PostgreSQL in a row.
prove: setup-dev
	@REAL_PROCESSES=1 PROVE_LINKS=1000 PROVE_CLICKS=50 PROVE_OUTAGE=60 PROVE_CONNECTIONS=2000 PROVE_REWRITES=2000 PROVE_HITS_PER_SECOND=2000 \
		PROVE_FLOOD_SECONDS=15 PROVE_STRESS_SECONDS=60 PROVE_SENDS=10000 PROVE_FAILOVERS=8 PROVE_KILL_POINTS=all \
		$(BIN)/python -m pytest -o faulthandler_timeout=0 \
		tests/acceptance/test_scale_out.py tests/acceptance/test_faults.py tests/acceptance/test_hostile_clients.py \
		tests/acceptance/test_flood.py tests/acceptance/test_stress.py tests/messages/test_rewriter_concurrency.py \
		tests/acceptance/test_gateway_crash.py tests/acceptance/test_failover.py tests/acceptance/test_kill_points.py

setup: $(VENV)/.runtime

setup-dev: $(VENV)/.dev

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Generates the settings files, and the statements of a new SQLite database, from the code. Tests compare them.
config: setup
	@$(BIN)/python -c "from shortener.settings_sources import as_toml; print(as_toml(), end='')" > config/shortener.toml
	@$(BIN)/python -c "from shortener.settings_sources import as_markdown; print(as_markdown(), end='')" > docs/reference/settings.md
	@$(BIN)/python -c "from shortener.storage.migrate import migrated_dump; print(migrated_dump(), end='')" \
		> shortener/storage/migrations/sqlite.sql

# Pins every dependency with hashes, for all supported Python versions. --no-emit-* omits the download addresses.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock: setup-dev
	@echo "setuptools>=80" | $(LOCK) --extra server --output-file requirements.lock pyproject.toml -
	@$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

# Downloads the scripts of other projects, which the portal serves, again, and checks their hashes. Needs npm.
vendor: setup-dev
	@$(BIN)/python -m tests.portal.refresh_vendor

# Measures speed as ratios to a bare ASGI application in the same run. Needs wrk. A short run: OPTIONS="--quick".
bench: setup-dev
	@$(BIN)/python -m benchmarks.bench $(OPTIONS)

# Reports where each kind of request spends processor time. Needs wrk.
profile: setup-dev
	@$(BIN)/python -m benchmarks.profiles $(OPTIONS)

# Counts the processor instructions of each kind of request, also compared with other code: OPTIONS="--compare DIR". Needs wrk and valgrind.
instructions: setup-dev
	@$(BIN)/python -m benchmarks.instructions $(OPTIONS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else \
		"Python 3.11 to 3.14 is required, but $(PYTHON) is %d.%d. Choose another one: make PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV)

# With this mode, a program that is started in the parent folder of the clone imports the package, and not the folder of the clone,
# which may also have the name `shortener`.
EDITABLE := --config-settings editable_mode=compat

# --no-deps and --no-compile save time: the lock file contains all dependencies (.ci/run proves it by an installation without
# --no-deps), and Python compiles each module at its first import.
$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	@echo "Installing the locked dependencies ..."
	@$(PIP) --no-deps --no-compile --require-hashes --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation $(EDITABLE) --editable . 2>/dev/null
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing the locked dependencies of the tests ..."
	@$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@
