# `make study` and `make test` do everything on a machine with Python >= 3.11; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Versions that are known to work; `make env CONSTRAINTS=` takes the newest ones instead.
CONSTRAINTS ?= constraints.txt
# Ray's workers would compile torch from source, each for itself, without .pyc files.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env study test chaos lint bench

env: $(VENV)/.ready

# Made anew when the dependencies change, and only then. Paths are relative, so that a checkout in
# a folder with spaces works.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "labtune needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	@if command -v uv >/dev/null; then \
	    test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV); \
	    uv pip install -q --python $(BIN)/python $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'; \
	else \
	    test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	    test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check uv; \
	    $(BIN)/python -m uv pip install -q --python $(BIN)/python $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'; \
	fi
	@touch $@

# A second `make study` goes on with what is unfinished, or shows the finished study again.
study: env
	@$(BIN)/python studies/norms.py $(if $(wildcard results/norms/demo/study.json),--resume) $(ARGS)

# Two at a time, whole files each; ARGS="-m 'not ray and not slow'" is the daily loop.
test: env
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Twenty kills of a study on Ray, some minutes: its numbers are those of an undisturbed one.
chaos: env
	@$(BIN)/python tests/support/chaos.py $(ARGS)

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyrefly check
	@$(BIN)/python docs/picture.py --check

bench: env
	@$(BIN)/python benchmarks/norms.py --json results/bench-norms.json
	@$(BIN)/python benchmarks/training.py --json results/bench-training.json
	@$(BIN)/python benchmarks/engine.py --json results/bench-engine.json
	@$(BIN)/python benchmarks/corruptions.py --json results/bench-corruptions.json
	@$(BIN)/python benchmarks/weight_standardization.py --json results/bench-ws.json
	@$(BIN)/python benchmarks/instruction_set.py --json results/bench-instruction-set.json
