"""A single observation is read as the vector environment reads it, after its interface went through JSON."""

import json
from collections import OrderedDict

import numpy as np
import pytest
from gymnasium import spaces

from actors.environments.observations import ObservationReader
from actors.environments.single import make_reader

SPACE = spaces.Dict(
    OrderedDict(
        z_first=spaces.Box(-1, 1, (2, 3), np.float64),
        slow=spaces.Box(np.float32([-0.07, -1.2, -np.inf]), np.float32([0.05, 0.6, 0.1])),
        picture=spaces.Box(0, 255, (4, 4, 3), np.uint8),
        large=spaces.Box(0, 2**40, (2,), np.uint64),
        flags=spaces.Box(0, 1, (3,), np.bool_),
        inner=spaces.Tuple((spaces.Discrete(5, start=-2), spaces.MultiDiscrete([3, 4], start=[1, 0]))),
        bits=spaces.MultiBinary(6),
        mission=spaces.Text(40),
        message=spaces.Box(0, 255, (16,), np.uint8),
        graph=spaces.Graph(spaces.Box(0, 1, (1,)), None),
    )
)


def test_every_space_is_read_alike_and_in_the_same_order() -> None:
    reader = ObservationReader(SPACE, "Odd-v0", "message")
    single = make_reader(json.loads(json.dumps({"kind": "gymnasium", "entries": reader.as_json()})), "Odd-v0")
    SPACE.seed(3)
    for _ in range(20):
        obs = SPACE.sample()
        wanted = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in reader.specs.items()}
        reader.write(wanted, 0, obs, "step")
        read = single.read(obs)
        assert list(read) == list(wanted), "the order decides which input of the network an entry is"
        for name, array in wanted.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


def test_an_observation_of_another_space_is_refused_by_name() -> None:
    reader = ObservationReader(SPACE, "Odd-v0", "message")
    single = make_reader({"kind": "gymnasium", "entries": reader.as_json()}, "Odd-v0")
    with pytest.raises(ValueError, match="observation 'picture' in the given observation got shape"):
        single.read({**SPACE.sample(), "picture": np.zeros((5, 5, 3), np.uint8)})
    with pytest.raises(ValueError, match="'bits' in the given observation is missing"):
        single.read({name: value for name, value in SPACE.sample().items() if name != "bits"})
