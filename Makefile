# Every target makes .venv by itself from python3 and make; see README.md.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
# The stages of dvc.yaml call `python`: it must be ours.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: pipeline test lint lock clean
.DELETE_ON_ERROR:

pipeline: .venv/ready ## images -> shards -> encoder -> evaluation -> ONNX -> report
	$(BIN)/dvc repro

TESTS ?= -m "not slow"

test: .venv/ready ## all but the slow ones; every one, as CI: make test TESTS=
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(TESTS)

lint: .venv/ready ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/ready ## pin pyproject.toml's ranges anew, keeping pins that still fit
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
		--quiet --output-file requirements.lock

clean: ## everything that can be made again, runs/ in progress included
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info runs artifacts/[!m]* data/shards data/validation

.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/uv || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --require-hashes --requirements requirements.lock
	$(UV) --no-deps --no-build-isolation --editable .
	touch $@
