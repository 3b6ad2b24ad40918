# `make demo` and `make test` are the two commands of the README. Both make their environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format

demo: .venv/demo
	$(BIN)/python prep.py
	$(BIN)/python train.py
	$(BIN)/python eval.py

test: .venv/all
	$(BIN)/python -m pytest

check: .venv/all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/python -m pytest

format: .venv/all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/demo: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/all: requirements.txt requirements-all.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements-all.txt
	touch .venv/demo $@

