"""Replays for the page: a good, a median and a bad episode of the newest checkpoint, as the games of an evaluation.

Invariant: frames are stored as differences to the frame before and compressed; every step of an episode is there, and
where frames are left out the page says so.
"""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.replay.recording import Recording

ENVS = 16
"""As `delphi eval` plays by default, whose games are taken where it has kept them."""
MAX_FRAME_BYTES = 48 << 20
"""Of one replay in the browser's memory; a longer one shows every second, third ... frame."""
MAX_SIDE = 192
"""Pixels; larger pictures are thinned."""


def replays(run_dir: Path, episodes: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The replays as JSON values, each with its `label`. Raises ValueError where nothing can be played."""
    from cluster.replay.games import evaluated_games, record

    games = evaluated_games(str(run_dir), player="policy", episodes=episodes, envs=min(ENVS, episodes), say=say)
    return [
        {"label": label, **encoded(record(str(run_dir), game, player="policy"))}
        for label, game in chosen(games).items()
    ]


def chosen(games: Sequence[Any]) -> dict[str, Any]:
    """The best, the median and the worst of the games by the main metric of `delphi eval`; fewer where there are
    fewer."""
    from cluster.run.outcome import METRICS

    if not games:
        return {}
    name = next(name for name in (*METRICS, "length") if name in games[0].metrics)
    ordered = sorted(games, key=lambda game: game.metrics[name])
    picked = (("good", ordered[-1]), ("median", ordered[(len(ordered) - 1) // 2]), ("bad", ordered[0]))
    by_place = {game.place: (label, game) for label, game in picked}
    return dict(by_place.values())


def encoded(recording: Recording) -> dict[str, Any]:
    """A recording as JSON values: `moments` and `frames`, both gzip in base64, and what is needed to unpack them."""
    moments = recording.moments
    first = moments[0]
    arrays: dict[str, np.ndarray] = {}
    every = 1
    if first.screen is not None:
        every = _every(len(moments), 3 * len(first.screen) * max(map(len, first.screen)))
        width = max(len(row) for moment in moments for row in moment.screen or ())
        arrays["characters"] = np.array([_codes(moment.screen or (), width) for moment in moments[::every]], "<u2")
        if first.colours is not None:
            arrays["colours"] = np.array([moment.colours for moment in moments[::every]], np.uint8)
    elif first.picture is not None:
        stride = -(-max(first.picture.shape[:2]) // MAX_SIDE)
        every = _every(len(moments), first.picture[::stride, ::stride].size)
        pictures = [moment.picture for moment in moments[::every]]
        arrays["pixels"] = np.array([p[::stride, ::stride, :3] for p in pictures if p is not None], np.uint8)
    return {
        "environment": recording.environment,
        "player": recording.player,
        "game": list(recording.game),
        "metrics": {name: _short(value) for name, value in recording.metrics.items()},
        "every": every,
        "moments": _packed(json.dumps(_columns(recording)).encode()),
        "planes": [
            {"name": name, "shape": list(array.shape), "bytes": array.itemsize} for name, array in arrays.items()
        ],
        "frames": _packed(b"".join(_differences(array) for array in arrays.values())),
    }


def _every(frames: int, frame_bytes: int) -> int:
    return -(-frames * frame_bytes // MAX_FRAME_BYTES)


def _codes(screen: Sequence[str], width: int) -> list[list[int]]:
    """Code units of the rows; characters beyond 16 bits become the replacement character."""
    return [[min(ord(c), 0xFFFF) if ord(c) <= 0xFFFF else 0xFFFD for c in row.ljust(width)] for row in screen]


def _differences(frames: np.ndarray) -> bytes:
    """[T, ...] as each frame minus the one before, modulo the type's range."""
    return np.diff(frames, axis=0, prepend=np.zeros_like(frames[:1])).tobytes()


def _columns(recording: Recording) -> Mapping[str, list[Any]]:
    moments = recording.moments
    texts = {name: [getattr(moment, name) for moment in moments] for name in ("action", "caption")}
    names = ("reward", "intrinsic", "probability", "value")
    return texts | {name: [_short(getattr(moment, name)) for moment in moments] for name in names}


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
