# make demo       install, then fine-tune the embedded model on the embedded data and report
# make test       install, then the tests that take seconds; make test-slow: the others
# make lint       ruff and mypy
# make bench      what the README publishes, an hour: training against TRL's defaults and a bare PyTorch loop, reading
#                 against datasets, plans against runs, a sweep against separate runs
#
# The environment is .venv, made with $(PYTHON), with the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow lint bench

demo: $(INSTALLED)
	$(BIN)/python run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/read_speed.py
	$(BIN)/python benchmarks/plan_accuracy.py --default
	$(BIN)/python benchmarks/sweep_speed.py

# Done again only when the dependencies change.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv (some minutes the first time) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,harness,postgresql,slurm]'
	@touch $@
