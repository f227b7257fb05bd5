"""Encoders of NetHack: the scaled status line; the network `glyph_crop`, which reads the cells around the agent, the
status line and the message; and `nethack_full`, which also reads most of the level coarsely and the inventory, and the
message word by word.

Invariant: positions are relative to the agent; every number is finite, and status values lie within [-5, 5].
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.environments.nethack.crop import WINDOW_SHAPE
from actors.environments.vector import ArraySpec
from actors.networks.repeated_rows import (
    SIDE_FEATURES,
    Branch,
    RepeatingEncoder,
    convolve_glyphs,
    embed_patches,
    two_layers,
)
from actors.networks.words import WordEncoder
from configs.schema import PolicyConfig

NUM_BLSTATS, NUM_CONDITIONS = 27, 13
NUM_SCALED = NUM_BLSTATS + 2 + NUM_CONDITIONS
HP, MAX_HP, ENERGY, MAX_ENERGY, CONDITION = 10, 11, 14, 15, 25
SCALES = (
    *(1 / 79, 1 / 21),  # x, y
    *(1 / 25, 1 / 125, 1 / 18, 1 / 18, 1 / 18, 1 / 18, 1 / 18),  # strength (two ways), dexterity ... charisma
    *(1 / 8, 1 / 5, 1 / 5, 1 / 10),  # score, hit points, their maximum, depth
    *(1 / 8, 1 / 5, 1 / 5),  # gold, energy, its maximum
    *(1 / 10, 1 / 10, 1 / 10, 1 / 8, 1 / 8),  # armour class, monster level, experience level, experience points, time
    *(1 / 3, 1 / 3, 1 / 8, 1 / 10),  # hunger, load, branch, level in it
    *(0.0, 1.0),  # condition (read as bits instead), alignment
)
"""Factors that bring each entry of NLE's `blstats` to about [-1, 1]."""
LOGARITHMIC = (9, HP, MAX_HP, 13, ENERGY, MAX_ENERGY, 19, 20)
"""Entries of wide range (score, points, gold, experience, time): scaled after sign(x) log(1 + |x|)."""


class ScaledBlstats(nn.Module):
    """All entries scaled, the fractions of hit points and energy left, and the bits of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self._scales = nn.Buffer(torch.tensor(SCALES), persistent=False)
        logarithmic = torch.zeros(NUM_BLSTATS, dtype=torch.bool)
        logarithmic[list(LOGARITHMIC)] = True
        self._logarithmic = nn.Buffer(logarithmic, persistent=False)

    def forward(self, blstats: Tensor) -> Tensor:
        """[N, 27] -> [N, 42]."""
        blstats = blstats.float()
        scaled = torch.where(self._logarithmic, signed_log(blstats), blstats) * self._scales
        greatest = blstats[:, MAX_HP : MAX_ENERGY + 1 : MAX_ENERGY - MAX_HP].clamp(min=1)
        shares = blstats[:, HP : ENERGY + 1 : ENERGY - HP] / greatest  # slices, not lists: for the CUDA graph
        bits = blstats[:, CONDITION, None].long() >> torch.arange(NUM_CONDITIONS, device=blstats.device) & 1
        return torch.cat([scaled, shares, bits], -1).clamp(-5, 5)


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


PATCH = 3
"""Side, in cells, of the patches of the coarse outline."""
NUM_CLASSES = 19
"""NetHack's object classes, and one for an empty slot."""
NO_CLASS = NUM_CLASSES - 1
NUM_LETTERS = 53
"""a to z, A to Z, and one for any other letter (gold's `$`)."""


class GlyphEncoder(RepeatingEncoder):
    """Embeds the glyphs around the agent and convolves them twice: what both networks begin with."""

    def __init__(self, num_glyphs: int, crop_shape: tuple[int, ...], config: PolicyConfig) -> None:
        super().__init__(reuses=config.reuse_crops)
        (rows, columns), width = crop_shape, config.embedding_size
        self._crop_shape = crop_shape
        self.embedding = nn.Embedding(num_glyphs, width)
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ELU(), nn.Conv2d(width, width, 3, padding=1), nn.ELU()
        )
        self.project = nn.Sequential(nn.Linear(rows * columns * width, config.hidden_size), nn.ELU())

    def _convolve(self, crops: Tensor) -> Tensor:
        """[N, cells] glyphs -> [N, hidden_size]."""
        maps = convolve_glyphs(crops.unflatten(1, self._crop_shape), self.embedding, self.convolutions)
        return self.project(maps.movedim(1, -1).flatten(1))


