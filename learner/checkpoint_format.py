"""What a checkpoint's files hold, and reading them from a directory that may be damaged or made by somebody else: nested state as plain
JSON plus a flat dict of tensors, and back.

Invariant: what comes back equals what went in, in type, dtype, shape and value (NaN included); anything that could not is refused by
name. Nothing is unpickled; nothing outside the directory is opened, no link or device in it is followed, and nothing is read that is
larger than what may be believed, or whose checksum differs from the manifest's.
"""

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

FORMAT = "delphi-checkpoint"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
LATEST = "latest"
REPLACED = ".replaced-"
STEP = re.compile(r"step_(\d{1,18})")
MAX_MANIFEST_BYTES = 1 << 20
MAX_TREE_BYTES = 1 << 28
"""Of one part's JSON values: they take some twenty times as much memory as objects."""
FILE_NAME = re.compile(r"(?!manifest\.)[A-Za-z0-9_]{1,200}\.(json|safetensors)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or must not be used; the message says which, why, and what to do."""


class OtherVersionError(CheckpointError):
    """It was written in another format version, and may be sound."""


def candidates(directory: Path) -> list[Path]:
    """Checkpoints, most trusted first: what `latest` names, then the others from the newest down, then one that was being replaced."""
    try:
        name = read_regular(directory / LATEST, 64).decode().strip()
    except (OSError, ValueError):
        name = ""
    named = [directory / name] if STEP.fullmatch(name) else []
    others = [
        *(path for _, path in sorted(steps_of(directory).items(), reverse=True)),
        *directory.glob(f"{REPLACED}step_*"),
    ]
    return [path for path in dict.fromkeys([*named, *others]) if path.is_dir()]


def steps_of(directory: Path) -> dict[int, Path]:
    """Step -> checkpoint, of all that have their name."""
    found = ((STEP.fullmatch(path.name), path) for path in directory.glob("step_*"))
    return {int(match[1]): path for match, path in found if match}


def read_manifest(path: Path) -> dict[str, Any]:
    """File name -> its `bytes` and `xxh3_128`, of the checkpoint at `path`. Raises CheckpointError."""
    if path.is_symlink():
        raise CheckpointError(f"checkpoint {path} is refused: it is a link; put the folder itself there")
    try:
        manifest = parse_json(read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no Delphi checkpoint: its {MANIFEST} does not say `{FORMAT}`")
    if manifest.get("version") != FORMAT_VERSION:
        raise OtherVersionError(
            f"checkpoint {path} has format version {manifest.get('version')!r}, this program reads {FORMAT_VERSION}; "
            "load it with the version of Delphi that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"checkpoint {path} is damaged: its {MANIFEST} lists no files")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"checkpoint {path} is refused: its {MANIFEST} names {name[:80]!r}, which is no file of a checkpoint"
            )
    if not path.name.endswith(f"step_{manifest.get('step')}"):
        raise CheckpointError(
            f"checkpoint {path} is refused: its {MANIFEST} says that it is of step {manifest.get('step')!r}"
        )
    return files


def read_files(path: Path, files: dict[str, Any]) -> dict[str, bytes]:
    """The content of all files of a manifest; raises CheckpointError, or OSError, KeyError and TypeError for damage of other kinds."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sum(_size(entry) for entry in files.values()) > memory:
        raise CheckpointError(
            f"checkpoint {path} is refused: its files are larger than this machine's memory ({memory / 1e9:.0f} GB)"
        )
    return {name: _read_checked(path / name, entry) for name, entry in files.items()}


def parse_json(data: bytes) -> Any:
    """The JSON value; ValueError also for NaN and infinities, which no save writes."""
    return json.loads(data, parse_constant=_refuse_constant)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes; OSError for anything else, without waiting for a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path.name} is no plain file")
        if status.st_size > limit:
            raise OSError(f"{path.name} has {status.st_size} bytes, at most {limit} are read")
        return file.read(limit)


def _read_checked(path: Path, entry: Any) -> bytes:
    wanted = _size(entry)
    size = path.lstat().st_size
    if size != wanted:
        raise CheckpointError(
            f"checkpoint {path.parent} is damaged: {path.name} has {size} bytes, written were {wanted}"
        )
    data = read_regular(path, MAX_TREE_BYTES if path.suffix == ".json" else wanted)
    if xxhash.xxh3_128_hexdigest(data) != entry["xxh3_128"]:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: the checksum of {path.name} does not match")
    return data


def _size(entry: Any) -> int:
    size = entry["bytes"]
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is no number of bytes")
    return size


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


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
        tensors[path] = (
            tensor.clone() if storage in storages else tensor
        )  # safetensors refuses two names for one memory
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
        raise TypeError(
            f"a checkpoint cannot hold {path} of type {type(value).__name__}; make it a tensor, an array or a JSON value"
        )

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
