# Two commands on a fresh machine with Python 3.11 and make: `make run` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test computes on one thread. The tests of a file stay together, for they share what is expensive to make.
BOTH_CORES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: run quick test arm64 test-arm64 check lint types benchmarks golden clean

run: $(STAMP)
	$(BIN)/mcompress run targets/snapdragon865.yaml

quick: $(STAMP)
	$(BIN)/mcompress run targets/snapdragon865.yaml --quick

test: $(STAMP)
	$(BIN)/pytest $(BOTH_CORES)

arm64: $(STAMP)
	$(BIN)/python -m mcompress.export.arm64

test-arm64: arm64
	$(BIN)/pytest tests/test_arm64.py tests/test_arm64_emulated.py

check: lint types
	$(BIN)/pytest $(BOTH_CORES) -m "not export and not pipeline"

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

benchmarks: $(STAMP)
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/talking_face.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $(STAMP)
