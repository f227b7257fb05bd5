"""`ActionJudge`: a language model as policy, the probabilities of all actions in a situation told in words.

That is the first use of language models that Klissarov et al. 2024, "On the Modeling Capabilities of Large Language
Models for Sequential Decision Making" (arXiv 2410.05656) compare: actions from the model itself, in place of a reward
that an agent is trained with.

The packaged SmolLM2-135M plays about as a random player does: in MiniGrid DoorKey-5x5 (32 games) it has return 0.020
[0.000, 0.061], a random player 0.005 [0.000, 0.015]; in DoorKey-8x8 (16 games) neither reaches the goal. Its actions do
depend on the state (0.15 and 0.13 nats), and 30 % and 36 % of its steps are turns to the left.

Invariant: a text is asked once, in one forward pass, whatever the number of actions, and then remembered; the answers
depend on the text alone. The model is loaded with the first text.
"""

from collections.abc import Sequence

import numpy as np

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine, check_engine
from llm_server.engines.engine import Engine
from llm_server.rubrics.rubric import Rubric

MAX_TEXTS = 100_000
"""Texts whose probabilities are remembered; then all are forgotten."""


class JudgeFailed(RuntimeError):
    """The model, or the service behind it, has failed while it played; the same questions may be asked again."""


class ActionJudge:
    """The engine of `config` under a rubric whose answers are actions. ValueError, before anything is loaded, where
    the engine cannot play."""

    def __init__(self, config: ServiceConfig, rubric: Rubric, action_names: Sequence[str]) -> None:
        if config.engine == "none":
            raise ValueError("service.engine: got none, which judges nothing; wanted an engine with a language model")
        check_engine(config)
        self._config, self._rubric, self._action_names = config, rubric, tuple(action_names)
        self._engine: Engine | None = None
        self._known: dict[str, np.ndarray] = {}
        self.num_passes = 0
        """Forward passes so far: one for each text that was asked."""
        self.num_unanswered = 0
        """Texts to which the model gave none of the answers, in which all actions count as equally likely."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[N, A] f64: for each text the probabilities of the actions, which sum to 1. Raises JudgeFailed, and
        ValueError where model and rubric do not fit."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > MAX_TEXTS:
            self._known.clear()
            new = list(dict.fromkeys(texts))
        if new:
            self._known |= zip(new, self._asked(new), strict=True)
        return np.stack([self._known[text] for text in texts])

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()

    def _asked(self, texts: Sequence[str]) -> list[np.ndarray]:
        lines = [self._rubric.item_text(text.encode("utf-8", "replace")) or "" for text in texts]
        try:
            self._engine = self._engine or self._loaded()
            found = self._shares(self._engine, lines)
        except RuntimeError as error:  # also of endpoints, see `llm_server.engines.openai_http`
            raise JudgeFailed(f"the judge has failed: {error}") from error
        self.num_passes += len(texts)
        return [self._distribution(row) for row in found]

    def _shares(self, engine: Engine, lines: Sequence[str]) -> np.ndarray:
        """[N, A]: how likely the actions are in the situations `lines`, in any unit; zeros without an answer."""
        shape = len(lines), len(self._action_names)
        if engine.name != "scripted":
            nothing = (0.0,) * shape[1]
            return np.array([score.shares or nothing for score in engine.score(lines)]).reshape(shape)
        # It reads no rubric: its rules are about a situation and the name of an action.
        label = self._rubric.answer_label
        asked = [f"{line} {label} {name}" for line in lines for name in self._action_names]
        return np.array([score.probability for score in engine.score(asked)]).reshape(shape)

    def _loaded(self) -> Engine:
        engine = build_engine(self._config, self._rubric)
        if engine.name.endswith("/text"):
            engine.close()
            raise ValueError(
                f"service.endpoint: {self._config.endpoint} gives no log-probabilities of model {engine.model!r}, from"
                " which the judge plays; use a model that gives them, or the engine transformers or vllm"
            )
        return engine

    def _distribution(self, shares: np.ndarray) -> np.ndarray:
        total = shares.sum()
        if total > 0 and np.isfinite(total):
            return shares / total
        self.num_unanswered += 1
        return np.full(len(self._action_names), 1.0 / len(self._action_names))
