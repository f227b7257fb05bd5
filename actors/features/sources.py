"""The sources of features but NetHack's own (`env.features`): each reads one environment's state at a time.

Invariant: a source's names are fixed once. A feature that is missing or not finite later is NaN, which is noticed once;
anything else that does not fit is an error of that environment.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from actors.environments.captioner import load_function
from actors.environments.errors import EnvironmentFailure, fail, shown
from actors.environments.protocol import LARGEST_FLOAT, finite_number
from actors.features import minigrid
from actors.features.layout import columns_of
from actors.features.objects import NAN, Relations
from configs.features import BLSTATS, INFO, MINIGRID, OBJECTS, OBS, check_sources
from configs.schema import EnvConfig


class Source(Protocol):
    """One entry of `env.features`."""

    setting: str  # as it is written there
    notices: list[str]  # new ones for the user

    @property
    def names(self) -> tuple[str, ...]:
        """Empty where they depend on a state, until `fix`."""

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """Fix the names by the state in which an episode begins."""

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float] | np.ndarray:
        """The features of a state, in the order of `names`, finite or NaN. Raises EnvironmentFailure."""


class FeatureReader:
    """The features of a gymnasium environment's states, of all sources."""

    def __init__(self, config: EnvConfig, env_id: str, env: Any, space: spaces.Space) -> None:
        """`space`: of the observations of `env`, any one of those that are read. Raises ValueError, in one line, for
        sources that are unknown or do not fit the environment."""
        check_sources(config.features, config.feature_names)
        self._sources = [_make(setting, config, env_id, env, space) for setting in config.features]
        self._columns: list[slice] = []
        self.names: tuple[str, ...] = ()
        self.needs_state = not all(source.names for source in self._sources)
        """Whether names depend on the state in which an episode begins."""

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """Fix the names; ValueError for those that do not go together."""
        for source in self._sources:
            source.fix(obs, info)
        self.names, self._columns = columns_of([(source.setting, source.names) for source in self._sources])

    def write(self, row: np.ndarray, env: Any, obs: Any, info: Mapping[str, Any]) -> None:
        """Write the features of a state into `row` [F] f32. Raises EnvironmentFailure."""
        for source, columns in zip(self._sources, self._columns, strict=True):
            row[columns] = source.read(env, obs, info)

    def take_notices(self) -> list[str]:
        """New notices for the user since the last call."""
        return take_notices(self._sources)


def take_notices(sources: Sequence[Source]) -> list[str]:
    """New notices of all sources since the last call."""
    taken = []
    for source in sources:
        if source.notices:
            taken += source.notices
            source.notices = []
    return taken


def make_function_source(setting: str, env_id: str) -> "Source":
    """The source `module:function` or `objects:module:function`. Raises ValueError where it cannot be called."""
    kind, _, rest = setting.partition(":")
    if kind == OBJECTS:
        return _Objects(setting, env_id, load_function(rest, "features"))
    return _Function(setting, env_id, load_function(setting, "features"))


class _Numbers:
    """What sources have in common whose numbers the user gives."""

    def __init__(self, setting: str, env_id: str) -> None:
        self.setting, self._env_id = setting, env_id
        self.names: tuple[str, ...] = ()
        self.notices: list[str] = []
        self._noticed: set[str] = set()

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
            return value
        number = finite_number(value)
        if number is not None:
            return number
        if value is not None and not _is_number(value):
            raise self._misfit(f"{name} = {shown(value)}, wanted a number (NaN or None where there is none)")
        if name not in self._noticed:
            self._noticed.add(name)
            what = f"environment {self._env_id!r}: the feature {name!r} of {self.setting!r} is missing or not finite"
            self.notices.append(f"{what} in a state, and NaN there: what reads it is unknown in such states")
        return NAN

    def _misfit(self, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"environment {self._env_id!r}: env.features {self.setting!r} gave {what}")


class _Info(_Numbers):
    """A key of `info`."""

    def __init__(self, setting: str, env_id: str) -> None:
        super().__init__(setting, env_id)
        self.names = (setting.partition(":")[2],)

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """See `Source`."""

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float]:
        """See `Source`."""
        (name,) = self.names
        return [self._number(name, info.get(name))]


