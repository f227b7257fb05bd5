"""A recording as pictures: GIF by Pillow, MP4 by ffmpeg.

Invariant: one frame per moment, all of one size: the terminal or the picture, and below it the panel.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.replay.recording import Recording
from cluster.replay.view import PANEL_ROWS, Totals, panel, runs, screen
from configs.errors import one_line

LEAST_PICTURE = 320
"""Pixels of a picture's longer side, to which smaller ones are scaled up by a whole factor."""
COLUMNS = 80
PALETTE = np.array(
    [
        *[(95, 95, 95), (205, 49, 49), (13, 188, 121), (190, 140, 40), (80, 130, 240), (188, 63, 188), (17, 168, 205)],
        *[(204, 204, 204), (102, 102, 102), (255, 120, 50), (60, 220, 100), (245, 245, 67), (110, 160, 255)],
        *[(240, 110, 240), (60, 220, 235), (255, 255, 255), (0, 0, 0)],
    ],
    np.uint8,
)
"""[17, 3]: the colours of a terminal, the darkest ones brightened so that they can be read on black; then black."""
BLACK = 16


class LacksEncoder(RuntimeError):
    """A package or a program is not installed; the message says which."""


def write_gif(
    recording: Recording, moments: Sequence[int], speed: float, path: Path, advance: Callable[[int], None]
) -> None:
    """Raises LacksEncoder without Pillow."""
    frames = _frames(recording, moments, advance)
    first = next(frames)
    duration = max(20, round(1000 / speed))  # most viewers slow shorter ones down
    first.save(path, format="GIF", save_all=True, append_images=frames, duration=duration, loop=0)


def write_mp4(
    recording: Recording, moments: Sequence[int], speed: float, path: Path, advance: Callable[[int], None]
) -> None:
    """Raises LacksEncoder without Pillow or ffmpeg, and RuntimeError where ffmpeg fails."""
    program = _ffmpeg()
    frames = (frame.convert("RGB") for frame in _frames(recording, moments, advance))
    first = next(frames)
    command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{first.width}x{first.height}", "-r", f"{speed:g}", "-i", "-", "-f", "mp4"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            for frame in (first, *frames):
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:  # ffmpeg says why
            pass
        problem = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"ffmpeg could not write {path}: {one_line(problem.decode(errors='replace'))}")


def _ffmpeg() -> str:
    """The program: on the path, or of the package imageio-ffmpeg."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        what = "MP4 needs the program ffmpeg, which is not on the path"
        raise LacksEncoder(f"{what}; install it, or `pip install imageio-ffmpeg`, or write a GIF") from None


def _frames(recording: Recording, moments: Sequence[int], advance: Callable[[int], None]) -> Iterator[Any]:
    """Pillow's images."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        needs = "pictures need the package Pillow, which is not installed"
        raise LacksEncoder(f"{needs}; install it with: pip install 'delphi-rl[replay]'") from None
    font, totals = ImageFont.load_default_imagefont(), Totals.of(recording)
    wide, high = (int(side) for side in font.getbbox("M")[2:])
    first = recording.moments[moments[0]]
    above, least = (len(screen(first)) * high, 0) if first.picture is None else scaled_up(first.picture).shape[:2]
    # Encoders of MP4 want even numbers.
    size = (max(COLUMNS * wide, least) + 1) // 2 * 2, (above + PANEL_ROWS * high + 1) // 2 * 2
    for t in moments:
        lines, about = screen(recording.moments[t]), panel(recording, t, totals, COLUMNS)
        shown = recording.moments[t].picture
        picture = None if shown is None else scaled_up(shown)[:above]
        # Text alone needs no more than the palette.
        image = Image.new("P" if picture is None else "RGB", size)
        if picture is None:
            image.putpalette(PALETTE.tobytes())
            image.paste(BLACK, (0, 0, *size))
        else:
            image.paste(Image.fromarray(picture), ((size[0] - picture.shape[1]) // 2, 0))
        draw = ImageDraw.Draw(image)
        parts = ((0, lines), (above, about))
        for y, line in [(top + row * high, line) for top, part in parts for row, line in enumerate(part)]:
            for start, end, colour in runs(line):
                text = line.text[start:end].encode("latin-1", "replace").decode("latin-1")
                fill = colour if picture is None else tuple(PALETTE[colour].tolist())
                draw.text((start * wide, y), text, fill=fill, font=font)
        advance(1)
        yield image


def scaled_up(picture: np.ndarray) -> np.ndarray:
    """A picture [height, width, 3] with each pixel a square, so that it is large enough to be looked at."""
    factor = max(1, -(-LEAST_PICTURE // max(picture.shape[:2])))
    return picture.repeat(factor, 0).repeat(factor, 1)
