"""`Asking`: one rubric of a judge, with the engine and the calibration by which its questions are answered.

Invariant: its answers, and their keys in the judgement store, are those of a judge that has this rubric alone.
"""

import math
from collections.abc import Mapping

from llm_server.annotation import Judgement, Score, Status
from llm_server.engines.engine import Engine
from llm_server.rubrics.rubric import Rubric
from llm_server.service.calibration import calibrate
from llm_server.service.pending import Key, PendingQuestion


class Asking:
    """Used by the judge's worker thread, `question` by any. ValueError where the engine gives no usable answer to the
    rubric's calibration items."""

    def __init__(self, engine: Engine, rubric: Rubric) -> None:
        self.engine, self.rubric = engine, rubric
        self.calibrated = calibrate(engine, rubric)

    def question(self, key: Key) -> PendingQuestion | None:
        """The texts to ask about; None where one of them is no text."""
        if key.second is None:
            text = self.rubric.asked_text(key.item, key.about)
            return None if text is None else PendingQuestion(text)
        first, second = self.rubric.item_text(key.item), self.rubric.item_text(key.second)
        return None if first is None or second is None else PendingQuestion(first, second)

    def stored_under(self, *, is_pair: bool) -> tuple[str, str]:
        """The judge in the store: fingerprint and the hash of how the rubric asks."""
        return self.engine.fingerprint, self.rubric.pairs_hash if is_pair else self.rubric.content_hash

    def ask(self, batch: Mapping[Key, PendingQuestion], *, is_pair: bool) -> dict[Key, Judgement]:
        """The engine's answers, free of the model's bias."""
        if is_pair:
            assert self.rubric.pairs is not None
            scores = self.engine.score_pairs([(question.text, question.second) for question in batch.values()])
            probabilities, minimum = [score.probability for score in scores], self.rubric.pairs.min_answer_mass
        else:
            scores = self.engine.score([question.text for question in batch.values()])
            probabilities, minimum = [*map(self.calibrated.probability, scores)], self.rubric.min_answer_mass
        return {
            key: _judgement(score, probability, minimum)
            for key, score, probability in zip(batch, scores, probabilities, strict=True)
        }


def _judgement(score: Score, probability: float, min_answer_mass: float) -> Judgement:
    mass = score.answer_mass if math.isfinite(score.answer_mass) else 0.0
    if mass < min_answer_mass or not math.isfinite(probability):
        return Judgement(status=Status.UNPARSED, probability=math.nan, answer_mass=mass)
    return Judgement(status=Status.OK, probability=probability, answer_mass=mass)
