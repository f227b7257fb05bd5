import json
from pathlib import Path

import numpy as np
import pytest

from actors.environment import make_environment
from actors.rollout import EpisodeStatistics
from cluster.evaluate import main
from cluster.launch import launch
from configs.loading import load_config
from configs.schema import EnvConfig
from learner.evaluation import RandomPlayer, play, summarise

CORRIDOR = EnvConfig(id="tests.toy_environments:Corridor-v0", max_episode_steps=40, options={"length": 4})


class Walker:
    """Always advances, and counts restarts."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.restarts = num_envs, 0

    def act(self, obs):
        return np.ones(self.num_envs, np.int64)

    def restart(self, rows):
        self.restarts += len(rows)


def test_every_environment_plays_the_same_number_of_episodes() -> None:
    env = make_environment(CORRIDOR, num_envs=3, run_seed=0, worker_index=0, stream="eval")
    player = Walker(3)
    episodes = play(env, player, 4)
    assert len(episodes) == 12
    assert {(episode.episode_return, episode.length, episode.info["success"]) for episode in episodes} == {(1.0, 3, 1.0)}
    assert player.restarts == 12
    env.close()


def test_intervals_hold_the_mean_and_shrink_with_episodes() -> None:
    def interval(n: int, name: str) -> float:
        rng = np.random.default_rng(0)
        episodes = [
            EpisodeStatistics(episode_return=float(rng.normal()), length=5, terminated=True, info={"success": float(i % 4 == 0)})
            for i in range(n)
        ]
        estimate = summarise(episodes)[name]
        assert estimate.low <= estimate.mean <= estimate.high
        return estimate.high - estimate.low

    for name in ("return", "success"):
        assert interval(400, name) < 0.7 * interval(100, name)


def test_a_proportion_of_none_or_all_still_has_an_interval() -> None:
    for success in (0.0, 1.0):
        episodes = [EpisodeStatistics(episode_return=0.0, length=1, terminated=True, info={"success": success})] * 20
        estimate = summarise(episodes)["success"]
        assert estimate.mean == success
        assert 0.1 < estimate.high - estimate.low < 0.3


def test_the_random_player_uses_every_action_alike() -> None:
    player = RandomPlayer(4, 1000, seed=1)
    counts = np.bincount(player.act({}), minlength=4)
    assert counts.min() > 180


@pytest.mark.parametrize("as_json", [True, False])
def test_eval_sets_a_trained_policy_beside_a_random_one(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        f"run_dir={tmp_path}",
        f"env.id={CORRIDOR.id}",
        "env.options={length: 6, num_actions: 4}",
        "env.max_episode_steps=40",
        "total_env_steps=12000",
        "actors.envs_per_worker=32",
        "policy.core=none",
        "learner.learning_rate=0.005",
        "reward.extrinsic_coefficient=1.0",
        "reward_model.name=none",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    assert main([str(tmp_path), "--episodes", "40", "--envs", "8", *(["--json"] if as_json else [])]) == 0
    output = capsys.readouterr().out
    if as_json:
        report = json.loads(output)
        assert report["episodes"] == 40
        assert report["policy"]["success"]["low"] > report["random"]["success"]["high"]
        assert report["policy"]["length"]["mean"] < report["random"]["length"]["mean"]
    else:
        assert "policy" in output
        assert "success" in output
