"""Real NetHack: what NLE loses at an episode's end and between steps is kept, and seeds determine everything."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from actors.environments.factory import make_environment
from actors.environments.lookup import find_environment
from actors.environments.nethack.crop import MAP_HEIGHT, MAP_WIDTH, OUTSIDE_GLYPH
from actors.environments.nethack.game import _warn_unseeded
from actors.environments.nethack.vector import NetHackEnvironment
from actors.environments.vector import GoalReward, VectorEnvironment, VectorStep
from configs.schema import EnvConfig, PolicyConfig

TASKS = ["", "Score", "Staircase", "StaircasePet", "Oracle", "Gold", "Eat", "Scout", "Challenge"]
DEPTH, HP, TIME = 12, 10, 20  # indices into blstats
CLIMB = 17  # the action `<` of the score task


def make(
    env_id: str = "NetHackScore-v0", num_envs: int = 1, worker_index: int = 0, crop_size: int = 9, **config: object
) -> VectorEnvironment:
    return make_environment(
        EnvConfig(id=env_id, **config),
        num_envs=num_envs,
        run_seed=0,
        worker_index=worker_index,
        policy=PolicyConfig(crop_size=crop_size),
    )


def play(env: VectorEnvironment, num_steps: int, seed: int) -> list[VectorStep]:
    """Uniformly random actions from a fresh reset on."""
    env.reset()
    rng = np.random.default_rng(seed)
    return [env.step(rng.integers(env.spec.num_actions, size=env.num_envs)) for _ in range(num_steps)]


def text(message: np.ndarray) -> bytes:
    return message.tobytes().partition(b"\0")[0]


def history(env_id: str, episodes: int = 3, max_episode_steps: int = 60) -> list[str]:
    """One hash per episode over all observations, captions and rewards."""
    env = make(env_id, max_episode_steps=max_episode_steps)
    rng = np.random.default_rng(0)
    obs, captions = env.reset()
    hashes: list[str] = []
    content = [*obs.values(), captions]
    while len(hashes) < episodes:
        step = env.step(rng.integers(env.spec.num_actions, size=1))
        shown = step.ends[0].final_obs if step.ends else step.obs
        content += [*shown.values(), step.rewards, step.captions]
        if step.ends:
            raw = b"".join(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode() for part in content)
            hashes.append(hashlib.sha256(raw).hexdigest())
            content = [*step.obs.values(), step.ends[0].reset_caption]
    env.close()
    return hashes


def histories_of_two_processes(env_id: str) -> list[list[str]]:
    """The hashes of two fresh processes that run side by side."""
    code = f"from tests.actors.environments.nethack.test_vector import history; print(*history({env_id!r}))"
    root = Path(__file__).parents[4]
    command = [sys.executable, "-W", "error", "-c", code]
    processes = [
        # Python's own hashes differ between processes, and so would anything that depends on them.
        subprocess.Popen(
            command, cwd=root, env={**os.environ, "PYTHONHASHSEED": salt}, stdout=subprocess.PIPE, text=True
        )
        for salt in ("1", "2")
    ]
    return [process.communicate(timeout=120)[0].split() for process in processes]


def test_two_processes_with_one_seed_see_the_same_three_episodes() -> None:
    first, second = histories_of_two_processes("NetHackScore-v0")
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize(("worker_index", "num_steps"), [(9, 85), (27, 135)])
def test_a_death_keeps_its_message_and_the_last_screen_of_the_game(worker_index: int, num_steps: int) -> None:
    env = make(worker_index=worker_index)
    *_, before, step = play(env, num_steps, seed=worker_index)
    assert step.terminated.tolist() == [True], "this random player dies here"
    assert step.truncated.tolist() == [False]
    (end,) = step.ends
    assert step.captions[0].endswith(b"  You die..."), "what killed comes first"
    assert text(end.final_obs["message"]) == b"You die..."
    assert end.final_obs["blstats"][HP] <= 0
    assert end.final_obs["blstats"][TIME] >= before.obs["blstats"][0, TIME] > 1
    assert (end.final_obs["glyph_crop"] == before.obs["glyph_crop"][0]).mean() > 0.5
    assert end.info["turns"] == end.final_obs["blstats"][TIME]
    assert end.info["depth"] == 1
    assert end.reset_caption.startswith(b"Hello Agent")
    assert step.obs["blstats"][0, HP] > 0, "the next game has begun"
    env.close()


def test_descending_the_stairs_is_said_and_seen() -> None:
    env = make(worker_index=137)
    *_, before, step = play(env, 85, seed=137)
    assert b"You descend the stairs." in step.captions[0]
    assert (before.obs["blstats"][0, DEPTH], step.obs["blstats"][0, DEPTH]) == (1, 2)
    env.close()


def test_the_deepest_level_counts_even_after_leaving_it() -> None:
    env = make(worker_index=137, max_episode_steps=86)
    play(env, 85, seed=137)
    (end,) = env.step(np.array([CLIMB])).ends
    assert end.final_obs["blstats"][DEPTH] == 1
    assert end.info["depth"] == 2
    env.close()


def test_the_step_limit_truncates_on_an_intact_screen() -> None:
    limited, free = make(max_episode_steps=30), make(max_episode_steps=31)
    *_, cut = play(limited, 30, seed=5)
    *_, uncut = play(free, 30, seed=5)
    assert cut.truncated.tolist() == [True]
    assert cut.terminated.tolist() == [False]
    (end,) = cut.ends
    assert cut.captions == uncut.captions
    assert cut.rewards == uncut.rewards
    for name, array in uncut.obs.items():
        assert np.array_equal(end.final_obs[name], array[0])
    assert end.final_obs["blstats"][TIME] > 1
    assert cut.obs["blstats"][0, TIME] == 1
    limited.close()
    free.close()


def test_a_reached_goal_terminates_on_the_last_screen_and_counts_as_success() -> None:
    env = make("NetHackStaircase-v0", worker_index=15)
    *_, before, step = play(env, 184, seed=15)
    assert step.terminated.tolist() == [True], "this random player reaches the stairs here"
    (end,) = step.ends
    assert end.info["success"] == 1
    assert step.rewards[0] == 1
    assert step.captions == [text(end.final_obs["message"])], "nothing of quitting the game"
    assert end.final_obs["blstats"][TIME] == end.info["turns"] > before.obs["blstats"][0, TIME]
    env.close()
    env = make("NetHackStaircase-v0", max_episode_steps=3)
    assert [end.info["success"] for step in play(env, 3, seed=0) for end in step.ends] == [0]
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_plays_through_several_episodes(task: str) -> None:
    env = make(f"NetHack{task}-v0", num_envs=2, max_episode_steps=40)
    assert isinstance(env, NetHackEnvironment)
    steps = play(env, 90, seed=1)
    ends = [end for step in steps for end in step.ends]
    assert len(ends) >= 4
    metrics = {"in_game_score", "depth", "experience_level", "turns", "gold", "tiles_seen", "kills"}
    assert all(
        set(end.info) == metrics | ({"success"} if task in ("Staircase", "StaircasePet", "Oracle") else set())
        for end in ends
    )
    for name, spec in env.spec.observations.items():
        assert steps[-1].obs[name].shape == (2, *spec.shape)
        assert steps[-1].obs[name].dtype == spec.dtype
    env.close()


def test_the_moon_depends_on_the_seed_and_not_on_the_date() -> None:
    env = make(num_envs=16)
    _, captions = env.reset()
    assert {b" moon" in caption for caption in captions} == {True, False}, "on one date all would greet alike"
    env.close()


def test_challenge_says_once_that_it_cannot_be_seeded(caplog: pytest.LogCaptureFixture) -> None:
    _warn_unseeded.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            env = make("NetHackChallenge-v0")
            env.reset()
            env.close()
    assert [record.message.split(":")[0] for record in caplog.records] == ["NetHackChallenge-v0 refuses to be seeded"]


def test_observations_rewards_and_captions_are_nles_own() -> None:
    """The same seeded game through NLE's class alone, with the crop cut out of a padded map."""
    env = make(crop_size=5)
    env.reset()
    spec = find_environment("NetHackScore-v0")
    plain = spec.make(
        disable_env_checker=True, fix_moon_phase=True, observation_keys=("glyphs", "blstats", "message")
    ).unwrapped
    plain.seed(*(env._seeds.seed(0, 0, purpose) for purpose in ("core", "disp")), reseed=False)
    plain.reset()
    rng = np.random.default_rng(2)
    for action in rng.integers(23, size=400):
        step = env.step(np.array([action]))
        obs, reward, done, _, _ = plain.step(action)
        if done:
            assert step.terminated[0]
            break
        x, y = obs["blstats"][:2]
        padded = np.pad(obs["glyphs"], 2, constant_values=OUTSIDE_GLYPH)
        assert np.array_equal(step.obs["glyph_crop"][0], padded[y : y + 5, x : x + 5])
        assert np.array_equal(step.obs["blstats"][0], obs["blstats"].astype(np.float32))
        assert np.array_equal(step.obs["message"][0], obs["message"])
        assert step.captions[0].decode().encode("latin-1").endswith(text(obs["message"]))
        assert step.rewards[0] == np.float32(reward)
    plain.close()
    env.close()


