"""How the driver runs one learner after the other, without a cluster."""

import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.on_ray import driver
from cluster.run.directory import open_run
from configs.loading import load_config
from tests.run_sessions import session_in

ROOT = Path(__file__).parents[3]


class Watch:
    """Sees the first learner die and the second one finish."""

    def __init__(self, session: Any) -> None:
        self.deaths = 0

    def follow(self, learner: Any, run: str) -> dict[str, Any]:
        if not self.deaths:
            raise TimeoutError("it answered nothing")
        return {"run": run}

    def back_off(self, error: Exception) -> None:
        self.deaths += 1


def test_each_learner_has_its_own_epoch_and_the_driver_itself_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    restarts: list[bool] = []
    callers: list[str] = []

    def call() -> str:
        frames = traceback.extract_stack()
        callers.extend(frame.name for frame in frames if frame.filename.startswith(f"{ROOT}/cluster/"))
        return f"run of epoch {epochs[-1]}"

    def start(actor: Any, request: Any, config: Any, spec: Any, epoch: int, *others: Any) -> Any:
        epochs.append(epoch)
        return SimpleNamespace(run=SimpleNamespace(remote=call))

    def place(*arguments: Any, is_restart: bool) -> dict[str, None]:
        restarts.append(is_restart)
        return {"learner": None}

    for name in ("_connect", "sweep_other_machines"):
        monkeypatch.setattr(driver, name, lambda *arguments: None)
    monkeypatch.setattr(driver, "place", place)
    monkeypatch.setattr(driver, "start_actor", start)
    monkeypatch.setattr(driver, "LearnerWatch", Watch)
    monkeypatch.setattr(driver.ray, "shutdown", lambda: None)
    config = load_config(preset="debug", overrides=[f"run_dir={tmp_path}"])
    run, _ = open_run(config)
    try:
        session = session_in(tmp_path, config)
        assert driver.train_on_ray(session) == {"run": "run of epoch 2"}
    finally:
        run.release()
    assert (epochs, restarts, session.epoch) == ([1, 2], [False, True], 2)
    assert callers == ["train_on_ray", "train_on_ray"]
