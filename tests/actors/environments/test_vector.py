"""The factory and the generic vector environment over any gymnasium environment."""

import json

import gymnasium
import numpy as np
import pytest

from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.lookup import find_environment
from actors.environments.rebuilding import START_ATTEMPTS, RebuildingVector
from actors.environments.vector import SeedStream, VectorEnvironment, VectorStep
from configs.schema import EnvConfig

TOY = "tests.toy_environments:"


def make(
    env_id: str, num_envs: int = 2, run_seed: int = 1, stream: str = "train", **config: object
) -> VectorEnvironment:
    return make_environment(
        EnvConfig(id=env_id, **config), num_envs=num_envs, run_seed=run_seed, worker_index=0, stream=stream
    )


def walk(env: VectorEnvironment, actions: np.ndarray) -> list[VectorStep]:
    return [env.step(row) for row in actions]


def same(left: VectorStep, right: VectorStep) -> bool:
    arrays = all(np.array_equal(left.obs[name], right.obs[name]) for name in left.obs)
    rewards_and_ends = np.array_equal(left.rewards, right.rewards) and np.array_equal(left.truncated, right.truncated)
    return (
        arrays
        and rewards_and_ends
        and left.captions == right.captions
        and [end.reset_caption for end in left.ends] == [end.reset_caption for end in right.ends]
    )


def test_an_episode_ends_with_its_own_last_observation_and_the_next_begins_in_the_same_step() -> None:
    env = make(TOY + "Corridor-v0", options={"length": 3})
    obs, captions = env.reset()
    assert captions == [b"You enter the corridor."] * 2
    assert bytes(obs["message"][0]).rstrip(b"\0") == captions[0], "what captions are read from, the policy reads too"
    assert [name for name, array in env.spec.observations.items() if array.is_text] == ["message"]
    first, last = walk(env, np.array([[1, 0], [1, 1]]))
    assert first.captions == [b"You advance to cell 1.", b"You bump into a wall."]
    assert not first.ends
    assert last.captions == [b"You reach the treasure!", b"You advance to cell 1."]
    assert last.terminated.tolist() == [True, False]
    assert last.rewards.tolist() == [1.0, 0.0]
    (end,) = last.ends
    assert (end.index, end.reset_caption, end.info) == (0, b"You enter the corridor.", {"success": 1.0})
    assert end.final_obs["position"].tolist() == [0, 0, 1]
    assert last.obs["position"].tolist() == [[1, 0, 0], [0, 1, 0]]
    env.close()


def test_the_step_limit_truncates_and_a_goal_on_the_last_step_terminates() -> None:
    env = make(TOY + "Corridor-v0", max_episode_steps=2, options={"length": 3})
    env.reset()
    for _ in range(2):
        step = walk(env, np.array([[1, 0], [1, 1]]))[-1]
        assert step.terminated.tolist() == [True, False]
        assert step.truncated.tolist() == [False, True]
        assert [end.final_obs["position"].argmax() for end in step.ends] == [2, 1]
    env.close()


def test_limit_zero_leaves_the_limit_to_the_environment() -> None:
    registered = make(
        "MountainCar-v0", num_envs=1, max_episode_steps=0, captioner="tests.actors.environments.test_vector:nothing"
    )
    registered.reset()
    steps = walk(registered, np.zeros((200, 1), np.int64))
    assert [step.truncated[0] for step in steps].index(True) == 199, "the registered limit"
    registered.close()
    own = make(TOY + "Dial-v0", num_envs=1, max_episode_steps=0)
    own.reset()
    assert [step.truncated[0] for step in walk(own, np.zeros((9, 1), np.int64))].index(True) == 8
    own.close()


def nothing(obs: object, info: object) -> str:
    return ""


