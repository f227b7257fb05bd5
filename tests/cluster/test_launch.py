"""What a run says before it trains, and how few calls lead from the command line to the optimiser."""

import errno
import tempfile
import threading
import traceback
from pathlib import Path

import pytest
import torch

from cluster import cli
from cluster.launch import _report_waiting, launch
from cluster.run.directory import open_run
from configs.loading import load_config

ROOT = Path(__file__).parents[2]
OWN_CODE = tuple(f"{ROOT / package}/" for package in ("cluster", "learner", "reward_models", "llm_server", "actors"))
DECORATORS = ("guarded",)
MAX_CALLS = 8
"""Of our own functions, in `local` and `connect` too, where `LearnerActor.run` comes in addition: the remote call of
it is made by `train_on_ray` itself, which takes the place of `train_inline` (tests/cluster/on_ray/test_driver.py)."""


class Console:
    def __init__(self, enough: int) -> None:
        self.said: list[str] = []
        self.has_said_enough = threading.Event()
        self._enough = enough

    def say(self, text: str) -> None:
        self.said.append(text)
        if len(self.said) == self._enough:
            self.has_said_enough.set()


def test_what_is_waited_for_is_said_with_the_seconds_until_it_is_there() -> None:
    console = Console(enough=2)
    with _report_waiting(0.01, "the judge, which loads smollm2", console):  # type: ignore[arg-type]
        assert console.has_said_enough.wait(60)
    number = len(console.said)
    assert set(console.said) <= {f"waiting for the judge, which loads smollm2, {seconds} s" for seconds in range(20)}
    assert len(console.said) == number, "nothing more afterwards"


def test_a_run_without_a_folder_for_temporary_files_fails_in_a_line_and_frees_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    settings = ["env.id=tests.toy_environments:Corridor-v0", "reward_model.name=none", f"run_dir={tmp_path}/run"]
    config = load_config(preset="debug", overrides=settings)
    assert launch(config) == 1
    assert "the run failed: [Errno 2] No usable temporary directory found in" in capsys.readouterr().err
    open_run(config)[0].release()


def test_few_calls_lead_from_the_command_line_to_the_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[list[str]] = []
    step = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *arguments: object) -> object:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OWN_CODE)]
        stacks.append([frame.name for frame in frames if frame.name not in DECORATORS])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    environment = ["env.id=tests.toy_environments:Corridor-v0", "env.max_episode_steps=12", "reward_model.name=none"]
    small = ["actors.envs_per_worker=2", "actors.rollout_steps=4", "policy.core=none", "policy.hidden_size=8"]
    quick = ["total_env_steps=8", "logging.tensorboard=false", "learner.epochs=1", "learner.minibatches=1"]
    assert cli.main(["train", "--preset", "debug", f"run_dir={tmp_path}/run", *environment, *small, *quick]) == 0
    (stack,) = stacks
    assert (stack[0], stack[-1]) == ("run_verb", "_train")
    assert len(stack) + 1 <= MAX_CALLS, stack
