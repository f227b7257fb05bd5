"""Checkpoints: nested dicts of tensors, arrays and JSON values, in directories that are complete or absent.

Layout: `<directory>/step_<n>/` holds `<part>.json` (the tree) and `<part>.safetensors` (its tensors and arrays) for
each top-level part, and `manifest.json` (format version, step, size and checksum of each file); `<directory>/latest`
names the newest.

Invariant: whatever interrupts a save, the earlier checkpoints stay loadable. Only files are read that the manifest
lists, that lie in the checkpoint's own directory, and that have the manifest's checksum (see
`learner.checkpoint_format`, which trusts no file).
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from learner.checkpoint_format import (
    LATEST,
    REPLACED,
    CheckpointError,
    OtherVersionError,
    candidates,
    encode_checkpoint,
    load_checkpoint,
    read_manifest,
    steps_of,
)

LOG = logging.getLogger(__name__)
UNFINISHED = ".saving-"
SET_ASIDE = "set-aside-"
CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems without a way to sync a folder answer, such as SMB and some of FUSE."""


def save_checkpoint(directory: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `state` (parts by name) as `<directory>/step_<step>`, make it the latest and return its path; keeps the
    `keep` newest. Raises TypeError for a value that a checkpoint cannot hold and CheckpointError for a failed write,
    after which the earlier checkpoints are unchanged."""
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
    files = encode_checkpoint(step, state)
    target, unfinished = directory / f"step_{step}", directory / f"{UNFINISHED}step_{step}"
    try:
        _make_durably(directory)
        _sweep(directory)
        unfinished.mkdir()
        for name, data in files.items():
            _write_durably(unfinished / name, data)
        _sync_directory(unfinished)
        # A directory cannot be replaced atomically: the old one is renamed first, and stays loadable under that name.
        if target.exists() and not _set_aside(target):
            target.rename(directory / f"{REPLACED}step_{step}")
        unfinished.rename(target)
        _sync_directory(directory)
        _write_durably(directory / f"{UNFINISHED}{LATEST}", target.name.encode())
        (directory / f"{UNFINISHED}{LATEST}").replace(directory / LATEST)
        _sync_directory(directory)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        size = sum(map(len, files.values())) / 1e6
        raise CheckpointError(
            f"checkpoint {target} ({size:.1f} MB) could not be written: {error}. Earlier checkpoints are intact;"
            " free some space or correct the permissions"
        ) from error
    with contextlib.suppress(OSError):  # the next save removes what is left
        _prune(directory, step, keep)
    return target


def load_latest(
    directory: Path, parts: Collection[str] = (), refused: list[str] | None = None
) -> dict[str, Any] | None:
    """The state of the newest usable checkpoint, which has all of `parts`; None if there are no checkpoints. A refused
    one is skipped with a warning, and the reason is appended to `refused`. Raises CheckpointError, with every reason,
    if all are refused."""
    problems = [] if refused is None else refused
    for path in candidates(directory):
        try:
            state = load_checkpoint(path)
            lacking = [part for part in parts if part not in state]
            if lacking:
                raise CheckpointError(f"checkpoint {path} is not that of a run: it lacks {', '.join(lacking)}")
            return state
        except CheckpointError as error:
            LOG.warning("%s; trying the one before it", error)
            problems.append(str(error))
    if problems:
        reasons = "\n".join(problems)
        raise CheckpointError(
            f"no checkpoint in {directory} can be used; repair or move the folder to start anew:\n{reasons}"
        )
    return None


def _prune(directory: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest up to `step`, and those after `step`, which the run abandoned when it resumed
    before them. A later one of another format version is renamed instead: the Delphi that wrote it can still use it."""
    steps = steps_of(directory)
    kept = sorted(number for number in steps if number <= step)[-keep:]
    for number, path in steps.items():
        if number not in kept and not (number > step and _set_aside(path)):
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(f"{REPLACED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> bool:
    """Rename a checkpoint of another format version to a name that is never pruned; returns False for any other."""
    try:
        read_manifest(path)
    except OtherVersionError:
        aside = path.with_name(f"{SET_ASIDE}{path.name}")
        if not aside.exists():
            path.rename(aside)
            LOG.warning("checkpoint %s is of another version of Delphi and was renamed to %s", path.name, aside)
            return True
    except CheckpointError:
        pass
    return False


def _sweep(directory: Path) -> None:
    """Clean up after an interrupted save. The run's lock guarantees that no other save is in progress."""
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


def _make_durably(directory: Path) -> None:
    """Create `directory` and its missing parents, and flush each new directory entry to disk."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_directory(path.parent)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(descriptor)