class GlyphCropEncoder(GlyphEncoder):
    """NetHack and MiniHack: convolutions over the glyphs around the agent, and small MLPs over blstats and message."""

    entries = ("glyph_crop", "blstats", "message")
    repeating = ("glyph_crop", "message")

    def __init__(self, observations: Mapping[str, ArraySpec], config: PolicyConfig) -> None:
        missing = [name for name in self.entries if name not in observations]
        if missing:
            raise ValueError(
                f"network 'glyph_crop' reads {', '.join(self.entries)}, but the environment has no {', '.join(missing)}"
                f" (it has {', '.join(observations)}); choose network 'auto', 'cnn' or 'mlp'"
            )
        crop, blstats, message = (observations[name] for name in self.entries)
        if len(crop.shape) != 2 or not crop.num_values or blstats.shape != (NUM_BLSTATS,):
            raise ValueError(
                f"network 'glyph_crop' wants a categorical glyph_crop [rows, columns] and blstats [{NUM_BLSTATS}],"
                f" got shapes {crop.shape} with {crop.num_values} values and {blstats.shape}"
            )
        super().__init__(crop.num_values, crop.shape, config)
        self.scale_blstats = ScaledBlstats()
        self.blstats = two_layers(NUM_SCALED)
        self.message = two_layers(message.shape[0])
        self.num_features = config.hidden_size + 2 * SIDE_FEATURES

    def branches(self, obs: Mapping[str, Tensor]) -> dict[str, Branch]:
        crops, blstats, messages = (obs[name] for name in self.entries)
        return {
            "glyph_crop": (crops.flatten(1), self._convolve),
            "blstats": (blstats, lambda rows: self.blstats(self.scale_blstats(rows))),
            "message": (messages, lambda rows: self.message(rows.float() / 255)),
        }


class NetHackFullEncoder(GlyphEncoder):
    """Two convolutions over the crop, two of strides 3 and 2 over the window, small networks over the rest."""

    entries = ("glyph_window", "blstats", "message", "inv_letters", "inv_oclasses")
    repeating = ("crop", "window", "message", "inventory")

    def __init__(self, observations: Mapping[str, ArraySpec], config: PolicyConfig) -> None:
        """Raises ValueError for observations without NetHack's wide window, and for a crop larger than it."""
        missing = [name for name in self.entries if name not in observations]
        if missing or observations["glyph_window"].shape != WINDOW_SHAPE:
            has = ", ".join(f"{name} {spec.shape}" for name, spec in observations.items())
            raise ValueError(
                f"network 'nethack_full' reads {', '.join(self.entries)}, which NetHack and MiniHack have if it is"
                f" chosen; this environment has {has}; choose network 'auto'"
            )
        (rows, columns), side = WINDOW_SHAPE, config.crop_size
        if side > rows:
            wanted = f"wanted at most {rows}, the height of the window of 'nethack_full'"
            raise ValueError(f"policy.crop_size: got {side}, {wanted}")
        super().__init__(observations["glyph_window"].num_values, (side, side), config)
        self._crop = [slice((size - side) // 2, (size + side) // 2) for size in WINDOW_SHAPE]
        fine, coarse = 16, 32  # channels of the outline
        self.patches = nn.Conv2d(config.embedding_size, fine, PATCH, PATCH)
        self.outline = nn.Sequential(nn.ELU(), nn.Conv2d(fine, coarse, 3, 2, 1), nn.ELU(), nn.Flatten())
        with torch.no_grad():
            num_cells = self.outline(torch.zeros(1, fine, rows // PATCH, columns // PATCH)).shape[1]
        self.project_outline = nn.Sequential(nn.Linear(num_cells, SIDE_FEATURES), nn.ELU())
        self.scale_blstats = ScaledBlstats()
        self.blstats = two_layers(NUM_SCALED)
        self.message = WordEncoder(observations["message"].shape[0])
        self.inventory = InventoryEncoder()
        texts_and_items = self.message.num_features + self.inventory.num_features
        self.num_features = config.hidden_size + 2 * SIDE_FEATURES + texts_and_items

    def branches(self, obs: Mapping[str, Tensor]) -> dict[str, Branch]:
        windows, blstats, messages, letters, classes = (obs[name] for name in self.entries)
        return {
            "crop": (windows[:, *self._crop].flatten(1), self._convolve),
            "window": (windows.flatten(1), self._look_far),
            "blstats": (blstats, lambda rows: self.blstats(self.scale_blstats(rows))),
            "message": (messages, self.message),
            "inventory": (torch.cat([letters, classes], 1), self.inventory),
        }

    def _look_far(self, windows: Tensor) -> Tensor:
        """[N, cells] glyphs -> [N, SIDE_FEATURES]."""
        patches = embed_patches(windows.unflatten(1, WINDOW_SHAPE), self.embedding, self.patches)
        return self.project_outline(self.outline(patches))


class InventoryEncoder(nn.Module):
    """Two layers over the inventory's sum of embeddings of each object's class and of its class and letter."""

    def __init__(self, num_features: int = SIDE_FEATURES // 2) -> None:
        super().__init__()
        self.num_features = num_features
        self.vectors = nn.EmbeddingBag((NUM_LETTERS + 1) * NUM_CLASSES, num_features, mode="sum", padding_idx=NO_CLASS)
        nn.init.normal_(self.vectors.weight, std=0.25)  # unit variance of the sum over the initial, about eight objects
        self.layers = two_layers(num_features, num_features)
        places = torch.full((256,), NUM_LETTERS)
        for first, place in ((ord("a"), 1), (ord("A"), 27)):
            places[first : first + 26] = torch.arange(place, place + 26)
        self._letters = nn.Buffer(places, persistent=False)

    def forward(self, slots: Tensor) -> Tensor:
        """[N, 2 slots] u8, all letters and then all classes -> [N, num_features]."""
        letters, classes = slots.long().chunk(2, 1)
        classes = classes.clamp(max=NO_CLASS)
        named = torch.where(classes < NO_CLASS, self._letters[letters] * NUM_CLASSES + classes, NO_CLASS)
        return self.layers(self.vectors(torch.cat([classes, named], 1)))
