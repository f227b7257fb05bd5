"""ONI's encoder: the characters around the agent drawn as a picture of 3 x 72 x 72 pixels, and small MLPs over blstats
and message; and the pictures of the 256 characters, 6 x 6 pixels in 16 colours, that it is drawn from.

Invariant: a rollout carries the window's characters and colours, 288 bytes a step; the encoder draws the picture by
looking its cells up in an atlas of all characters in all colours.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from actors.environments.nethack.crop import CHARACTER_WINDOW
from actors.environments.vector import ArraySpec
from actors.networks.nethack_encoders import NUM_BLSTATS
from actors.networks.repeated_rows import SIDE_FEATURES, Branch, RepeatingEncoder, two_layers
from configs.schema import PolicyConfig

BLSTATS_SCALES = (
    *(1 / 79, 1 / 21),  # x, y
    *(1 / 10, 1 / 10, 1 / 10, 1 / 10, 1 / 10, 1 / 10, 1 / 10),  # strength (two ways), dexterity ... charisma
    *(0.0, 1 / 10, 1 / 10, 0.0),  # score, hit points, their maximum, depth
    *(1 / 1000, 1 / 10, 1 / 10),  # gold, energy, its maximum
    *(1 / 10, 1 / 10, 1 / 10, 1 / 100, 1 / 1000),  # armour class, monster level, experience: level, points; time
    *(1.0, 1.0, 0.0, 0.0, 0.0, 0.0),  # hunger, load, branch, level in it, condition, alignment
)
"""Factors of NLE's `blstats` (ONI's hand-set scales). Documented are x, y, attributes, hit points, gold, time, and the
zeros for score, depth, level, condition and alignment; the rest is chosen here to bring usual values into [0, 5]."""


class RenderedCropEncoder(RepeatingEncoder):
    """Three convolutions over the picture (512 features with ONI's hidden_size), two layers each over blstats and
    message. The scaled blstats themselves are features too: with hidden_size 512 there are 512 + 128 + 27 + 128 = 795.
    """

    repeating = ("character_crop", "message")

    def __init__(self, observations: Mapping[str, ArraySpec], config: PolicyConfig) -> None:
        """Raises ValueError for observations other than NetHack's with the character window."""
        super().__init__(reuses=config.reuse_crops)
        wanted = {"character_crop": (CHARACTER_WINDOW, CHARACTER_WINDOW, 2), "blstats": (NUM_BLSTATS,)}
        got = {name: spec.shape for name, spec in observations.items()}
        if any(got.get(name) != shape for name, shape in wanted.items()) or "message" not in got:
            has = ", ".join(f"{name} {shape}" for name, shape in got.items())
            raise ValueError(
                f"network 'rendered_crop' reads character_crop {wanted['character_crop']}, blstats ({NUM_BLSTATS},) and"
                f" message, which NetHack and MiniHack have; this environment has {has}; choose network 'auto'"
            )
        self._atlas = nn.Buffer(torch.from_numpy(glyph_atlas()), persistent=False)  # [256 * 16, 6, 6, 3] u8
        self._scales = nn.Buffer(torch.tensor(BLSTATS_SCALES), persistent=False)
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(3, 32, 8, 4), nn.ELU()),  # 72 -> 17
            *(nn.Conv2d(32, 64, 4, 2), nn.ELU()),  # 17 -> 7
            *(nn.Conv2d(64, 128, 3, 2), nn.ELU()),  # 7 -> 3
        )
        self.project = nn.Sequential(nn.Linear(3 * 3 * 128, config.hidden_size), nn.ELU())
        self.blstats = two_layers(NUM_BLSTATS)
        self.message = two_layers(observations["message"].shape[0])
        self.num_features = config.hidden_size + SIDE_FEATURES + NUM_BLSTATS + SIDE_FEATURES

    def branches(self, obs: Mapping[str, Tensor]) -> dict[str, Branch]:
        return {
            "character_crop": (obs["character_crop"].flatten(1), self._convolve),
            "blstats": (obs["blstats"], self._measure),
            "message": (obs["message"], lambda bytes_: self.message(bytes_.float() / 255)),
        }

    def render(self, windows: Tensor) -> Tensor:
        """Pictures [N, 3, 72, 72] u8 of windows [N, 12, 12, 2] u8 (character, colour); channels last in memory."""
        characters, colours = windows.int().unbind(-1)
        cells = self._atlas[characters * NUM_COLOURS + colours % NUM_COLOURS]  # [N, 12, 12, 6, 6, 3]
        return cells.transpose(2, 3).reshape(-1, CHARACTER_WINDOW * CELL, CHARACTER_WINDOW * CELL, 3).movedim(-1, 1)

    def _measure(self, blstats: Tensor) -> Tensor:
        """[N, 27] -> [N, SIDE_FEATURES + 27]: the encoded statistics, and the scaled ones."""
        scaled = self.scale_blstats(blstats)
        return torch.cat([self.blstats(scaled), scaled], -1)

    def scale_blstats(self, blstats: Tensor) -> Tensor:
        """[N, 27] -> [N, 27] within [-5, 5]."""
        return (blstats.float() * self._scales).clamp(-5, 5)

    def _convolve(self, windows: Tensor) -> Tensor:
        """[N, 288] -> [N, hidden_size]."""
        pictures = self.render(windows.unflatten(1, (CHARACTER_WINDOW, CHARACTER_WINDOW, 2)))
        device = windows.device.type
        # Pictures are by far the largest arrays here: they are cast to the convolutions' dtype without a float32 copy.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return self.project(self.convolutions(pictures.to(dtype) / 255).flatten(1))


