# Needs python3 (3.11 to 3.13) and make; everything else goes into $(VENV). No root.
#
#   make PYTHON=python3.12 test         another interpreter (the environment is made anew)
#   make VENV=/tmp/venv313 test         another place for the environment

PYTHON ?= python3
VENV   ?= .venv

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.made-with-$(subst /,-,$(PYTHON))
CHECKED := src service tests examples

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test quick lint schemas bench clean

help:
	@echo 'make demo      the real daemon on a throw-away home, with about a dozen real inputs'
	@echo 'make test      every check: lint, types, layers, all tests'
	@echo 'make quick     lint without types, tests without the slow ones'
	@echo 'make lint      ruff, mypy (for Linux and for Windows), import contracts'
	@echo 'make venv      only the environment: $(VENV), with $(BIN)/solvisor'
	@echo 'make schemas   write the JSON schemas that are shipped'
	@echo 'make bench     throughput, latency and warm servers on this machine'
	@echo 'make clean     remove the environment, the demo home and all caches'

venv: $(STAMP)

# The package is installed editable: only its metadata and its requirements can make the environment stale.
$(STAMP): pyproject.toml .ci/make_venv.py
	@$(PYTHON) .ci/make_venv.py $(VENV) $@

demo: venv
	@$(BIN)/python examples/demo/demo.py

test: lint
	$(BIN)/python -m pytest

quick: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m 'not slow'

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --platform linux --cache-dir .mypy_cache/linux $(CHECKED)
	$(BIN)/mypy --strict --platform win32 --cache-dir .mypy_cache/win32 src service
	$(BIN)/lint-imports --no-logo

schemas: venv
	$(BIN)/python -m solvisor.schemas

bench: venv
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/servers.py

clean:
	rm -rf $(VENV) demo-home build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src service tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
