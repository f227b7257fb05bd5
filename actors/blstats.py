"""NetHack's status line as numbers of moderate size.

Invariant: whatever the game shows, every number is finite and within [-5, 5].
"""

import torch
from torch import Tensor, nn

NUM_BLSTATS, NUM_CONDITIONS = 27, 13
NUM_SCALED = NUM_BLSTATS + 2 + NUM_CONDITIONS
HP, MAX_HP, ENERGY, MAX_ENERGY, CONDITION = 10, 11, 14, 15, 25
SCALES = (
    *(1 / 79, 1 / 21),  # x, y
    *(1 / 25, 1 / 125, 1 / 18, 1 / 18, 1 / 18, 1 / 18, 1 / 18),  # strength (two ways), dexterity ... charisma
    *(1 / 8, 1 / 5, 1 / 5, 1 / 10, 1 / 8, 1 / 5, 1 / 5),  # score, hit points, their maximum, depth, gold, energy, its maximum
    *(1 / 10, 1 / 10, 1 / 10, 1 / 8, 1 / 8),  # armour class, monster level, experience level, experience points, time
    *(1 / 3, 1 / 3, 1 / 8, 1 / 10, 0.0, 1.0),  # hunger, load, branch, level in it, condition (read as bits instead), alignment
)
"""Bring each entry of NLE's `blstats` to about [-1, 1]."""
LOGARITHMIC = (9, HP, MAX_HP, 13, ENERGY, MAX_ENERGY, 19, 20)
"""Entries that grow by orders of magnitude (score, points, gold, experience, time): scaled after sign(x) log(1 + |x|)."""


class ScaledBlstats(nn.Module):
    """Every entry scaled, the shares of hit points and energy left, and the bits of the condition."""

    _scales: Tensor
    _logarithmic: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_scales", torch.tensor(SCALES), persistent=False)
        logarithmic = torch.zeros(NUM_BLSTATS, dtype=torch.bool)
        logarithmic[list(LOGARITHMIC)] = True
        self.register_buffer("_logarithmic", logarithmic, persistent=False)

    def forward(self, blstats: Tensor) -> Tensor:
        """[N, 27] -> [N, 42]."""
        blstats = blstats.float()
        scaled = torch.where(self._logarithmic, signed_log(blstats), blstats) * self._scales
        shares = blstats[:, HP : ENERGY + 1 : ENERGY - HP] / blstats[:, MAX_HP : MAX_ENERGY + 1 : MAX_ENERGY - MAX_HP].clamp(min=1)
        bits = blstats[:, CONDITION, None].long() >> torch.arange(NUM_CONDITIONS, device=blstats.device) & 1
        return torch.cat([scaled, shares, bits], -1).clamp(-5, 5)


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()
