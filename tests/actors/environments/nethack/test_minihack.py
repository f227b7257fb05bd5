"""Real MiniHack through the same wrapper as NetHack."""

import random

import numpy as np
import pytest

from actors.environments.factory import make_environment
from actors.environments.nethack.vector import NetHackEnvironment
from configs.schema import EnvConfig
from tests.actors.environments.nethack.test_vector import histories_of_two_processes, make, play

MAZE = """MAZE: "mylevel", ' '
FLAGS:premapped
GEOMETRY:center,center
MAP
.....
ENDMAP
STAIR:(4,0),down
BRANCH:(0,0,0,0),(4,0,4,0)
"""


def test_two_processes_with_one_seed_see_the_same_three_episodes() -> None:
    first, second = histories_of_two_processes("MiniHack-KeyRoom-S5-v0")
    assert first == second
    assert len(set(first)) == 3


def test_the_step_limit_truncates_on_an_intact_screen() -> None:
    env = make("MiniHack-Room-5x5-v0", max_episode_steps=4, options={"penalty_step": 0.0})
    steps = play(env, 4, seed=3)
    step = steps[-1]
    assert step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [False]
    (end,) = step.ends
    assert end.final_obs["blstats"][10] > 0
    assert end.final_obs["blstats"][20] == end.info["turns"] > 1
    assert end.info["success"] == 0
    env.close()


def test_limit_zero_is_the_tasks_own_limit_and_still_a_truncation() -> None:
    env = make("MiniHack-KeyRoom-S15-v0", max_episode_steps=0)
    truncated = [step.truncated[0] for step in play(env, 400, seed=0)]
    assert truncated.index(True) == 399
    env.close()


def test_a_limit_beyond_the_tasks_own_holds() -> None:
    env = make("MiniHack-KeyRoom-S15-v0", max_episode_steps=450)
    *earlier, last = play(env, 450, seed=0)
    assert not any(step.ends for step in earlier), "its own limit is 400"
    assert last.truncated.tolist() == [True]
    env.close()


def test_reaching_the_stairs_succeeds_with_the_last_screen_kept() -> None:
    env = make("MiniHack-Room-5x5-v0", num_envs=8, max_episode_steps=60)
    ends = [(step, end) for step in play(env, 60, seed=0) for end in step.ends if step.terminated[end.index]]
    assert ends
    for step, end in ends:
        assert end.info["success"] == 1
        assert step.rewards[end.index] > 0.9
        assert end.final_obs["blstats"][10] > 0
    env.close()


@pytest.mark.parametrize(
    ("env_id", "reads_more"),
    [("MiniHack-Room-5x5-v0", False), ("MiniHack-KeyRoom-S5-v0", True), ("MiniHack-Eat-v0", True)],
)
def test_only_what_a_task_reads_is_filled(env_id: str, reads_more: bool) -> None:
    """Custom reward managers and steps may read descriptions of the whole screen; other tasks do not fill them."""
    env = make(env_id)
    assert isinstance(env, NetHackEnvironment)
    env.reset()
    game = env._games[0].env
    descriptions = game.last_observation[game._observation_keys.index("screen_descriptions")]
    assert descriptions.any() == reads_more
    env.close()


def test_levels_may_be_given_as_an_option() -> None:
    config = EnvConfig(id="MiniHack-Navigation-Custom-v0", options={"des_file": MAZE}, max_episode_steps=20)
    env = make_environment(config, num_envs=2, run_seed=0, worker_index=0)
    obs, _ = env.reset()
    width = (obs["glyph_crop"][:, 4] != obs["glyph_crop"][:, 0]).sum(1)
    assert (width > 0).all()
    env.reset()
    steps = [env.step(np.full(2, 1)) for _ in range(20)]  # east
    assert any(end.info["success"] == 1 for step in steps for end in step.ends)
    env.close()


def test_levels_drawn_from_a_list_depend_on_the_seed_alone() -> None:
    shown = []
    for salt in range(2):
        random.seed(salt)  # what else runs in the process must not matter
        env = make("MiniHack-Room-Random-15x15-v0", crop_size=41, options={"seeds": list(range(1000))})
        shown.append(env.reset()[0]["glyph_crop"])
        env.close()
    assert np.array_equal(*shown)
