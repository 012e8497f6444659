# Needs python3 (3.11 to 3.13) and make; everything else goes into $(VENV). No root.
#
#   make PYTHON=python3.12 test         another interpreter (the environment is made anew)
#   make VENV=/tmp/venv313 test         another place for the environment

PYTHON ?= python3
VENV   ?= .venv

# Daemons and commands are started by the hundred: each would compile all modules anew (.4 s) were it not kept.
unexport PYTHONDONTWRITEBYTECODE

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.made-with-$(subst /,-,$(PYTHON))
CHECKED := src service tests examples
# Most tests wait for processes and disks, so one more at a time than there are processors keeps them busy. A file of
# tests stays in one process, which shares its daemons; files go in the order of their names, so the quick ones of
# tests/unit come last. `make test SPREAD=` runs one after the other.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
SPREAD  ?= -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test quick lint schemas sweep bench soak clean

help:
	@echo 'make demo      the real daemon on a throw-away home, with about twenty real inputs'
	@echo 'make test      every check: lint, types, layers, all tests'
	@echo 'make quick     lint without types, tests without the slow ones'
	@echo 'make lint      ruff, mypy (for Linux and for Windows), import contracts'
	@echo 'make venv      only the environment: $(VENV), with $(BIN)/solvisor'
	@echo 'make sweep     every crash and power cut there is, and a table (as root: all of them)'
	@echo 'make schemas   write the JSON schemas that are shipped'
	@echo 'make bench     how fast it is, beside its peers, and the picture of it (half an hour; QUICK=1: four minutes)'
	@echo 'make soak      20,000 jobs while solvers, servers and the daemon are killed (minutes)'
	@echo 'make clean     remove the environment, the demo home and all caches'

venv: $(STAMP)

# The package is installed editable: only its metadata, its requirements and what is compiled can make it stale.
$(STAMP): pyproject.toml hatch_build.py src/solvisor/process/starter.c .ci/make_venv.py
	@$(PYTHON) .ci/make_venv.py $(VENV) $@

demo: venv
	@$(BIN)/python examples/demo/demo.py

test: lint
	$(BIN)/python -m pytest $(SPREAD)

quick: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(SPREAD) -m 'not slow'

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict --platform linux --cache-dir .mypy_cache/linux $(CHECKED)
	$(BIN)/mypy --strict --platform win32 --cache-dir .mypy_cache/win32 src service
	$(BIN)/lint-imports --no-logo

schemas: venv
	$(BIN)/python -m solvisor.schemas

sweep: venv
	cd tests && $(abspath $(BIN))/python -m crash.sweeps

bench: venv
	$(BIN)/python benchmarks/all.py $(if $(QUICK),--quick)

soak: venv
	PYTHONPATH=tests $(BIN)/python tests/soak.py

clean:
	rm -rf $(VENV) demo-home build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src service tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
