"""Keeps the pictures that an environment shows at each step: what it renders, or else an observation that is an image.

Invariant: the environment plays as it does without a camera, also where rendering fails: then there are no pictures.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

RENDERED = "rgb_array"


class Camera:
    """Films one environment."""

    def __init__(self) -> None:
        self.film: list[np.ndarray | None] = []
        """[height, width, 3] u8 for the running episode's reset and each step; every reset begins another list."""

    def options(self, creator: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with which to make an environment that renders, where its class says that it can."""
        metadata = getattr(creator, "metadata", None)
        modes = metadata.get("render_modes", ()) if isinstance(metadata, Mapping) else ()
        return {"render_mode": RENDERED, **options} if RENDERED in (modes or ()) else dict(options)

    def mount(self, env: gymnasium.Env) -> gymnasium.Env:
        """The environment, filmed from its next reset on."""
        return _Filmed(env, self)

    def begin(self, env: Any, obs: Any) -> None:
        """Start another film with the picture after a reset."""
        self.film = []
        self.shoot(env, obs)

    def shoot(self, env: Any, obs: Any) -> None:
        """Add the present picture."""
        rendered = None
        if getattr(env, "render_mode", None) == RENDERED:
            with contextlib.suppress(Exception):  # a missing package, no display: it plays on without pictures
                rendered = _picture(np.asarray(env.render()))
        self.film.append(_image_within(obs) if rendered is None else rendered)


class _Filmed(gymnasium.Wrapper):
    """Passes everything on unchanged."""

    def __init__(self, env: gymnasium.Env, camera: Camera) -> None:
        super().__init__(env)
        self._camera = camera

    def reset(self, **kwargs: Any) -> Any:
        """See gymnasium."""
        given = self.env.reset(**kwargs)
        self._camera.begin(self.env, given[0])
        return given

    def step(self, action: Any) -> Any:
        """See gymnasium."""
        given = self.env.step(action)
        self._camera.shoot(self.env, given[0])
        return given


def _image_within(obs: Any) -> np.ndarray | None:
    """The observation, or the first entry of it, that is an image."""
    entries = obs.values() if isinstance(obs, Mapping) else obs if isinstance(obs, tuple) else [obs]
    return next((found for entry in entries if (found := _picture(entry)) is not None), None)


def _picture(array: Any) -> np.ndarray | None:
    """A copy as [height, width, 3] u8; None for what is no image of bytes. Of stacked grey frames, the newest."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or not array.size:
        return None
    if array.shape[2] not in (1, 3, 4):
        if array.shape[0] not in (1, 3, 4):
            return None
        array = np.moveaxis(array, 0, 2)
    return np.array(array if array.shape[2] == 3 else np.repeat(array[..., -1:], 3, axis=2))
