"""The `Engine` protocol: reads a model's answers to one rubric, and lets it write by briefs.

Invariant: an answer depends on the item alone, not on the batch it is scored in (beyond rounding), nor on the other
rubrics that the model is asked under.
"""

from collections.abc import Sequence
from typing import Protocol

from llm_server.annotation import Score, Written
from llm_server.rubrics.rubric import Rubric
from llm_server.writing.brief import Brief

PROBE = "You see here a lichen."
"""The harmless text with which engines check that a model answers."""


class Engine(Protocol):
    """One model with one rubric. All engines of a model score in one thread at a time; one of them may write in another
    meanwhile."""

    name: str
    """Engine, kind of device and dtype, for example `transformers/cpu/float32`."""
    model: str
    """The model as it was asked for."""
    fingerprint: str
    """Hash of everything that may change an answer: weights, tokenizer, prompt version, engine, device, dtype."""
    judges: bool
    """False for a service that only embeds sentences."""
    writes: bool
    """Whether it can `write`."""
    needs_calibration: bool
    """Whether its probabilities carry a bias that `threshold: auto` must find; otherwise theta is 0.5."""

    def under(self, rubric: Rubric) -> "Engine":
        """The same model, which is not loaded again, under another rubric; to be closed as well. ValueError where
        rubric and model do not fit."""

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; texts are as `Rubric.asked_text` makes them."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair in the order it is shown: the probability that the first is better, plus half that of a
        tie. ValueError where the rubric has no `pairs`."""

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """What is written about `text`, as `Brief.text` makes it, once for each seed (in 0 to 2^31 - 1), in the style
        of the engine's rubric. It depends on text and seed alone (beyond rounding), and holds up no `score` for more
        than half a second. ValueError where brief and model do not fit, RuntimeError where the model fails."""

    def close(self) -> None:
        """Free resources outside this process, from any thread; a `score` or `write` that waits for them ends."""
        ...