def test_skipped_lines_are_in_the_caption() -> None:
    steps = play(env := make(), 600, seed=1)
    longer = [
        step
        for step in steps
        if text(step.obs["message"][0]) and len(step.captions[0]) > len(text(step.obs["message"][0])) and not step.ends
    ]
    assert longer
    env.close()


def test_the_inventory_is_nles_own_and_looking_at_it_changes_no_game() -> None:
    config, policy = EnvConfig(max_episode_steps=150), PolicyConfig(network="nethack_full")
    env = make_environment(config, num_envs=1, run_seed=0, worker_index=0, policy=policy)
    blind = make(max_episode_steps=150)
    keys = ("glyphs", "blstats", "message", "inv_letters", "inv_oclasses")
    plain = (
        find_environment("NetHackScore-v0")
        .make(disable_env_checker=True, fix_moon_phase=True, observation_keys=keys)
        .unwrapped
    )
    assert isinstance(env, NetHackEnvironment)
    plain.seed(*(env._seeds.seed(0, 0, purpose) for purpose in ("core", "disp")), reseed=False)
    wanted, _ = plain.reset()
    obs, _ = env.reset()
    blind.reset()
    rng = np.random.default_rng(2)
    held = set()
    for action in rng.integers(23, size=149):
        for name in ("inv_letters", "inv_oclasses"):
            assert np.array_equal(obs[name][0], wanted[name])
        held.add(obs["inv_oclasses"].tobytes())
        step, unseen = env.step(np.array([action])), blind.step(np.array([action]))
        assert (step.captions, step.rewards.tolist()) == (unseen.captions, unseen.rewards.tolist())
        assert np.array_equal(step.obs["blstats"], unseen.obs["blstats"])
        obs, (wanted, *_) = step.obs, plain.step(action)
    assert wanted["inv_oclasses"].max() == 18, "an empty slot's"
    last = env.step(np.array([0]))
    (end,) = last.ends
    assert end.final_obs["inv_letters"].any()
    for one in (env, blind, plain):
        one.close()