class _Function(_Numbers):
    """A function of (obs, info) that gives a mapping name -> number. Its names are sorted, so that they have one order
    in every process."""

    def __init__(self, setting: str, env_id: str, function: Callable[..., Any]) -> None:
        super().__init__(setting, env_id)
        self._function = function

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """See `Source`."""
        names = [*self._call(obs, info)]
        if wrong := next((name for name in names if not isinstance(name, str)), None):
            raise self._misfit(f"the name {shown(wrong)}, wanted a str")
        self.names = tuple(sorted(names))

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float]:
        """See `Source`."""
        given = self._call(obs, info)
        if new := given.keys() - self.names:
            had = f"names are fixed at the first reset, which had {', '.join(self.names)}"
            raise self._misfit(f"the new name {shown(min(new, key=str))}; {had}")
        return [self._number(name, given.get(name)) for name in self.names]

    def _call(self, obs: Any, info: Mapping[str, Any]) -> Mapping[str, Any]:
        given = _called(self._function, obs, info, self._env_id, self.setting)
        if not isinstance(given, Mapping):
            raise self._misfit(f"{type(given).__name__} {shown(given)}, wanted a mapping of names to numbers")
        return given


class _Objects:
    """A function of (obs, info) that gives a list of objects: their relational features."""

    def __init__(self, setting: str, env_id: str, function: Callable[..., Any]) -> None:
        self.setting, self._env_id, self._function = setting, env_id, function
        self._relations: Relations | None = None
        self.notices: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """See `Source`."""
        return () if self._relations is None else self._relations.names

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """See `Source`."""
        self._relations = self._told(Relations, obs, info)

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float]:
        """See `Source`."""
        assert self._relations is not None, "names are fixed before the first state is read"
        return self._told(self._relations.read, obs, info)

    def _told(self, of: Callable[[Any], Any], obs: Any, info: Mapping[str, Any]) -> Any:
        objects = _called(self._function, obs, info, self._env_id, self.setting)
        try:
            return of(objects)
        except ValueError as error:
            what = f"environment {self._env_id!r}: env.features {self.setting!r} {error}"
            raise EnvironmentFailure(what) from None


class _Obs:
    """The entries of an observation that is a list of numbers."""

    def __init__(self, setting: str, names: Sequence[str], env_id: str, space: spaces.Space) -> None:
        self.setting, self.notices = setting, list[str]()
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or np.dtype(space.dtype).kind not in "biuf":
            what = f"got {setting!r}, but {env_id!r} observes {shown(space, 80)}, no Box with one axis"
            raise ValueError(f"env.features: {what}; give module:function called with (obs, info)")
        (number,) = space.shape
        if names and len(names) != number:
            wanted = f"wanted {number}, one for each entry of the observation of {env_id!r}"
            raise ValueError(f"env.feature_names: got {len(names)} names, {wanted}")
        self.names = tuple(names) or tuple(f"obs{i}" for i in range(number))

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """See `Source`."""

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float] | np.ndarray:
        """See `Source`; the observation has been checked."""
        return obs


class _MiniGrid:
    """MiniGrid's and BabyAI's."""

    names = minigrid.NAMES

    def __init__(self, setting: str, env_id: str, env: Any) -> None:
        self.setting, self.notices = setting, list[str]()
        if not minigrid.is_minigrid(env.unwrapped):
            what = f"got {setting!r}, but {env_id!r} is no environment of MiniGrid or BabyAI"
            raise ValueError(f"env.features: {what}; give module:function called with (obs, info)")

    def fix(self, obs: Any, info: Mapping[str, Any]) -> None:
        """See `Source`."""

    def read(self, env: Any, obs: Any, info: Mapping[str, Any]) -> Sequence[float]:
        """See `Source`."""
        return minigrid.features_of(env.unwrapped)


def _make(setting: str, config: EnvConfig, env_id: str, env: Any, space: spaces.Space) -> Source:
    if setting == BLSTATS:
        what = f"got {setting!r}, but {env_id!r} is not played as NetHack or MiniHack"
        raise ValueError(f"env.features: {what}; give module:function called with (obs, info)")
    if setting == MINIGRID:
        return _MiniGrid(setting, env_id, env)
    if setting == OBS:
        return _Obs(setting, config.feature_names, env_id, space)
    return _Info(setting, env_id) if setting.startswith(f"{INFO}:") else make_function_source(setting, env_id)


def _called(function: Callable[..., Any], obs: Any, info: Mapping[str, Any], env_id: str, setting: str) -> Any:
    try:
        return function(obs, info)
    except BaseException as error:
        fail(env_id, error, f"its features {setting}")


def _is_number(value: Any) -> bool:
    """Whether a value that is not finite, or too large, is a number at all."""
    if isinstance(value, str | bytes):
        return False
    try:
        float(np.asarray(value).item())
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False
    return True
