# Everything runs from the repository root in .venv, which the first target makes.
# Another interpreter: make test PYTHON=python3.12

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH

# Of pip's output only the large downloads and the closing step; errors go to stderr, all of them.
PROGRESS := awk '/^ *(Downloading|Using cached) .*[0-9][0-9][.][0-9] MB/ {print "  " $$1, $$2, $$3, $$4; fflush()} \
	/^Installing collected/ {print "  Unpacking"; fflush()}'

.PHONY: help venv .venv demo test lint format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## train, evaluate and draw a small detector; results in output/demo
	@$(BIN)/python demo/train_demo.py --output output/demo

test: lint ## check the style, then run the whole test suite
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(STAMP) ## check the style and the types (black, isort, flake8, mypy)
	@$(BIN)/python -m black --check --quiet . && $(BIN)/python -m isort --check-only --quiet . \
	|| { echo 'The style differs: run "make format"' >&2; exit 1; }
	@$(BIN)/python -m flake8 .
	@$(BIN)/python -m mypy --no-error-summary

format: $(STAMP) ## rewrite the sources in the project's style
	@$(BIN)/python -m isort --quiet .
	@$(BIN)/python -m black --quiet .

clean: ## remove the environment, the caches and the build files (not output/)
	rm -rf $(VENV) build dist projects/*.egg-info .pytest_cache .hypothesis .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(STAMP) ## make the environment .venv only
.venv: $(STAMP)

# The stamp is the last thing written, so an interrupted set-up starts again from nothing.
$(STAMP): requirements.txt setup.py pyproject.toml tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	v < (3, 11) and sys.exit(f"The pinned packages need Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}: run make with PYTHON=python3.11 or another one of these."); \
	v > (3, 13) and print(f"Note: tested with Python 3.11 to 3.13, this is {v[0]}.{v[1]}.")'
	@echo "Making $(VENV) (2 to 4 minutes, 5 GB, most of it PyTorch)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $$(grep -E '^(setuptools|wheel)==' requirements.txt)
	@set -o pipefail; $(BIN)/python -m pip install --progress-bar off --no-build-isolation -r requirements.txt | $(PROGRESS)
	@$(BIN)/python tools/install_detectron2.py
	@$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@
	@echo "$(VENV) is ready"
