"""Each source of features on real environments, names that are fixed, and what is refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from actors.environments.factory import make_environment
from actors.features import minigrid
from actors.features.objects import MISSING_DISTANCE
from configs.schema import EnvConfig

HERE = "tests.actors.features.test_sources"
DRIFT = "tests.actors.features.drifting:Drift-v0"
CORRIDOR, CART, CAR = "tests.toy_environments:Corridor-v0", "CartPole-v1", "MountainCar-v0"
SILENT = "tests.toy_environments:say_nothing"


@contextmanager
def made(env_id: str, features: list[str], num_envs: int = 2, **config: Any) -> Iterator[Any]:
    """Environments whose policy reads numbers as they are, as features are."""
    captioner = config.pop("captioner", SILENT)
    settings = EnvConfig(id=env_id, features=features, captioner=captioner, stretch_bounds=False, **config)
    env = make_environment(settings, num_envs=num_envs, run_seed=1, worker_index=0)
    try:
        yield env
    finally:
        env.close()


@pytest.mark.parametrize(
    ("env_id", "given", "names"),
    [
        (CAR, ["position", "velocity"], ("position", "velocity")),
        (CART, [], ("obs0", "obs1", "obs2", "obs3")),
    ],
)
def test_entries_of_an_observation_are_features(env_id: str, given: list[str], names: tuple[str, ...]) -> None:
    with made(env_id, ["obs"], feature_names=given, max_episode_steps=12) as env:
        assert env.spec.features == names
        obs, _ = env.reset()
        np.testing.assert_array_equal(env.features, obs["obs"])
        ends = 0
        for _ in range(30):
            step = env.step(np.array([0, 1]))
            own = step.obs["obs"].copy()
            for end in step.ends:
                own[end.index] = end.final_obs["obs"]
            np.testing.assert_array_equal(step.features, own)
            np.testing.assert_array_equal(env.features, step.obs["obs"])
            ends += len(step.ends)
        assert ends > 3


def test_a_key_of_info_is_unknown_where_it_is_missing_and_that_is_said_once() -> None:
    with made(CORRIDOR, ["info:success"], options={"length": 3}) as env:
        env.reset()
        assert np.isnan(env.features).all()
        assert env.step(np.array([1, 0])).features.tolist() == [[0], [0]]
        step = env.step(np.array([1, 0]))
        assert step.features.tolist() == [[1], [0]]
        assert np.isnan(env.features[:, 0]).tolist() == [True, False]
        (notice,) = env.take_notices()
        assert notice.startswith("environment 'Corridor-v0': the feature 'success' of 'info:success' is missing or not")
        assert env.take_errors() == (0, "")


def test_features_and_their_names_are_saved_with_the_environment() -> None:
    sources = [f"{HERE}:two_of_the_corridor"]
    with made(CORRIDOR, sources) as env, made(CORRIDOR, sources) as other, made(CORRIDOR, [f"{HERE}:one"]) as third:
        assert env.spec.features == ("at", "told")
        env.reset()
        env.step(np.array([1, 0]))
        saved = env.state_dict()
        other.load_state_dict(saved)
        np.testing.assert_array_equal(other.features, [[1, 22], [0, 21]])
        with pytest.raises(ValueError, match=r"the saved state has 2 features, env\.features gives 1"):
            third.load_state_dict(saved)


def two_of_the_corridor(obs: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    return {"told": len(info["text"]), "at": obs["position"].argmax()}


def one(obs: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    return {"one": 1}


def test_every_worker_of_a_run_names_the_features_alike() -> None:
    def names_of(run_seed: int, worker_index: int, first_env: int) -> tuple[str, ...]:
        config = EnvConfig(id=DRIFT, features=[f"{HERE}:named_by_level"], captioner=SILENT)
        place: dict[str, int] = {"worker_index": worker_index, "first_env": first_env}
        env = make_environment(config, num_envs=1, run_seed=run_seed, **place)
        env.close()
        return env.spec.features

    named = [{names_of(seed, worker, first) for worker in (0, 7) for first in (0, 3)} for seed in range(6)]
    assert {len(names) for names in named} == {1}
    assert len(set.union(*named)) == 2, "or levels do not differ"


def named_by_level(obs: np.ndarray, info: Mapping[str, Any]) -> dict[str, float]:
    return {f"level_{'ab'[int(obs[0]) % 2]}": 1.0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raising", f"raised KeyError in its features {HERE}:raising: 'no such cell'"),
        ("renaming", f"env.features '{HERE}:renaming' gave the new name 'b'; names are fixed at the first reset"),
        ("worded", f"env.features '{HERE}:worded' gave a = 'far', wanted a number"),
        ("listed", f"env.features '{HERE}:listed' gave list [1], wanted a mapping of names to numbers"),
    ],
)
def test_a_function_that_fails_later_loses_its_environment_only(function: str, message: str) -> None:
    with made(CORRIDOR, [f"{HERE}:{function}"]) as env:
        env.reset()
        step = env.step(np.array([1, 0]))
        assert list(step.losses) == [0]
        assert np.isnan(step.features[0, 0])
        assert step.features[1, 0] == env.features[0, 0] == 0.0
        assert message in env.take_errors()[1].splitlines()[-1]
        assert not env.step(np.array([0, 0])).losses


def _moved(obs: Mapping[str, Any], given: Any) -> Any:
    return {"a": 0.0} if obs["position"][0] else given


def raising(obs: Any, info: Any) -> Any:
    if not obs["position"][0]:
        raise KeyError("no such cell")
    return {"a": 0.0}


def renaming(obs: Any, info: Any) -> Any:
    return _moved(obs, {"a": 1.0, "b": 2.0})


def worded(obs: Any, info: Any) -> Any:
    return _moved(obs, {"a": "far"})


def listed(obs: Any, info: Any) -> Any:
    return _moved(obs, [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, None, np.float64(1e300), np.array([np.nan])])
def test_numbers_that_are_not_finite_or_missing_are_unknown(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GIVEN, "now", {"a": value})
    with made(CORRIDOR, [f"{HERE}:given"], captioner="message") as env:
        env.reset()
        assert env.take_errors() == (0, "")
        assert np.isnan(env.features).all()
        monkeypatch.setitem(GIVEN, "now", {"a": np.array([3], np.int8)})
        assert env.step(np.array([1, 0])).features.tolist() == [[3], [3]]


GIVEN: dict[str, dict[Any, Any]] = {"now": {"a": 0.0}}


def given(obs: Any, info: Any) -> Any:
    return GIVEN["now"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "gave no features at the reset, wanted at least one"),
        ([f"n{i}" for i in range(65)], r"got 65 features \(65 of .*\), wanted at most 64: leave sources out"),
        (["two words"], "got the name 'two words', wanted an identifier: letters, digits and _"),
        (["lambda"], "got the name 'lambda', wanted an identifier"),
        (["größe"], "got the name 'größe', wanted an identifier"),
        ([3], "gave the name 3, wanted a str"),
    ],
)
def test_names_that_programs_cannot_read_are_refused(
    names: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GIVEN, "now", dict.fromkeys(names, 1.0))
    with pytest.raises(ValueError, match=message) as caught, made(CORRIDOR, [f"{HERE}:given"]):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "features", "message"),
    [
        (CART, ["obs", f"{HERE}:named_obs0"], f"got the name 'obs0' twice, of 'obs' and '{HERE}:named_obs0'"),
        (CART, ["blstats"], "got 'blstats', but 'CartPole-v1' is not played as NetHack or MiniHack"),
        (CART, ["minigrid"], "got 'minigrid', but 'CartPole-v1' is no environment of MiniGrid or BabyAI"),
        (CORRIDOR, ["obs"], "got 'obs', but 'Corridor-v0' observes Dict.*no Box with one axis; give module:function"),
        ("tests.toy_environments:Painting-v0", ["obs"], "no Box with one axis"),
        (CART, ["blstat"], r"got 'blstat' \(did you mean 'blstats'\?\), wanted blstats, minigrid, obs, info:KEY"),
        (CART, ["no_such_module:features"], "'no_such_module:features' cannot be called as function"),
        (CART, [f"objects:{HERE}:nobody"], "cannot be called as function"),
        (CART, [f"objects:{HERE}:given"], f"'objects:{HERE}:given' gave dict .* wanted a list of objects"),
        (CART, [f"{HERE}:always_raising"], f"raised RuntimeError in its features {HERE}:always_raising: never"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_one_line(env_id: str, features: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught, made(env_id, features):
        pass
    assert "\n" not in str(caught.value)


def named_obs0(obs: Any, info: Any) -> Any:
    return {"obs0": 1.0}


def always_raising(obs: Any, info: Any) -> Any:
    raise RuntimeError("never")


def test_names_of_entries_must_be_as_many_as_entries() -> None:
    wanted = "env.feature_names: got 1 names, wanted 2, one for each entry of the observation of 'MountainCar-v0'"
    with pytest.raises(ValueError, match=wanted), made(CAR, ["obs"], feature_names=["position"]):
        pass


def cart_and_pole(obs: np.ndarray, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Objects of CartPole."""
    x, _, angle, _ = obs.tolist()
    return [{"kind": "self", "x": x, "y": 0.0}, {"kind": "tip", "x": x + np.sin(angle), "y": np.cos(angle)}]


