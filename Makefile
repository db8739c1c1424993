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
EMPTY := $(VENV)/.empty
READY := $(VENV)/.ready
# Modules are compiled where they are first imported: most never are, and pip compiles all, one after the other.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --progress-bar off --no-compile --constraint constraints.txt
# How many tests run at a time: two cores share whole builds and everything else.
WORKERS ?= 2
# llama.cpp is compiled here, which takes some minutes once: only what needs it waits for it. `make --jobs 2 llama` compiles it
# while the other libraries come from the net; it takes as many cores as there are, whatever --jobs is.
COMPILED := $(VENV)/compiled
LLAMA := $(VENV)/.llama

.PHONY: setup llama prepared demo test check fmt bench docs release packages clean

setup: $(READY)

$(EMPTY):
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edgekit needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	touch $(EMPTY)

$(READY): pyproject.toml constraints.txt | $(EMPTY)
	@echo 'installing into $(VENV): about 2.1 GB, one to five minutes'
	$(INSTALL) $(TORCH_OPTIONS) torch
	$(INSTALL) --editable ".[demo,dev,openvino]"
	touch $(READY)

llama: $(LLAMA)

$(COMPILED): constraints.txt tests/llama.cmake | $(EMPTY)
	@echo 'compiling llama.cpp: about six minutes, once'
	rm -rf $(COMPILED)
	MAKEFLAGS= CMAKE_ARGS='$(CMAKE_ARGS) -DCMAKE_PROJECT_TOP_LEVEL_INCLUDES="$(CURDIR)/tests/llama.cmake"' \
		$(PIP) wheel --progress-bar off --no-deps --constraint constraints.txt --wheel-dir $(COMPILED) llama-cpp-python
	touch $(COMPILED)

$(LLAMA): $(READY) $(COMPILED)
	$(INSTALL) $(COMPILED)/*.whl
	$(BIN)/python -c 'from tests.llama_programs import programs; programs()'
	touch $(LLAMA)

# What tests would fetch and install one after the other on a fresh machine.
prepared: setup
	$(BIN)/python -m tests.prepare

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

# The same bytes whoever builds this commit, wherever: built twice and compared.
release: check test packages

packages: setup
	$(BIN)/python -m tests.packages dist

clean:
	rm -rf dist .edgekit
