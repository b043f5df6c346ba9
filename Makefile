# make demo       install what a run needs, then fine-tune the embedded model on the embedded data and report
# make test       install what tests need, too, then run the tests that take seconds
# make test-slow  the other tests
# make lint       ruff and mypy
# make bench      what the README publishes, an hour: training against TRL's defaults and a bare PyTorch loop, reading
#                 against datasets, plans against runs, a sweep against separate runs
#
# The environment is .venv, made with $(PYTHON), with the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
# Empty files that say when it was installed; it is installed again only when the dependencies change.
FOR_RUNS := .venv/.installed-for-runs
FOR_TESTS := .venv/.installed-for-tests

.PHONY: demo test test-slow lint bench

demo: $(FOR_RUNS)
	$(BIN)/python run.py

test: $(FOR_TESTS)
	$(BIN)/python -m pytest

test-slow: $(FOR_TESTS)
	$(BIN)/python -m pytest -m slow

lint: $(FOR_TESTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(FOR_RUNS)
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/read_speed.py
	$(BIN)/python benchmarks/plan_accuracy.py --default
	$(BIN)/python benchmarks/sweep_speed.py

$(FOR_RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv (some minutes the first time) ...'
	@$(INSTALL) .
	@touch $@

$(FOR_TESTS): $(FOR_RUNS)
	@echo 'Installing what tests need ...'
	@$(INSTALL) '.[dev,harness,postgresql,slurm]'
	@touch $@
