"""`GoalStatistics`: how often goals were given and achieved in a run, added up from the workers' counts.

Invariant: totals are plain sums; recent rates weigh the n-th last try by decay^n, whatever the reports it came in.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.goal_schema import MAX_GOALS

BY_GOAL = ("attempted", "given_achieved", "achieved", "achieved_in_successes", "achieved_in_failures")
"""Counts of a report, [256] i64 each; `attempted` and `given_achieved` of goals that the policy was given."""
OF_EPISODES = ("successes", "failures")
"""Counts of a report, of ended episodes."""
RECENT, EARLIER = 0.9, 0.98
"""Decays per try: of the present success rate, and of that to which it is compared."""
PER_EPISODE = 0.99


class RecentRate:
    """hits / tries, decayed per try; the tries of one report count as equally good."""

    def __init__(self, size: int, decay: float) -> None:
        self._decay = decay
        self.tries, self.hits = np.zeros(size), np.zeros(size)

    def add(self, tries: np.ndarray, hits: np.ndarray) -> None:
        """Count `tries` [size] and the `hits` [size] among them, or among earlier ones."""
        kept = self._decay**tries
        weight = (1 - kept) / (1 - self._decay)  # of these tries together: 1 + decay + ... + decay^(tries - 1)
        self.tries = self.tries * kept + weight
        self.hits = self.hits * kept + hits * np.where(tries > 0, weight / np.maximum(tries, 1), 1.0)

    @property
    def values(self) -> np.ndarray:
        """[size] f64; NaN where nothing was tried. A hit may be reported after its try, hence the minimum."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.tries > 0, self.hits / self.tries, np.nan)


class GoalStatistics:
    """Not thread-safe. Without a policy that is given goals (`is_given`), every episode is a try of each active one."""

    def __init__(self, is_given: bool) -> None:
        self.totals: dict[str, Any] = {name: np.zeros(MAX_GOALS, np.int64) for name in BY_GOAL}
        self.totals |= dict.fromkeys(OF_EPISODES, 0)
        """Sums over the run: [256] i64 of BY_GOAL, and numbers of OF_EPISODES."""
        self._is_given = is_given
        self._rates = [RecentRate(MAX_GOALS, decay) for decay in (RECENT, EARLIER)]
        self._per_episode = RecentRate(1, PER_EPISODE)
        self._tries = np.zeros(MAX_GOALS, np.int64)

    def add(self, counts: Mapping[str, Any], is_active: np.ndarray) -> None:
        """Add a worker's counts, of what BY_GOAL and OF_EPISODES name; `is_active` [256] bool."""
        self.totals = {name: total + counts[name] for name, total in self.totals.items()}
        episodes = counts["successes"] + counts["failures"]
        achieved = counts["achieved_in_successes"] + counts["achieved_in_failures"]
        tries, hits = episodes * is_active.astype(np.int64), achieved
        if self._is_given:
            tries, hits = counts["attempted"], counts["given_achieved"]
        self._tries = self._tries + tries
        for rate in self._rates:
            rate.add(tries, hits)
        self._per_episode.add(np.array([episodes]), np.array([achieved.sum()]))

    @property
    def tries(self) -> np.ndarray:
        """[256] i64: how often each goal was tried."""
        return self._tries

    @property
    def success_rates(self) -> np.ndarray:
        """[256] f64: the recent success rate of each goal; NaN for one that was never tried."""
        return np.minimum(self._rates[0].values, 1.0)

    @property
    def progress(self) -> np.ndarray:
        """[256] f64: the change of each goal's success rate, upwards or downwards; NaN for one that was never tried."""
        recent, earlier = (np.minimum(rate.values, 1.0) for rate in self._rates)
        return np.abs(recent - earlier)

    @property
    def achieved_per_episode(self) -> float | None:
        """Goals achieved in a recent episode, on average; None before one has ended."""
        (mean,) = self._per_episode.values.tolist()
        return None if np.isnan(mean) else mean

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        rates = [*self._rates, self._per_episode]
        return {
            "totals": dict(self.totals),
            "tries": self._tries,
            "rates": [{"tries": rate.tries, "hits": rate.hits} for rate in rates],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.totals, self._tries = dict(state["totals"]), state["tries"]
        for rate, saved in zip([*self._rates, self._per_episode], state["rates"], strict=True):
            rate.tries, rate.hits = saved["tries"], saved["hits"]
