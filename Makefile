# Every target sets itself up: all that is needed is Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint format types imports proto proto-check deploy-check bench clean

demo: $(READY)
	$(BIN)/secure-quant demo

test: lint types imports proto-check deploy-check
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-cache

proto: $(READY)
	$(BIN)/python tools/gen_protos.py

proto-check: $(READY)
	$(BIN)/buf lint protos
	$(BIN)/python tools/gen_protos.py --check

deploy-check: $(READY)
	$(BIN)/hadolint deploy/docker/*.Dockerfile
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml

bench: $(READY)
	$(BIN)/secure-quant bench --model lenet --engine mpc
	$(BIN)/secure-quant bench --model lenet --engine he

setup: $(READY)

# torch first, so that PIP_EXTRA_INDEX_URL can choose its CPU build. CrypTen without its declared
# dependencies: they name the retired package "sklearn"; what it really needs is in the extra mpc.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python >= 3.11 is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps crypten==0.4.1
	@touch $@

clean:
	rm -rf .venv build dist out demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
