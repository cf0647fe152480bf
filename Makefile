# What a newcomer types. Everything happens in .venv; nothing outside this folder is changed but
# the cache of features (POLYTAG_CACHE, by default in the user's cache folder).
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint docs bench clean

demo: .venv/train  ## draw a data set, train, predict, say where to look
	$(BIN)/polytag demo --folder polytag-demo

test: .venv/dev  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

docs: .venv/dev  ## write docs/cli.md anew
	$(BIN)/python tests/test_docs.py

bench: .venv/dev  ## polytag against a plain script; make bench BENCH=--quick takes under 3 minutes
	$(BIN)/python benchmarks/speed $(BENCH)

clean:
	rm -rf .venv polytag-demo runs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "polytag needs Python 3.11 or newer: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "venv is missing: on Debian, apt install python3-venv"; exit 2; }

# The constraints name the pair torch/torchvision; see ARCHITECTURE.md.
.venv/train: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,dev]'
	@touch $@