def test_the_crop_marks_cells_outside_the_map() -> None:
    env = make(crop_size=41)
    obs, _ = env.reset()
    x, y = obs["blstats"][0, :2].astype(int)
    rows, columns = np.mgrid[y - 20 : y + 21, x - 20 : x + 21]
    outside = (rows < 0) | (rows >= MAP_HEIGHT) | (columns < 0) | (columns >= MAP_WIDTH)
    assert np.array_equal(obs["glyph_crop"][0] == OUTSIDE_GLYPH, outside)
    assert outside.any()
    assert env.spec.observations["glyph_crop"].num_values == OUTSIDE_GLYPH + 1
    env.close()


def test_a_game_that_begins_with_a_question_for_text_stays_seeded() -> None:
    first = []
    for _ in range(2):
        env = make(num_envs=23)
        env.load_state_dict({"exact": False, "episodes": np.ones(23, np.int64)})
        obs, captions = env.reset()
        assert b"Call a scroll labeled HAPAX LEGOMENON:" in captions[22]
        first.append(obs["glyph_crop"].tobytes())
        env.close()
    assert first[0] == first[1]


def test_saved_counters_lead_to_the_episodes_after_the_saved_ones() -> None:
    env = make(num_envs=2)
    for _ in range(2):
        env.reset()
    state = env.state_dict()
    expected, _ = env.reset()
    other = make(num_envs=2)
    assert other.load_state_dict(state) is None
    obs, _ = other.reset()
    assert state["exact"] is False
    assert np.array_equal(obs["glyph_crop"], expected["glyph_crop"])
    env.close()
    other.close()


