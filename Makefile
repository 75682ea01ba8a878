# `make` alone lists the targets. It needs Python 3.11 or newer and nothing else; choose one with `make PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install ready demo test check format docs smollm2 pins clean

help:  ## Show this help
	@echo "Limbeck distils language models. Start with:  make demo"
	@echo
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ready  ## Make .venv with everything in it; leaves .venv/bin/limbeck
	@echo "Ready: .venv/bin/limbeck. Try: make demo"

# The installer decides by contents, not by dates, whether there is anything to do; if not, it takes 0.1 s.
ready:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON): install Python 3.11 or newer." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Limbeck needs Python 3.11 or newer; point to one with: make install PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) scripts/install.py

demo: ready  ## Distil a small model on the CPU, in about a minute and a half
	@$(BIN)/limbeck demo

# One process for each core, each with one thread, because more threads than cores make small models slower.
test: check  ## Run the checks, then every test, as CI does
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: ready  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: ready  ## Fix lint and formatting where it can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# These variables turn off advertisements of the theme and a plugin, which are printed in red.
docs: ready  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

smollm2: ready  ## Download a chat model (135 M parameters, Apache-2.0) into models/
	@$(BIN)/python scripts/fetch_smollm2.py

pins: ready  ## Update constraints.txt from pyproject.toml (add UPGRADE=--upgrade for newer versions)
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --no-annotate --no-header --output-file constraints.txt $(UPGRADE)

clean:  ## Remove .venv, caches and built files (models/ and runs/ stay)
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist site
	find . -name __pycache__ -type d -not -path './models/*' -not -path './runs/*' -prune -exec rm -rf {} +
