"""A run that an earlier version of Delphi wrote goes on under this one.

`run_before/` was written at commit e9967ea, before modules moved: CartPole with a scripted judge, 1,024 steps, one
checkpoint.
"""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from cluster.launch import launch
from configs.checks import ConfigError
from configs.loading import load_config
from learner.checkpoint import load_latest

BEFORE = Path(__file__).with_name("run_before")
SETTINGS = [
    "env.id=CartPole-v1",
    "env.captioner=tests.toy_environments:which_way_it_leans",
    "policy.hidden_size=8",
    "policy.core_size=8",
    "policy.embedding_size=2",
    "actors.envs_per_worker=4",
    "actors.rollout_steps=8",
    "learner.minibatches=2",
    "service.script=left=0.9",
    "logging.tensorboard=false",
    "logging.interval_env_steps=512",
    "evaluation.at_end=false",
    "actors.precision=fp32",
    "learner.precision=fp32",
    "logging.console=quiet",
]


def test_a_run_of_an_earlier_version_continues_with_all_that_it_had(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(BEFORE, run_dir)
    before = load_latest(run_dir / "checkpoints")
    assert before is not None
    settings = [f"run_dir={run_dir}", "total_env_steps=2048", *SETTINGS]
    # Its policy sees the numbers as they are given.
    with pytest.raises(ConfigError, match=r"env\.stretch_bounds: false -> true"):
        launch(load_config(preset="debug", overrides=settings))
    assert launch(load_config(preset="debug", overrides=[*settings, "env.stretch_bounds=false"])) == 0
    after = load_latest(run_dir / "checkpoints")
    assert after is not None
    assert before.keys() == after.keys()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines] == [512, 1024, 1536, 2048]
    assert (lines[1]["run_epoch"], lines[2]["run_epoch"]) == (1, 2)
    assert lines[3]["episodes_total"] > lines[1]["episodes_total"] > 0
    assert lines[3]["annotations_total"] == lines[1]["annotations_total"] == 2, "both captions had been judged"
    counts = dict(sqlite3.connect(run_dir / "captions.sqlite").execute("SELECT text, count FROM captions").fetchall())
    assert sum(counts.values()) == 2048, "earlier sightings are counted"