CELL = 6
"""Pixels per side of a cell (ONI draws 9-point characters and scales them to this size)."""
NUM_CHARACTERS, NUM_COLOURS = 256, 16
PALETTE = (
    *((85, 85, 85), (170, 0, 0), (0, 170, 0), (170, 85, 0)),
    *((0, 0, 170), (170, 0, 170), (0, 170, 170), (170, 170, 170)),
    *((120, 120, 120), (255, 85, 85), (85, 255, 85), (255, 255, 85)),
    *((85, 85, 255), (255, 85, 255), (85, 255, 255), (255, 255, 255)),
)
"""RGB of NetHack's colours 0 to 15 on a terminal; black (0) is drawn dark grey, because the background is black."""
SHAPES = r"""
  ! ..#.. ..#.. ..#.. ..... ..#.. .....  " .#.#. .#.#. ..... ..... ..... .....  # .#.#. ##### .#.#. ##### .#.#. .....
  $ .#### #.#.. .###. ..#.# ####. .....  % ##..# ##.#. ..#.. .#.## #..## .....  & .##.. #..#. .##.# #..#. .##.# .....
  ' ..#.. ..#.. ..... ..... ..... .....  ( ...#. ..#.. ..#.. ..#.. ...#. .....  ) .#... ..#.. ..#.. ..#.. .#... .....
  * ..... #.#.# .###. #.#.# ..... .....  + ..... ..#.. .###. ..#.. ..... .....  , ..... ..... ..... .##.. ..#.. .#...
  - ..... ..... ##### ..... ..... .....  . ..... ..... ..... ..#.. ..... .....  / ....# ...#. ..#.. .#... #.... .....
  0 .###. #..## #.#.# ##..# .###. .....  1 ..#.. .##.. ..#.. ..#.. .###. .....  2 ####. ....# .###. #.... ##### .....
  3 ####. ....# .###. ....# ####. .....  4 #..#. #..#. ##### ...#. ...#. .....  5 ##### #.... ####. ....# ####. .....
  6 .###. #.... ####. #...# .###. .....  7 ##### ....# ...#. ..#.. ..#.. .....  8 .###. #...# .###. #...# .###. .....
  9 .###. #...# .#### ....# .###. .....  : ..... .##.. ..... .##.. ..... .....  ; ..... .##.. ..... .##.. ..#.. .#...
  < ...## .##.. #.... .##.. ...## .....  = ..... ##### ..... ##### ..... .....  > ##... ..##. ....# ..##. ##... .....
  ? .###. ....# ..##. ..... ..#.. .....  @ .###. #.### #.### #.... .#### .....  A .###. #...# ##### #...# #...# .....
  B ####. #...# ####. #...# ####. .....  C .#### #.... #.... #.... .#### .....  D ####. #...# #...# #...# ####. .....
  E ##### #.... ###.. #.... ##### .....  F ##### #.... ###.. #.... #.... .....  G .#### #.... #..## #...# .#### .....
  H #...# #...# ##### #...# #...# .....  I .###. ..#.. ..#.. ..#.. .###. .....  J ..### ...#. ...#. #..#. .##.. .....
  K #..#. #.#.. ##... #.#.. #..#. .....  L #.... #.... #.... #.... ##### .....  M #...# ##.## #.#.# #...# #...# .....
  N #...# ##..# #.#.# #..## #...# .....  O .###. #...# #...# #...# .###. .....  P ####. #...# ####. #.... #.... .....
  Q .###. #...# #.#.# #..#. .##.# .....  R ####. #...# ####. #..#. #...# .....  S .#### #.... .###. ....# ####. .....
  T ##### ..#.. ..#.. ..#.. ..#.. .....  U #...# #...# #...# #...# .###. .....  V #...# #...# .#.#. .#.#. ..#.. .....
  W #...# #...# #.#.# ##.## #...# .....  X #...# .#.#. ..#.. .#.#. #...# .....  Y #...# .#.#. ..#.. ..#.. ..#.. .....
  Z ##### ...#. ..#.. .#... ##### .....  [ ..##. ..#.. ..#.. ..#.. ..##. .....  \ #.... .#... ..#.. ...#. ....# .....
  ] .##.. ..#.. ..#.. ..#.. .##.. .....  ^ ..#.. .#.#. #...# ..... ..... .....  _ ..... ..... ..... ..... ..... #####
  ` .##.. .###. ..... ..... ..... .....  a ..... .##.. ...#. .#### .#### .....  b #.... #.... ###.. #..#. ###.. .....
  c ..... .###. #.... #.... .###. .....  d ...#. ...#. .###. #..#. .###. .....  e ..... .##.. ####. #.... .##.. .....
  f ..##. .#... ###.. .#... .#... .....  g ..... .###. #..#. .###. ...#. .##..  h #.... #.... ###.. #..#. #..#. .....
  i ..#.. ..... .##.. ..#.. .###. .....  j ...#. ..... ..##. ...#. ...#. .##..  k #.... #..#. ###.. #.#.. #..#. .....
  l .##.. ..#.. ..#.. ..#.. ...#. .....  m ..... ##.#. #.#.# #.#.# #.#.# .....  n ..... ###.. #..#. #..#. #..#. .....
  o ..... .##.. #..#. #..#. .##.. .....  p ..... ###.. #..#. ###.. #.... #....  q ..... .###. #..#. .###. ...#. ...#.
  r ..... #.##. ##... #.... #.... .....  s ..... .###. ##... ..##. ###.. .....  t .#... ###.. .#... .#... ..##. .....
  u ..... #..#. #..#. #..#. .###. .....  v ..... #...# #...# .#.#. ..#.. .....  w ..... #...# #.#.# #.#.# .#.#. .....
  x ..... #..#. .##.. .##.. #..#. .....  y ..... #..#. #..#. .###. ...#. .##..  z ..... ####. ..#.. .#... ####. .....
  { ...## ..#.. ##... ..#.. ...## .....  | ..#.. ..#.. ..#.. ..#.. ..#.. ..#..  } ##... ..#.. ...## ..#.. ##... .....
  ~ ..... .#..# #.##. ..... ..... .....
"""
"""Characters and their rows of pixels from the top, without the last column, which is blank."""


def character_shapes() -> np.ndarray:
    """[256, 6, 6] bool; a code without a picture (never shown on NetHack's map) is drawn as the dots of its 8 bits."""
    words = SHAPES.split()
    drawn = {words[i]: words[i + 1 : i + 1 + CELL] for i in range(0, len(words), 1 + CELL)}
    shapes = np.zeros((NUM_CHARACTERS, CELL, CELL), bool)
    for code in range(NUM_CHARACTERS):
        rows = drawn.get(chr(code), ())
        for y, row in enumerate(rows):
            shapes[code, y, : len(row)] = [pixel == "#" for pixel in row]
        if not rows and chr(code) != " ":
            shapes[code, 1:5:3, :4] = np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 4)
    return shapes


def glyph_atlas() -> np.ndarray:
    """[256 * 16, 6, 6, 3] u8: the picture of character c in colour k at row 16 c + k."""
    palette = np.array(PALETTE, np.uint8)
    pictures = character_shapes()[:, None, :, :, None] * palette[None, :, None, None, :]  # [256, 16, 6, 6, 3]
    return pictures.reshape(NUM_CHARACTERS * NUM_COLOURS, CELL, CELL, 3)
