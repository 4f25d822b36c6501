# make demo   installs into .venv and makes five pictures in demo/
# make test   installs into .venv and runs the tests
#
# PYTHON=python3.12   another interpreter       VENV=/tmp/venv   another place
# PIP_FLAGS=          without the exact versions of constraints.txt, or with an index of your own
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?= -c constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint install clean

demo: $(READY)
	$(BIN)/ddim-edit demo --output demo --overwrite

# One thread a process: two processes already fill two cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo
