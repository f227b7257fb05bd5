"""Writes a recording to a file, in the format that its name ends with.

Invariant: a file is complete or is not there, and one that was there before is replaced only by a complete one.
"""

import bz2
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cluster.replay.animation import write_gif, write_mp4
from cluster.replay.asciicast import asciicast
from cluster.replay.recording import Recording
from configs.checks import ConfigError
from llm_server.progress import progress

Advance = Callable[[int], None]
Writer = Callable[[Recording, Sequence[int], float, Path, Advance], None]


def format_of(path: str) -> str:
    """The ending of `path` that names a format; ConfigError for any other, and where there is no such folder."""
    ending = next((ending for ending in FORMATS if path.endswith(ending)), None)
    if ending is None:
        raise ConfigError(f"--out: got {path!r}, wanted a name that ends with {', '.join(FORMATS)}")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--out: there is no folder {Path(path).parent}")
    return ending


def write_file(recording: Recording, moments: Sequence[int], speed: float, out: str) -> None:
    """Write `moments` (numbers) of a recording, to be shown at `speed` per second. Raises ConfigError for a game that
    the format cannot hold, OSError, and RuntimeError of `animation`."""
    ending, target = format_of(out), Path(out)
    unfinished = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        with progress(f"writing {out}", len(moments)) as advance:
            FORMATS[ending](recording, moments, speed, unfinished, advance)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_cast(recording: Recording, moments: Sequence[int], speed: float, path: Path, advance: Advance) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in asciicast(recording, moments, speed):
            file.write(line + "\n")
            advance(1)


def _write_ttyrec(
    compressed: bool, recording: Recording, moments: Sequence[int], speed: float, path: Path, advance: Advance
) -> None:
    if recording.moments[0].screen is None:
        raise ConfigError(f"--out: a ttyrec holds NetHack's terminal, which {recording.environment} does not have")
    from cluster.replay.ttyrec import ttyrec  # imports NLE

    with bz2.open(path, "wb") if compressed else path.open("wb") as file:
        for part in ttyrec(recording, moments, speed):
            file.write(part)
    advance(len(moments))


FORMATS: dict[str, Writer] = {
    ".cast": _write_cast,
    ".gif": write_gif,
    ".mp4": write_mp4,
    ".ttyrec.bz2": partial(_write_ttyrec, True),
    ".ttyrec": partial(_write_ttyrec, False),
}
"""By the ending of the file's name."""
