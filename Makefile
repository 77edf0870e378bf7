# Each target sets up .venv when it is missing or stale, then does its work.
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a lively jig for violin with drums, 120 bpm
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: song test lint bench bench-gpu clean

song: .venv/.run
	$(BIN)/tunesmith generate "$(PROMPT)" --seconds 10 --seed 7 --out song.wav

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# transformers 4.40.2 is the last that has Jukebox.  BENCH=--quick for a few minutes; a full run can be stopped and resumed.
bench: .venv/.dev .venv/.peer
	$(BIN)/python benchmarks/quality.py $(BENCH)
	$(BIN)/python benchmarks/cpu.py --jukebox .venv/peer/bin/python $(BENCH)

# Case by case, so that each call takes minutes: BENCH='--only "musicgen small"'.  What is done is kept.
bench-gpu: .venv/.dev .venv/.peer
	$(BIN)/python benchmarks/gpu.py --jukebox .venv/peer/bin/python $(BENCH)

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt $(wildcard src/tunesmith/nn/csrc/*)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

.venv/.peer: .venv/.dev
	$(PYTHON) -m venv .venv/peer
	.venv/peer/bin/pip install -q -c constraints.txt torch
	.venv/peer/bin/pip install -q transformers==4.40.2
	touch $@
