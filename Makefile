# Two commands do all on a fresh machine: `make demo` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV := .venv
# For pip: where an index offers torch with CUDA first, name one with CPU builds, as in TORCH_OPTIONS="--index-url URL".
TORCH_OPTIONS ?=
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.ready
# How many tests run at a time: two cores share whole builds and everything else.
WORKERS ?= 2
# llama.cpp is compiled here, which takes some minutes once: only what needs it waits for it.
LLAMA := $(VENV)/.llama

.PHONY: setup llama demo test check fmt bench docs release clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edgekit needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about 2.1 GB, one to five minutes'
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable ".[demo,dev,openvino]"
	touch $(READY)

llama: $(LLAMA)

$(LLAMA): $(READY)
	@echo 'compiling llama.cpp: about six minutes, once'
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt llama-cpp-python
	$(BIN)/python -c 'from tests.llama_programs import programs; programs()'
	touch $(LLAMA)

demo: setup
	$(BIN)/edgekit build --example assistant --target raspberrypi

test: setup $(LLAMA)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/house_figures.py
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_docs.py

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup $(LLAMA)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: setup
	$(BIN)/python tests/readme.py --write

release: check test
	$(BIN)/python -m build

clean:
	rm -rf dist .edgekit
