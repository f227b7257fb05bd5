"""Trials of a campaign: one that still ends is waited for, and what went wrong becomes an outcome."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from cluster.design import runs
from cluster.design.runs import TrialTrainer
from cluster.run.directory import lock
from cluster.sweep.trial_process import WAS_STOPPED
from tests.cluster.design.scripted_campaign import BASE


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configurations of the trials that began; what each says went wrong is the name of its run."""
    found: list[str] = []

    def run_trial(config: str, *_: object, **__: object) -> str | None:
        found.append(config)
        name = Path(config).stem
        return {"good": None, "stopped": WAS_STOPPED}.get(name, f"ended with exit code 1: {name}")

    monkeypatch.setattr(runs, "run_trial", run_trial)
    monkeypatch.setattr(runs, "POLL_S", 0.01)
    return found


def test_a_run_that_another_process_still_ends_is_waited_for(tmp_path: Path, begun: list[str]) -> None:
    config = dataclasses.replace(BASE, run_dir=str(tmp_path / "bad"))
    (tmp_path / "bad").mkdir()
    held = lock(tmp_path / "bad")
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(TrialTrainer(1, 1).train(config, bool)))
    thread.start()
    thread.join(0.2)
    assert not begun
    held.close()
    thread.join()
    assert len(begun) == 1
    assert outcomes[0].problem == "ended with exit code 1: bad"
    with lock(tmp_path / "bad"):
        assert TrialTrainer(1, 1).train(config, lambda: True) is None
    assert len(begun) == 1


def test_a_run_is_read_once_it_was_evaluated_and_has_no_outcome_where_it_was_stopped(
    tmp_path: Path, begun: list[str]
) -> None:
    assert TrialTrainer(1, 1).train(dataclasses.replace(BASE, run_dir=str(tmp_path / "stopped")), bool) is None
    run = tmp_path / "good"
    run.mkdir()
    (run / "evaluation.json").write_text(json.dumps({"policy": {"return": {"mean": 1.5, "low": 1, "high": 2}}}))
    (run / "metrics.jsonl").write_text(json.dumps({"env_steps": 70, "episode_length_mean": 3.0}) + "\n")
    outcome = TrialTrainer(1, 1).train(dataclasses.replace(BASE, run_dir=str(run)), bool)
    assert outcome
    assert (outcome.env_steps, outcome.told, outcome.curves) == (70, "return 1.5", {"length": [3.0]})
