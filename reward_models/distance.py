"""Distances between rewards, in [0, 1]: 0 for rewards that mean the same, 1 for opposite ones.

    between                 what is taken out first                        norm
    functions of an MDP     potentials, by value-adjusted levelling        L2 over states and actions
    reward tables           a constant                                     L2 over captions, by how often they occurred

and then the scale of each. The distance is half the L2 distance of what remains. That of functions is the STARC metric
of Skalse et al. 2024 (arXiv 2309.15257), which bounds the regret of optimising one reward in place of the other. That
of tables is sqrt((1 - rho) / 2), with rho the correlation of the rewards over the occurrences of captions. In a table
of rewards of events potentials cannot be expressed, so it bounds nothing.

Invariant: what remains of a reward that says nothing (a potential, a constant) is 0, so that it has distance 0 to
others that say nothing, and 1/2 to all else.
"""

import logging
from collections.abc import Mapping

import numpy as np

from reward_models.table import RewardTable

LOG = logging.getLogger(__name__)
SPAN = 100
"""Versions between the two tables of which the distance is an alarm."""
ROUNDING = 1e-9
"""What remains of a reward is nothing if it is smaller than this, relative to the reward."""


def starc_distance(
    first: np.ndarray, second: np.ndarray, transitions: np.ndarray, policy: np.ndarray, gamma: float
) -> float:
    """The STARC distance of two rewards [S, A, S'] in an MDP with `transitions` [S, A, S'] and discount `gamma` in [0,
    1); `policy` [S, A] is the one whose values level them. Raises ValueError for other shapes, and for rows of
    transitions or policy that are no probabilities."""
    transitions, policy = np.asarray(transitions, np.float64), np.asarray(policy, np.float64)
    num_states, num_actions = policy.shape
    shape = num_states, num_actions, num_states
    if not (transitions.shape == np.shape(first) == np.shape(second) == shape):
        got = f"{np.shape(first)}, {np.shape(second)}, {transitions.shape}"
        raise ValueError(f"rewards and transitions must be {shape} for a policy {policy.shape}, got {got}")
    for name, rows in (("transitions", transitions), ("policy", policy)):
        if (rows < 0).any() or not np.allclose(rows.sum(axis=-1), 1.0):
            raise ValueError(f"{name} must be probabilities that sum to 1 over the last axis")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}")
    one, other = (levelled(np.asarray(reward, np.float64), transitions, policy, gamma) for reward in (first, second))
    return _half_distance(_scaled(one, np.abs(first).max()), _scaled(other, np.abs(second).max()))


def levelled(reward: np.ndarray, transitions: np.ndarray, policy: np.ndarray, gamma: float) -> np.ndarray:
    """[S, A]: C(R)(s, a, s') = E_S'[R(s, a, S') - V(s) + gamma V(S')], which does not depend on s' (value-adjusted
    levelling): the policy's advantages. Rewards that differ by a potential, or in how they are distributed over s',
    become equal."""
    expected = (transitions * reward).sum(axis=2)
    step = np.einsum("sa,sat->st", policy, transitions)
    values = np.linalg.solve(np.eye(len(step)) - gamma * step, (policy * expected).sum(axis=1))
    return expected + gamma * transitions @ values - values[:, None]


def table_distance(old: RewardTable, new: RewardTable, ids: np.ndarray, counts: np.ndarray) -> float:
    """The distance of two tables over the captions `ids` [N] u64 that both know, which occurred `counts` [N] times; 0
    where they share none that occurred."""
    (before, knew), (after, knows) = old.look_up(ids), new.look_up(ids)
    return reward_distance(before, after, np.where(knew & knows & (ids != 0), counts, 0))


def reward_distance(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> float:
    """The distance of two rewards [N] of the same items or transitions, sqrt((1 - rho) / 2), with `weights` [N] of at
    least 0; 0 where these are all 0."""
    weights = weights.astype(np.float64)
    if not weights.sum():
        return 0.0
    weights /= weights.sum()
    return _half_distance(_standardised(one, weights), _standardised(other, weights))


def _standardised(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values = rewards.astype(np.float64)
    return _scaled(np.sqrt(weights) * (values - weights @ values), np.abs(values).max())


def _scaled(values: np.ndarray, size: float) -> np.ndarray:
    """`values` divided by their norm; zeros where that is only rounding of numbers of this `size`."""
    norm = float(np.linalg.norm(values))
    return values / norm if norm > ROUNDING * size else np.zeros_like(values)


def _half_distance(one: np.ndarray, other: np.ndarray) -> float:
    return min(1.0, float(np.linalg.norm(one - other)) / 2)


class TableDistances:
    """How far each reward table is from the one before, and every 100 versions from the one 100 versions before; it
    holds one table. A distance of the second kind above `alarm` is logged as a warning, once until one is below it
    again; 0 sets no alarm."""

    def __init__(self, alarm: float) -> None:
        self._alarm = alarm
        self._last: float | None = None
        self._over_span: float | None = None
        self._reference: RewardTable | None = None

    def note(self, old: RewardTable, new: RewardTable, ids: np.ndarray, counts: np.ndarray) -> None:
        """Measure a `new` table that replaces the `old` one; see `table_distance`."""
        if not old.knows_nothing:
            self._last = table_distance(old, new, ids, counts)
        if self._reference is None:
            self._reference = new
        elif new.reward_version[1] - self._reference.reward_version[1] >= SPAN:
            self._note_over_span(self._reference, new, table_distance(self._reference, new, ids, counts))
            self._reference = new

    def _note_over_span(self, old: RewardTable, new: RewardTable, distance: float) -> None:
        was_above, is_above = (self._over_span or 0.0) > self._alarm, distance > self._alarm > 0
        self._over_span = distance
        if is_above and not was_above:
            LOG.warning(
                "the reward changes: table %d is %.2f from table %d, above robust.distance_alarm=%g. The policy"
                " learns a moving target; look at reward_distance, and at what is paid in `delphi report`",
                new.reward_version[1], distance, old.reward_version[1], self._alarm,
            )  # fmt: skip

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics; None before there were two tables."""
        return {"reward_distance": self._last, "reward_distance_100": self._over_span}

    def state_dict(self) -> dict[str, float | None]:
        """The last distances. Tables are not saved: versions, and so spans, begin anew with a resume."""
        return self.metrics()

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Continue from `state_dict`."""
        self._last, self._over_span = state.get("reward_distance"), state.get("reward_distance_100")
