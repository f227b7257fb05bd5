"""The file format of checkpoints (nested state as JSON and a flat dict of tensors), and reading it from a damaged or
hostile directory.

Invariant: decoding returns what was encoded, equal in type, dtype, shape and value (NaN included); a value for which
this is impossible is refused by name. Nothing is unpickled, nothing outside the directory is opened, and no link, pipe
or device is followed. A file is refused if it exceeds its size limit or if its checksum differs from the manifest's.
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
import safetensors.torch
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
"""Limit of one part's JSON values, which take about twenty times as much memory once decoded."""
EMPTY_TENSORS = safetensors.torch.save({})
DECODING_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)
FILE_NAME = re.compile(r"(?!manifest\.)[A-Za-z0-9_]{1,200}\.(json|safetensors)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or must not be used; the message says which, why, and what to do."""


class OtherVersionError(CheckpointError):
    """The checkpoint was written in another format version, and may be intact."""


def candidates(directory: Path) -> list[Path]:
    """Checkpoints in the order in which to try them: the one that `latest` names, the others from the newest to the
    oldest, then one whose replacement was interrupted."""
    try:
        name = read_regular(directory / LATEST, 64).decode().strip()
    except (OSError, ValueError):
        name = ""
    named = [directory / name] if STEP.fullmatch(name) else []
    newest_first = [path for _, path in sorted(steps_of(directory).items(), reverse=True)]
    paths = dict.fromkeys([*named, *newest_first, *directory.glob(f"{REPLACED}step_*")])
    return [path for path in paths if path.is_dir()]


def steps_of(directory: Path) -> dict[int, Path]:
    """Step -> path of the checkpoints in `directory`."""
    found = ((STEP.fullmatch(path.name), path) for path in directory.glob("step_*"))
    return {int(match[1]): path for match, path in found if match}


def encode_checkpoint(step: int, state: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by name, the manifest last. Raises TypeError for what a checkpoint cannot hold."""
    files = {}
    for part, value in state.items():
        if not isinstance(part, str) or not re.fullmatch(r"[A-Za-z0-9_]+", part) or f"{part}.json" == MANIFEST:
            raise TypeError(f"a top-level key of a checkpoint is a name of letters, digits and _, not {part!r}")
        tree, tensors = encode_tree(value, part)
        files[f"{part}.json"] = json.dumps(tree, allow_nan=False).encode()
        if len(files[f"{part}.json"]) > MAX_TREE_BYTES:
            raise TypeError(
                f"{part} has more than {MAX_TREE_BYTES} bytes of JSON values, which could not be loaded: use arrays"
            )
        if tensors:
            files[f"{part}.safetensors"] = safetensors.torch.save(tensors)
    entries = {name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()}
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "step": step, "files": entries}
    return {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`, tensors on the CPU. Raises CheckpointError for an incomplete, damaged or hostile
    checkpoint, and for another format."""
    try:
        files = _read_files(path, read_manifest(path))
        trees = {name.removesuffix(".json"): parse_json(data) for name, data in files.items() if name.endswith(".json")}
        return {
            part: decode_tree(tree, safetensors.torch.load(files.get(f"{part}.safetensors", EMPTY_TENSORS)))
            for part, tree in trees.items()
        }
    except (OSError, safetensors.SafetensorError, *DECODING_ERRORS) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """File name -> its `bytes` and `xxh3_128`, of the checkpoint at `path`. Raises CheckpointError."""
    refused = f"checkpoint {path} is refused:"
    if path.is_symlink():
        raise CheckpointError(f"{refused} it is a link; put the folder itself there")
    try:
        manifest = parse_json(read_regular(path / MANIFEST, MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a Delphi checkpoint: its {MANIFEST} does not have the format `{FORMAT}`")
    if manifest.get("version") != FORMAT_VERSION:
        raise OtherVersionError(
            f"checkpoint {path} has format version {manifest.get('version')!r}, this program reads {FORMAT_VERSION};"
            " load it with the version of Delphi that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"checkpoint {path} is damaged: its {MANIFEST} lists no files")
    if foreign := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise CheckpointError(f"{refused} its {MANIFEST} names {foreign[0][:80]!r}, which is not a checkpoint file")
    if not path.name.endswith(f"step_{manifest.get('step')}"):
        raise CheckpointError(f"{refused} its {MANIFEST} says that it is of step {manifest.get('step')!r}")
    return files


def _read_files(path: Path, files: dict[str, Any]) -> dict[str, bytes]:
    """The content of a manifest's files; CheckpointError, or OSError, KeyError, ValueError, TypeError for damage."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for entry in files.values():
        if type(entry["bytes"]) is not int or entry["bytes"] < 0:
            raise ValueError(f"{entry['bytes']!r} is not a number of bytes")
    if sum(entry["bytes"] for entry in files.values()) > memory:
        raise CheckpointError(
            f"checkpoint {path} is refused: its files are larger than this machine's memory ({memory / 1e9:.0f} GB)"
        )
    contents = {}
    for name, entry in files.items():
        wanted, size = entry["bytes"], (path / name).lstat().st_size
        if size != wanted:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} has {size} bytes instead of {wanted}")
        contents[name] = read_regular(path / name, MAX_TREE_BYTES if name.endswith(".json") else wanted)
        if xxhash.xxh3_128_hexdigest(contents[name]) != entry["xxh3_128"]:
            raise CheckpointError(f"checkpoint {path} is damaged: the checksum of {name} does not match")
    return contents


def parse_json(data: bytes) -> Any:
    """The JSON value; raises ValueError also for NaN and infinities, which a save never writes."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON value")

    return json.loads(data, parse_constant=refuse)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; OSError for anything else, without blocking on a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if status.st_size > limit:
            raise OSError(f"{path.name} has {status.st_size} bytes, the limit is {limit}")
        return file.read(limit)


def encode_tree(tree: Any, path: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """(JSON value, tensors by their path); `path` names the root in errors. Leaves are torch tensors, numpy arrays, int
    of any size, float, str, bool, None; nodes are dict, list, tuple. Raises TypeError for any other value."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()

    def keep(tensor: torch.Tensor, path: str) -> str:
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if path in tensors:  # {"a.b": x, "a": {"b": y}}
            path = f"{path}#{len(tensors)}"
        # safetensors refuses two names for the same memory.
        tensors[path] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
        return path

    def encode(value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor):
            return {"$tensor": keep(value, path)}
        if isinstance(value, np.ndarray):
            try:
                tensor = torch.from_numpy(np.array(value, order="C"))  # a copy: torch warns about read-only arrays
            except TypeError as error:
                raise TypeError(f"a checkpoint cannot hold {path}, an array of {value.dtype}: {error}") from error
            return {"$array": keep(tensor, path)}
        if isinstance(value, list | tuple):
            items = [encode(item, f"{path}.{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: encode(item, f"{path}.{key}") for key, item in value.items()}
            for key in value:
                if type(key) not in (int, str):
                    raise TypeError(f"a key of {path} in a checkpoint is a string or an integer, not {key!r}")
            # Optimisers number their parameters: dicts with other keys than strings are stored as pairs.
            return {"$dict": [[key, encode(item, f"{path}.{key!r}")] for key, item in value.items()]}
        raise TypeError(
            f"a checkpoint cannot hold {path} of type {type(value).__name__}; use tensors, arrays and JSON values"
        )

    return encode(tree, path), tensors


def decode_tree(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The tree that `encode_tree` was given; raises KeyError for a missing tensor."""
    if isinstance(encoded, list):
        return [decode_tree(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    match list(encoded.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$array", name)]:
            return tensors[name].numpy()
        case [("$float", text)]:
            return float(text)
        case [("$tuple", items)]:
            return tuple(decode_tree(item, tensors) for item in items)
        case [("$dict", pairs)]:
            return {key: decode_tree(item, tensors) for key, item in pairs}
    return {key: decode_tree(item, tensors) for key, item in encoded.items()}