def test_every_supported_space_becomes_an_array() -> None:
    env = make(TOY + "Dial-v0", num_envs=1)
    assert {name: (spec.shape, spec.dtype.name, spec.num_values) for name, spec in env.spec.observations.items()} == {
        "angle": ((2,), "float32", 0),
        "notch": ((), "int64", 5),
        "digits": ((2,), "int64", 7),
        "message": ((256,), "uint8", 0),
    }
    obs, captions = env.reset()
    assert captions == ["Turn 0. ½".encode()]
    assert obs["message"].tobytes() == captions[0].ljust(256, b"\0")
    assert obs["notch"].tolist() == [0], "categories count from 0"
    *_, last = walk(env, np.zeros((9, 1), np.int64))
    (end,) = last.ends
    assert end.info == {"success": 1.0}
    assert end.final_obs["angle"].tolist() == [9, -9]
    assert {name: array.dtype for name, array in last.obs.items()} == {
        name: spec.dtype for name, spec in env.spec.observations.items()
    }
    env.close()


def test_single_images_stay_bytes_and_actions_may_start_anywhere() -> None:
    env = make(TOY + "Painting-v0", captioner="info:text")
    assert env.spec.num_actions == 3
    obs, captions = env.reset()
    assert obs["obs"].shape == (2, 16, 16, 3)
    assert obs["obs"].dtype == np.uint8
    assert captions == [b"It is bright." if picture.mean() > 127.5 else b"It is dark." for picture in obs["obs"]]
    for action in range(3):
        env.step(np.full(2, action))
    env.close()


def test_a_function_may_be_the_captioner_and_then_every_key_is_observed() -> None:
    env = make(TOY + "Corridor-v0", captioner="tests.toy_environments:describe")
    assert set(env.spec.observations) == {"position", "message"}
    env.reset()
    assert env.step(np.array([1, 0])).captions == [b"cell 1", b"cell 0"]
    env.close()


def test_a_saved_environment_continues_bit_for_bit() -> None:
    options = {"length": 5, "slip": 0.4}
    env = make(TOY + "Corridor-v0", options=options, max_episode_steps=11)
    env.reset()
    actions = np.random.default_rng(0).integers(2, size=(90, 2))
    walk(env, actions[:37])
    state = env.state_dict()
    assert state["exact"] is True
    state["envs"] = json.loads(json.dumps(state["envs"]))
    rest = walk(env, actions[37:])
    other = make(TOY + "Corridor-v0", options=options, max_episode_steps=11)
    other.reset()
    obs = other.load_state_dict(state)
    assert obs is not None
    assert np.array_equal(obs["position"], state["obs"]["position"])
    assert all(same(a, b) for a, b in zip(rest, walk(other, actions[37:]), strict=True))
    with pytest.raises(ValueError, match="of 2 environments, this vector has 3"):
        make(TOY + "Corridor-v0", num_envs=3).load_state_dict(state)


def test_an_environment_that_cannot_be_saved_starts_the_episodes_after_the_saved_ones() -> None:
    def pictures(env: VectorEnvironment, steps: int) -> list[bytes]:
        return [env.reset()[0]["obs"].tobytes() for _ in range(steps)]

    env = make(TOY + "Painting-v0", captioner="info:text")
    pictures(env, 3)
    state = env.state_dict()
    assert state["exact"] is False
    expected = pictures(env, 2)
    other = make(TOY + "Painting-v0", captioner="info:text")
    assert other.load_state_dict(state) is None
    assert pictures(other, 2) == expected
    assert make(TOY + "ForgetfulCorridor-v0").state_dict()["exact"] is False


def test_every_reset_is_seeded_by_run_stream_worker_environment_and_episode() -> None:
    def first_pictures(**where: object) -> list[bytes]:
        env = make(TOY + "Painting-v0", captioner="info:text", max_episode_steps=1, **where)
        pictures = [env.reset()[0]["obs"], *(step.obs["obs"] for step in walk(env, np.zeros((2, 2), np.int64)))]
        return [picture.tobytes() for batch in pictures for picture in batch]

    train = first_pictures()
    assert first_pictures() == train
    assert len(set(train)) == 6, "environments and episodes differ"
    assert not set(train) & set(first_pictures(stream="eval"))
    assert not set(train) & set(first_pictures(run_seed=2))


