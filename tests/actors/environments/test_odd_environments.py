"""Failures and invalid values of a user's environment: one line that names it; it is rebuilt, the others go on."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from configs.schema import EnvConfig
from tests.odd_environments import SINGLE, Odd, make_odd, raising


def first_error(env: VectorEnvironment, num_steps: int = 3) -> tuple[int, str]:
    """Failures in a few steps, and the line of the first one."""
    env.reset()
    for _ in range(num_steps):
        step = env.step(np.zeros(env.num_envs, np.int64))
        assert np.isfinite(step.rewards).all()
        assert step.truncated[list(step.losses)].all()
    count, text = env.take_errors()
    env.close()
    return count, text.splitlines()[-1] if text else ""


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        (None, "None"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1e39, "1e\\+39"),
        ("1.0", "'1.0'"),
        (np.array([1.0, 2.0]), "array"),
        (1j, "1j"),
    ],
)
def test_a_reward_that_is_no_finite_number_is_an_environment_error(reward: Any, shown: str) -> None:
    count, line = first_error(make_odd(reward=lambda t: reward if t == 2 else 1.0))
    assert count == 2, "one in each environment, which then begins another episode"
    assert line.startswith(f"{SINGLE} gave the reward ")
    assert shown.replace("\\", "") in line
    assert "wanted a finite number" in line


@pytest.mark.parametrize("reward", [1, True, np.float64(1), np.float32(1), np.array(1.0), np.array([1.0]), [1.0]])
def test_one_number_in_whatever_form_is_a_reward(reward: Any) -> None:
    env = make_odd(reward=lambda t: reward)
    env.reset()
    assert env.step(np.zeros(2, np.int64)).rewards.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Box(-1, 1, (4,)), np.full(4, np.nan, np.float32), "got nan, wanted finite numbers"),
        (
            spaces.Box(-1, 1, (4,), np.float64),
            np.array([0, 0, 0, 1e300]),
            "got 1e+300, wanted finite numbers of 32 bits",
        ),
        (spaces.Box(-1, 1, (4,)), None, "got None, wanted numbers of shape (4,)"),
        (spaces.Box(-1, 1, (4,)), [0, 0, None, 0], "got list [0, 0, None, 0], wanted numbers"),
        (spaces.Box(-1, 1, (4,)), np.zeros(5), "got shape (5,), wanted (4,)"),
        (spaces.Box(-1, 1, (4,)), np.float32(0.5), "got shape (), wanted (4,)"),
        (spaces.Box(-1, 1, (4,)), np.zeros((1, 4)), "got shape (1, 4), wanted (4,)"),
        (
            spaces.Box(0, 255, (2, 2, 3), np.uint8),
            np.full((2, 2, 3), 0.25),
            "got float64 values such as 0.25, which its declared uint8 cannot hold",
        ),
        (
            spaces.Box(0, 255, (3,), np.uint8),
            np.array([0, 256, 0]),
            "got int64 values such as 256, which its declared uint8 cannot hold",
        ),
        (spaces.Box(0, 255, (3,), np.uint8), np.array([0, -1, 0], np.int8), "got int8 values such as -1"),
        (spaces.Discrete(500), 500, "got 500, wanted 0 to 499"),
        (spaces.Discrete(3, start=-1), np.int64(2), "got 2, wanted -1 to 1"),
        (spaces.Discrete(3), 0.5, "got float64 values such as 0.5"),
        (spaces.Discrete(3), np.array([1]), "got shape (1,), wanted ()"),
        (spaces.MultiDiscrete([3, 7]), np.array([2, 7]), "got 7, outside MultiDiscrete([3 7])"),
        (spaces.MultiBinary(3), np.array([0, 1, 2]), "got 2, outside MultiBinary(3)"),
        (spaces.Text(8), 5, "got int 5, wanted a text"),
    ],
)
def test_an_observation_that_is_not_as_declared_is_an_environment_error(
    space: spaces.Space, obs: Any, message: str
) -> None:
    good = {spaces.Text: "ok"}.get(type(space), space.sample() if not isinstance(space, spaces.Text) else "ok")
    count, line = first_error(make_odd(space=space, obs=lambda t: obs if t == 2 else good))
    assert count == 2
    assert line.startswith(f"{SINGLE}: observation 'obs' in step {message}"), line
    with pytest.raises(EnvironmentFailure, match="observation 'obs' in reset got"):
        make_odd(space=space, obs=lambda t: obs).reset()


@pytest.mark.parametrize(
    ("space", "obs", "expected"),
    [
        (spaces.Box(0, 255, (3,), np.uint8), np.array([0.0, 255.0, 3.0]), [0, 255, 3]),
        (spaces.Box(0, 255, (3,), np.uint8), [1, 2, 3], [1, 2, 3]),
        (spaces.Box(-1, 1, (2,), np.float64), np.array([1, -1]), [1.0, -1.0]),
        (spaces.Box(0, 65_535, (1,), np.uint16), np.array([65_535], np.uint16), [65_535]),
        (spaces.Box(0, 1, (2,), bool), np.array([1, 0]), [True, False]),
        (spaces.Box(-np.inf, np.inf, (2,)), [1e30, -1e30], np.float32([1e30, -1e30]).tolist()),
        (spaces.MultiBinary(2), [1, 0], [1, 0]),
        (spaces.MultiDiscrete([3, 7], start=[1, -1]), np.array([3, -1], np.int32), [2, 0]),
        (spaces.Discrete(10**9), 10**9 - 1, 10**9 - 1),
    ],
)
def test_a_cast_that_loses_nothing_is_made(space: spaces.Space, obs: Any, expected: Any) -> None:
    seen, _ = make_odd(space=space, obs=lambda t: obs, num_envs=1).reset()
    assert seen["obs"][0].tolist() == expected


def test_numbers_between_small_bounds_are_stretched_to_them() -> None:
    low, high = np.float32([-0.05, -1.2, -np.inf, 0, 0]), np.float32([0.02, 0.6, 0.1, 0, 0.5])
    values = np.float32([0.02, 0.3, 0.1, 0, 0.25])
    seen, _ = make_odd(space=spaces.Box(low, high), obs=lambda t: values, num_envs=1).reset()
    np.testing.assert_allclose(seen["obs"][0], [0.4, 0.3, 0.1, 0, 0.5], rtol=1e-6)


def test_what_is_said_of_a_value_outside_small_bounds_is_the_value_itself() -> None:
    env = make_odd(space=spaces.Box(-0.25, 0.25, (4,)), obs=lambda t: np.full(4, t / 8, np.float32))
    env.reset()
    told = [line for _ in range(4) for line in (env.step(np.zeros(2, np.int64)), env.take_notices())[1]]
    assert "observation 'obs' got 0.375, outside Box(-0.25, 0.25, (4,), float32)" in told[0]


def test_values_outside_a_boxs_bounds_are_used_and_said_once() -> None:
    env = make_odd(obs=lambda t: np.full(4, t, np.float32))
    env.reset()
    told = []
    for _ in range(4):
        step = env.step(np.zeros(2, np.int64))
        told += env.take_notices()
    assert step.obs["obs"].max() == 4
    assert env.take_errors() == (0, "")
    (line,) = told
    assert line.startswith(f"{SINGLE}: observation 'obs' got 2.0, outside Box(-1.0, 1.0, (4,), float32)")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no such\nthing"),
        SystemExit(3),
        ZeroDivisionError(),
        RuntimeError("x" * 10_000),
        BaseException("panic"),
    ],
)
@pytest.mark.parametrize("where", ["reset", "step", "making"])
def test_whatever_it_raises_is_one_line_that_names_it(error: BaseException, where: str) -> None:
    def play() -> None:
        env = make_odd(**{where: raising(error)})
        env.reset()
        for _ in range(3):
            env.step(np.zeros(2, np.int64))
        count, text = env.take_errors()
        assert count == 6
        assert text.startswith("environment 0 of this worker:\nTraceback"), "the log has where it was raised"
        raise EnvironmentFailure(text.splitlines()[-1])

    with pytest.raises(EnvironmentFailure) as caught:
        play()
    line = str(caught.value)
    assert line.startswith(f"{SINGLE} raised {type(error).__name__} in {where}")
    assert "\n" not in line
    assert len(line) < 500
    if where != "step":
        assert caught.value.__cause__ is error, "its traceback is kept"


def test_a_users_interrupt_is_no_failure_of_the_environment() -> None:
    env = make_odd(step=raising(KeyboardInterrupt()))
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reset": lambda t: np.zeros(4)}, "returned ndarray from reset, wanted (observation, info)"),
        ({"reset": lambda t: (np.zeros(4), None)}, "returned 2 values from reset, wanted (observation, info)"),
        (
            {"step": lambda t: (np.zeros(4), 1.0, False, {})},
            "returned 4 values from step, wanted (observation, reward, terminated, truncated, info)",
        ),
        ({"step": lambda t: None}, "returned NoneType from step"),
        ({"info": lambda t: {"event": ""} if t == 0 else None}, "gave NoneType as info in step, wanted a dict"),
        (
            {"space": spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), "obs": lambda t: {"a": 0}},
            "observation 'b' in reset is missing (it has a)",
        ),
        (
            {"space": spaces.Dict(a=spaces.Discrete(2)), "obs": lambda t: np.zeros(3)},
            "observation 'a' in reset is missing",
        ),
    ],
)
def test_what_is_not_gymnasiums_protocol_is_said(settings: dict[str, Any], message: str) -> None:
    try:
        _, line = first_error(make_odd(**settings))
    except EnvironmentFailure as failure:
        line = str(failure)
    assert line.startswith(SINGLE)
    assert message in line


@pytest.mark.parametrize("flag", [None, float("nan"), "False", {}, np.array([True, False]), 2])
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_an_end_that_is_neither_true_nor_false_is_an_environment_error(name: str, flag: Any) -> None:
    ends = {"terminated": False, "truncated": False, name: flag}
    count, line = first_error(make_odd(step=lambda t: (np.zeros(4), 1.0, *ends.values(), {"event": ""})))
    assert count == 6
    assert line == f"{SINGLE} gave {name} {flag!r} in step, wanted True or False"


@pytest.mark.parametrize("flag", [True, 1, 1.0, np.True_, np.array(True), np.array([1])])
def test_an_end_in_whatever_form_is_one(flag: Any) -> None:
    env = make_odd(step=lambda t: (np.zeros(4), 1.0, flag, False, {"event": ""}))
    env.reset()
    assert env.step(np.zeros(2, np.int64)).terminated.tolist() == [True, True]
    assert env.take_errors() == (0, "")


def test_lists_are_taken_for_the_tuples_of_gymnasium() -> None:
    env = make_odd(
        reset=lambda t: [np.zeros(4), {"event": "begun"}], step=lambda t: [np.ones(4), 1.0, False, False, {"event": ""}]
    )
    assert env.reset()[1] == [b"begun"] * 2
    assert env.step(np.zeros(2, np.int64)).obs["obs"].tolist() == [[1.0] * 4] * 2
    assert env.take_errors() == (0, "")


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": lambda t: np.zeros((3, 3))},
        {"obs": lambda t: np.full((4, 4), None) if t else np.zeros(4)},
        {"info": lambda t: {"event": np.zeros((4, 4)) if t else ""}},
        {
            "space": spaces.MultiDiscrete(np.full((9, 9), 3)),
            "obs": lambda t: np.full((9, 9), 5 if t else 0),
        },
    ],
)
def test_what_takes_many_lines_is_shown_in_one(settings: dict[str, Any]) -> None:
    env = make_odd(**settings)
    env.reset()
    env.step(np.zeros(2, np.int64))
    _, text = env.take_errors()
    assert "Odd-v0" in text.splitlines()[-1], "the last line names the failure"
    assert len(text.splitlines()[-1]) < 500


def test_notices_are_single_lines() -> None:
    low = np.linspace(0, 1, 40).reshape(8, 5)
    box = spaces.Box(low, low + 1, dtype=np.float64)
    env = make_odd(space=spaces.Dict(a=box, b=spaces.Sequence(box)), obs=lambda t: {"a": np.full((8, 5), 9.0), "b": ()})
    env.reset()
    told = (*env.spec.notices, *env.take_notices())
    assert len(told) == 2
    assert not any("\n" in line for line in told)


def test_actions_that_change_from_one_environment_or_episode_to_the_next_are_an_environment_error() -> None:
    made: list[Odd] = []

    def differing() -> Odd:
        made.append(Odd())
        made[-1].action_space = spaces.Discrete(2 + len(made))
        return made[-1]

    gymnasium.register("Differing-v0", entry_point=differing)
    try:
        env = make_environment(
            EnvConfig(id="Differing-v0", captioner="info:event"), num_envs=2, run_seed=1, worker_index=0
        )
    finally:
        del gymnasium.registry["Differing-v0"]
    message = "environment 'Differing-v0' has {} actions from 0 on in reset, wanted 3 actions from 0 on, as the first"
    with pytest.raises(EnvironmentFailure, match=r"has \d actions"):
        env.reset()
    assert message.format(4) in env.take_errors()[1]
    env.close()


@pytest.mark.parametrize(
    ("spaces_given", "message"),
    [
        ({"actions": spaces.Discrete(2)}, "raised AttributeError in its observation_space: no observation_space yet"),
        ({"observed": spaces.Discrete(2)}, "raised AttributeError in its action_space: no action_space yet"),
        (
            {"observed": {"a": spaces.Discrete(2)}, "actions": spaces.Discrete(2)},
            "has the observation_space builtins.dict {'a': Discrete(2)}, wanted a space of gymnasium.spaces",
        ),
        ({"observed": spaces.Discrete(2), "actions": 3}, "has the action_space builtins.int 3, wanted a space"),
    ],
)
def test_a_space_that_is_missing_or_none_of_gymnasiums_is_said(spaces_given: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        make_odd("Spaces-v0", **spaces_given)
    assert str(caught.value).startswith(f"environment 'Spaces-v0' {message}")


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"success": float("nan")}, {}),
        ({"success": None, "is_success": True}, {"success": 1.0}),
        ({"success": np.array([0.5])}, {"success": 0.5}),
        ({"success": "yes"}, {}),
    ],
)
def test_a_success_that_is_no_number_is_no_metric(info: dict[str, Any], expected: dict[str, float]) -> None:
    env = make_odd(num_envs=1, info=lambda t: {"event": "", **info})
    env.reset()
    (end,) = [end for _ in range(5) for end in env.step(np.zeros(1, np.int64)).ends]
    assert end.info == expected


def test_a_reset_without_a_seed_says_what_is_missing() -> None:
    with pytest.raises(
        EnvironmentFailure,
        match=r"'SeedlessReset-v0' raised TypeError in reset: .*'seed'; gymnasium's reset takes seed= and options=",
    ):
        make_odd("SeedlessReset-v0").reset()


def test_a_rebuilt_environment_that_cannot_be_made_is_tried_again() -> None:
    Odd.made = 0

    def making(number: int) -> None:
        if number == 3:  # after the first two, the first that is rebuilt
            raise OSError("no licence is free")

    env = make_odd(
        making=making,
        step=lambda t: (
            raising(OSError("connection lost"))(t)
            if t == 1 and Odd.made == 2
            else (np.zeros(4), 1.0, False, False, {"event": ""})
        ),
    )
    env.reset()
    step = env.step(np.zeros(2, np.int64))
    assert list(step.losses) == [0]
    count, text = env.take_errors()
    assert count == 2
    assert text.endswith("raised OSError in step: connection lost")
    assert not env.step(np.zeros(2, np.int64)).losses


def speechless(obs: Any, info: dict[str, Any]) -> str:
    return info["evnt"]


def silent_later(obs: Any, info: dict[str, Any]) -> Any:
    return None if info["event"] == "step 2" else "words"


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        (
            "tests.actors.environments.test_odd_environments:speechless",
            "environment 'Odd-v0' raised KeyError in its captioner"
            " tests.actors.environments.test_odd_environments:speechless: 'evnt'",
        ),
        (
            "tests.actors.environments.test_odd_environments:silent_later",
            "gave NoneType None; captions are str, bytes or uint8 arrays",
        ),
        ("info:words", "the info of 'Odd-v0' has no 'words' (it has event)"),
    ],
)
def test_a_captioner_that_fails_is_said_like_an_environment(captioner: str, message: str) -> None:
    try:
        count, line = first_error(make_odd(captioner=captioner))
        assert count == 2
    except EnvironmentFailure as failure:
        line = str(failure)
    assert message in line


def test_nested_and_unusual_observations_are_entries_of_their_own() -> None:
    space = spaces.Dict(
        {
            "type": spaces.Discrete(100),
            "a.b": spaces.Box(-1, 1, (2,)),
            "pack": spaces.Dict(items=spaces.MultiBinary(3), weapon=spaces.Tuple((spaces.Discrete(2), spaces.Text(9)))),
            "graph": spaces.Graph(spaces.Box(0, 1, (2,)), None),
            "none": spaces.Box(0, 1, (0,)),
        }
    )
    value = {
        "type": 99,
        "a.b": np.zeros(2),
        "pack": {"items": [0, 1, 1], "weapon": (1, "axe")},
        "graph": None,
        "none": np.zeros(0),
    }
    env = make_odd(space=space, obs=lambda t: value)
    assert set(env.spec.observations) == {"type", "a.b", "pack/items", "pack/weapon/0", "pack/weapon/1"}
    obs, _ = env.reset()
    assert obs["pack/items"].tolist() == [[0, 1, 1]] * 2
    assert bytes(obs["pack/weapon/1"][0]).rstrip(b"\0") == b"axe"
    (notice,) = env.spec.notices
    assert notice.startswith(f"{SINGLE}: the policy does not see 'graph' (Graph(")
    assert "'none'" in notice
    with pytest.raises(ValueError, match=r"observes nothing that a network here reads: 'obs' \(Graph"):
        make_odd(space=spaces.Graph(spaces.Box(0, 1, (2,)), None))


def test_a_tuple_of_observations_and_a_text_alone_are_read() -> None:
    config = EnvConfig(id="Blackjack-v1", captioner="tests.toy_environments:say_nothing")
    env = make_environment(config, num_envs=1, run_seed=1, worker_index=0)
    assert {name: spec.num_values for name, spec in env.spec.observations.items()} == {"0": 32, "1": 11, "2": 2}
    text = make_odd(space=spaces.Text(40), obs=lambda t: f"You see {t} doors.", captioner="obs")
    assert text.reset()[1] == [b"You see 0 doors."] * 2
