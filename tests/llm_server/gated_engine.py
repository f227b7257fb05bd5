"""An engine without a model, whose answers can be held back."""

import math
import threading
from collections.abc import Sequence

from llm_server.annotation import Score


class GatedEngine:
    """Answers 0.9 to texts with `good`, else 0.1, and records every batch; waits at `gate` first."""

    name = model = fingerprint = "gated"
    judges, writes, needs_calibration = True, False, False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False

    def score(self, texts: Sequence[str]) -> list[Score]:
        self.batches.append(list(texts))
        self.entered.release()
        assert self.gate.wait(60)
        if "poison" in texts:
            raise ArithmeticError("the model broke")
        return [self._answer(text) for text in texts]

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        return [Score(0.8 if "good" in first else 0.3, 0.95) for first, _ in pairs]

    def close(self) -> None:
        self.is_closed = True

    def _answer(self, text: str) -> Score:
        if text == "broken":
            return Score(math.nan, math.nan)
        return Score(0.9 if "good" in text else 0.1, 0.01 if text == "mumble" else 0.95)

    @property
    def asked(self) -> list[str]:
        return [text for batch in self.batches for text in batch]
