"""MiniGrid: its captioner and describer, and the environment itself if the package is installed."""

import numpy as np
import pytest

from actors import minigrid_captions, minigrid_states
from actors.environments.factory import make_environment
from actors.minigrid_captions import describe, describe_for_mission
from configs.loading import load_config
from configs.schema import EnvConfig

KEY, BALL, DOOR, GOAL, LAVA, WALL = 5, 6, 4, 8, 9, 2
YELLOW, GREEN = 4, 1


def view(**cells: tuple[int, int, int]) -> dict[str, object]:
    """The agent's view: empty cells except its own, the one that it faces, and one far away."""
    image = np.ones((7, 7, 3), np.uint8) * (1, 0, 0)
    places = {"carried": (3, 6), "faced": (3, 5), "far": (5, 1)}
    for name, cell in cells.items():
        image[places[name]] = cell
    return {"image": image, "direction": 0, "mission": "use the key to open the door and then get to the goal"}


@pytest.mark.parametrize(
    ("obs", "caption"),
    [
        (view(), ""),
        (view(faced=(WALL, 5, 0), far=(KEY, YELLOW, 0)), ""),
        (view(faced=(KEY, YELLOW, 0)), "A yellow key lies in front of you."),
        (view(carried=(KEY, YELLOW, 0)), "You have picked up a yellow key."),
        (
            view(carried=(KEY, YELLOW, 0), faced=(DOOR, YELLOW, 2)),
            "You have picked up a yellow key.  The yellow door in front of you is locked.",
        ),
        (
            view(faced=(DOOR, YELLOW, 0), far=(GOAL, GREEN, 0)),
            "The yellow door in front of you is open.  The goal is in sight.",
        ),
        (view(faced=(LAVA, 0, 0)), "There is lava in front of you."),
    ],
)
def test_captions_say_what_is_carried_faced_and_in_sight(obs: dict[str, object], caption: str) -> None:
    assert describe(obs, {}) == caption


@pytest.mark.parametrize(
    "image",
    [
        np.full((56, 56, 3), 100, np.uint8),  # a picture
        np.ones((7, 7, 20), np.uint8),  # one-hot
        np.array([[[10, 0, 3], [1, 0, 0]], [[2, 5, 0], [1, 0, 0]]], np.uint8),  # the whole grid, with the agent
        np.array([[[0, 0, 2], [0, 1, 10]], [[1, 0, 2], [1, 1, 8]]]),  # positions, then types
    ],
)
def test_what_is_not_the_agents_view_is_no_caption(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="wanted MiniGrid's own observation"):
        describe({"image": image}, {})
    with pytest.raises(ValueError, match="got ndarray with an image of shape"):
        describe(image, {})


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        (view(), ""),
        (view(faced=(WALL, 5, 0), far=(KEY, YELLOW, 0)), "A yellow key."),
        (view(faced=(KEY, YELLOW, 0), far=(GOAL, GREEN, 0)), "A yellow key in front of you. The goal."),
        (
            view(carried=(KEY, YELLOW, 0), faced=(DOOR, YELLOW, 2), far=(DOOR, YELLOW, 0)),
            "A yellow key in your hands. A locked yellow door in front of you. An open yellow door.",
        ),
        (view(faced=(LAVA, 0, 0), far=(DOOR, GREEN, 1)), "Lava in front of you. A closed green door."),
    ],
)
def test_states_say_what_is_carried_faced_and_else_seen(obs: dict[str, object], text: str) -> None:
    assert minigrid_states.describe(obs, {}) == text


def test_a_state_tells_eight_things_beside_those_carried_and_faced_and_each_once() -> None:
    obs = view()
    obs["image"][:6, :2] = [[[kind, colour, 0] for kind in (KEY, BALL)] for colour in range(6)]
    told = minigrid_states.describe(obs, {})
    assert told.count(".") == 8
    assert told.startswith("A red key. A green key.")
    obs["image"][:6, 2:4] = obs["image"][:6, :2]
    assert minigrid_states.describe(obs, {}) == told


def test_what_is_not_the_agents_view_is_no_state() -> None:
    with pytest.raises(ValueError, match="wanted MiniGrid's own observation"):
        minigrid_states.describe({"image": np.full((56, 56, 3), 100, np.uint8)}, {})


@pytest.mark.parametrize(
    ("env_id", "num_steps", "most"),
    [
        ("MiniGrid-DoorKey-8x8-v0", 3_000, 200),
        ("MiniGrid-KeyCorridorS3R3-v0", 1_500, 400),
        pytest.param("MiniGrid-DoorKey-8x8-v0", 100_000, 500, marks=pytest.mark.slow),
    ],
)
def test_random_play_meets_few_distinct_states(env_id: str, num_steps: int, most: int) -> None:
    pytest.importorskip("minigrid")
    config = EnvConfig(id=env_id, captioner="actors.minigrid_captions:describe", describer="minigrid")
    env = make_environment(config, num_envs=10, run_seed=1, worker_index=0)
    assert env.spec.action_names == ("left", "right", "forward", "pickup", "drop", "toggle", "done")
    env.reset()
    rng, seen = np.random.default_rng(0), {*env.states}
    for _ in range(num_steps // 10):
        seen |= {*env.step(rng.integers(0, 7, 10)).states, *env.states}
    assert 5 < len(seen) <= most
    assert env.take_errors() == (0, "")
    env.close()


def test_the_mission_may_be_part_of_the_caption() -> None:
    obs = view(faced=(KEY, YELLOW, 0))
    assert describe_for_mission(obs, {}) == f"Mission: {obs['mission']}.  A yellow key lies in front of you."
    assert describe_for_mission(view(), {}) == ""


def test_the_environment_runs_as_it_is_and_its_key_is_seen() -> None:
    constants = pytest.importorskip("minigrid.core.constants")
    assert list(minigrid_captions.COLOURS) == sorted(constants.COLOR_TO_IDX, key=constants.COLOR_TO_IDX.get)
    assert {
        **minigrid_captions.THINGS,
        DOOR: "door",
        GOAL: "goal",
        LAVA: "lava",
    }.items() <= constants.IDX_TO_OBJECT.items()
    config = load_config(preset="minigrid_doorkey", overrides=["env.id=MiniGrid-DoorKey-5x5-v0"])
    env = make_environment(config.env, num_envs=4, run_seed=1, worker_index=0, policy=config.policy)
    assert {name: spec.is_text for name, spec in env.spec.observations.items()} == {
        "direction": False,
        "image": False,
        "mission": True,
    }
    obs, _ = env.reset()
    assert bytes(obs["mission"][0]).rstrip(b"\0") == b"use the key to open the door and then get to the goal"
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        seen |= set(env.step(rng.integers(0, 7, 4)).captions)
    assert {b"", b"A yellow key lies in front of you.", b"You have picked up a yellow key."} <= seen
    assert len(seen) < 40
    assert env.take_errors() == (0, "")
    env.close()
