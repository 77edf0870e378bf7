# Each target sets up .venv when it is missing or stale, then does its work.
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a lively jig for violin with drums, 120 bpm
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: song test lint bench clean

song: .venv/.run
	$(BIN)/tunesmith generate "$(PROMPT)" --seconds 10 --seed 7 --out song.wav

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	$(BIN)/python benchmarks/musicgen.py

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@