def test_temporary_files_live_under_the_temporary_directory_until_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make(num_envs=3)
    env.reset()
    assert len(list(tmp_path.iterdir())) == 3
    env.close()
    env.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"captioner": "info:text"}, "env.captioner must be 'message'"),
        ({"options": {"charakter": "x"}}, "cannot be made with env.options {'charakter': 'x'}"),
        ({"options": {"max_episode_steps": 3}}, "use env.max_episode_steps"),
        ({"options": {"observation_keys": ["chars"]}}, "remove it"),
    ],
)
def test_what_nethack_does_not_take_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_an_even_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd, got 8"):
        make(crop_size=8)


@pytest.mark.parametrize("mode", ["constant", "linear", "square", "exp", "always"])
@pytest.mark.parametrize("turns", [0, 1])
def test_what_an_episode_can_lose_is_what_nle_takes_when_every_step_costs_most(mode: str, turns: int) -> None:
    """Game time that never passes (`turns` 0), or passes in each step and is penalised."""
    options = {"penalty_mode": mode, "penalty_step": [-0.01, 0.0][turns], "penalty_time": [0.0, -0.02][turns]}
    env = make("NetHackStaircase-v0", max_episode_steps=12, options=options)
    env.reset()
    task = env._games[0].env
    before = [np.array(array) for array in task.last_observation]
    after = [array.copy() for array in before]
    after[task._blstats_index][20] += turns
    task._frozen_steps = 0
    worst = sum(task._get_time_penalty(before, after) for _ in range(12))
    assert worst < 0
    assert env.spec.goal_reward == GoalReward(reward=1.0, max_penalty=pytest.approx(worst), step_limit=12)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "options", "expected"),
    [
        ("NetHackOracle-v0", {}, (1.0, -50.0)),
        ("NetHackStaircase-v0", {"penalty_step": 0.0}, (1.0, 0.0)),
        ("MiniHack-KeyRoom-S5-v0", {"reward_win": 3}, (3.0, -2.0)),  # in its own limit of 200 steps
        (
            "Delphi/NetHackStaircaseLvl3-v0",
            {},
            (50.0, 0.0),
        ),  # ONI's goal tasks pay no penalty, though NLE's class has one
        ("Delphi/NetHackOracle-v0", {}, (50.0, 0.0)),
        ("Delphi/NetHackScoreExtended-v0", {}, None),
        ("NetHackScore-v0", {}, None),
        ("NetHackGold-v0", {}, None),
        ("MiniHack-Eat-v0", {}, None),  # a reward manager decides
    ],
)
def test_what_a_task_pays_for_its_goal_is_known_where_it_is_paid_once(
    env_id: str, options: dict[str, object], expected: tuple[float, float] | None
) -> None:
    env = make(env_id, options=options)
    known = env.spec.goal_reward
    assert (None if known is None else (known.reward, known.max_penalty)) == expected
    env.close()
