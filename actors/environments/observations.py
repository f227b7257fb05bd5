"""Flattens a gymnasium observation space into the entries that networks read, and validates each observation against
the space.

Invariant: a rollout holds, value for value, what the environment returned: no lossy cast, no broadcast shape, nothing
that is not finite, no category outside its range; an instruction only by the numbers of its words, and numbers between
small bounds stretched to them (`_factors`). Values outside a Box's bounds are kept, with one notice.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.environments.entry_values import (
    Misfit,
    category,
    characters,
    described,
    floats,
    integers,
    text_of,
    within,
)
from actors.environments.errors import EnvironmentFailure, shown
from actors.environments.vector import ArraySpec
from actors.environments.word_numbers import MAX_WORDS, NUM_BUCKETS, word_numbers

SINGLE = "obs"
"""Name of an observation that is neither a Dict nor a Tuple."""
TEXT_BYTES = 256
"""Bytes that the policy reads of a text that is not an array."""
MAX_CATEGORIES = 65_536
"""Integers with more values than this are read as numbers, not as categories."""
KEPT_INTEGERS = ("uint8", "int8", "int16", "int32", "int64", "bool")
"""Integer dtypes that torch supports everywhere; others become int64."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf of the space."""

    path: tuple[Any, ...]  # keys and indices that lead to it
    space: spaces.Space
    spec: ArraySpec
    convert: Callable[[Any], Any]
    """The environment's value -> an array of the spec's shape and dtype, or a scalar; raises Misfit."""
    factors: np.ndarray | None = None
    """What its numbers are multiplied by, in the shape of the spec; see `_factors`."""

    def read(self, value: Any) -> Any:
        """What the policy is given for the environment's value; raises Misfit."""
        converted = self.convert(value)
        return converted if self.factors is None else converted * self.factors


