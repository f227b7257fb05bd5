"""The scripted engine: answers from regular expressions, for tests and debugging.

Invariant: deterministic; the same script gives the same text the same answer.
"""

import hashlib
import re
import time
from collections.abc import Sequence

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Score

DEFAULT_PROBABILITY = 0.1


class ScriptedEngine:
    """Gives a text the probability of the first rule whose expression matches it."""

    judges = True
    needs_calibration = False

    def __init__(self, config: ServiceConfig):
        self._rules = _parse(config.script)
        self._delay_s = config.script_delay_s
        self.name = self.model = "scripted"
        self.fingerprint = f"scripted-{hashlib.sha256(config.script.encode()).hexdigest()[:16]}"

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, after the script's delay for each."""
        time.sleep(self._delay_s * len(texts))
        return [Score(self._probability(text), 1.0) for text in texts]

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """The first is better as far as its log-odds exceed the second's (Bradley-Terry)."""
        time.sleep(self._delay_s * len(pairs))
        return [Score(self._preference(first, second), 1.0) for first, second in pairs]

    def close(self) -> None:
        """Nothing to free."""

    def _preference(self, first: str, second: str) -> float:
        p, q = (min(max(self._probability(text), 1e-6), 1 - 1e-6) for text in (first, second))
        return p * (1 - q) / (p * (1 - q) + q * (1 - p))

    def _probability(self, text: str) -> float:
        return next((probability for rule, probability in self._rules if rule.search(text)), DEFAULT_PROBABILITY)


def _parse(script: str) -> list[tuple[re.Pattern[str], float]]:
    rules = []
    for rule in filter(None, (part.strip() for part in script.split(";"))):
        expression, _, probability = rule.rpartition("=")
        try:
            rules.append((re.compile(expression), float(probability)))
        except (re.error, ValueError) as error:
            raise ValueError(f"script rule '{rule}' is not `regex=probability`: {error}") from None
        if not expression or not 0.0 <= rules[-1][1] <= 1.0:
            raise ValueError(f"script rule '{rule}' is not `regex=probability` with a probability in 0 to 1")
    return rules
