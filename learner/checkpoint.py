"""Checkpoints: nested dicts of tensors, arrays and JSON values, in directories that are whole or absent.

Layout: `<directory>/step_<n>/` holds per top-level part `<part>.json` (the tree) and `<part>.safetensors` (its tensors and
arrays), and `manifest.json` (format version, step, size and checksum of each file); `<directory>/latest` names the newest.

Invariant: whatever interrupts a save, the checkpoints before it stay loadable; nothing is unpickled, and no part is used
whose checksum differs from the manifest's.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import xxhash

from learner.state_tree import decode_tree, encode_tree

LOG = logging.getLogger(__name__)
FORMAT = "delphi-checkpoint"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
LATEST = "latest"
UNFINISHED = ".saving-"
REPLACED = ".replaced-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or must not be used; the message says which, why, and what to do."""


def save_checkpoint(directory: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `state` as `<directory>/step_<step>`, make it the latest and return its path; keeps the `keep` newest.

    Top-level keys are part names, their values nested dicts (or any leaf). Raises TypeError for a value that no
    checkpoint can hold and CheckpointError where the disk refuses; the earlier checkpoints are then untouched.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
    files = _encode_parts(state)
    target, unfinished = directory / f"step_{step}", directory / f"{UNFINISHED}step_{step}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        unfinished.mkdir()
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "step": step,
            "files": {name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()},
        }
        for name, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            _write_durably(unfinished / name, data)
        _sync_directory(unfinished)
        if target.exists():  # a directory cannot be replaced in one step: the old one steps aside, still loadable
            target.rename(directory / f"{REPLACED}step_{step}")
        unfinished.rename(target)
        _write_durably(directory / f"{UNFINISHED}{LATEST}", target.name.encode())
        (directory / f"{UNFINISHED}{LATEST}").replace(directory / LATEST)
        _sync_directory(directory)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        size = sum(map(len, files.values())) / 1e6
        raise CheckpointError(
            f"checkpoint {target} ({size:.1f} MB) could not be written: {error}. Earlier checkpoints are intact; "
            "make room or correct the permissions, then re-run the same command"
        ) from error
    _prune(directory, step, keep)
    return target


def load_latest(directory: Path) -> dict[str, Any] | None:
    """The state of the newest usable checkpoint, None where there is none at all.

    One that is damaged is passed over with a warning; where all are, CheckpointError says what is wrong with each.
    """
    problems = []
    for path in _candidates(directory):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            LOG.warning("%s; trying the one before it", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no checkpoint in {directory} can be used; repair or move the folder to start anew:\n" + "\n".join(problems))
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`, tensors on the CPU; raises CheckpointError where it is incomplete, damaged or of another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no Delphi checkpoint: its {MANIFEST} does not say `{FORMAT}`")
        if manifest.get("version") != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has format version {manifest.get('version')!r}, this program reads {FORMAT_VERSION}; "
                "load it with the version of Delphi that wrote it"
            )
        files = {name: _read_checked(path / name, entry) for name, entry in manifest["files"].items()}
        return {
            name.removesuffix(".json"): decode_tree(
                json.loads(data), safetensors.torch.load(files.get(name.removesuffix(".json") + ".safetensors", EMPTY_TENSORS))
            )
            for name, data in files.items()
            if name.endswith(".json")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from error


EMPTY_TENSORS = safetensors.torch.save({})


def _encode_parts(state: Mapping[str, Any]) -> dict[str, bytes]:
    files = {}
    for part, value in state.items():
        if not isinstance(part, str) or not re.fullmatch(r"[A-Za-z0-9_]+", part) or f"{part}.json" == MANIFEST:
            raise TypeError(f"a top-level key of a checkpoint is a plain name of letters, digits and _, not {part!r}")
        tree, tensors = encode_tree(value, part)
        files[f"{part}.json"] = json.dumps(tree, allow_nan=False).encode()
        if tensors:
            files[f"{part}.safetensors"] = safetensors.torch.save(tensors)
    return files


def _read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    data = path.read_bytes()
    if len(data) != entry["bytes"]:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} has {len(data)} bytes, written were {entry['bytes']}")
    if xxhash.xxh3_128_hexdigest(data) != entry["xxh3_128"]:
        raise CheckpointError(f"checkpoint {path.parent} is damaged: the checksum of {path.name} does not match")
    return data


def _candidates(directory: Path) -> list[Path]:
    """Checkpoints, most trusted first: what `latest` names, then the others from the newest down, then one that was being replaced."""
    try:
        named = [directory / (directory / LATEST).read_text().strip()]
    except (OSError, UnicodeDecodeError):
        named = []
    others = [*(path for _, path in sorted(_steps(directory).items(), reverse=True)), *directory.glob(f"{REPLACED}step_*")]
    return [path for path in dict.fromkeys([*named, *others]) if path.is_dir() and path != directory]


def _steps(directory: Path) -> dict[int, Path]:
    found = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in directory.glob("step_*"))
    return {int(match[1]): path for match, path in found if match}


def _prune(directory: Path, step: int, keep: int) -> None:
    """Remove what is too old, and what lies beyond `step`: a future that was given up when the run resumed before it."""
    steps = _steps(directory)
    kept = sorted(number for number in steps if number <= step)[-keep:]
    for number, path in steps.items():
        if number not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(f"{REPLACED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what a save that crashed has left behind. The run's lock sees to it that no other save is under way."""
    for path in directory.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in directory.glob(f"{REPLACED}step_*"):
        target = directory / path.name.removeprefix(REPLACED)
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