class ObservationReader:
    """Reads the policy's entries from an environment's observations."""

    def __init__(
        self,
        space: spaces.Space,
        env_id: str,
        text: str | None,
        instruction: str | None = None,
        *,
        stretches: bool = True,
    ) -> None:
        """`text`: the entry of the captions, read as a text. `instruction`: a text that is read as the numbers of its
        words. Raises ValueError if no entry is readable."""
        self._env_id = env_id
        self.entries: dict[str, Entry] = {}
        self.notices: list[str] = []  # which entries the policy does not see
        left_out = []
        for path, leaf in leaves(space):
            name = entry_name(path)
            made = _read_as_text(leaf) if name == text else _entry_format(leaf)
            if name == instruction and made is not None and made[0].is_text:
                made = WORDS
            if made is None:
                left_out.append(f"{name!r} ({shown(leaf)})")
                continue
            while name in self.entries:  # {"a/b": x, "a": {"b": y}}
                name += "_"
            self.entries[name] = Entry(path, leaf, made[0], made[1], _factors(leaf) if stretches else None)
        readable = "Box, Discrete, MultiDiscrete, MultiBinary and texts, in any nesting of Dict and Tuple"
        if not self.entries:
            what = f"environment {env_id!r} observes nothing that a network here reads: {', '.join(left_out)}"
            raise ValueError(f"{what}; they read {readable}")
        if left_out:
            what = f"environment {env_id!r}: the policy does not see {', '.join(left_out)}"
            self.notices.append(f"{what}: networks read {readable}; captioners see everything")
        self._bounded = {name: bounds for name, entry in self.entries.items() if (bounds := _bounds(entry))}

    def as_json(self) -> list[dict[str, Any]]:
        """What `from_json` makes a reader from that reads the same, without the environment."""
        return [
            {
                "name": name,
                "path": list(entry.path),
                "is_text": entry.spec.is_text,
                **({"is_numbered": True} if entry.spec == WORDS[0] else {}),
                **({} if entry.factors is None else {"factors": entry.factors.tolist()}),
                "space": _space_as_json(entry.space),
            }
            for name, entry in self.entries.items()
        ]

    @classmethod
    def from_json(cls, entries: list[dict[str, Any]], env_id: str) -> "ObservationReader":
        """The reader that `as_json` describes, but for the notices; KeyError, TypeError or ValueError for anything
        else."""
        reader = cls.__new__(cls)
        reader._env_id, reader.entries, reader.notices, reader._bounded = env_id, {}, [], {}
        for entry in entries:
            space = _space_from_json(**entry["space"])
            made = _read_as_text(space) if entry["is_text"] else _entry_format(space)
            if entry.get("is_numbered"):
                made = WORDS
            if made is None:
                raise ValueError(f"{entry['space']} is no space that a network reads")
            factors = np.array(entry["factors"], np.float32) if "factors" in entry else None
            reader.entries[entry["name"]] = Entry(tuple(entry["path"]), space, made[0], made[1], factors)
        return reader

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Name -> shape and dtype."""
        return {name: entry.spec for name, entry in self.entries.items()}

    @property
    def has_small_bounds(self) -> bool:
        """Whether some of its numbers could be stretched."""
        return any(_factors(entry.space) is not None for entry in self.entries.values() if not entry.spec.is_text)

    def write(self, arrays: Mapping[str, np.ndarray], i: int, obs: Any, where: str) -> None:
        """Write an observation into row `i` of arrays name -> [B, ...]; EnvironmentFailure if its space differs."""
        for name, entry in self.entries.items():
            try:
                arrays[name][i] = entry.read(pick(obs, entry.path))
            except Misfit as misfit:
                what = f"environment {self._env_id!r}: observation {name!r} in {where} {misfit}"
                raise EnvironmentFailure(what) from None

    def outside_bounds(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """One notice per Box whose bounds the rows of name -> [B, ...] exceed for the first time."""
        found = []
        for name, (low, high) in list(self._bounded.items()):
            outside = (arrays[name] < low) | (arrays[name] > high)
            if outside.any():
                del self._bounded[name]
                entry = self.entries[name]
                values = arrays[name] if entry.factors is None else arrays[name] / entry.factors
                what = f"observation {name!r} got {values[outside].flat[0]}, outside {shown(entry.space, 80)}"
                found.append(f"environment {self._env_id!r}: {what}; it is used unchanged")
        return found


def leaves(space: spaces.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Space]]:
    """Path and space of everything within Dicts and Tuples."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from leaves(part, (*path, key))
    else:
        yield path, space


def pick(obs: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path in a whole observation; Misfit if it is missing."""
    for key in path:
        try:
            obs = obs[key]
        except (KeyError, IndexError, TypeError):
            there = f"it has {', '.join(map(str, obs))}" if isinstance(obs, Mapping) else f"got {described(obs)}"
            raise Misfit(f"is missing ({there})") from None
    return obs


def entry_name(path: tuple[Any, ...]) -> str:
    """`inventory/sword` for a Dict in a Dict, `hand/0` for a Tuple in one."""
    return "/".join(map(str, path)) or SINGLE


def is_text(space: spaces.Space) -> bool:
    """Whether its values are strings: a Text, or a custom space such as MiniGrid's missions."""
    return isinstance(space, spaces.Text) or getattr(space.dtype, "kind", "") == "U"


def _space_as_json(space: spaces.Space) -> dict[str, Any]:
    """What reading depends on: not the bounds of a Box, and not the characters of a text."""
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "shape": list(space.shape), "dtype": np.dtype(space.dtype).name}
    return {"kind": "Text"}


