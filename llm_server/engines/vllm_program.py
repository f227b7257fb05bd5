"""How a vLLM server is started: with which Python, arguments and environment. The GPU settings are untested.

Invariant: importing this imports nothing heavy, and never vllm.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from configs.annotation_schema import ServiceConfig

# `vllm serve` looks up the metadata of a distribution named vllm, but the one for CPUs has another name.
PROGRAM = """
try:
    from vllm.entrypoints.launchers.api_server.entry import main
except ImportError:
    from vllm.entrypoints.cli.main import main
    import sys
    sys.argv[1:1] = ["serve"]
main()
"""

MAX_ANSWERS = 128
"""Answers whose log-probabilities can be read at once; vLLM's own limit is 20, and a judge that plays has more."""


def vllm_python(setting: str) -> str:
    """A Python with vLLM: the configured one, this one, or that of .venv-vllm beside it; ValueError for none."""
    if setting:
        if found := shutil.which(str(Path(setting).expanduser())):
            return found
        raise ValueError(f"service.vllm_python: '{setting}' is no program: give the Python of an environment with vLLM")
    if importlib.util.find_spec("vllm"):  # does not import it
        return sys.executable
    beside = Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    if beside.exists():
        return str(beside)
    raise ValueError(
        "the engine 'vllm' needs vLLM, which is not installed: run `make vllm` in a checkout (CPU), `pip install vllm`"
        " (GPU; in an environment of its own if need be), and name that environment's Python in service.vllm_python"
    )


def vllm_command(python: str, config: ServiceConfig, folder: Path, dtype: str, context: int, port: int) -> list[str]:
    """The command of a vLLM server that computes in `dtype`, for the model in `folder` and `context` tokens."""
    arguments = {
        "--model": str(folder),
        "--served-model-name": "delphi",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": dtype,
        # Logits in bf16 lie on a grid of 1/8, too coarse to rank by.
        "--hf-overrides": '{"head_dtype": "float32"}',
        "--load-format": "safetensors",
        "--max-model-len": str(context),
        "--max-num-seqs": str(config.batch_size),
        "--logprobs-mode": "raw_logprobs",
        "--max-logprobs": str(MAX_ANSWERS),
        "--generation-config": "vllm",
        "--tensor-parallel-size": str(config.tensor_parallel),
        "--gpu-memory-utilization": str(config.gpu_memory_utilization),
    }
    # Small blocks: the part of the rubric that does not fill a block is computed again for every text.
    on_cpu = {"--block-size": "32"} if is_on_cpu(config.device) else {}
    flags = ["--disable-uvicorn-access-log", "--disable-log-stats", *(["--enforce-eager"] if on_cpu else [])]
    return [python, "-c", PROGRAM, *(f"{name}={value}" for name, value in (arguments | on_cpu).items()), *flags]


def vllm_environment(config: ServiceConfig) -> dict[str, str]:
    """Environment variables of vLLM; the user's own override these defaults, except threads and device."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    forced = {}
    if is_on_cpu(config.device):
        # Compiling the sampler takes 20 s and gains nothing for a single token.
        wanted |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        forced = {"OMP_NUM_THREADS": str(config.torch_threads)} if config.torch_threads else {}
    elif config.device.startswith("cuda:"):
        forced = {"CUDA_VISIBLE_DEVICES": config.device.removeprefix("cuda:")}
    return {name: os.environ.get(name, value) for name, value in wanted.items()} | forced


def is_on_cpu(device: str) -> bool:
    """Whether vLLM runs on the CPU; `auto` uses the machine's GPU, if any, which vLLM's environment must support."""
    if device != "auto":
        return device == "cpu"
    return not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists()
