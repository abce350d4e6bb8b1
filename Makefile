# Each target does its own set-up: a fresh clone needs Python 3.11 or newer, and make.
# PYTHON chooses the interpreter, VENV the folder of the virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The 900s ask of programs what trio asks of its own primitives; 109, 110 and 240 are ruff's; 114
# wants a list of every startable function, 128 does not see one that passes task_status on, and a
# function may be async because an interface says so (124).
ASYNC_RULES := --enable ASYNC1,ASYNC2,ASYNC3 \
  --disable ASYNC109,ASYNC110,ASYNC114,ASYNC124,ASYNC128,ASYNC240

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench protos lock clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/.run: lock/run.txt pyproject.toml
	@./lock/venv $(PYTHON) $(VENV) lock/run.txt
	@touch $@

$(BIN)/.dev: lock/dev.txt pyproject.toml
	@./lock/venv $(PYTHON) $(VENV) lock/dev.txt
	@touch $@ $(BIN)/.run

demo: $(BIN)/.run  ## two services on this machine, mutual TLS between them
	@$(BIN)/remora demo

test: $(BIN)/.dev  ## the whole test suite
	@$(BIN)/python -m pytest

lint: $(BIN)/.dev  ## format, lint and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@git ls-files '*.py' | grep -v '_pb2\.py$$' | xargs $(BIN)/flake8-async $(ASYNC_RULES)
	@$(BIN)/lint-imports

types: $(BIN)/.dev  ## mypy strict and pyright strict
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(BIN)/.dev  ## throughput and latency against a real Envoy, in the same rounds
	@$(BIN)/python -m benchmarks.throughput --peers remora,envoy

protos: $(BIN)/.dev  ## generate the protocol messages again
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mesh/protos/*.proto

lock:  ## resolve the exact versions again (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links pyproject.toml --group build -o lock/run.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links -c lock/run.txt pyproject.toml --group dev -o lock/dev.txt

clean:  ## remove the virtual environment and everything generated outside git
	@rm -rf $(VENV) .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
