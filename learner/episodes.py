"""Finished episodes as the archive keeps them, and the file that holds them, RUN/episodes.safetensors.

Invariant: what is read was checked: every array has its dtype and axes, and every episode as many of each of its
numbers as it has steps. A file says whose it is: the names of its features and actions are part of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from configs.features import check_names
from learner.checkpoint_format import DECODING_ERRORS, read_regular

EPISODES_FILE = "episodes.safetensors"
FORMAT, VERSION = "delphi-episodes", 1
MAX_FILE_BYTES = 1 << 32
OF_STEPS = "steps."
"""Before the name of what each step has one of, in files and checkpoints."""
STEPS = {"actions": np.int32, "extrinsic_rewards": np.float32, "caption": np.uint64, "caption_counts": np.int32}
"""What every step has. Of other channels it may have items, u64, and their counts, i32."""
OUTCOMES = {"success": bool, "terminated": bool, "extrinsic_return": np.float64, "length": np.int64}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """A finished episode, or the last steps of a long one (archive -> gates, campaigns)."""

    steps: Mapping[str, np.ndarray]
    """By name, [L] each: `actions` i32, `extrinsic_rewards` f32, `caption` u64, `caption_counts` i32, and what terms of
    the reward read of other channels; as in `Rollout`."""
    features: np.ndarray | None  # [L+1, F] f32: before the first of these steps, and after each; None without features
    start: np.ndarray | None  # [F] f32: features of the state in which the episode began
    success: bool
    terminated: bool  # False if the step limit ended it
    extrinsic_return: float  # of the whole episode
    length: int  # of the whole episode, in steps

    @property
    def num_kept(self) -> int:
        """L, the steps kept."""
        return len(self.steps["actions"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """The sample of a run's episodes."""

    episodes: Sequence[Episode]
    seen: tuple[int, int]  # finished episodes of the run without success, and with
    features: tuple[str, ...] = ()  # names, in the order of columns
    actions: tuple[str, ...] = ()  # words for the actions, in their order; empty where nobody says

    def outcomes(self, name: str) -> np.ndarray:
        """[E]: `success`, `terminated`, `extrinsic_return` or `length` of each."""
        return np.array([getattr(episode, name) for episode in self.episodes], OUTCOMES[name])


def packed(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Few arrays that hold the episodes one after the other; see `unpacked`."""
    kept = np.array([episode.num_kept for episode in episodes], np.int64)
    arrays = {"kept": kept}
    for name, dtype in OUTCOMES.items():
        arrays[name] = np.array([getattr(episode, name) for episode in episodes], dtype)
    if not episodes:
        return arrays
    for name in episodes[0].steps:
        arrays[f"{OF_STEPS}{name}"] = np.concatenate([episode.steps[name] for episode in episodes])
    if episodes[0].features is not None:
        arrays["features"] = np.concatenate([e.features for e in episodes if e.features is not None])
        arrays["start"] = np.stack([e.start for e in episodes if e.start is not None])
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray]) -> list[Episode]:
    """The episodes of `packed`; KeyError or ValueError for arrays that do not fit each other."""
    kept = arrays["kept"]
    if kept.ndim != 1 or (kept < 1).any():
        raise ValueError("an episode has no steps")
    names = [name for name in arrays if name.startswith(OF_STEPS)]
    steps = {name.removeprefix(OF_STEPS): _split(arrays[name], kept, name) for name in names}
    if len(kept) and "actions" not in steps:
        raise KeyError("steps.actions")
    outcomes = {name: arrays[name] for name in OUTCOMES}
    starts = arrays.get("start")
    for name, array in [*outcomes.items(), *([("start", starts)] if starts is not None else [])]:
        if len(array) != len(kept):
            raise ValueError(f"{name} has {len(array)} entries for {len(kept)} episodes")
    features = None if starts is None else _split(arrays["features"], kept + 1, "features")
    return [
        Episode(
            steps={name: parts[i] for name, parts in steps.items()},
            features=None if features is None else features[i],
            start=None if starts is None else starts[i],
            success=bool(outcomes["success"][i]),
            terminated=bool(outcomes["terminated"][i]),
            extrinsic_return=float(outcomes["extrinsic_return"][i]),
            length=int(outcomes["length"][i]),
        )
        for i in range(len(kept))
    ]


def encode_episodes(episodes: Episodes) -> bytes:
    """The content of the file."""
    arrays = {**packed(episodes.episodes), "seen": np.array(episodes.seen, np.int64)}
    told = {"version": VERSION, "features": episodes.features, "actions": episodes.actions}
    content: bytes = safetensors.numpy.save(arrays, {FORMAT: json.dumps(told)})  # one entry: their order varies
    return content


def read_episodes(run_dir: Path) -> Episodes:
    """The episodes of a run. ValueError, in one line, where there are none or the file is damaged."""
    path = run_dir / EPISODES_FILE
    if not path.exists():
        raise ValueError(
            f"{run_dir} has no {EPISODES_FILE}: train a new run with archive.keep=true, up to a checkpoint"
        )
    try:
        data = read_regular(path, MAX_FILE_BYTES)
        told = _metadata(data)
        if told["version"] != VERSION:
            raise ValueError(f"it has the format version {told['version']!r}, this program reads {VERSION}")
        arrays = safetensors.numpy.load(data)
        names = {name: tuple(map(str, told[name])) for name in ("features", "actions")}
        _check_arrays(arrays, len(names["features"]))
        without, with_success = arrays.pop("seen").tolist()
        found = Episodes(episodes=unpacked(arrays), seen=(without, with_success), **names)
        check_names(found.features, "its features")
        if not all(word.isprintable() for word in found.actions):
            raise ValueError("an action's word is not printable")
    except (OSError, safetensors.SafetensorError, *DECODING_ERRORS) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); the next checkpoint writes it anew"
        ) from None
    return found


def _metadata(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    told: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][FORMAT])
    return told


def _check_arrays(arrays: Mapping[str, np.ndarray], num_features: int) -> None:
    """KeyError for an array of `encode_episodes` that is missing, ValueError for one of another dtype or other axes."""
    wanted: dict[str, Any] = {"seen": np.int64, "kept": np.int64, **OUTCOMES}
    if len(arrays["kept"]):
        further = {name for name in arrays if name.startswith(OF_STEPS)}
        wanted |= {name: np.int32 if name.endswith("_counts") else np.uint64 for name in further}
        wanted |= {f"{OF_STEPS}{name}": dtype for name, dtype in STEPS.items()}
    for name, dtype in wanted.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            got = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise ValueError(f"{name}: got {got}, wanted a list of {np.dtype(dtype)}")
    of_features = {"features", "start"}
    for name in sorted(of_features if num_features and len(arrays["kept"]) else of_features & arrays.keys()):
        if arrays[name].dtype != np.float32 or arrays[name].shape[1:] != (num_features,):
            got = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise ValueError(f"{name}: got {got}, wanted float32 with {num_features} columns, as it names features")


def _split(array: np.ndarray, sizes: np.ndarray, name: str) -> list[np.ndarray]:
    if len(array) != sizes.sum():
        raise ValueError(f"{name} has {len(array)} entries instead of {sizes.sum()}")
    return np.split(array, np.cumsum(sizes)[:-1])
