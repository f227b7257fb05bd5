"""`Ensemble`: several networks that learn the same answers, each from its own bootstrap sample; where they disagree,
too little is known for a high reward.

A caption is in the sample of network k as often as a Poisson(1) draw from (caption id, k) says (online bootstrap, Oza
and Russell 2001), a pair as often as the product for its two captions (Owen and Eckles 2012); so a sample does not
depend on the order of arrival and is not saved. Every turn trains one network, in rotation: K networks share the time
of one, and each learns K times as slowly.

Invariant: one network is trained on all answers, without weights, exactly as without an ensemble.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption
from reward_models.networks.fitting import Examples, Fitting

POISSON = np.cumsum([math.exp(-1.0) / math.factorial(number) for number in range(16)])
"""P(Poisson(1) <= n)."""


class Ensemble:
    """`robust.ensemble` networks; see `Fitting`, of which it has the methods."""

    def __init__(
        self, sizes: Sequence[int], dropout: float, config: RewardModelConfig, seed: int, robust: RobustConfig
    ) -> None:
        numbers: list[int | None] = [None] if robust.ensemble == 1 else [*range(robust.ensemble)]
        self.members = [
            Fitting(sizes, dropout, config, _seed(seed, number or 0), robust.noise_rate, number) for number in numbers
        ]
        self._num_turns = 0

    @property
    def best_steps(self) -> list[int]:
        """The steps at which the best weights were found; 0 before the first evaluation."""
        return [member.best_step for member in self.members]

    def is_settled(self, examples: Examples) -> bool:
        """Whether `train` would do nothing."""
        return all(member.is_settled(examples) for member in self.members)

    def note_examples(self, num: int = 1) -> None:
        """Count new training examples, and new targets of old ones."""
        for member in self.members:
            member.note_examples(num)

    def wake(self) -> None:
        """End all pauses because the targets have changed."""
        for member in self.members:
            member.wake()

    def train(self, examples: Examples, num_steps: int) -> dict[str, float]:
        """Train the next network that does not pause; returns the mean `accuracy` of those that have one."""
        for _ in self.members:
            member = self.members[self._num_turns % len(self.members)]
            self._num_turns += 1
            if not member.is_settled(examples):
                member.train(examples, num_steps)
                break
        accuracies = [member.accuracy for member in self.members if member.accuracy is not None]
        return {"accuracy": float(np.mean(accuracies))} if accuracies else {}

    def outputs(self, captions: Sequence[Caption]) -> np.ndarray:
        """[K, N] f64 outputs of the networks' best weights, NaN before these exist; cached."""
        return np.stack([member.outputs(captions) for member in self.members])

    def retain(self, ids: Any) -> None:
        """Forget the outputs of all other captions."""
        for member in self.members:
            member.retain(ids)

    def state_dict(self) -> dict[str, Any]:
        """That of the network if there is one, else those of all and whose turn it is."""
        if len(self.members) == 1:
            return self.members[0].state_dict()
        states = {str(number): member.state_dict() for number, member in enumerate(self.members)}
        return {"members": states, "num_turns": self._num_turns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises KeyError for that of fewer networks."""
        if len(self.members) == 1:
            self.members[0].load_state_dict(state)
            return
        for number, member in enumerate(self.members):
            member.load_state_dict(state["members"][str(number)])
        self._num_turns = state["num_turns"]


def lower_bound(values: np.ndarray, pessimism: float) -> np.ndarray:
    """[K, N] -> [N]: the networks' mean minus `pessimism` of their standard deviations; NaN where one is NaN."""
    return values.mean(axis=0) - pessimism * values.std(axis=0)


def bootstrap_weights(ids: np.ndarray, member: int) -> np.ndarray:
    """[N] f64: how often each caption (`ids` [N] u64) is in the bootstrap sample of network `member`, a Poisson(1)
    draw."""
    z = ids + np.uint64((member + 1) * 0x9E3779B97F4A7C15 % 2**64)  # SplitMix64 (Steele, Lea and Flood 2014)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = (z ^ (z >> np.uint64(31))) / 2.0**64
    return np.searchsorted(POISSON, uniform, side="right").astype(np.float64)


def _seed(seed: int, number: int) -> int:
    return zlib.crc32(f"{seed}/{number}".encode()) if number else seed
