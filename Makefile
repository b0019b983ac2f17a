# make demo    the whole way on a small network: compress, verify, measure, predict
# make test    every test, those of the built wheel included, but for what needs other tools
# make processors  tests of engines and dialects on other processors: restricted, and emulated
# make check   format, lint, types, and the rules of the house
# make format  what make check would complain about and ruff can mend
# make clean   removes what these made
#
# Each needs nothing but Python >= 3.10 and sets itself up: a virtual environment with the versions
# pinned in constraints.txt, made once and again when pyproject.toml or constraints.txt change.
# PYTHON picks the Python, VENV the folder, WORKERS how many tests run side by side, T the tests.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
T ?= tests

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := -c constraints.txt

.PHONY: help demo test processors check format clean install
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.with-compress
	$(BIN)/python demo/run.py

test: $(VENV)/.with-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(T)

processors: $(VENV)/.with-dev
	PYTHONPATH=tests $(BIN)/python -m emulation.processors

install: $(VENV)/.with-dev

check: $(VENV)/.with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(VENV)/.with-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	test ! -e $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	rm -rf build dist edgepress.egg-info .pytest_cache .ruff_cache .work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.with-compress: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "edgepress needs Python 3.10 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "Setting up $(VENV) with the versions of constraints.txt, which takes minutes once ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq $(PINS) pip setuptools
	@$(PIP) install -qq $(PINS) --no-build-isolation --editable '.[compress,openvino]'
	@touch $@

$(VENV)/.with-dev: $(VENV)/.with-compress
	@$(PIP) install -qq $(PINS) --group dev
	@touch $@
