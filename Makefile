# make run    set up on the first call, then open the explorer on the embedded model (no terminal: print its report)
# make test   set up, then the whole test suite
# make check  lint, types, import contracts
# make bench  benchmarks; each prints ratios within one run

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test check bench clean

run: $(INSTALLED)
	@$(BIN)/memloc-tui

test: $(INSTALLED)
	@$(BIN)/python -m pytest

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(INSTALLED)
	@$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis bench-results

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "memloc-tui: installing into .venv; this takes a minute or two" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
