"""Nested state as plain JSON plus a flat dict of tensors, and back.

Invariant: what comes back equals what went in, in type, dtype, shape and value (NaN included); anything that could not is
refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

TAGS = ("$tensor", "$array", "$float", "$tuple", "$dict")


def encode_tree(tree: Any, path: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """(JSON value, tensors by their path). `path` names the root in errors; raises TypeError for a leaf of another kind.

    Leaves: torch tensors, numpy arrays, int of any size, float, str, bool, None. Nodes: dict, list, tuple.
    """
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()

    def keep(tensor: torch.Tensor, path: str) -> str:
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if path in tensors:  # {"a.b": x, "a": {"b": y}}
            path = f"{path}#{len(tensors)}"
        tensors[path] = tensor.clone() if storage in storages else tensor  # safetensors refuses two names for one memory
        storages.add(storage)
        return path

    def encode(value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor):
            return {"$tensor": keep(value, path)}
        if isinstance(value, np.ndarray):
            return {"$array": keep(_to_tensor(value, path), path)}
        if isinstance(value, list):
            return [encode(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"$tuple": [encode(item, f"{path}.{index}") for index, item in enumerate(value)]}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: encode(item, f"{path}.{key}") for key, item in value.items()}
            # Optimisers number their parameters: keys that are no strings are kept as pairs.
            return {"$dict": [[encode_key(key, path), encode(item, f"{path}.{key!r}")] for key, item in value.items()]}
        raise TypeError(f"a checkpoint cannot hold {path} of type {type(value).__name__}; make it a tensor, an array or a JSON value")

    def encode_key(key: Any, path: str) -> Any:
        if type(key) not in (int, str):
            raise TypeError(f"a key of {path} in a checkpoint is a string or an integer, not {key!r}")
        return key

    return encode(tree, path), tensors


def decode_tree(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The tree that `encode_tree` was given; raises KeyError for a tensor that is missing."""
    if isinstance(encoded, list):
        return [decode_tree(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    tag = next(iter(encoded)) if len(encoded) == 1 else ""
    if tag not in TAGS:
        return {key: decode_tree(item, tensors) for key, item in encoded.items()}
    content = encoded[tag]
    if tag == "$tensor":
        return tensors[content]
    if tag == "$array":
        return tensors[content].numpy()
    if tag == "$float":
        return float(content)
    if tag == "$tuple":
        return tuple(decode_tree(item, tensors) for item in content)
    return {key: decode_tree(item, tensors) for key, item in content}


def _to_tensor(array: np.ndarray, path: str) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))  # a copy: torch warns of arrays that are read-only
    except TypeError as error:
        raise TypeError(f"a checkpoint cannot hold {path}, an array of {array.dtype}: {error}") from error
