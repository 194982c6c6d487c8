# make run    set up on the first call, then open the explorer on the embedded model (no terminal: print its report)
# make test   set up, then the whole test suite
# make check  lint, types, import contracts
# make bench  benchmarks, ratios within one run, and a table of them in bench-results/ (some: make bench BENCH="sweep growth")
# make faults what breaks, as often as docs/faults.md says: 45 minutes (MEMLOC_FAULTS_SECONDS=300: a shorter soak)

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test check bench faults clean

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
	@$(BIN)/python -m tests.benchmarks.run $(BENCH)

faults: $(INSTALLED)
	@MEMLOC_FAULTS=full $(BIN)/python -m pytest tests/faults tests/e2e/test_readme.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis bench-results

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "memloc-tui: installing into .venv; this takes a minute or two" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
