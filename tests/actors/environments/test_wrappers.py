"""Step limits: each counts where it was set, whatever surrounds it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from actors.environments.factory import make_environment
from configs.schema import EnvConfig
from tests.odd_environments import Deadline, FourSteps, Odd, make_odd


def test_a_step_limit_is_the_environments_own_and_lengthening_it_is_said() -> None:
    for env_id, own in (("RegisteredLimit-v0", 2), ("OwnLimit-v0", 3)):
        for limit, expected in ((0, own), (1, 1), (4, 4)):
            env = make_odd(env_id, num_envs=1, limit=limit)
            env.reset()
            ends = [bool(env.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(4)]
            assert ends.index(True) == expected - 1
            assert [
                f"env.max_episode_steps={limit}" in notice and f"its own limit of {own} steps" in notice
                for notice in env.spec.notices
            ] == ([True] if limit > own else [])
            env.close()
    assert EnvConfig().max_episode_steps == 0


def episode_lengths(
    function: Any, num_steps: int, limit: int = 0, registered: Any = None
) -> tuple[list[int], list[float]]:
    """Lengths and last rewards of the episodes of what `function` makes."""
    gymnasium.register("Measured-v0", entry_point=function, max_episode_steps=registered)
    try:
        env = make_environment(
            EnvConfig(id="Measured-v0", captioner="info:event", max_episode_steps=limit),
            num_envs=1,
            run_seed=1,
            worker_index=0,
        )
    finally:
        del gymnasium.registry["Measured-v0"]
    env.reset()
    steps = [env.step(np.zeros(1, np.int64)) for _ in range(num_steps)]
    ends = [t + 1 for t, step in enumerate(steps) if step.truncated[0]]
    assert env.take_errors() == (0, "")
    env.close()
    return np.diff([0, *ends]).tolist(), [float(steps[end - 1].rewards[0]) for end in ends]


def endless() -> Odd:
    return Odd(step=lambda t: (np.zeros(4, np.float32), 1.0, False, False, {"event": ""}))


def test_a_limit_counts_where_it_was_set() -> None:
    assert episode_lengths(lambda: FourSteps(TimeLimit(endless(), 20)), 11)[0] == [5, 5]
    assert episode_lengths(lambda: TimeLimit(FourSteps(endless()), 5), 11)[0] == [5, 5]
    assert episode_lengths(lambda: FourSteps(TimeLimit(endless(), 20)), 31, limit=30)[0] == [30], "as the user wants"


def test_the_limit_of_an_environment_kept_for_planning_is_none_of_its_own() -> None:
    def planning() -> Odd:
        env = endless()
        env.planner = TimeLimit(endless(), 3)
        return env

    assert episode_lengths(planning, 9)[0] == []


def test_what_else_happens_at_a_limit_stays() -> None:
    assert episode_lengths(lambda: Deadline(endless(), 5), 11) == ([5, 5], [-99.0, -99.0])
    assert episode_lengths(lambda: Deadline(endless(), 5), 11, limit=3) == ([3, 3, 3], [1.0, 1.0, 1.0])
    assert episode_lengths(lambda: Deadline(endless(), 5), 16, limit=7) == ([7, 7], [-99.0, -99.0])


@pytest.mark.parametrize("registered", [None, -1, 0, float("inf")])
def test_a_registration_without_a_limit_leaves_those_within(registered: Any) -> None:
    assert episode_lengths(endless, 9, registered=registered)[0] == []
    assert episode_lengths(lambda: TimeLimit(endless(), 4), 9, registered=registered)[0] == [4, 4]
