SHELL := bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

# One worker of one thread per core, at most four; the tests of one file share a worker, and so its fixtures.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadscope

.PHONY: demo test quick lint docs env
.DEFAULT_GOAL := test

demo: env
	$(VENV)/bin/mbt demo

test: lint
	$(PYTEST)

# For quick checks while working: all tests except those marked slow.
quick: lint
	$(PYTEST) -m "not slow"

lint: env
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# The variable silences a notice about MkDocs 2, which constraints.txt excludes.
docs: env
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

env: $(READY)

# Tries a command up to five times, for broken downloads; the package cache keeps what has arrived.
define retry
for try in 1 2 3 4 5; do $(1) && break; \
[ $$try -lt 5 ] || { echo "env: gave up after 5 tries; check the network and run make again" >&2; exit 1; }; \
echo "env: try $$try failed; retrying in $$((try * 5)) s" >&2; sleep $$((try * 5)); done
endef

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "env: Python 3.11 or newer is required; choose one with make PYTHON=python3.11" >&2; exit 1; }
	@echo "env: creating $(VENV) (about 6 GB with torch and CUDA; only once)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@echo "env: installing uv"
	@$(call retry,$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv)
	@echo "env: installing mbt and its dependencies, at the versions in constraints.txt"
	@$(call retry,$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt --editable '.[dev]')
	@touch $@
	@echo "env: ready"
