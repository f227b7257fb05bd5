"""Reads captions from an environment: from an observation key, a key of `info`, or a function of both.

Invariant: a caption from an environment or a function is returned as UTF-8 bytes, or refused with a one-line error.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from actors.environments.errors import EnvironmentFailure, fail, lacking, shown
from configs.errors import named

Captioner = Callable[[Any, Mapping[str, Any]], bytes]
"""(observation, info) -> raw caption, UTF-8."""
NONE = "none"
"""The captioner of an environment of which nothing is said."""
WANTED = {
    "captioner": "captions are str, bytes or uint8 arrays, '' where nothing happened",
    "describer": "states are described by str, bytes or uint8 arrays, one fact per sentence",
}
"""What is wanted of a function, by its setting."""


def make_captioner(
    captioner: str, entries: Mapping[str, Callable[[Any], Any]], there: str, env_id: str
) -> tuple[Captioner, str | None]:
    """The function that reads captions, and the observation entry that holds them as texts, if there is one. `entries`:
    name -> function that picks it from an observation; `there` describes the observation space. Raises ValueError if
    `captioner` names nothing."""
    if captioner == NONE:
        return lambda obs, info: b"", None
    if captioner in entries:
        pick = entries[captioner]
        return lambda obs, info: _checked(pick(obs), captioner, "captioner", env_id), captioner
    kind, colon, name = captioner.partition(":")
    if kind == "info" and colon:
        return lambda obs, info: _from_info(info, name, captioner, env_id), None
    if colon:
        return function_of(captioner, "captioner", env_id), None
    raise ValueError(
        f"env.captioner {captioner!r} is no observation key of {env_id!r}: {there}; "
        "give one of the keys, info:KEY, or module:function called with (obs, info); or none"
    )


def to_bytes(caption: Any) -> bytes | None:
    """UTF-8 of a caption (str, bytes, or zero-padded uint8 array of UTF-8 or Latin-1); None for any other value."""
    if isinstance(caption, str):
        return caption.encode("utf-8", "replace")
    if isinstance(caption, np.ndarray) and caption.dtype == np.uint8:
        caption = caption.tobytes().partition(b"\0")[0]
    if not isinstance(caption, bytes):
        return None
    try:
        caption.decode()
    except UnicodeDecodeError:
        return caption.decode("latin-1").encode()
    return caption


def _checked(text: Any, source: str, role: str, env_id: str) -> bytes:
    raw = to_bytes(text)
    if raw is None:
        raise EnvironmentFailure(
            f"env.{role} {source!r} of environment {env_id!r} gave {type(text).__name__} {shown(text, 80)}; "
            f"{WANTED[role]}"
        )
    return raw


def _from_info(info: Mapping[str, Any], key: str, captioner: str, env_id: str) -> bytes:
    if key not in info:
        has = ", ".join(map(str, info)) or "nothing"
        raise EnvironmentFailure(
            f"env.captioner {captioner!r}: the info of {env_id!r} has no {key!r} (it has {has}); it must be there after"
            " every reset and step ('' if there is no caption), else use module:function"
        )
    return _checked(info[key], captioner, "captioner", env_id)


def function_of(setting: str, role: str, env_id: str) -> Captioner:
    """The function `module:function` that `env.captioner` or `env.describer` (`role`) names, checked in each call;
    ValueError if it cannot be called as function(obs, info)."""
    function = load_function(setting, role)

    def say(obs: Any, info: Mapping[str, Any]) -> bytes:
        try:
            said = function(obs, info)
        except BaseException as error:
            fail(env_id, error, f"its {role} {setting}")
        return _checked(said, setting, role, env_id)

    return say


def load_function(setting: str, role: str) -> Callable[[Any, Mapping[str, Any]], Any]:
    """The function `module:function` that the setting `env.ROLE` names; ValueError if it cannot be called as
    function(obs, info)."""
    module, _, name = setting.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind(None, {})
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = named(error, 600)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            why += (
                "; give a module's name, not its file, and put the folder that holds it on the Python path (for a file"
                " or folder in this one: PYTHONPATH=. before the command)"
            )
        elif isinstance(error, ModuleNotFoundError):
            why += f"; it needs {lacking(error)}: install it"
        raise ValueError(f"env.{role} {setting!r} cannot be called as function(obs, info): {why}") from error
    return function
