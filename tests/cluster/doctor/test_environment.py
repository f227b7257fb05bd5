"""A penalty that outweighs the goal is warned about, as a run starts and by the doctor; the presets have none."""

from pathlib import Path

import pytest

from actors.environments.vector import EnvironmentSpec, GoalReward
from cluster.doctor.environment import check_environment, weigh_penalties
from cluster.doctor.subject import Subject
from cluster.launch import launch
from cluster.wiring import check_parts
from configs.loading import load_config, preset_names

GOAL = GoalReward(reward=1.0, max_penalty=-50.0, step_limit=5000)


def weigh(goal: GoalReward | None, *settings: str) -> str | None:
    result = weigh_penalties(
        load_config(preset="debug", overrides=settings),
        EnvironmentSpec(observations={}, num_actions=2, goal_reward=goal),
    )
    return None if result is None else f"{result.found}; {result.advice}"


def test_the_warning_says_what_is_lost_what_is_paid_and_what_to_set() -> None:
    words = weigh(GOAL, "env.id=NetHackStaircase-v0", "reward.extrinsic_coefficient=10")
    assert words is not None
    for part in (
        "NetHackStaircase-v0",
        "5,000 steps 500",
        "the goal pays 10",
        "reward.extrinsic_coefficient=10",
        "env.options.penalty_step=0",
    ):
        assert part in words


@pytest.mark.parametrize(
    ("goal", "settings", "is_warned"),
    [
        (GOAL, (), True),
        (GoalReward(reward=1.0, max_penalty=-1.0, step_limit=100), (), False),
        (GoalReward(reward=1.0, max_penalty=-1.01, step_limit=101), (), True),
        (GoalReward(reward=1.0, max_penalty=0.0, step_limit=5000), (), False),
        (GoalReward(reward=60.0, max_penalty=-50.0, step_limit=5000), ("reward.extrinsic_clip=100",), False),
        (
            GoalReward(reward=60.0, max_penalty=-50.0, step_limit=5000),
            ("reward.extrinsic_clip=10",),
            True,
        ),  # what is left of the goal
        (
            GoalReward(reward=60.0, max_penalty=-50.0, step_limit=5000),
            ("reward.extrinsic_clip=10", "reward.extrinsic_scale=0.1"),
            False,
        ),
        (GOAL, ("reward.extrinsic_coefficient=0",), False),
        (None, (), False),
    ],
)
def test_it_comes_where_penalties_outweigh_what_the_learner_is_paid_for_the_goal(
    goal: GoalReward | None, settings: tuple[str, ...], is_warned: bool
) -> None:
    assert (weigh(goal, *settings) is not None) == is_warned


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_is_warned_about(name: str) -> None:
    if name.startswith("minigrid"):
        pytest.importorskip("minigrid")
    config = load_config(preset=name)
    spec, *_ = check_parts(config)
    assert weigh_penalties(config, spec) is None
    assert not spec.notices


@pytest.mark.parametrize(("penalty", "times"), [("-0.01", 1), ("0", 0)])
def test_a_run_says_it_once_as_it_starts(
    penalty: str, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "env.id=NetHackStaircase-v0",
        f"env.options.penalty_step={penalty}",
        f"run_dir={tmp_path}",
        "total_env_steps=256",
    ]
    settings += [
        "actors.envs_per_worker=4",
        "policy.core=none",
        "policy.hidden_size=8",
        "reward_model.name=none",
        "logging.console=plain",
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == times
    assert all("env.options.penalty_step=0" in line for line in warnings)


@pytest.mark.parametrize(("captioner", "is_warned"), [("say_digits", True), ("which_way_it_leans", False)])
def test_captions_that_never_repeat_are_warned_about(captioner: str, is_warned: bool) -> None:
    settings = ["env.id=CartPole-v1", f"env.captioner=tests.toy_environments:{captioner}"]
    (result,) = check_environment(Subject(load_config(preset="debug", overrides=settings)))
    assert ("each of them costs the judge a question" in result.found) == is_warned
    assert ("env.fold_digits=true" in result.advice) == is_warned
    if is_warned:
        (folded,) = check_environment(
            Subject(load_config(preset="debug", overrides=[*settings, "env.fold_digits=true"]))
        )
        assert folded.status == "ok"
