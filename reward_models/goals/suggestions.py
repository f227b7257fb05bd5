"""`Suggestions`: the described states of a run, and which goals are suggested in each.

Invariant: states are asked about most frequent first, each once by each source (`closed` again about goals that came
later); at most MAX_STATES are held, and what leaves is suggested nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from configs.goal_schema import OF_STATES
from llm_server.annotation import Caption
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.id_rows import IdValues
from reward_models.goals.masks import masks_from, numbers_of

MAX_STATES = 50_000
NEVER_HALVED = 10**15


class Suggestions:
    """Not thread-safe, but for `states`."""

    def __init__(self) -> None:
        self.states = CaptionBook(MAX_STATES, NEVER_HALVED, policy="frequency")
        """All states with their counts."""
        self._masks: dict[int, int] = {}  # by state, with a bit for each goal
        self._num_asked = {source: IdValues() for source in OF_STATES}
        self._num_evicted = 0
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None  # what `arrays` returns; None where it has changed

    def next_state(self, source: str, num: int) -> tuple[Caption, int] | None:
        """The most frequent state about which `source` has asked less than `num` (questions, or goals), and how much
        that is; None where there is none."""
        ids, _, log2 = self.states.ranked()
        if not len(ids):
            return None
        num_asked = np.nan_to_num(self._num_asked[source].of(ids))
        log2 = np.where((num_asked < num) & (ids != 0), log2, -np.inf)
        best = np.lexsort((ids, -log2))[0]
        known = self.states.captions_of(ids[[best]].tolist()) if log2[best] > -np.inf else {}
        return next(((state, int(num_asked[best])) for state in known.values()), None)

    def note(self, source: str, state: int, num_asked: int, goals: Iterable[int]) -> None:
        """`source` has now asked `num_asked` about a state, and suggests `goals` in it."""
        self._num_asked[source].update({state: num_asked})
        self.add(state, goals)

    def add(self, state: int, goals: Iterable[int]) -> None:
        """Suggest `goals` in a state too."""
        for goal in goals:
            self._arrays = None
            self._masks[state] = self._masks.get(state, 0) | 1 << goal

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """States with suggestions, [S] u64, strictly increasing; and the masks of their goals, [S, 4] u64."""
        self._retain()
        if self._arrays is None:
            ids = sorted(self._masks)
            self._arrays = np.array(ids, np.uint64), masks_from([self._masks[number] for number in ids])
        return self._arrays

    @property
    def per_state(self) -> float | None:
        """Goals suggested in a state that was asked about, on average; None before the first."""
        num = len(set().union(*(values.ids.tolist() for values in self._num_asked.values())))
        return sum(mask.bit_count() for mask in self._masks.values()) / num if num else None

    def _retain(self) -> None:
        """Forget states that have left."""
        if self.states.num_evicted != self._num_evicted:
            self._num_evicted = self.states.num_evicted
            self._arrays = None
            held = set(self.states.captions().ids.tolist())
            self._masks = {state: mask for state, mask in self._masks.items() if state in held}
            for values in self._num_asked.values():
                values.retain(held)

    def state_dict(self) -> dict[str, Any]:
        """States, what was asked about them, and what is suggested."""
        ids, masks = self.arrays()
        asked = {name: {"ids": values.ids, "num": values.values} for name, values in self._num_asked.items()}
        return {"states": self.states.state_dict(), "asked": asked, "ids": ids, "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.states.load_state_dict(state["states"])
        for name, saved in state["asked"].items():
            self._num_asked[name].replace(saved["ids"], saved["num"])
        self._masks = dict(zip(state["ids"].tolist(), numbers_of(state["masks"]), strict=True))
        self._arrays = None
