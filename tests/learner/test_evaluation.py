import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from actors.policy import PolicyNet
from actors.rollout import EpisodeStatistics
from cluster.launch import launch
from cluster.verbs.evaluate import evaluate, main
from cluster.verbs.offline_reward_model import load_reward_model
from configs.checks import ConfigError
from configs.loading import load_config
from configs.schema import EnvConfig, PolicyConfig
from learner.checkpoint import save_checkpoint
from learner.evaluation import BlindPlayer, Episodes, PolicyPlayer, RandomPlayer, differences, play, summarise
from tests.faults.faulty_environments import OnceBroken
from tests.toy_environments import Corridor

CORRIDOR = EnvConfig(id="tests.toy_environments:Corridor-v0", max_episode_steps=40, options={"length": 4})


class Walker:
    """Always advances, and remembers which environments began anew."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.restarts: list[int] = []

    def act(self, obs, counted):
        return np.ones(self.num_envs, np.int64)

    def restart(self, rows):
        self.restarts += rows


def make(config: EnvConfig, num_envs: int) -> VectorEnvironment:
    return make_environment(config, num_envs=num_envs, run_seed=0, worker_index=0, stream="eval")


def episodes_of(returns: dict[tuple[int, int], float], **info: float) -> Episodes:
    return {
        game: EpisodeStatistics(episode_return=value, length=5, terminated=True, info=dict(info))
        for game, value in returns.items()
    }


def test_every_environment_plays_the_same_episodes() -> None:
    env = make(CORRIDOR, 3)
    player = Walker(3)
    episodes = play(env, player, 4)
    assert sorted(episodes) == [(i, n) for i in range(3) for n in range(4)]
    assert {(episode.episode_return, episode.length, episode.info["success"]) for episode in episodes.values()} == {
        (1.0, 3, 1.0)
    }
    assert len(player.restarts) == 12
    env.close()


@pytest.mark.parametrize(
    "config", [dataclasses.replace(CORRIDOR, options={"slip": 0.4}), EnvConfig(max_episode_steps=30)]
)
def test_a_game_is_the_same_whatever_is_played_beside_it(config: EnvConfig) -> None:
    class Beside(Walker):
        def act(self, obs, counted):
            return np.array([1, self.other])

        def __init__(self, other: int) -> None:
            super().__init__(2)
            self.other = other

    def played(other: int) -> Episodes:
        env = make(config, 2)
        try:
            return play(env, Beside(other), 3)
        finally:
            env.close()

    one, other = played(0), played(1)
    assert [one[0, n] for n in range(3)] == [other[0, n] for n in range(3)]
    assert [one[1, n] for n in range(3)] != [other[1, n] for n in range(3)], "the control"


@pytest.mark.parametrize("at_step", [0, 2, 5])
def test_an_environment_that_raises_loses_its_episode_and_disturbs_no_other(at_step: int) -> None:
    def played(which: int) -> tuple[Episodes, list[int]]:
        OnceBroken.made = 0
        config = EnvConfig(
            id="tests.faults.faulty_environments:OnceBroken-v0",
            max_episode_steps=40,
            options={"which": which, "at_step": at_step},
        )
        env, player = make(config, 3), Walker(3)
        episodes = play(env, player, 4)
        env.close()
        return episodes, player.restarts

    healthy, restarts = played(-1)
    broken, restarts_broken = played(1)
    lost = (1, at_step // 5)  # an episode takes 5 steps
    assert broken == {game: episode for game, episode in healthy.items() if game != lost}
    assert len(restarts_broken) >= len(restarts) == 12
    assert restarts_broken.count(1) >= 4, "what the player remembered of the lost episode went with it"


def test_in_netHack_all_running_episodes_are_lost_together(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(EnvConfig(max_episode_steps=10), 2)
    step, calls = env._stepping.step, []  # type: ignore[attr-defined]

    def fail_once(actions: np.ndarray):
        calls.append(actions)
        if len(calls) == 14:
            raise OSError("the engine is confused")
        return step(actions)

    monkeypatch.setattr(env._stepping, "step", fail_once)  # type: ignore[attr-defined]
    episodes = play(env, Walker(2), 3)
    assert sorted(episodes) == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert {episode.length for episode in episodes.values()} == {10}
    env.close()


def test_play_ends_where_every_episode_is_lost() -> None:
    env = make(
        EnvConfig(id="tests.faults.faulty_environments:Faulty-v0", max_episode_steps=9, options={"raise_chance": 1.0}),
        2,
    )
    assert play(env, Walker(2), 3) == {}
    env.close()


def test_intervals_hold_the_mean_and_shrink_with_episodes() -> None:
    def interval(n: int, name: str) -> float:
        rng = np.random.default_rng(0)
        episodes = {
            (0, i): EpisodeStatistics(
                episode_return=float(rng.normal()), length=5, terminated=True, info={"success": float(i % 4 == 0)}
            )
            for i in range(n)
        }
        estimate = summarise(episodes)[name]
        assert estimate.low <= estimate.mean <= estimate.high
        return estimate.high - estimate.low

    for name in ("return", "success"):
        assert interval(400, name) < 0.7 * interval(100, name)


def test_a_proportion_of_none_or_all_still_has_an_interval() -> None:
    for success in (0.0, 1.0):
        estimate = summarise(episodes_of({(0, n): 0.0 for n in range(20)}, success=success))["success"]
        assert estimate.mean == success
        assert 0.1 < estimate.high - estimate.low < 0.3


def test_the_random_player_uses_every_action_alike() -> None:
    player = RandomPlayer(4, 1000, seed=1)
    counts = np.bincount(player.act({}, np.ones(1000, bool)), minlength=4)
    assert counts.min() > 180


def test_the_blind_player_draws_with_the_given_frequencies() -> None:
    player = BlindPlayer(np.array([0.0, 3.0, 1.0, 0.0, 0.0]), 20_000, seed=1)
    counts = np.bincount(player.act({}, np.ones(20_000, bool)), minlength=5)
    assert counts[[0, 3, 4]].tolist() == [0, 0, 0]
    assert counts[1] / 20_000 == pytest.approx(0.75, abs=0.01)


def test_differences_are_of_pairs_and_only_of_games_that_both_have_finished() -> None:
    rng = np.random.default_rng(0)
    hard = {(i, n): float(rng.normal(scale=100)) for i in range(10) for n in range(4)}
    better = episodes_of(
        {game: value + 1 + 0.1 * float(rng.normal()) for game, value in hard.items() if game != (3, 1)}, depth=2.0
    )
    found = differences(better, episodes_of(hard, success=1.0) | episodes_of({(99, 0): 1e9}))
    assert sorted(found) == ["length", "return"], "what both say of their episodes"
    assert 0.9 < found["return"].low < found["return"].mean < found["return"].high < 1.1
    assert found["length"].mean == 0.0


def test_a_policys_player_sums_up_its_distributions_where_episodes_count() -> None:
    env = make(dataclasses.replace(CORRIDOR, options={"length": 4, "num_actions": 3}), 4)
    net = PolicyNet(env.spec, PolicyConfig(core="none", hidden_size=8))
    env.close()
    logits = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0], [0.0, 0.0, 50.0], [0.0, 0.0, 50.0]])
    net.step = lambda obs, core, caches: (logits, logits[:, 0], core)  # type: ignore[method-assign, assignment]
    player = PolicyPlayer(net, 4, seed=0)
    for _ in range(3):
        actions = player.act({}, np.array([True, True, False, False]))
    assert actions.tolist() == [1, 0, 2, 2]
    np.testing.assert_allclose(player.frequencies, [0.5, 0.5, 0.0], atol=1e-12)
    assert player.state_information == pytest.approx(np.log(2))

    logits = torch.tensor([[0.3, -0.2, 0.5]]).expand(4, 3)
    blind = PolicyPlayer(net, 4, seed=0)
    blind.act({}, np.ones(4, bool))
    assert blind.state_information == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("core", ["lstm", "none"])
def test_a_policys_player_acts_alike_however_much_it_keeps_of_its_encodings(
    core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(cached_steps: int) -> Episodes:
        monkeypatch.setattr("learner.evaluation.CACHED_STEPS", cached_steps)
        env = make(EnvConfig(max_episode_steps=15), 3)
        torch.manual_seed(0)
        net = PolicyNet(env.spec, PolicyConfig(core=core, core_size=16, hidden_size=16, head_gain=5.0))
        try:
            return play(env, PolicyPlayer(net, 3, seed=2), 2)
        finally:
            env.close()

    assert played(1) == played(8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to walk down a corridor."""
    run = tmp_path_factory.mktemp("run")
    settings = [
        f"run_dir={run}",
        f"env.id={CORRIDOR.id}",
        "env.options={length: 6, num_actions: 4}",
        "env.max_episode_steps=40",
        "total_env_steps=12000",
        "actors.envs_per_worker=32",
        "policy.core=none",
        "policy.hidden_size=64",
        "learner.learning_rate=0.005",
        "reward.extrinsic_coefficient=1.0",
        "reward_model.name=none",
        "evaluation.at_end=true",
        "evaluation.episodes=24",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    return run


def test_eval_sets_a_trained_policy_beside_a_blind_and_a_random_one(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained), "--episodes", "40", "--envs", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["episodes"] == 40
    assert report["episodes_lost"] == {"policy": 0, "blind": 0, "random": 0}
    assert report["policy"]["success"]["low"] > report["random"]["success"]["high"]
    assert report["policy"]["length"]["mean"] < report["random"]["length"]["mean"]
    assert set(report["differences"]) == {"policy - blind", "policy - random", "blind - random"}
    shorter = report["differences"]["policy - random"]["length"]
    assert shorter["mean"] == pytest.approx(report["policy"]["length"]["mean"] - report["random"]["length"]["mean"])
    assert shorter["high"] < 0
    # Advancing is right everywhere, so that whoever draws blindly from this policy's frequencies loses little by it.
    assert abs(report["differences"]["policy - blind"]["length"]["mean"]) < abs(shorter["mean"])
    assert 0.0 <= report["policy_state_information"] < np.log(4)


def test_a_finished_run_says_how_its_policy_plays(trained: Path) -> None:
    evaluation = json.loads((trained / "summary.json").read_text())["evaluation"]
    assert re.fullmatch(
        r"success 1\.00 \[0\.8\d, 1\.00\], blind \d\.\d\d \[.*\], random 0\.\d\d \[.*\];"
        r" policy - blind, game by game: \+.*",
        evaluation["words"],
    )
    assert evaluation["episodes"] == 24
    assert evaluation["policy"]["success"]["low"] > evaluation["random"]["success"]["high"]


def test_within_a_time_the_same_whole_games_are_counted_for_all_players(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]  # a clock that every step moves on by a tenth of a second
    step = Corridor.step
    monkeypatch.setattr("cluster.verbs.evaluate.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        Corridor, "step", lambda self, action: (now.__setitem__(0, now[0] + 0.1), step(self, action))[1]
    )
    whole = evaluate(str(trained), episodes=12, num_envs=4, seed=0, seconds=10_000, say=lambda text: None)
    assert whole["episodes"] == 12
    assert whole["episodes_lost"] == {"policy": 0, "blind": 0, "random": 0}
    now[0], all_s = 0.0, now[0]
    part = evaluate(str(trained), episodes=12, num_envs=4, seed=0, seconds=0.4 * all_s, say=lambda text: None)
    assert 4 <= part["episodes"] < 12
    assert part["episodes_lost"] == {"policy": 0, "blind": 0, "random": 0}
    now[0] = 0.0
    with pytest.raises(ConfigError, match="one game in each of 4 environments takes all players together more than"):
        evaluate(str(trained), episodes=12, num_envs=4, seed=0, seconds=all_s / 20, say=lambda text: None)


def test_a_checkpoint_that_does_not_fit_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["policy"]["hidden_size"] = 5  # in place of an environment that has another version here
    (run / "config.json").write_text(json.dumps(config))
    assert main([str(run), "--episodes", "2"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("delphi eval: the checkpoint's policy does not fit tests.toy_environments:Corridor-v0 and")
    assert line.endswith("take the versions that it was trained with (provenance.json)")


def test_a_checkpoint_that_is_not_of_a_run_is_left_out(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    save_checkpoint(run / "checkpoints", 10**9, {"other": {}}, keep=9)
    for path in (trained, run):
        assert load_reward_model(str(path)).env_steps < 10**9
        report = evaluate(str(path), episodes=2, num_envs=2, seed=0, say=lambda text: None)
        assert report["env_steps"] < 10**9


def test_evals_table_shows_players_differences_and_information(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained), "--episodes", "4", "--envs", "2"]) == 0
    output = capsys.readouterr().out
    assert all(word in output for word in ("policy", "blind", "random", "success", "policy - blind", "nats"))
    assert "lost" not in output
    assert max(map(len, output.splitlines())) <= 100


def test_evaluation_leaves_torchs_threads_as_they_were_and_says_what_it_does_to_whom_it_is_told(trained: Path) -> None:
    before, said = torch.get_num_threads(), []
    torch.set_num_threads(before + 1)
    try:
        evaluate(str(trained), episodes=2, num_envs=2, seed=8, say=said.append)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert [text for text in said if text.startswith("playing")] == [
        f"playing 2 episodes: {player}" for player in ("policy", "blind", "random")
    ]


def test_an_environment_that_raises_in_every_episode_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, action):
        raise OSError("the level could not be drawn")

    monkeypatch.setattr("tests.toy_environments.Corridor.step", fail)
    with pytest.raises(ConfigError, match=r"raised in every episode.*the level could not be drawn"):
        evaluate(str(trained), episodes=4, num_envs=2, seed=9, say=lambda text: None)
