"""What a worker gets of a configuration: the channels that terms read, and nothing that none reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors.environments.factory import make_environment
from actors.goals.entry import GoalEntryEnvironment
from actors.worker import RolloutWorker
from cluster.wiring import build_guide, build_worker, check_parts
from configs.checks import ConfigError
from configs.features import without_features
from configs.loading import load_config
from configs.reward_schema import TermConfig
from configs.schema import RunConfig
from tests.actors.goals.toy_goals import corridor_sheet

CORRIDOR = ("env.id=tests.toy_environments:Corridor-v0", "policy.core=none", "reward_model.name=none")
DESCRIBED = (*CORRIDOR, "env.describer=tests.toy_environments:describe", "env.action_names=[back, forward]")

PROGRESS = "env.features=['info:success']"
FEATURE_SIGNALS = ("features", "features_before", "features_start")


def configured(*overrides: str) -> RunConfig:
    return load_config(preset="debug", overrides=overrides)


@contextmanager
def built(config: RunConfig) -> Iterator[RolloutWorker]:
    worker = build_worker(config, 0, incarnation="0", stream="train")
    try:
        yield worker
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("terms", "channels", "describes"),
    [
        ((), (), False),
        (("terms.x.reads=caption",), (), False),
        (("terms.x.reads=history",), ("history",), False),
        (("terms.x.reads=change", "terms.y.reads=state"), ("state", "change"), True),
        (("goals.sources=[rubric]",), (), False),
        (("goals.sources=[suggest]",), ("state",), True),
        (("goals.sources=[rubric]", "goals.reads=change"), ("change",), True),
    ],
)
def test_a_worker_has_the_channels_that_terms_read_and_describes_only_for_them(
    terms: tuple[str, ...], channels: tuple[str, ...], describes: bool
) -> None:
    with built(configured(*DESCRIBED, *terms)) as worker:
        assert tuple(worker.channels.arrays(1)) == tuple(
            key for name in channels for key in (name, f"{name}_counts")
        ) + (("state_before",) if "state" in channels else ())
        assert (worker.env.states is not None) == describes


def test_a_worker_computes_features_only_where_a_term_reads_them_and_the_specification_names_them() -> None:
    config = configured(*CORRIDOR, "env.features=['info:success']")
    assert check_parts(config)[0].features == ("success",)
    with built(config) as worker:
        assert worker.env.features is None
        assert worker.channels.arrays(1) == {}
    with built(replace(config, terms={"x": TermConfig(reads="features")})) as worker:
        arrays = worker.channels.arrays(1)
        shapes = {name: array.shape for name, array in arrays.items()}
        assert shapes == dict.fromkeys(FEATURE_SIGNALS, (1, config.actors.envs_per_worker, 1))


def test_a_guide_outside_a_worker_needs_no_features() -> None:
    goals = ("goals.sources=[config]", "goals.texts=[a, b]", "policy.reads_goal=true")
    config = configured(*CORRIDOR, *goals, "env.features=['info:success']")
    config = replace(config, terms={"x": TermConfig(reads="features")})
    env = make_environment(
        without_features(config.env), num_envs=2, run_seed=1, worker_index=0, stream="eval", policy=config.policy
    )
    assert isinstance(env, GoalEntryEnvironment)
    env.guide = build_guide(config, env, corridor_sheet([1, 2]), "eval/0")
    env.reset()
    assert env.step(np.array([0, 1])).features is None
    env.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*CORRIDOR, "writer.address=nowhere"), "writer.address: got 'nowhere', wanted host:port of one service"),
        ((*CORRIDOR, "terms.x.reads=history"), "env.action_names: got none, and the environment names none itself"),
        ((*CORRIDOR, "env.describer=nethak"), "env.describer: got 'nethak' (did you mean 'nethack'?)"),
        (
            (*CORRIDOR, "env.features=[minigrid]"),
            "env.features: got 'minigrid', but 'Corridor-v0' is no environment of",
        ),
        (
            (*CORRIDOR, PROGRESS, "terms.x={reads: features, program: after.sucess}"),
            "terms.x: program: line 1, column 1: got `after.sucess`, an unknown feature; wanted one of success",
        ),
        (
            (*CORRIDOR, PROGRESS, "terms.x={reads: features, program: after.success, pays: potential}"),
            "terms.x: program: got a reward for what happened with pays=potential, wanted pays=event, or a program",
        ),
        ((*CORRIDOR, "env.action_names=[on]"), "env.action_names: got 1, wanted 2 different words"),
        (
            (*CORRIDOR, "env.describer=tests.toy_environments:which_way_it_leans"),
            "raised KeyError in its describer tests.toy_environments:which_way_it_leans",
        ),
    ],
)
def test_words_that_are_missing_or_wrong_are_one_line_before_the_run(overrides: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_parts(configured(*overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
