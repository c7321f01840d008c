# Every target sets itself up: all that is needed is Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PROTOC := .protoc
OIP := .oip
RAY := .ray

.PHONY: setup demo test test-all quick fuzz lint format types imports proto proto-check deploy-check lock compat oip ray docs generated release bench web clean

demo: $(READY)
	$(BIN)/secure-quant demo

test: lint types imports proto-check deploy-check
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not heavy"

# Everything, those tests too that take minutes each (real clusters, browsers, real weights).
test-all: lint types imports proto-check deploy-check $(OIP)/.ready $(RAY)/.ready
	$(BIN)/python -m pytest -n auto --dist loadfile

# Under a minute: what tells most, before every commit. No test of it starts a process.
quick: lint types imports
	$(BIN)/python -m pytest -q tests/vectors tests/unit/ir tests/unit/reference tests/unit/wire \
		tests/unit/mpc/protocol tests/unit/server/test_board.py tests/unit/server/test_batching.py \
		tests/unit/client/test_sharing.py tests/unit/client/test_programs.py \
		tests/unit/test_house.py tests/unit/test_keystream.py tests/unit/test_documents.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Random modules against every check; `make fuzz SEED=7000` for nets of one's own choice.
fuzz: $(READY)
	$(BIN)/python tools/fuzz_nets.py --count $(or $(COUNT),2000) $(if $(SEED),--seed $(SEED))

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-cache

proto: $(PROTOC)/.ready
	$(PROTOC)/bin/python tools/gen_protos.py

proto-check: $(READY) $(PROTOC)/.ready
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(PROTOC)/bin/python tools/gen_protos.py --check

# The browser's client (needs Node 20 and npm); its protobuf code and the page's bundle are committed.
web: $(READY)
	cd client/web && npm ci --no-audit --no-fund
	cd client/web && PATH="$(CURDIR)/$(BIN):$$PATH" npm run gen && npm test && npm run bundle

deploy-check: $(READY)
	$(BIN)/hadolint deploy/docker/*.Dockerfile
	$(BIN)/python tools/generate.py --check manifests
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/docker-compose.yml

# sdist, wheel, checksums and bill of materials of the last commit, in dist/.
release: $(READY)
	$(BIN)/python tools/release.py

# The documentation site, in build/site; a warning fails it.
docs: $(READY)
	$(BIN)/python tools/stage_site.py build/site-pages
	$(BIN)/zensical build --clean --strict

# Pages and pictures that are made of code and of results; tests hold them to it.
generated: $(READY)
	$(BIN)/python tools/generate.py

bench: $(READY)
	$(BIN)/secure-quant bench --model lenet --engine mpc
	$(BIN)/secure-quant bench --model lenet --engine he

# pyproject.toml -> constraints.txt; UPGRADE=1 takes the newest of everything.
lock: $(READY)
	$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

# Both ends of every range, beside the packages that our users have: minutes, and some gigabytes.
compat: $(READY)
	$(BIN)/python tools/compat.py

setup: $(READY)

# torch first, so that PIP_EXTRA_INDEX_URL can choose its CPU build.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python >= 3.11 is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	$(BIN)/secure-quant add-crypten
	@touch $@

# The generator of protobuf code is older than what we run on: tools/protoc.txt says why.
$(PROTOC)/.ready: tools/protoc.txt
	$(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/python -m pip install --quiet --requirement tools/protoc.txt
	@touch $@

# Other people's clients, whom the gateway must serve.
$(OIP)/.ready: tools/oip.txt
	$(PYTHON) -m venv $(OIP)
	$(OIP)/bin/python -m pip install --quiet --requirement tools/oip.txt
	@touch $@

oip: $(OIP)/.ready

# Ray beside us, on which the HE server is tried.
$(RAY)/.ready: tools/ray.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --requirement tools/ray.txt --editable '.[he]'
	@touch $@

ray: $(RAY)/.ready

clean:
	rm -rf client/web/node_modules client/web/dist .venv $(PROTOC) $(OIP) $(RAY) .compat build dist out demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