@pytest.mark.parametrize("num_failures", [0, START_ATTEMPTS - 1, START_ATTEMPTS])
def test_a_start_is_repeated_after_rebuilding_and_the_last_failure_is_raised(num_failures: int) -> None:
    spec, calls = gymnasium.spec("CartPole-v1"), []
    vector = RebuildingVector(spec, EnvConfig(), 2, SeedStream(run_seed=1, stream="train", worker_index=0))

    def start() -> str:
        calls.append("start")
        if calls.count("start") <= num_failures:
            raise OSError(f"failure {calls.count('start')}")
        return "started"

    if num_failures < START_ATTEMPTS:
        assert vector._attempt(start, lambda: calls.append("rebuild"), 1) == "started"
        assert calls == ["start", *["rebuild", "start"] * num_failures]
    else:
        with pytest.raises(EnvironmentFailure, match=f"raised OSError in reset: failure {START_ATTEMPTS}"):
            vector._attempt(start, lambda: calls.append("rebuild"), 1)
    counted, first = vector.take_errors()
    assert counted == min(num_failures, START_ATTEMPTS - 1)
    assert ("environment 1 of this worker" in first and "failure 1" in first) == bool(counted)
    assert vector.take_errors() == (0, "")


def test_derived_seeds_never_change() -> None:
    seeds = SeedStream(run_seed=1, stream="train", worker_index=2)
    assert seeds.seed(3, 4) == 3587796438603995784, "a changed derivation makes every saved run another run"
    assert seeds.seed(3, 4, "disp") != seeds.seed(3, 4)
    many = [
        SeedStream(run_seed=r, stream="train", worker_index=w).seed(i, e)
        for r in (1, 11)
        for w in (1, 11)
        for i in (1, 11)
        for e in (1, 11)
    ]
    assert len(set(many)) == 16
    assert all(0 <= seed < 2**63 for seed in many)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPoll-v1", "unknown environment id 'CartPoll-v1'; did you mean CartPole-v1"),
        ("NetHackScor-v0", "did you mean NetHackScore-v0"),
        ("MiniHack-KeyRom-S5-v0", "did you mean MiniHack-KeyRoom"),
        ("qqqq", "unknown environment id 'qqqq'; give a registered id"),
        ("no.such.module:Env-v0", "'no.such.module', which cannot be imported"),
        (TOY + "Coridor-v0", "did you mean Corridor-v0"),
    ],
)
def test_an_unknown_id_is_one_line_with_a_suggestion(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find_environment(env_id)
    assert "\n" not in str(caught.value)


def test_a_missing_nethack_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("actors.environments.nethack.vector", "nle"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=r"needs the package nle.*pip install 'delphi-rl\[nle\]'"):
        find_environment("NetHackScore-v0")


@pytest.mark.parametrize(
    ("env_id", "config", "message"),
    [
        (TOY + "Throttle-v0", {}, "policies here need Discrete actions"),
        (
            TOY + "Corridor-v0",
            {"captioner": "massage"},
            "no observation key of 'Corridor-v0': its keys are message, position",
        ),
        (TOY + "Painting-v0", {}, "without keys; give one of the keys, info:KEY, or module:function"),
        (TOY + "Corridor-v0", {"captioner": "tests.toy_environments:nobody"}, "cannot be called"),
        (TOY + "Corridor-v0", {"captioner": "tests.toy_environments:encode_message"}, "cannot be called"),
        (TOY + "Corridor-v0", {"options": {"lenght": 3}}, "cannot be made with env.options"),
        (TOY + "Corridor-v0", {"options": {"max_episode_steps": 3}}, "use env.max_episode_steps"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(env_id: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(env_id, **config)


def test_captions_of_the_wrong_kind_or_missing_from_info_are_refused() -> None:
    with pytest.raises(ValueError, match=r"info of 'Corridor-v0' has no 'txt' \(it has text\)"):
        make(TOY + "Corridor-v0", captioner="info:txt").reset()
    with pytest.raises(ValueError, match=r"observation 'position' in reset got .* wanted a text"):
        make(TOY + "Corridor-v0", captioner="position").reset()


def test_importing_toy_environments_registers_them() -> None:
    find_environment(TOY + "Corridor-v0")
    assert "Corridor-v0" in gymnasium.registry


def test_any_one_environment_has_the_seeds_that_it_has_beside_others() -> None:
    together = SeedStream(run_seed=3, stream="eval", worker_index=1)
    alone = SeedStream(run_seed=3, stream="eval", worker_index=1, first_env=5)
    assert [alone.seed(0, episode, "core") for episode in range(3)] == [
        together.seed(5, episode, "core") for episode in range(3)
    ]
