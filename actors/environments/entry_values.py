"""Reads the values of observation entries, as environments give them, without loss.

Invariant: a converter returns exactly what was given, in the declared dtype and shape, or raises `Misfit`.
"""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.environments.captioner import to_bytes
from actors.environments.errors import shown
from actors.environments.vector import ArraySpec


class Misfit(Exception):
    """A mismatch of one entry: what was got and what was wanted."""


def text_of(value: Any) -> bytes:
    """UTF-8 of a text; Misfit for anything else."""
    text = to_bytes(value)
    if text is None:
        raise Misfit(f"got {described(value)}, wanted a text (str, bytes, or a uint8 array)")
    return text


def characters(value: Any, num_bytes: int) -> np.ndarray:
    """[num_bytes] u8: the beginning of a text, padded with zeros."""
    row = np.zeros(num_bytes, np.uint8)
    text = text_of(value)[:num_bytes]
    row[: len(text)] = np.frombuffer(text, np.uint8)
    return row


def _array(value: Any, spec: ArraySpec) -> np.ndarray:
    if type(value) is np.ndarray and value.dtype == spec.dtype and value.shape == spec.shape:
        return value
    try:
        array = np.asarray(value)
    except Exception:
        raise Misfit(f"got {described(value)}, wanted an array of shape {spec.shape}") from None
    if array.dtype.kind not in "biuf":
        raise Misfit(f"got {described(value)}, wanted numbers of shape {spec.shape}, as its space declares")
    if array.shape != spec.shape:
        raise Misfit(f"got shape {array.shape}, wanted {spec.shape}, as its space declares")
    return array


def floats(value: Any, spec: ArraySpec) -> np.ndarray:
    """Finite numbers of the dtype and shape of `spec`."""
    array = _array(value, spec)
    cast = array
    if array.dtype != spec.dtype:
        with np.errstate(over="ignore"):
            cast = array.astype(spec.dtype)
    # The sum of squares is the fastest test of all values; if it is not finite, the values may still be, but large.
    if not math.isfinite(np.vdot(cast, cast)):
        finite = np.isfinite(cast)
        if not finite.all():
            raise Misfit(f"got {array[~finite].flat[0]}, wanted finite numbers of 32 bits")
    return cast


def integers(value: Any, spec: ArraySpec) -> np.ndarray:
    """Integers of the dtype and shape of `spec`, which holds their values."""
    array = _array(value, spec)
    if array.dtype == spec.dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(spec.dtype)
        lost = cast != array
    if lost.any():
        got = f"{array.dtype} values such as {array[lost].flat[0]:.6g}"
        raise Misfit(f"got {got}, which its declared {spec.dtype} cannot hold")
    return cast


def within(array: np.ndarray, low: Any, high: Any, space: spaces.Space) -> np.ndarray:
    """The array, whose values lie in [low, high], as `space` declares."""
    outside = (array < low) | (array > high)
    if outside.any():
        raise Misfit(f"got {array[outside].flat[0]}, outside {shown(space, 80)}")
    return array


def category(value: Any, first: int, last: int) -> int:
    """An integer in [first, last], counted from 0 on."""
    number = value if isinstance(value, int) else integers(value, SCALAR).item()
    if not first <= number <= last:
        raise Misfit(f"got {number}, wanted {first} to {last}, as its space declares")
    return number - first


SCALAR = ArraySpec(shape=(), dtype=np.dtype(np.int64))


def described(value: Any) -> str:
    """A value in words, shortened."""
    return "None" if value is None else f"{type(value).__name__} {shown(value, 40)}"
