# `make help` lists the targets. People and CI use the same ones.
PYTHON ?= python3
PORT ?= 8080
MINUTES ?= 30
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := core local plugins/firebase plugins/firebase_management plugins/firebase_realtime plugins/registry plugins/workflow_listener
EDITABLE := $(foreach d,$(DISTRIBUTIONS),-e ./$(d))
INSTALL := ./scripts/install $(BIN)
NEEDS_MORE := emulator or tls or browser or faults or nginx
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) $(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0,) $(ARGS)

.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help run test test-all faults soak wheels lint types format bench coverage pins clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run ## the service, embedded, with sample data (PORT=8080)
	$(BIN)/callboard dev --port $(PORT)

test: $(VENV)/.dev ## the tests that need Python alone (WORKERS=3 at a time)
	$(PYTEST) -m "not ($(NEEDS_MORE))"

test-all: test ## these and those that need more: installs it, names what is missing
	./scripts/test-all $(BIN) "$(PYTEST)" "$(NEEDS_MORE)"

faults: WORKERS = 1
faults: $(VENV)/.dev ## the fault matrix, as a table with what was measured
	@mkdir -p .artifacts
	set -o pipefail; $(PYTEST) -m "fault or faults" | tee .artifacts/faults.txt
	cd tests && ../$(BIN)/python -m faults.matrix < ../.artifacts/faults.txt

soak: $(VENV)/.dev ## faults at random under load, behind nginx, and a checker (MINUTES=30, SEED=…)
	cd tests && ../$(BIN)/python -m faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED),)

wheels: $(VENV)/.dev ## build every wheel; test each plugin with its declared dependencies alone
	./scripts/test-wheels $(BIN)

lint: $(VENV)/.dev ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy, strict, sources and tests
	$(BIN)/mypy $(foreach d,$(DISTRIBUTIONS),$(d)/src) tests benchmarks
	for d in $(filter-out core,$(DISTRIBUTIONS)); do $(BIN)/mypy $$d/tests || exit 1; done

format: $(VENV)/.dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## the benchmarks, beside their contenders
	$(BIN)/python -m benchmarks

coverage: ## report what `make test COVERAGE=1` measured
	$(BIN)/coverage report

pins: ## renew constraints.txt from the newest versions
	./scripts/pins $(PYTHON)

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) dist .artifacts .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.run: constraints.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Callboard needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(EDITABLE)
	@touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	$(INSTALL) $(EDITABLE) --group dev
	@touch $@
