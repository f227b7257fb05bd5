"""Episode metrics of real games, against NLE's own tasks and the games' messages."""

import numpy as np
import pytest

from actors.environments.nethack.episode_stats import EpisodeStats
from actors.environments.vector import EpisodeEnd
from tests.actors.environments.nethack.test_vector import make


def play_one(env_id: str, num_steps: int, seed: int) -> tuple[EpisodeEnd, float, list[bytes]]:
    """One episode's end, the sum of its rewards, and its captions."""
    env = make(env_id, worker_index=seed, max_episode_steps=num_steps, options={"penalty_step": 0.0})
    env.reset()
    rng = np.random.default_rng(seed)
    total, captions = 0.0, []
    for _ in range(num_steps):
        step = env.step(rng.integers(env.spec.num_actions, size=1))
        total += float(step.rewards[0])
        captions += step.captions
        if step.ends:
            break
    env.close()
    return step.ends[0], total, captions


@pytest.mark.parametrize(("num_steps", "seed"), [(100, 137), (300, 3)])
def test_tiles_seen_are_what_nles_scout_task_pays_for(num_steps: int, seed: int) -> None:
    end, total, _ = play_one("NetHackScout-v0", num_steps, seed)
    assert end.info["tiles_seen"] == total > 50
    assert end.info["depth"] == (2 if seed == 137 else 1), "one of the games goes down a level and counts both"


def test_gold_is_the_purse_at_the_end() -> None:
    end, _, _ = play_one("NetHackGold-v0", 400, 5)
    assert end.info["gold"] == end.final_obs["blstats"][13]


def test_kills_are_counted_from_messages_of_this_episode_alone() -> None:
    stats = EpisodeStats(2)
    screen, blstats = np.zeros((2, 1660), np.int16), np.ones((2, 27), np.int64)
    for i in range(2):
        stats.start(i, screen[i], blstats[i])
    stats.update(screen, blstats, [b"You kill the newt!  You kill it!", b"You destroy the gas spore!"])
    stats.update(screen, blstats, [b"", b"The kitten kills the newt.  You hear a door open."])
    assert [stats.end(i, blstats[i])["kills"] for i in range(2)] == [2, 1]
    stats.start(0, screen[0], blstats[0])
    assert [stats.end(i, blstats[i])["kills"] for i in range(2)] == [0, 1]


def test_an_emptied_screen_takes_nothing_away() -> None:
    stats = EpisodeStats(1)
    screen, blstats = np.zeros((1, 1660), np.int16), np.ones((1, 27), np.int64)
    stats.start(0, screen[0], blstats[0])
    stats.update(np.full_like(screen, 2359), np.zeros_like(blstats), [b"You die..."])
    assert stats.end(0, blstats[0])["tiles_seen"] == 1660
