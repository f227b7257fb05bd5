"""What an agent has mostly done in the running episode, in words: the channel `history`.

After LEARN (Goyal et al. 2019), which judges how often an episode's actions were taken against an instruction.
A share of at least five tenths of the actions is `mostly`, of at least two tenths `often`; so five actions at most are
named. A share is of ten actions at least, so that an episode's first few say little. 100,000 random steps of
NetHackScore (23 actions) gave 87 distinct texts.

Invariant: a text depends on the counts of the episode's own actions alone.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOSTLY, OFTEN = 5, 2
"""Tenths of the actions from which an action is named, and how."""
LEAST = 10
"""A share is of at least so many actions."""
MAX_TEXTS = 4_096
"""Texts that are remembered."""
EVENLY = "a bit of everything"


class ActionHistory:
    """Counts the actions of B environments' running episodes."""

    def __init__(self, num_envs: int, names: Sequence[str]) -> None:
        """`names`: the actions in words, in their order."""
        self._names = tuple(names)
        self._counts = np.zeros((num_envs, len(names)), np.int32)
        self._text = functools.lru_cache(MAX_TEXTS)(self._words)

    def observe(self, actions: np.ndarray, rows: slice) -> list[bytes]:
        """Count one action [N] in each of the environments `rows`, and say what each has mostly done, UTF-8."""
        self._counts[rows.start + np.arange(len(actions)), actions] += 1
        counts = self._counts[rows]
        num_actions = counts.sum(axis=1, keepdims=True, dtype=np.int32)
        tenth, tenfold = np.maximum(num_actions, LEAST), 10 * counts
        keys = np.empty((len(counts), counts.shape[1] + 1), np.uint8)
        keys[:, 1:] = tenfold >= OFTEN * tenth
        keys[:, 1:] += tenfold >= MOSTLY * tenth  # 0 unnamed, 1 often, 2 mostly
        keys[:, :1] = num_actions >= LEAST
        told, size = keys.tobytes(), keys.shape[1]
        return [self._text(told[i : i + size]) for i in range(0, len(told), size)]

    def restart(self, env_index: int) -> None:
        """Begin a new episode in one environment."""
        self._counts[env_index] = 0

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"actions": self._counts.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._counts[:] = state["actions"]

    def _words(self, key: bytes) -> bytes:
        is_enough, *how = key
        named = [
            f"{word} {name}"
            for word, degree in (("mostly", 2), ("often", 1))
            for name, of_action in zip(self._names, how, strict=True)
            if of_action == degree
        ]
        return (", ".join(named) or (EVENLY if is_enough else "")).encode()
