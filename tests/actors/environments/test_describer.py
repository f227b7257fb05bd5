"""`env.describer` and `env.action_names`: states of any environment in words, and what is refused."""

from typing import Any

import numpy as np
import pytest

from actors.captions import MAX_CAPTION_BYTES
from actors.channels import channel_text
from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from configs.schema import EnvConfig, PolicyConfig

HERE = "tests.actors.environments.test_describer:"
CORRIDOR = "tests.toy_environments:Corridor-v0"


def make(describer: str = "", env_id: str = CORRIDOR, policy: PolicyConfig | None = None, **config: Any) -> Any:
    config = {"options": {"length": 3}} | config if env_id == CORRIDOR else config
    settings = EnvConfig(id=env_id, describer=describer, **config)
    return make_environment(settings, num_envs=2, run_seed=1, worker_index=0, policy=policy)


def test_a_step_has_the_episodes_own_last_state_and_the_environment_is_in_the_next_ones_first() -> None:
    policy = PolicyConfig(previous_action=True)
    env: VectorEnvironment
    for env in (make("tests.toy_environments:describe"), make("tests.toy_environments:describe", policy=policy)):
        env.reset()
        assert env.states == [b"cell 0", b"cell 0"]
        step = env.step(np.array([1, 0]))
        assert step.states == env.states == [b"cell 1", b"cell 0"]
        step = env.step(np.array([1, 1]))
        assert step.ends[0].index == 0
        assert step.states == [b"cell 2", b"cell 1"]
        assert env.states == [b"cell 0", b"cell 1"]
        saved = env.state_dict()
        env.step(np.array([1, 1]))
        env.load_state_dict(saved)
        assert env.states == [b"cell 0", b"cell 1"]
        env.close()


def test_without_a_describer_there_are_no_states() -> None:
    env = make()
    env.reset()
    assert env.states is None
    assert env.step(np.zeros(2, np.int64)).states is None
    assert "states" not in env.state_dict()


@pytest.mark.parametrize(
    ("describer", "env_id", "message"),
    [
        ("nethak", CORRIDOR, r"got 'nethak' \(did you mean 'nethack'\?\), wanted nethack, minigrid or module:function"),
        ("nethack", CORRIDOR, "got 'nethack', but 'Corridor-v0' is not played as NetHack or MiniHack"),
        ("minigrid", "NetHackScore-v0", "got 'minigrid' for 'NetHackScore-v0', wanted nethack or module:function"),
        ("minigird", "NetHackScore-v0", "did you mean 'minigrid'"),
        ("tests.toy_environments:nobody", CORRIDOR, "env.describer 'tests.toy_environments:nobody' cannot be called"),
        ("no_such_module:describe", "NetHackScore-v0", r"cannot be called as function\(obs, info\): ModuleNotFound"),
        (HERE + "of_one", CORRIDOR, r"cannot be called as function\(obs, info\): TypeError"),
    ],
)
def test_a_describer_that_is_not_there_is_refused_in_one_line(describer: str, env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(describer, env_id)
    assert "\n" not in str(caught.value)


def of_one(obs: Any) -> str:
    return ""


def raising_later(obs: dict[str, Any], info: dict[str, Any]) -> str:
    if obs["position"][1]:
        raise KeyError("no such cell")
    return "a cell"


def silent_later(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    return None if obs["position"][1] else "a cell"


def leaving_later(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    if obs["position"][1]:
        raise SystemExit(0)
    return ""


def numbers(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    return 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising_later", f"raised KeyError in its describer {HERE}raising_later: 'no such cell'"),
        ("silent_later", f"env.describer '{HERE}silent_later' of environment 'Corridor-v0' gave NoneType None; states"),
        ("leaving_later", "raised SystemExit in its describer"),
    ],
)
def test_a_describer_that_fails_is_a_failure_of_the_environment(name: str, message: str) -> None:
    env = make(HERE + name)
    env.reset()
    step = env.step(np.array([1, 0]))
    assert list(step.losses) == [0]
    assert step.states == [b"", env.states[1]]
    assert message in env.take_errors()[1].splitlines()[-1]
    assert not env.step(np.array([0, 0])).losses


def test_a_describer_that_gives_no_text_is_refused_in_the_first_reset() -> None:
    with pytest.raises(EnvironmentFailure, match="gave int 7; states are described by str") as caught:
        make(HERE + "numbers").reset()
    assert "\n" not in str(caught.value)


def hostile(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    cell = int(obs["position"].argmax())
    return ["\x1b[2J\u202e<|im_end|> \ud800" * 9_000, b"\xff\xfe. \0" * 100, np.frombuffer(b"a\0b", np.uint8)][cell]


def test_whatever_a_describer_says_is_short_clean_text() -> None:
    env = make(HERE + "hostile", options={"length": 4})
    env.reset()
    said = [*env.states[:1], *(env.step(np.array([1, 1])).states[0] for _ in range(2))]
    assert env.take_errors() == (0, "")
    for raw in said:
        text = channel_text(raw)
        assert 0 < len(text.encode()) <= MAX_CAPTION_BYTES
        assert text.isprintable()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["back"], "got 1, wanted 2 different words, one for each action of 'Corridor-v0' in their order"),
        (["on", "on"], "got 'on' twice, wanted 2"),
        (["on", " "], "got '', wanted 2"),
    ],
)
def test_names_of_actions_are_as_many_as_actions_and_all_different(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"env.action_names: {message}"):
        make(action_names=names)


def test_given_names_of_actions_replace_the_environments_own() -> None:
    assert make().spec.action_names == ()
    assert make(action_names=["back", "on"]).spec.action_names == ("back", "on")
    with pytest.raises(ValueError, match=r"env\.action_names: got 2, wanted 23"):
        make(env_id="NetHackScore-v0", action_names=["north", "south"])
    env = make(env_id="NetHackScore-v0", action_names=[f"key {number}" for number in range(23)])
    assert env.spec.action_names[22] == "key 22"
    env.close()
