# `make` alone lists the targets. SAFERULE_VENV=/path chooses the environment (default: .venv).
SHELL := /bin/bash
PYTHON = "$(if $(SAFERULE_VENV),$(SAFERULE_VENV),.venv)/bin/python"

# As in saferule/__init__.py, for tests that import other libraries first; the reasons are there.
export OPENBLAS_CORETYPE ?= Haswell
export WANDB_MODE = disabled
export WANDB_ERROR_REPORTING = false
export DSRL_SUPPRESS_IMPORT_ERROR = 1
export RAY_AUTH_MODE ?= disabled

.DEFAULT_GOAL := help
.PHONY: help install test smoke lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\): .*## /  make \1\t/p' Makefile | expand -t 16

install:  ## make the environment from the lock, if it is not there yet
	@bash ./install.sh

test: install  ## run the tests; PYTEST_ARGS="tests/test_lock.py -k cuda" chooses
	$(PYTHON) -m pytest $(PYTEST_ARGS)

smoke:  ## run the smoke profile: every notebook, tiny steps
	@bash ./run_all.sh --profile smoke

lint: install  ## ruff: rules and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean:  ## remove the smoke results and caches (not .venv, not other results)
	rm -rf artifacts/smoke .pytest_cache .ruff_cache .hypothesis
	find saferule tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
