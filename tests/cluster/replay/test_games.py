"""A game that is recorded has the metrics of the evaluation, exactly, for every environment and player."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from actors.environments.factory import make_environment
from cluster.replay.games import NotReproducible, evaluated_games, record
from cluster.run.evaluation import PLAYERS
from cluster.verbs.evaluate import evaluate
from configs.checks import ConfigError
from configs.loading import load_config
from learner.evaluation import RandomPlayer, metrics_of, play
from tests.cluster.replay.small_runs import CORRIDOR, NETHACK, make_run
from tests.toy_environments import Corridor

ENVIRONMENTS = {
    "nethack": NETHACK,
    "nethack through its own class": (*NETHACK, "env.stepping=gymnasium"),
    "nethack with memory of rewards": (*NETHACK, "env.options={penalty_mode: linear}", "policy.previous_reward=true"),
    "minihack": ("env.id=MiniHack-Room-5x5-v0", "env.max_episode_steps=60"),
    "minigrid": ("env.id=MiniGrid-Empty-5x5-v0", "env.captioner=mission", "env.max_episode_steps=40"),
    "pictures": ("env.id=tests.toy_environments:Painting-v0", "env.captioner=info:text", "env.max_episode_steps=9"),
    "corridor that saves itself": CORRIDOR,
    "slippery corridor": ("env.id=tests.toy_environments:ForgetfulCorridor-v0", "env.options={slip: 0.3}", CORRIDOR[2]),
}
FEW = {"episodes": 4, "envs": 2}


class Remembering(Corridor):
    """Does not follow the seed of a reset, but only that of its first: later games depend on the earlier ones."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None if self._np_random is not None else seed)


