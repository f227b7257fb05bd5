"""Cuts the policy's view around the agent out of the engine's maps: glyphs, or characters with their colours.

Invariant: the agent's cell has the same place in every window, also if the window extends beyond the map's edge.
"""

import ctypes
import functools
from collections.abc import Mapping

import numpy as np

from actors.environments.nethack.native import address, library
from actors.environments.vector import ArraySpec

MAP_HEIGHT, MAP_WIDTH = 21, 79
MAP_CELLS = MAP_HEIGHT * MAP_WIDTH
OUTSIDE_GLYPH = 5976
"""The glyph of cells outside the map; real glyphs are smaller (NetHack's MAX_GLYPH)."""
WINDOW_SHAPE = 21, 45
"""Rows and columns of the wide window: as high as the map, half as wide, and divisible into squares of 3 x 3 cells."""
CHARACTER_WINDOW = 12
"""Side of the character window, in cells (ONI); six cells are above and left of the agent, five below and right."""
LAYERS: Mapping[str, tuple[type, int]] = {
    "glyphs": (np.int16, OUTSIDE_GLYPH),
    "chars": (np.uint8, ord(" ")),
    "colors": (np.uint8, 0),
}
"""The engine's maps: dtype, and value of cells outside the map, which are black and blank, as unlit stone."""


class CropView:
    """A window on one or more maps; observation `glyph_crop` [c, c] i16, `glyph_window` [21, 45] i16 or
    `character_crop` [12, 12, 2] u8. The character window shows the map only. ONI cuts it out of the terminal's screen,
    which adds the message line and the status lines near the map's edge; the network reads those as text and numbers
    anyway."""

    def __init__(self, entry: str, layers: tuple[str, ...], size: tuple[int, int]) -> None:
        self.entry, self.layers = entry, layers
        self._cells = _window_cells(*size)
        shape = size if len(layers) == 1 else (*size, len(layers))
        dtype, num_values = (np.int16, OUTSIDE_GLYPH + 1) if layers == ("glyphs",) else (np.uint8, 256)
        self.spec = ArraySpec(shape=shape, dtype=np.dtype(dtype), num_values=num_values)

    def cut(self, maps: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
        """Write the windows around the agents at `x`, `y` [N] into `out` [N, *spec.shape] (C-contiguous), from maps
        name -> [N, MAP_CELLS + 1] (the last cell is outside; C-contiguous)."""
        functions, layers = library(), [maps[layer] for layer in self.layers]
        fits = x.dtype == y.dtype == np.int64 and x.strides == y.strides and layers[0].dtype == out.dtype
        if functions is not None and fits:
            places = (ctypes.c_void_p * len(layers))(*map(address, layers))
            size = (*self.spec.shape[:2], len(layers), layers[0].itemsize)
            functions.cut_windows(len(x), address(x), address(y), x.strides[0] // 8, *size, places, address(out))
            return
        # Between two levels the agent's position may be -1.
        cells = self._cells.take(np.maximum(y, 0) * MAP_WIDTH + np.maximum(x, 0), axis=0, mode="clip")
        cells += _row_starts(len(cells))
        for i, layer in enumerate(self.layers):
            if len(self.layers) == 1:
                np.take(maps[layer].reshape(-1), cells, out=out.reshape(cells.shape), mode="clip")
            else:
                out.reshape(*cells.shape, -1)[..., i] = maps[layer].reshape(-1)[cells]


def view_for(network: str, crop_size: int = CHARACTER_WINDOW) -> CropView:
    """What `policy.network` sees; ValueError for an even `crop_size` of a glyph crop, which has no centre."""
    if network == "rendered_crop":
        return CropView("character_crop", ("chars", "colors"), (CHARACTER_WINDOW, CHARACTER_WINDOW))
    if network == "nethack_full":
        return CropView("glyph_window", ("glyphs",), WINDOW_SHAPE)
    if crop_size % 2 == 0:
        raise ValueError(f"the agent is the centre of the glyph crop: its side must be odd, got {crop_size}")
    return CropView("glyph_crop", ("glyphs",), (crop_size, crop_size))


def make_maps(num_envs: int, layers: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Empty maps name -> [B, MAP_CELLS + 1]: the additional cell is read by windows that extend beyond the edge."""
    return {layer: np.full((num_envs, MAP_CELLS + 1), LAYERS[layer][1], LAYERS[layer][0]) for layer in layers}


@functools.cache
def _row_starts(num_rows: int) -> np.ndarray:
    """[N, 1]: offsets of the rows of maps."""
    return np.arange(num_rows)[:, None] * (MAP_CELLS + 1)


def _window_cells(rows: int, columns: int) -> np.ndarray:
    """The window's cells for every cell of the agent: [MAP_CELLS, rows * columns], with MAP_CELLS for outside."""
    y = np.arange(MAP_HEIGHT)[:, None, None, None] + (np.arange(rows) - rows // 2)[:, None]
    x = np.arange(MAP_WIDTH)[:, None, None] + np.arange(columns) - columns // 2
    inside = (y >= 0) & (y < MAP_HEIGHT) & (x >= 0) & (x < MAP_WIDTH)
    return np.where(inside, y * MAP_WIDTH + x, MAP_CELLS).reshape(MAP_CELLS, rows * columns)
