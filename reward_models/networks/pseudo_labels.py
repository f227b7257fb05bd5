"""`PseudoLabels`: captions without an answer that a reward model is sure about, and trains on with its own prediction.

    when        after an evaluation that found better weights, once 20 captions are held out
    what        captions seen three times, without an answer, of predicted probability q >= c or q <= 1 - c
                (c = `robust.pseudo_confidence`); the surest first, at most `robust.pseudo_share` times the answers

After semi-supervised reward modelling (SSRM, He et al. 2024, arXiv 2409.06903), which labels with 0 or 1; where the
judge's answers are soft, q itself is kept, and is not corrected for the judge's noise.

Invariant: no caption is held out, and none has an answer: the judge's own replaces the prediction. Each caption is in
at most one example.
"""

from collections.abc import Container, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption
from llm_server.annotator.caption_texts import ids_of
from reward_models.networks.fitting import flipped, is_held_out, saved_texts, text_arrays

MIN_COUNT = 3


class PseudoExample(NamedTuple):
    """One caption or a pair."""

    ids: tuple[int, ...]
    texts: tuple[bytes, ...]
    p: float
    """What the judge is expected to answer."""


class PseudoLabels:
    """The pseudo-labels of one reward model; empty unless `robust.pseudo_confidence` is set."""

    def __init__(self, robust: RobustConfig, is_hard: bool = False) -> None:
        """`is_hard`: predictions become 0 or 1, as the labels do."""
        self._robust, self._is_hard = robust, is_hard
        self._by_id: dict[int, PseudoExample] = {}
        self._examples: list[PseudoExample] | None = []  # the same as a list; None until it is needed again
        self._made_with: list[int] = []  # the steps of the best weights that they were made with

    @property
    def is_enabled(self) -> bool:
        """Whether there may be any."""
        return self._robust.pseudo_confidence > 0

    def is_due(self, best_steps: Sequence[int]) -> bool:
        """Whether better weights than those of the last `replace` have been found, at `best_steps`."""
        return self.is_enabled and [*best_steps] != self._made_with

    @property
    def examples(self) -> list[PseudoExample]:
        """All of them."""
        if self._examples is None:
            self._examples = [each for number, each in self._by_id.items() if each.ids[0] == number]
        return self._examples

    def replace(
        self, captions: Sequence[Caption], rows: np.ndarray, q: np.ndarray, num_answers: int, best_steps: Sequence[int]
    ) -> int:
        """Take the surest predictions `q` [N] about the captions `rows` [N, captions per example], in place of all
        others; returns how many of them are new."""
        sureness = np.maximum(q, 1.0 - q)
        chosen = np.flatnonzero(sureness >= self._robust.pseudo_confidence)
        chosen = chosen[np.argsort(-sureness[chosen], kind="stable")][: int(self._robust.pseudo_share * num_answers)]
        p = (q[chosen] > 0.5).astype(np.float64) if self._is_hard else flipped(q[chosen], self._robust.noise_rate)
        before, self._by_id = self._by_id, {}
        for places, probability in zip(rows[chosen].tolist(), p.tolist(), strict=True):
            members = [captions[place] for place in places]
            texts = tuple(caption.text.encode() for caption in members)
            self._set(PseudoExample(tuple(caption.id for caption in members), texts, probability))
        self._examples, self._made_with = None, [*best_steps]
        return sum(any(number not in before for number in each.ids) for each in self.examples)

    def _set(self, example: PseudoExample) -> None:
        self._by_id.update(dict.fromkeys(example.ids, example))

    def drop(self, number: int) -> None:
        """Remove the example with this caption, which has an answer now."""
        if example := self._by_id.get(number):
            for each in example.ids:
                del self._by_id[each]
            self._examples = None

    def retain(self, ids: Set[int]) -> None:
        """Remove those with any other caption."""
        for number in [number for number in self._by_id if number not in ids]:
            self.drop(number)

    def metrics(self) -> dict[str, float]:
        """`pseudo_labels`: how many captions have one."""
        return {"pseudo_labels": len(self._by_id)} if self.is_enabled else {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing unless it is enabled, so that other checkpoints stay as they are."""
        if not self.is_enabled:
            return {}
        examples = self.examples
        saved = {
            "ids": np.array([number for each in examples for number in each.ids], np.uint64),
            "probabilities": np.array([each.p for each in examples], np.float64),
            **text_arrays([text for each in examples for text in each.texts]),
            "made_with": [*self._made_with],
        }
        return {"pseudo_labels": saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that contains `state_dict`."""
        if not self.is_enabled:
            return
        saved = state["pseudo_labels"]
        ids, texts, p = saved["ids"].tolist(), saved_texts(saved), saved["probabilities"].tolist()
        size = len(ids) // max(1, len(p))
        self._by_id, self._examples, self._made_with = {}, None, [*saved["made_with"]]
        for place, probability in enumerate(p):
            part = slice(size * place, size * (place + 1))
            self._set(PseudoExample(tuple(ids[part]), tuple(texts[part]), probability))


def unlabelled(
    captions: Sequence[Caption], counts: np.ndarray, answered: Container[int], fraction: float, num_trained: int
) -> np.ndarray:
    """[M]: the rows of captions that may be pseudo-labelled. `counts` [N] i64; a caption that `is_held_out` once it is
    answered may not."""
    ids = ids_of(captions).tolist()
    rows = np.flatnonzero(counts >= MIN_COUNT).tolist()
    return np.array(
        [
            row
            for row in rows
            if ids[row] and ids[row] not in answered and not is_held_out(ids[row], fraction, num_trained)
        ],
        np.int64,
    )
