# `make` lists the targets. Set-up runs by itself where a target needs it; a second time it takes a second or two.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Every test and worker would compile this checkout's modules anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup setup-tests demo test unit chaos lint bench lock clean

ARGS ?=
PYTEST_ARGS ?=
HOROVOD ?= gloo
python3 := command -v python3 >/dev/null || { echo "setup: python3 is missing; Debian: apt-get install \
python3 python3-venv python3-dev" >&2; exit 1; };
setup := python3 -m cluster.setup $(if $(filter nccl,$(HOROVOD)),--nccl)
bin := .venv/bin
# tests/conftest.py says what stays together, and in which order it starts.
pytest := -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv and what it needs (HOROVOD=nccl: for GPUs)
	@$(python3) $(setup)

setup-tests:
	@$(python3) $(setup) --tests

demo: setup  ## a Delta table becomes a trained, recorded model, on this machine (ARGS="--root s3://bucket/prefix")
	$(bin)/mltrain demo $(ARGS)

test: setup-tests  ## the whole test suite (PYTEST_ARGS="-k name")
	$(bin)/python $(pytest) tests
	for other in .venv3*; do if [ -x $$other/bin/python ]; then $$other/bin/python $(pytest) tests/unit || [ $$? -eq 5 ]; fi; done  # 5: PYTEST_ARGS chose none

unit: setup  ## the unit tests, in seconds
	$(bin)/python $(pytest) tests/unit

chaos: setup-tests  ## faults by the thousand, an hour or two (CHAOS="readers --seed 7 --count 1": one kind, one case)
	$(bin)/python -m tests.chaos $(CHAOS)

lint: setup  ## ruff, mypy --strict, import-linter
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports

bench: setup  ## every benchmark, each printing its table (BENCH=loader for one)
	for file in benchmarks/$(or $(BENCH),*).py; do $(bin)/python -m benchmarks.$$(basename $$file .py); done

lock:  ## resolve setup.cfg and the Horovod build's packages anew into their lock files
	@$(setup) --lock

clean:  ## remove what make made here; the user's cache stays
	rm -rf .venv .venv3* build dist *.egg-info out .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