class Unseeded(Corridor):
    """Follows no seed."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


for kind in (Remembering, Unseeded):
    gymnasium.register(f"Replayed{kind.__name__}-v0", entry_point=kind)


def quiet(text: str) -> None:
    pass


@pytest.mark.parametrize("settings", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_recording_has_the_metrics_of_the_evaluation(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *settings)
    for player in PLAYERS:
        games = evaluated_games(run, player=player, **FEW, say=quiet)
        assert [game.place for game in games] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
        for game in games[1:3]:
            recording = record(run, game, player)
            assert recording.metrics == game.metrics
            assert len(recording.moments) == game.metrics["length"] + 1
            assert recording.game == game.place
            values = [moment.value for moment in recording.moments]
            assert [value is not None for value in values] == [player == "policy"] * (len(values) - 1) + [False]


def test_the_games_are_those_of_the_plain_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *NETHACK)
    config = load_config(preset="debug", overrides=[*NETHACK])
    env = make_environment(config.env, num_envs=2, run_seed=5, worker_index=0, stream="eval", policy=config.policy)
    plain = play(env, RandomPlayer(env.spec.num_actions, 2, 5), 2)
    env.close()
    games = evaluated_games(run, player="random", **FEW, seed=5, say=quiet)
    assert {game.place[1:]: game.metrics for game in games} == {
        place: metrics_of(episode) for place, episode in plain.items()
    }


def test_a_death_shows_the_screen_of_the_game_and_not_what_follows_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *NETHACK[:1], "env.max_episode_steps=3000", "env.options={character: tou}")
    game = min(evaluated_games(run, player="random", episodes=8, envs=4, say=quiet), key=lambda game: len(game.actions))
    assert len(game.actions) < 3000
    last = record(run, game, "random").moments[-1]
    assert last.screen is not None
    assert last.colours is not None
    assert last.colours.shape == (24, 80)
    assert {len(row) for row in last.screen} == {80}
    assert "HP:" in last.screen[-1]
    assert last.caption.endswith("You die..."), "the caption of the last step is that of the death"


def test_nethacks_screen_shows_the_message_and_actions_have_names(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *NETHACK)
    moments = record(run, evaluated_games(run, player="random", **FEW, say=quiet)[0], "random").moments
    assert moments[0].screen is not None
    assert moments[0].screen[0].startswith("Hello Agent, welcome to NetHack!")
    assert moments[0].action is None
    actions = {moment.action for moment in moments[1:]}
    assert actions & {"north", "far north", "kick", "search", "far southeast"}
    assert all("@" in "".join(moment.screen or ()) for moment in moments[:3])


def test_captions_are_paid_as_in_training_and_carry_the_judges_probability(tmp_path: Path) -> None:
    rewards = {"You advance to cell 1.": 0.5, "You enter the corridor.": 0.25}
    run = make_run(tmp_path / "run", *CORRIDOR, "reward.count_exponent=2.0", rewards=rewards)
    games = evaluated_games(run, player="random", episodes=8, envs=2, say=quiet)
    moments = [moment for game in games for moment in record(run, game, "random").moments]
    advances = [moment for moment in moments if moment.caption == "You advance to cell 1."]
    assert {moment.probability for moment in advances} == {0.5}
    assert {moment.intrinsic for moment in advances} >= {0.5, 0.125}, "divided by the square of the occurrence"
    starts = [moment for moment in moments if moment.caption == "You enter the corridor."]
    assert {(moment.intrinsic, moment.probability) for moment in starts} == {(0.0, 0.25)}, "a reset is not paid"
    others = [moment for moment in moments if moment.caption not in rewards]
    assert {(moment.intrinsic, moment.probability) for moment in others} == {(0.0, None)}


def test_without_a_reward_model_nothing_is_paid(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    moments = record(run, evaluated_games(run, **FEW, say=quiet)[0]).moments
    assert {(moment.intrinsic, moment.probability) for moment in moments} == {(0.0, None)}


def test_pictures_are_what_the_environment_renders_or_else_observes(tmp_path: Path) -> None:
    for settings, shape in ((ENVIRONMENTS["pictures"], (16, 16, 3)), (ENVIRONMENTS["minigrid"], (160, 160, 3))):
        run = make_run(tmp_path / settings[0], *settings)
        moments = record(run, evaluated_games(run, **FEW, say=quiet)[3]).moments
        pictures = [moment.picture for moment in moments]
        assert {picture.shape for picture in pictures if picture is not None} == {shape}
        assert len({picture.tobytes() for picture in pictures if picture is not None}) > 1
        assert len(pictures) == sum(picture is not None for picture in pictures)
        assert all(moment.screen is None for moment in moments)


def test_an_environment_that_remembers_earlier_games_is_brought_to_the_same_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "env.id=ReplayedRemembering-v0", "env.options={slip: 0.5}", CORRIDOR[2])
    games = evaluated_games(run, player="random", episodes=12, envs=2, say=quiet)
    for game in games:
        assert record(run, game, "random").metrics == game.metrics


def test_an_environment_that_follows_no_seed_is_one_clear_error(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", "env.id=ReplayedUnseeded-v0", "env.options={slip: 0.5}", "env.max_episode_steps=90"
    )
    game = evaluated_games(run, **FEW, say=quiet)[3]
    with pytest.raises(NotReproducible, match=r"^ReplayedUnseeded-v0 does not repeat its games: one of return"):
        record(run, game)


def test_a_games_actions_lie_together_whatever_was_played_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    for game in evaluated_games(run, player="random", episodes=12, envs=3, say=quiet):
        assert len(game.actions) == game.metrics["length"]
        assert set(np.unique(game.actions)) <= {0, 1}


def test_unknown_players_and_empty_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run at"):
        evaluated_games(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"got 'polcy' \(did you mean 'policy'\?\)"):
        evaluated_games(str(tmp_path), player="polcy")


def test_what_evaluate_has_kept_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    report = evaluate(run, episodes=4, num_envs=2, seed=0, say=quiet)
    monkeypatch.setattr("cluster.run.evaluation.make_environment", None)  # nothing is played
    games = evaluated_games(run, player="blind", **FEW, say=quiet)
    returns = [game.metrics["return"] for game in games]
    assert report["blind"]["return"]["mean"] == pytest.approx(np.mean(returns))
