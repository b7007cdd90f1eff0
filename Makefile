# Commands for contributors. They use .venv if it is there, else python3. `make test-model` runs the tests of one folder.
PYTHON := $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
TEST := $(PYTHON) -m pytest
# pytest rewrites the tests' assertions, which takes half of the collection: the result is kept for the next run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help test lint format oracle heavy browser docs ci
help:
	@echo "make test       the default tests (two minutes)"
	@echo "make test-ROOM  the tests of one folder: $(sort $(notdir $(patsubst %/,%,$(filter-out %/goldens/ %/__pycache__/,$(wildcard tests/*/)))))"
	@echo "make lint       ruff and mypy;  make format: let ruff change the files"
	@echo "make oracle     against transformers, live (needs torch)"
	@echo "make heavy      what takes over two seconds: full size, killed processes, tmux"
	@echo "make browser    the desktop chat and JupyterLab in Chromium"
	@echo "make docs       the documentation, in build/site"
	@echo "make ci         all that CI does, in a new environment"

test:
	$(TEST)

test-%: tests/%
	$(TEST) $<

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

oracle heavy browser:
	$(TEST) -n 0 -m $@

docs:
	$(PYTHON) -m mkdocs build --strict

ci:
	bash .ci/run
