# Two commands for a machine with Python and make alone: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Of the float32 tests of the kernels: PyTorch's sums in plain SSE, in other orders than this processor would take.
PLAINER := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: train test test-plainer lint clean

train: $(VENV)/installed
	$(BIN)/minilm train

test: $(VENV)/installed-test lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-plainer: $(VENV)/installed-test
	$(PLAINER) $(BIN)/pytest -n auto tests/kernels -k "float32 or shape"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minilm needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info
