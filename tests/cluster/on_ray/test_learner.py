"""What the driver tells of a learner that waits."""

import pytest

from cluster.on_ray import learner
from cluster.on_ray.learner import LearnerWatch
from cluster.run.directory import RunDirectory
from configs.loading import load_config


def test_the_seconds_of_a_wait_are_its_own_and_are_told_ever_more_rarely(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(learner.time, "monotonic", lambda: clock[0])
    watch = LearnerWatch(
        load_config(preset="debug"),
        RunDirectory(tmp_path),
        lambda epoch: None,
        lambda: 1,
        stop_requested=lambda: False,
        say=said.append,
        on_line=lambda line: None,
    )
    for second in range(100):
        clock[0] = 1000.0 + second
        watch._say_waiting(
            "1 x annotator to start" if second < 30 else "the first reward table" if second < 60 else None
        )
    assert said == [
        "waiting for 1 x annotator to start, 11 s",
        "waiting for 1 x annotator to start, 21 s",
        "waiting for the first reward table, 11 s",
        "waiting for the first reward table, 21 s",
    ]
