# Everything goes through here: `make` lists what there is. Needs Python >= 3.11 and nothing else.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# Which Python makes .venv, and where to look for torch besides pip's own index. On Linux, pip's
# own index holds the CUDA build; a machine without a GPU may want the far smaller CPU build, from
# the index that PyTorch's "Start locally" page names: make setup TORCH_INDEX=<that address>
PYTHON ?= python3
TORCH_INDEX ?=

# What `make bench` measures (all of the README by default; benchmarks/bench.py --list names the
# parts), and an interpreter with sentence-transformers and Optimum, to measure beside them.
PARTS ?=
PEER_PYTHON ?=

# How many processes run tests. Each computes on one thread: more would fight over the same cores.
JOBS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs

.PHONY: help setup demo check test test-faults test-interop docs dist bench bench-quick experiment

##@ Start

help: ## list the targets
	@echo "hasten: the fastest way to run your transformer encoder that still gives the same answers"
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } \
	    /^[a-z-]+:.*## / { printf "  make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with pinned packages (about 2 minutes, once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	    echo "hasten needs Python 3.11 or newer, and '$(PYTHON)' is not:"; \
	    { $(PYTHON) --version 2>&1 || true; } | head -n 1; \
	    echo "Name another one, as in: make setup PYTHON=python3.12"; \
	    exit 1; }
	@echo "setup 1/2  making .venv (a few seconds; about 2 minutes left in all)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "setup 2/2  installing the pinned packages (about 2 minutes left, longer on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	    --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

demo: setup ## tune a real model on a real corpus and show the report
	@$(BIN)/hasten demo

##@ Check

check: setup ## lint, formatting, types, import layers (about 15 s; longer the first time)
	@echo "check 1/4  ruff check (1 s)"
	@$(BIN)/ruff check .
	@echo "check 2/4  ruff format (1 s)"
	@$(BIN)/ruff format --check .
	@echo "check 3/4  mypy --strict (10 s; a minute the first time)"
	@$(BIN)/mypy
	@echo "check 4/4  import layers (1 s)"
	@$(BIN)/lint-imports

test: setup check ## all checks and all tests, doctests included (about 8 minutes)
	@echo "test       pytest in $(JOBS) processes, warnings as errors (about 8 minutes on two cores)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-faults: setup ## kill, starve and corrupt bulk runs, hundreds of times (about 30 minutes)
	@echo "test-faults  pytest -m faults (about 30 minutes on two cores)"
	@$(BIN)/python -m pytest -m faults

test-interop: setup ## load bundles in Optimum: make test-interop PEER_PYTHON=... (about 5 minutes)
	@test -n "$(PEER_PYTHON)" || { \
	    echo "Name an interpreter of an environment with Optimum, as in:"; \
	    echo "  python3 -m venv peers && peers/bin/pip install 'optimum[onnxruntime,openvino]'"; \
	    echo "  make test-interop PEER_PYTHON=peers/bin/python"; \
	    exit 1; }
	@echo "test-interop  pytest -m interop (about 5 minutes on two cores)"
	@PEER_PYTHON="$(abspath $(PEER_PYTHON))" $(BIN)/python -m pytest -m interop tests/interop

##@ Build

docs: $(DOCS_STAMP) ## build the documentation's site in build/docs (half a minute)
	@$(BIN)/zensical build --clean --strict
	@echo "docs       open build/docs/index.html; to search: python3 -m http.server -d build/docs"

$(DOCS_STAMP): $(STAMP)
	@echo "docs       installing what builds the site (half a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[docs]'
	@touch $@

dist: setup ## build wheel and source distribution in dist (10 s)
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

##@ Measure

bench: setup ## measure the figures of README and docs, and put them there (35 minutes, quiet machine)
	@$(BIN)/python benchmarks/bench.py $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) $(PARTS)

bench-quick: setup ## see every benchmark run, on tiny models (5 minutes); changes no figure
	@$(BIN)/python benchmarks/bench.py --quick --restart --work bench-quick-results \
	    $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) $(PARTS)

experiment: setup ## the pictures and tables of docs/experiment.md (an hour and a half, quiet machine)
	@echo "experiment 1/2  the demo's classifier (an hour; an interrupted run continues)"
	@$(BIN)/python benchmarks/experiment.py minilm
	@$(BIN)/python benchmarks/claims.py experiment-results/minilm
	@echo "experiment 2/2  CamemBERT-base's shape, fewer texts (half an hour)"
	@$(BIN)/python benchmarks/experiment.py camembert --texts 64 --batch-sizes 1 4 16 64 --lengths 8 32 128
	@$(BIN)/python benchmarks/claims.py experiment-results/camembert
