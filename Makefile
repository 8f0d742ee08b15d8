# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPED := pyro_vae inference

.PHONY: demo test test-all lint install benchmark

demo: $(VENV)/.installed
	folder=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/pyro-vae train --out $$folder && $(BIN)/pyro-vae evaluate $$folder

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)

# Peers live in an environment of their own, which sees ours; one that cannot be installed is a row
# with that reason. PYRO_VAE_PEERS=/path/to/python names another.
PEERS := build/peers
benchmark: export PYRO_VAE_PEERS ?= $(PEERS)/bin/python
benchmark: $(VENV)/.installed
	test -x $(PYRO_VAE_PEERS) || $(MAKE) $(PEERS)/bin/python
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.report

$(PEERS)/bin/python: $(VENV)/.installed
	$(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > $$($@ -c 'import site; print(site.getsitepackages()[0])')/ours.pth
	-grep -v '^#' benchmarks/requirements.txt | \
	  xargs -n 1 $@ -m pip install --quiet --disable-pip-version-check

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@
