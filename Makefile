# Two commands for newcomers: `make quickstart` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help quickstart test test-slow lint bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt setup.py $(wildcard src/fewstep/models/kernels/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fewstep needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time: PyTorch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

quickstart: $(READY)  ## meta-train MAML++ on strokes (at most 4 minutes on two cores), evaluate, write a page
	@$(BIN)/fewstep train maml++ --data strokes --filters 32 --tasks 4 --epochs 5 --iterations 50 \
		--validation-tasks 100 --directory runs/quickstart
	@$(BIN)/fewstep evaluate runs/quickstart --ensemble 1

test: $(READY)  ## lint, types, tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -m 'not slow' -n auto --maxprocesses 8 --dist loadfile

test-slow: $(READY)  ## the proofs that take minutes
	@$(BIN)/python -m pytest -m slow

lint: $(READY)  ## lint and types alone
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(READY)  ## speed and memory beside other implementations (hours, on a quiet machine), into docs/performance.md
	@$(BIN)/python -m benchmarks --json results/performance.json --table docs/performance.md

docs: $(READY)  ## write docs/methods.md anew from the presets and measured results
	@$(BIN)/python docs/build.py

clean:  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
