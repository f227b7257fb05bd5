"""What random play shows is told by expressions that read it from the environment's own observations."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.environments.observations import ObservationReader
from cluster.new_environment.looking import Look, look_at
from cluster.new_environment.things import Thing, things_of_entry, things_of_info
from cluster.new_environment.writing import captioner_file

SPACE = spaces.Dict(
    {
        "notch": spaces.Discrete(3, start=-1),
        'it\'s "odd"': spaces.Box(-1, 1, (2,), np.float64),
        "many": spaces.MultiBinary(20),
        "grid": spaces.Box(0, 1, (2, 2), np.float32),
        "pack": spaces.Tuple((spaces.MultiDiscrete([2, 7]), spaces.Text(8))),
        "view": spaces.Box(0, 255, (5, 5, 3), np.uint8),
    }
)


def look(space: gymnasium.Space, infos: list[dict[str, object]], steps: int = 60) -> tuple[Look, list[object]]:
    reader = ObservationReader(space, "Test-v0", None)
    arrays = {name: np.zeros((steps, *spec.shape), spec.dtype) for name, spec in reader.specs.items()}
    space.seed(1)
    observations = [space.sample() for _ in range(steps)]
    for i, observation in enumerate(observations):
        reader.write(arrays, i, observation, "step")
    things: list[Thing] = []
    for name, entry in reader.entries.items():
        things += things_of_entry(entry, arrays[name])
    things += things_of_info(infos)
    fields = {"env_id": "Test-v0", "family": "", "observation": "", "actions": (), "num_actions": 2, "step_limit": 0}
    return Look(**fields, steps=steps, own_text="", things=tuple(things)), observations


def test_every_expression_reads_what_was_measured() -> None:
    found, observations = look(SPACE, [])
    for thing in found.things:
        read = [eval(thing.code, {"obs": observation, "np": np}) for observation in observations]
        if thing.is_text:
            assert set(map(str, read)) == set(thing.values), thing
        else:
            low, high = thing.values[0], thing.values[-1]
            assert (min(read), max(read)) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5)), thing


def test_info_that_is_not_always_there_is_read_with_a_default() -> None:
    infos: list[dict[str, object]] = [
        {"lives": 3},
        {"lives": 2, "won": True, "said": "Ouch"},
        {"lives": 1, "other": {}},
    ]
    things = {thing.code: thing for thing in things_of_info(infos)}
    assert [*things] == ["info['lives']", "info.get('won', 0)", "info.get('said', '')"]
    assert things["info['lives']"].values == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("name", ["{a} b", 'it\'s "odd"', "back\\slash"])
def test_strange_names_make_a_captioner_that_is_python(name: str) -> None:
    found, observations = look(spaces.Dict({"grid": SPACE["grid"], name: SPACE["notch"]}), [])
    names: dict[str, object] = {}
    exec(captioner_file(found) or "", names)
    captions = {names["caption"](observation, {}) for observation in observations}  # type: ignore[operator]
    assert len(captions) > 1
    assert all(caption.startswith("Grid 0 0 is ") and caption.endswith(".") for caption in captions)


def test_letters_of_an_inventory_are_no_message() -> None:
    found = look_at("tests.cluster.new_environment.small_environments:Letters-v0")
    assert found.own_text == "said"
    assert found.step_limit == 30
