"""Reads single observations, as gymnasium environments return them, into what a policy's network reads.

Invariant: for one observation it gives the values that the vector environment of the interface gives, without building
an environment: neither NetHack nor the user's package need be installed.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from actors.environments.nethack.crop import MAP_CELLS, MAP_HEIGHT, MAP_WIDTH, CropView, make_maps
from actors.environments.nethack.episode_stats import X, Y
from actors.environments.observations import ObservationReader


class SingleReader(Protocol):
    """Reads one observation."""

    def read(self, obs: Any) -> dict[str, np.ndarray]:
        """Entries name -> [1, ...]; ValueError (EnvironmentFailure) for an observation of another space."""


class SpaceReader:
    """Of any gymnasium environment: by its observation space."""

    def __init__(self, interface: Mapping[str, Any], env_id: str) -> None:
        self._reader = ObservationReader.from_json(interface["entries"], env_id)

    def read(self, obs: Any) -> dict[str, np.ndarray]:
        arrays = {name: np.empty((1, *spec.shape), spec.dtype) for name, spec in self._reader.specs.items()}
        self._reader.write(arrays, 0, obs, "the given observation")
        return arrays


class ScreenReader:
    """Of NetHack and MiniHack: cuts the window around the agent out of NLE's maps."""

    def __init__(self, interface: Mapping[str, Any], env_id: str) -> None:
        view, self._env_id = interface["view"], env_id
        rows, columns = view["size"]
        self._view = CropView(view["entry"], tuple(view["layers"]), (rows, columns))
        self._maps = make_maps(1, self._view.layers)
        self._copied = {name: tuple(shape) for name, shape in interface["copied"].items()}

    def read(self, obs: Any) -> dict[str, np.ndarray]:
        for layer in self._view.layers:
            self._maps[layer][0, :MAP_CELLS] = self._take(obs, layer, (MAP_HEIGHT, MAP_WIDTH)).ravel()
        copied = {name: self._take(obs, name, shape) for name, shape in self._copied.items()}
        window = np.empty((1, *self._view.spec.shape), self._view.spec.dtype)
        blstats = copied["blstats"][None]
        self._view.cut(self._maps, blstats[:, X], blstats[:, Y], window)
        entries = {self._view.entry: window}
        for name, array in copied.items():
            entries[name] = np.empty((1, *array.shape), np.float32 if name == "blstats" else np.uint8)
            entries[name][0] = array
        return entries

    def _take(self, obs: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
        needed = ", ".join(dict.fromkeys((*self._view.layers, *self._copied)))
        if not isinstance(obs, Mapping) or name not in obs:
            has = ", ".join(map(str, obs)) if isinstance(obs, Mapping) else type(obs).__name__
            wanted = f"wanted {needed}: make {self._env_id} with these observation_keys"
            raise ValueError(f"the observation has no {name!r} (it has {has}); {wanted}")
        array = np.asarray(obs[name])
        if array.shape != shape:
            raise ValueError(f"observation {name!r} has shape {array.shape}, wanted {shape}")
        return array


def make_reader(interface: Mapping[str, Any], env_id: str) -> SingleReader:
    """The reader of a vector environment's `interface()`."""
    return ScreenReader(interface, env_id) if interface["kind"] == "nethack" else SpaceReader(interface, env_id)
