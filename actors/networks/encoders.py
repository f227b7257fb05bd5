"""Encoders of images, numbers and texts, and the choice of an encoder, which turns one step's observation into a
feature vector.

Invariant: an encoder maps observations name -> [N, ...] in the environment's own dtypes to features [N, num_features],
each row by itself, so a row's features do not depend on the rest of the batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actors.environments.vector import ArraySpec
from actors.networks.nethack_encoders import GlyphCropEncoder, NetHackFullEncoder, signed_log
from actors.networks.rendered_crop import RenderedCropEncoder
from actors.networks.repeated_rows import encode_rows, two_layers
from actors.networks.words import WordEncoder
from configs.schema import PolicyConfig

LARGEST_ONE_HOT = 32
"""Categorical entries with more values are embedded."""
MOST_CHANNELS_FIRST = 4
"""Maximum size of an image's first axis for it to count as channels by its size alone."""


class ImageEncoder(nn.Module):
    """Convolutions over uint8 images, channels last or first; a `VectorEncoder` over all other entries."""

    def __init__(self, observations: Mapping[str, ArraySpec], config: PolicyConfig) -> None:
        super().__init__()
        images = {name: spec for name, spec in observations.items() if is_image(spec)}
        if not images:
            shapes = {name: (spec.shape, str(spec.dtype)) for name, spec in observations.items()}
            wanted = "a uint8 image of three dimensions among the observations"
            raise ValueError(f"network 'cnn' wants {wanted}, got {shapes}; choose 'mlp'")
        self._scale = config.image_scale
        layout = config.image_layout
        self._channels_first = {name: is_channels_first(spec.shape, layout) for name, spec in images.items()}
        stacks = {module_name(name): self._make_stack(name, spec, config) for name, spec in images.items()}
        self.stacks = nn.ModuleDict(stacks)
        rest = {name: spec for name, spec in observations.items() if name not in images}
        self.rest = VectorEncoder(rest, config) if rest else None
        self.num_features = config.hidden_size * len(images) + (self.rest.num_features if self.rest else 0)

    def _make_stack(self, name: str, spec: ArraySpec, config: PolicyConfig) -> nn.Module:
        channels, height, width = spec.shape if self._channels_first[name] else (spec.shape[2], *spec.shape[:2])
        side = min(height, width)
        if side >= 36:  # DQN's convolutions (Mnih et al. 2015)
            kernels = [nn.Conv2d(channels, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        else:
            stride = 1 if side <= 12 else 2
            kernels = [nn.Conv2d(channels, 32, 3, stride, 1), nn.Conv2d(32, 64, 3, stride, 1)]
        convolutions = [layer for kernel in kernels for layer in (kernel, nn.ELU())]
        with torch.no_grad():
            num_cells = nn.Sequential(*convolutions)(torch.zeros(1, channels, height, width)).numel()
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(num_cells, config.hidden_size), nn.ELU())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Features [N, num_features]."""
        features = []
        for name, channels_first in self._channels_first.items():
            image = obs[name] if channels_first else obs[name].movedim(-1, 1)
            features.append(self.stacks[module_name(name)](image.float() / self._scale))
        if self.rest is not None:
            features.append(self.rest(obs))
        return torch.cat(features, -1)


class VectorEncoder(nn.Module):
    """An MLP of two layers over numeric and categorical arrays, flattened, and texts, read word by word."""

    def __init__(self, observations: Mapping[str, ArraySpec], config: PolicyConfig) -> None:
        super().__init__()
        self._specs, self._reuses = dict(observations), config.reuse_crops
        self.embeddings, self.texts = nn.ModuleDict(), nn.ModuleDict()
        for name, spec in observations.items():
            if spec.is_text:
                self.texts[module_name(name)] = WordEncoder(None if spec.num_values else spec.shape[0])
            elif spec.num_values > LARGEST_ONE_HOT:
                self.embeddings[module_name(name)] = nn.Embedding(spec.num_values, config.embedding_size)
        with torch.no_grad():
            inputs = self._read({name: torch.zeros(1, *spec.shape) for name, spec in observations.items()})
        self.num_features = config.hidden_size
        self.layers = two_layers(inputs.shape[1], config.hidden_size)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Features [N, num_features]."""
        return self.layers(self._read(obs))

    def _read(self, obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._inputs(name, spec, obs[name]).flatten(1) for name, spec in self._specs.items()], -1)

    def _inputs(self, name: str, spec: ArraySpec, array: Tensor) -> Tensor:
        """Numbers of moderate size: bytes as fractions, others, of unknown range, on a signed log scale."""
        module = module_name(name)
        if spec.is_text:
            return encode_rows(array, self.texts[module], reuses=self._reuses).rows()
        array = array.unsqueeze(-1)  # so that a scalar entry can be flattened
        if module in self.embeddings:
            return self.embeddings[module](array.long())
        if spec.num_values:
            return F.one_hot(array.long(), spec.num_values).float()
        return array.float() / 255 if spec.dtype == "uint8" else signed_log(array.float())


Encoder = GlyphCropEncoder | NetHackFullEncoder | RenderedCropEncoder | ImageEncoder | VectorEncoder
ENCODERS: dict[str, type[Encoder]] = {
    "glyph_crop": GlyphCropEncoder,
    "nethack_full": NetHackFullEncoder,
    "rendered_crop": RenderedCropEncoder,
    "cnn": ImageEncoder,
    "mlp": VectorEncoder,
}


def make_encoder(observations: Mapping[str, ArraySpec], config: PolicyConfig) -> Encoder:
    """The encoder of `config.network`, for `auto` the first that fits; ValueError if it cannot read `observations`."""
    if not observations:
        raise ValueError("the environment offers no observation entry that a network could read")
    network = config.network
    if network == "auto":
        has_crop = all(name in observations for name in GlyphCropEncoder.entries)
        network = "glyph_crop" if has_crop else "cnn" if any(map(is_image, observations.values())) else "mlp"
    if network not in ENCODERS:
        raise ValueError(f"policy.network: got {network!r}, wanted one of auto, {', '.join(ENCODERS)}")
    return ENCODERS[network](observations, config)


def is_image(spec: ArraySpec) -> bool:
    """Whether the entry is a numeric uint8 array of three dimensions."""
    return len(spec.shape) == 3 and spec.dtype == "uint8" and not spec.num_values


def is_channels_first(shape: tuple[int, ...], layout: str) -> bool:
    """Whether the first axis of an image [_, _, _] holds the channels, by the rule of `policy.image_layout`."""
    if layout != "auto":
        return layout == "channels_first"
    first, middle, last = shape
    if last <= MOST_CHANNELS_FIRST or first == middle:
        return False
    return middle == last or first <= MOST_CHANNELS_FIRST


def module_name(entry: str) -> str:
    """A unique module name for an entry: torch refuses dots, names of its own attributes, and the empty name."""
    escaped = entry.replace("%", "%25").replace(".", "%2E")
    is_taken = not escaped or hasattr(nn.ModuleDict, escaped) or escaped in vars(nn.ModuleDict())
    return f"%{escaped}" if is_taken else escaped
