# The targets a newcomer needs: `make quickstart` and `make test`. Environments are made on first use and again only
# when pyproject.toml changes.
PYTHON ?= python3
PROTO := $(wildcard proto/fcnseg/v1/*.proto) proto/serving/oip/inference.proto
STUBS := --python_out=. --pyi_out=. --grpc_python_out=.
MINUTES ?= 10
# A file's tests share what they set up, and files come in their order, else the longest tests, which are few in a file,
# come last. More than four processes would want more memory than a machine may have; each has a core, for PyTorch too.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The stubs carry the version that made them as the floor of the grpcio that runs them.
GRPC_TOOLS := grpcio-tools==1.76.0
# Its protobuf and ml-dtypes are older than ours may be, and its messages have the names of ours.
TRITON_CLIENT := tritonclient[grpc]==2.73.0

# For the image's Python and system; of each package the files for others are named too.
UV := uv==0.13.9
LOCK = .venv-lock/bin/uv pip compile --quiet --upgrade pyproject.toml - --extra serve --extra tracing --python-version 3.12 \
  --python-platform linux --generate-hashes --no-annotate --custom-compile-command 'make lock' -o

.PHONY: help quickstart test test-all test-runtime test-rest soak fuzz bench bench-quick lint format proto proto-fresh contract lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

quickstart: .venv/installed-quickstart  ## From a pretrained classifier to a mask over gRPC, on this machine
	.venv/bin/python -m fcnseg quickstart

test test-all test-rest: export OMP_NUM_THREADS = 1
test: .venv/installed-dev .venv-triton/installed  ## Every test but the slow ones
	.venv/bin/python $(PYTEST)

test-all: .venv/installed-dev .venv-triton/installed  ## Every test
	.venv/bin/python $(PYTEST) -m ""

test-runtime: .venv-runtime/installed .venv-triton/installed  ## The core and serving tests with the wheel's packages, no torch among them; what the wheel holds
	cd .venv-runtime && bin/fcnseg --help && bin/python -P ../tests/built_wheel.py
	.venv-runtime/bin/python $(PYTEST) tests/fcnseg tests/serving tests/contract

test-rest: .venv/installed-dev  ## What test-runtime leaves: training, and the whole path
	.venv/bin/python $(PYTEST) --ignore tests/fcnseg --ignore tests/serving --ignore tests/contract

soak: .venv/installed-dev  ## A server under everything at once for MINUTES=10, with SERVE='--no-arena' or other options
	.venv/bin/python -m tests.soak --minutes $(MINUTES) -- $(SERVE)

fuzz: .venv/installed-dev  ## Odd bytes at every door for MINUTES=10
	.venv/bin/python -m tests.fuzz --minutes $(MINUTES)

bench: .venv/installed-dev  ## Every benchmark that needs neither a GPU nor data, an hour and a half, and docs/benchmarks.md from their figures
	.venv/bin/python benchmarks/run_all.py

bench-quick: .venv/installed-dev  ## Every benchmark at its smallest sizes, to see that it runs; keeps no figures
	.venv/bin/python benchmarks/run_all.py --quick

lint: .venv/installed-dev proto-fresh  ## Style, types, import walls, fresh stubs
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports

format: .venv/installed-dev  ## Format the sources
	.venv/bin/python -m ruff format
	.venv/bin/python -m ruff check --fix

proto: .venv-proto/installed  ## Generate the stubs under fcnseg/v1 and serving/oip
	.venv-proto/bin/python -m grpc_tools.protoc -I proto $(STUBS) $(PROTO)

proto-fresh: .venv-proto/installed
	rm -rf .venv-proto/fresh && mkdir .venv-proto/fresh
	.venv-proto/bin/python -m grpc_tools.protoc -I proto $(subst =.,=.venv-proto/fresh,$(STUBS)) $(PROTO)
	cd .venv-proto/fresh && for stub in $$(find . -type f); do \
	  diff "$$stub" "../../$$stub" || { echo "stubs are stale: run 'make proto'"; exit 1; }; done

contract: .venv/installed-dev  ## The wire contracts' style, and that clients of what was published are still understood
	.venv/bin/buf lint
	for published in tests/contract/*_v1.binpb; do .venv/bin/buf breaking --against $$published || exit 1; done

lock: .venv-lock/installed  ## Renew what the image installs, deploy/docker/requirements-*.txt, from pyproject.toml and the newest packages
	echo onnxruntime | $(LOCK) deploy/docker/requirements-cpu.txt --no-emit-package onnxruntime-gpu
	echo 'onnxruntime-gpu[cuda,cudnn]' | $(LOCK) deploy/docker/requirements-cuda.txt

clean:  ## Remove environments, builds and what the quickstart left
	rm -rf .venv .venv-runtime .venv-lock .venv-proto .venv-triton build dist quickstart

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-quickstart: pyproject.toml | .venv/bin/python
	@echo "installing into .venv: about 6 GB, some minutes, silently"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[quickstart]'
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/installed-quickstart

.venv-runtime/installed: pyproject.toml README.md $(shell find fcnseg serving training -type f -not -name '*.pyc')
	$(PYTHON) -m venv --clear .venv-runtime
	.venv-runtime/bin/python -m pip install --quiet --disable-pip-version-check build
	.venv-runtime/bin/python -m build --outdir .venv-runtime/dist .
	.venv-runtime/bin/python tests/built_sdist.py .venv-runtime/dist/*.tar.gz
	wheel=$$(ls .venv-runtime/dist/*.whl) && \
	.venv-runtime/bin/python -m pip install --quiet --disable-pip-version-check "$$wheel[serve,test-runtime]"
	touch $@

.venv-proto/installed:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check $(GRPC_TOOLS)
	touch $@

.venv-lock/installed:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
	touch $@

.venv-triton/installed:
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check '$(TRITON_CLIENT)'
	touch $@