def _space_from_json(kind: str, **values: Any) -> spaces.Space:
    if kind == "Discrete":
        return spaces.Discrete(values["n"], start=values["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(values["nvec"]), start=np.array(values["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(values["shape"])
    if kind == "Text":
        return spaces.Text(TEXT_BYTES)
    if kind != "Box":
        raise ValueError(f"{kind!r} is no space that a network reads")
    dtype: Any = np.dtype(values["dtype"])
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-np.inf, np.inf)
    return spaces.Box(*((0, 1) if dtype.kind == "b" else (low, high)), tuple(values["shape"]), dtype.type)


def _entry_format(space: spaces.Space) -> tuple[ArraySpec, Callable[[Any], Any]] | None:
    """Spec and converter of one leaf; None if no network reads it."""
    if isinstance(space, spaces.Discrete):
        first, last = int(space.start), int(space.start + space.n) - 1
        num_values = int(space.n) if space.n <= MAX_CATEGORIES else 0
        spec = ArraySpec(shape=(), dtype=np.dtype(np.int64), num_values=num_values)
        return spec, lambda value: category(value, first, last)
    if isinstance(space, spaces.MultiDiscrete):
        num_values = int(space.nvec.max()) if space.nvec.size and space.nvec.max() <= MAX_CATEGORIES else 0
        spec = ArraySpec(shape=space.nvec.shape, dtype=np.dtype(np.int64), num_values=num_values)
        start = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return spec, lambda value: within(integers(value, spec), start, start + space.nvec - 1, space) - start
    if isinstance(space, spaces.MultiBinary):
        spec = ArraySpec(shape=tuple(space.shape), dtype=np.dtype(np.int8))
        return spec, lambda value: within(integers(value, spec), 0, 1, space)
    if isinstance(space, spaces.Box) and 0 not in space.shape:
        declared = np.dtype(space.dtype)
        if declared.kind == "f":
            spec = ArraySpec(shape=space.shape, dtype=np.dtype(np.float32))
            return spec, lambda value: floats(value, spec)
        if declared.kind in "biu":
            kept = declared if declared.name in KEPT_INTEGERS else np.dtype(np.int64)
            spec = ArraySpec(shape=space.shape, dtype=kept)
            return spec, lambda value: integers(value, spec)
    return _read_as_text(space) if is_text(space) else None


def _read_as_text(space: spaces.Space) -> tuple[ArraySpec, Callable[[Any], np.ndarray]]:
    """Spec and converter to the bytes of a text, of the environment's maximum length."""
    shape = space.shape if isinstance(space, spaces.Box) and len(space.shape) == 1 else (TEXT_BYTES,)
    return ArraySpec(shape=shape, dtype=np.dtype(np.uint8), is_text=True), lambda value: characters(value, shape[0])


WORDS = (
    ArraySpec(shape=(MAX_WORDS,), dtype=np.dtype(np.int32), num_values=NUM_BUCKETS, is_text=True),
    lambda value: word_numbers(text_of(value)),
)
"""Spec and converter to the numbers of a text's words."""


def _factors(space: spaces.Space) -> np.ndarray | None:
    """What the numbers of a floating-point Box are multiplied by (`env.stretch_bounds`), f32 in its shape; None for
    nothing. Those whose bounds both lie within (-1, 1) are stretched until the farther one is 1: a network hardly sees
    a speed of at most 0.07 beside other numbers."""
    if not isinstance(space, spaces.Box) or np.dtype(space.dtype).kind != "f":
        return None
    largest = np.maximum(np.abs(space.low), np.abs(space.high)).astype(np.float32)
    is_small = (largest > 1e-6) & (largest < 1)
    return np.asarray(np.float32(1) / np.where(is_small, largest, np.float32(1))) if is_small.any() else None


def _bounds(entry: Entry) -> tuple[np.ndarray, np.ndarray] | None:
    """The bounds of a numeric Box as it is read, unless its dtype guarantees them."""
    space, spec = entry.space, entry.spec
    if not isinstance(space, spaces.Box) or spec.is_text or spec.dtype == bool:
        return None
    if spec.dtype.kind == "f":
        low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
        if entry.factors is not None:
            low, high = low * entry.factors, high * entry.factors
        return None if np.isinf(low).all() and np.isinf(high).all() else (low, high)
    limits = np.iinfo(spec.dtype)
    return None if (space.low <= limits.min).all() and (space.high >= limits.max).all() else (space.low, space.high)
