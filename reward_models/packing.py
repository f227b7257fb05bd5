"""Many texts as two arrays, for checkpoints.

Invariant: `unpacked` gives what `packed` was given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def packed(texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Texts as two arrays."""
    return {
        "text_bytes": np.frombuffer(b"".join(texts), np.uint8).copy(),
        "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
    }


def unpacked(state: Mapping[str, Any]) -> list[bytes]:
    """The texts that `packed` was given."""
    blob, ends = np.asarray(state["text_bytes"]).tobytes(), np.asarray(state["text_ends"]).tolist()
    return [blob[start:end] for start, end in zip([0, *ends], ends, strict=False)]
