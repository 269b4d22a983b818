# make demo   own environment, pinned install, then the whole line on the embedded model: no GPU, no key
# make test   the same environment with the test tools, then the whole test suite
# make lint   ruff and pyright

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint install install-test

demo: install
	$(BIN)/autointerp explain --sae demo --n-features 200

test: install-test
	$(BIN)/python -m pytest

test-all: install-test
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: install-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml

install: $(VENV)/installed
install-test: $(VENV)/installed-test

# torch comes first and pinned: anything that may choose freely takes gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
