"""The texts and numbers of an environment's observations and infos, one by one, as a captioner may say them.

Invariant: each has the Python expression that reads it from `obs` and `info` as the environment gives them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.environments.captioner import to_bytes
from actors.environments.observations import Entry
from actors.environments.protocol import finite_number

FEW_NUMBERS = 12
"""An array of more numbers than this is described by their mean."""
FEW_VALUES = 4
"""A number with no more values than this is described by its value, any other as low, middle or high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One text or number of an observation or of info, as random play showed it."""

    code: str  # the expression of `obs` and `info` that a captioner reads it with
    name: str  # in words
    values: tuple[Any, ...]  # different ones: texts and whole numbers if there are few, else lowest and highest
    thirds: tuple[float, float] | None = None  # the bounds of low, middle and high; None: `values` are all
    is_text: bool = False

    @property
    def varies(self) -> bool:
        """Whether random play changed it."""
        return len(self.values) > 1


def things_of_entry(entry: Entry, array: np.ndarray) -> Iterator[Thing]:
    """What an entry of an observation holds, from its values `array` [steps, ...] as policies read them."""
    from actors.networks.encoders import is_image

    code = "obs" + "".join(f"[{key!r}]" for key in entry.path)
    words = " ".join(map(str, entry.path)).replace("_", " ") or "number"
    if entry.spec.is_text:
        yield _text(code, words, [(to_bytes(row) or b"").decode("utf-8", "replace") for row in array])
        return
    flat = array.reshape(len(array), -1)
    if not entry.spec.shape:
        start = int(getattr(entry.space, "start", 0))
        yield _number(code, words if entry.path else "state", flat[:, 0] + start)
    elif is_image(entry.spec):
        yield _number(f"np.mean({code})", f"{words if entry.path else 'picture'} brightness", flat.mean(axis=1))
    elif flat.shape[1] > FEW_NUMBERS:
        yield _number(f"np.mean({code})", f"{words} mean", flat.mean(axis=1))
    else:
        for column, index in enumerate(np.ndindex(entry.spec.shape)):
            place = " ".join(map(str, index)) if flat.shape[1] > 1 else ""
            at = "".join(f"[{i}]" for i in index)
            yield _number(f"{code}{at}", f"{words} {place}".strip(), flat[:, column])


def things_of_info(infos: list[Mapping[str, Any]]) -> list[Thing]:
    """The texts and numbers of the infos of some steps, by key."""
    things = []
    for key in dict.fromkeys(key for info in infos for key in info if isinstance(key, str)):
        values = [info[key] for info in infos if key in info]
        is_always = len(values) == len(infos)
        words = key.replace("_", " ")
        if all(isinstance(value, str) for value in values):
            code = f"info[{key!r}]" if is_always else f"info.get({key!r}, '')"
            things.append(_text(code, words, values))
        elif all(finite_number(value) is not None and np.ndim(value) == 0 for value in values):
            code = f"info[{key!r}]" if is_always else f"info.get({key!r}, 0)"
            numbers = np.array([float(value) for value in values] + ([] if is_always else [0.0]))
            things.append(_number(code, words, numbers))
    return things


def _text(code: str, name: str, texts: list[str]) -> Thing:
    return Thing(code=code, name=name, values=tuple(dict.fromkeys(texts)), is_text=True)


def _number(code: str, name: str, numbers: np.ndarray) -> Thing:
    different = np.unique(numbers).tolist()
    if len(different) <= FEW_VALUES:
        return Thing(code=code, name=name, values=tuple(different))
    first, second = (float(f"{bound:.3g}") for bound in np.quantile(numbers, (1 / 3, 2 / 3)))
    return Thing(code=code, name=name, values=(different[0], different[-1]), thirds=(first, second))
