"""The check of a CUDA device, in small and on the CPU: that it runs, and that it would notice a device that computes
something else."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_server.engines.models import bundled_model_folder
from llm_server.engines.transformers_engine import TransformersEngine
from tests.benchmarks import gpu

SMALL = ["--json", "--device", "cpu", "--envs", "2", "--rollout-steps", "4", "--rollouts", "2", "--captions", "2"]
SMALL += ["--processes", "2", "--rate-seconds", "0.2"]
SMALL += ["--settings", "policy.hidden_size=16", "policy.core_size=16"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an untrained model of one small layer and SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, max_position_embeddings=2048, **sizes)).save_pretrained(folder)
    for file in bundled_model_folder().glob("*token*"):
        shutil.copy(file, folder)
    return str(folder)


@pytest.fixture
def check(tiny_model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Exit code and report of these parts."""

    def run(*parts: str) -> tuple[int, dict[str, Any]]:
        code = gpu.main([*SMALL, "--model", tiny_model, *(["--parts", *parts] if parts else [])])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_without_a_device_all_but_the_training_runs_on_the_cpu(
    check: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    code, report = check()
    assert (code, report["ok"], report["device"]) == (0, True, None)
    assert not set(gpu.TRAINING) & report.keys()
    for part in ("learner", "inference", "central", "engine"):
        exact = next(iter(gpu.TOLERANCES[part]))
        assert report[part]["differences"][exact] <= (1e-5 if part == "central" else 0.0)  # its batches are larger
        assert report[part]["tolerances"] == gpu.TOLERANCES[part]
    assert report["learner"]["frames_per_s"]["bf16"] > 0
    assert all(rate > 0 for rates in report["central"]["frames_per_s"].values() for rate in rates.values())
    assert report["engine"]["labels_per_s"]["float32"] > 0


def test_a_device_that_computes_something_else_is_noticed_and_the_other_parts_are_still_said(
    check: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = TransformersEngine.score, [0]

    def drifting(self: TransformersEngine, texts: list[str]) -> list[Any]:
        calls[0] += 1
        return [answer._replace(probability=answer.probability + 0.002 * calls[0]) for answer in score(self, texts)]

    def broken(*arguments: Any, **options: Any) -> np.ndarray:
        raise RuntimeError("CUDA error:\n an illegal memory access")

    monkeypatch.setattr(TransformersEngine, "score", drifting)
    monkeypatch.setattr("actors.inference.BatchedInference.answer", broken)
    code, report = check("inference", "engine")
    assert (code, report["ok"]) == (1, False)
    assert report["inference"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert report["engine"]["ok"] is False
    assert report["engine"]["differences"]["float32"] > 0.001


class Run:
    """In place of a run: it writes a minute's lines, and ends with exit code `code`."""

    code = 0

    def __init__(self, command: list[str], *, stdout: TextIO, **options: Any) -> None:
        assert "max_time_s=120" in command
        assert {"learner.device=cpu", "actors.device=cpu", "service.device=cpu"} <= set(command)
        central = {"actors.inference=central", "actors.num_workers=1", "learner.rollouts_per_batch=1"}
        assert len(central & set(command)) in (0, 3)
        folder = Path(next(word.removeprefix("run_dir=") for word in command if word.startswith("run_dir=")))
        folder.mkdir()
        names = ("learner_train_fraction", "learner_wait_fraction", "worker_env_fraction", "worker_inference_fraction")
        rest = dict.fromkeys((*names, "policy_lag_mean", "annotations_pending", "updates_skipped_nonfinite"), 0)
        lines = [
            {"time_s": 10.0 * n, "env_steps": 100 * n * n, "annotations_total": 50 * n, **rest} for n in range(1, 7)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        stdout.write("what it said")

    def wait(self, timeout: float) -> int:
        return self.code


@pytest.mark.parametrize(("part", "code"), [("training", 0), ("training", 1), ("training_central", 0)])
def test_training_is_measured_over_its_second_half_and_a_failure_is_told_by_its_last_lines(
    part: str, code: int, check: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.benchmarks.gpu.subprocess", SimpleNamespace(Popen=Run, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(Run, "code", code)
    got, report = check(part)
    assert got == code
    if code:
        assert report[part]["error"] == "RuntimeError: the run ended with exit code 1; its last lines: what it said"
    else:
        assert report[part]["frames_per_s"] == (3600 - 900) / 30
        assert report[part]["labels_per_s"] == 150 / 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--device", "cuda"])
    assert "sees no CUDA device here" in capsys.readouterr().err
