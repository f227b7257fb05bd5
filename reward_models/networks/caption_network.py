"""The byte-level caption network of classification and ranking: six convolutions over a caption's bytes, then a small
MLP.

Invariant: the output equals that of a pass over all 256 zero-padded bytes, but only the text is computed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool1d, relu

CAPTION_BYTES = 256
EMBEDDING_SIZE, CHANNELS, FEATURES = 32, 64, 128
STAGES = ((7, 3), (7, 3), (3, 1), (3, 1), (3, 1), (3, 3))
"""(kernel, pooling) of each convolution: 256 bytes become 5 positions (ONI, arXiv 2410.23022)."""
POSITIONS = 5
CHUNK = 32


class CaptionEncoder(nn.Module):
    """Bytes to 128 features: embedding 32, convolutions of 64 channels (kernels 7 7 3 3 3 3, without padding), one
    linear layer.

    Captions are short, and after their end there is only padding, where each layer's output is one constant vector: its
    `tail`. It is computed once and used for all positions beyond the text, which makes a pass several times cheaper.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, EMBEDDING_SIZE, padding_idx=0)
        widths = (EMBEDDING_SIZE, *(CHANNELS for _ in STAGES[1:]))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, CHANNELS, kernel) for width, (kernel, _) in zip(widths, STAGES, strict=True)
        )
        self.output = nn.Linear(CHANNELS * POSITIONS, FEATURES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] i64 -> [N, 128], L up to 256; columns beyond L count as padding."""
        x, full = self.embedding(tokens).transpose(1, 2), CAPTION_BYTES  # [N, 32, L]
        tail = x.new_zeros(EMBEDDING_SIZE)
        for convolution, (kernel, pooling) in zip(self.convolutions, STAGES, strict=True):
            full -= kernel - 1
            x = relu(convolution(_extended(x, tail, kernel - 1)))[:, :, :full]
            tail = relu(convolution(tail[None, :, None].expand(1, -1, kernel)))[0, :, 0]
            if pooling > 1:
                full //= pooling
                x = max_pool1d(_extended(x, tail, -x.shape[2] % pooling), pooling)[:, :, :full]
        return relu(self.output(_extended(x, tail, POSITIONS - x.shape[2]).flatten(1)))


class CaptionNet(nn.Module):
    """One output per caption: encoder, linear layers of `sizes` with ReLU between them, dropout before the last one."""

    def __init__(self, sizes: Sequence[int], dropout: float, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = CaptionEncoder()
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((FEATURES, *sizes), (*sizes, 1), strict=True))
        self._dropout = dropout

    def forward(self, texts: Sequence[bytes], generator: torch.Generator | None = None) -> Tensor:
        """[N] f32 of captions given as bytes; with a `generator` (in training), from which dropout is drawn."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # similar lengths together: less padding
        chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
        outputs = [self._outputs(tokens_of([texts[row] for row in chunk]), generator) for chunk in chunks]
        return torch.cat(outputs)[torch.from_numpy(np.argsort(order))] if outputs else torch.zeros(0)

    def _outputs(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        x = self.encoder(tokens)
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        if generator is not None and self._dropout:
            x = x * (torch.rand(x.shape, generator=generator) >= self._dropout) / (1.0 - self._dropout)
        return self.layers[-1](x)[:, 0]


def tokens_of(texts: Sequence[bytes]) -> Tensor:
    """[N, L] i64: the bytes of `texts`, zero-padded to the longest of them, L in [1, 256]."""
    length = min(max(1, *map(len, texts)), CAPTION_BYTES) if texts else 1
    padded = b"".join(text[:length].ljust(length, b"\0") for text in texts)
    return torch.from_numpy(np.frombuffer(padded, np.uint8).reshape(len(texts), length).astype(np.int64))


def _extended(x: Tensor, tail: Tensor, num: int) -> Tensor:
    """[N, C, L] -> [N, C, L + num], the new positions filled with `tail` [C]."""
    return torch.cat([x, tail[None, :, None].expand(x.shape[0], -1, num)], 2) if num > 0 else x