def test_objects_of_a_real_environment_become_relations() -> None:
    with made(CART, [f"objects:{HERE}:cart_and_pole"]) as env:
        names = ("count_tip", "nearest_tip_dx", "nearest_tip_dy", "nearest_tip_distance", "touching_tip")
        assert env.spec.features == ("self_x", "self_y", *names)
        env.reset()
        step = env.step(np.array([0, 1]))
        x, _, angle, _ = step.obs["obs"].T
        np.testing.assert_allclose(step.features[:, 0], x)
        np.testing.assert_allclose(step.features[:, 3], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(step.features[:, 5], 1.0, atol=1e-6)


def slowly(game: Any) -> dict[str, float]:
    """MiniGrid's features, cell by cell."""
    found = dict.fromkeys(minigrid.NAMES, 0.0) | {f"distance_to_{kind}": MISSING_DISTANCE for kind in minigrid.KINDS}
    found["direction"] = game.agent_dir
    for x in range(game.width):
        for y in range(game.height):
            thing = game.grid.get(x, y)
            if thing is None or f"distance_to_{thing.type}" not in found:
                continue
            distance = abs(x - game.agent_pos[0]) + abs(y - game.agent_pos[1])
            found[f"distance_to_{thing.type}"] = min(found[f"distance_to_{thing.type}"], distance)
            if thing.type == "door":
                found["doors_open"] += thing.is_open
                found["doors_locked"] += thing.is_locked
    if game.carrying is not None:
        kind = game.carrying.type
        found |= {"carrying": 1, f"carrying_{kind}": 1, f"distance_to_{kind}": 0}
    return found


@pytest.mark.parametrize(
    ("env_id", "met"),
    [
        ("MiniGrid-DoorKey-5x5-v0", {"carrying_key", "doors_open"}),
        ("BabyAI-GoToLocal-v0", {"distance_to_box", "distance_to_ball"}),
    ],
)
def test_minigrids_features_are_those_of_its_grid(env_id: str, met: set[str]) -> None:
    pytest.importorskip("minigrid")
    with made(env_id, ["minigrid"], num_envs=6, max_episode_steps=150) as env:
        assert env.spec.features == minigrid.NAMES
        env.reset()
        rng, seen = np.random.default_rng(0), set()
        for _ in range(160):
            step = env.step(rng.integers(0, 6, 6))
            games = [each.unwrapped for each in env._envs]
            wanted = np.array([list(slowly(game).values()) for game in games], np.float32)
            np.testing.assert_array_equal(env.features, wanted)
            going_on = ~(step.terminated | step.truncated)
            np.testing.assert_array_equal(step.features[going_on], wanted[going_on])
            numbers = np.where(step.features == MISSING_DISTANCE, 0, step.features).any(axis=0)
            seen |= {name for name, is_met in zip(minigrid.NAMES, numbers, strict=True) if is_met}
        assert met <= seen
        assert env.take_errors() == (0, "")
