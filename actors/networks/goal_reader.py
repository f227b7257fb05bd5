"""Reads the goal that an environment pursues: a number, of which the vector of its text is known.

Goal and observation also meet in products of two linear readings, as in the two-stream networks of universal value
functions (Schaul et al. 2015, section 3): so heads that are linear in features can want other actions for another goal,
without a recurrent core, or beside it (`policy.core_skip`).

Invariant: goal 0, no goal, adds nothing: its features are zeros. A goal's features depend on its text alone, so goals
that are near in words begin near.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from actors.networks.repeated_rows import EncodingCache, RepeatedRows, encode_rows
from configs.goal_schema import GOAL_WIDTH, MAX_GOALS

FEATURES = 32
"""Width of a goal's features, and of their products with the observation's."""


class GoalReader(nn.Module):
    """A goal's features, and their products with features of the observation."""

    def __init__(self, num_observed: int) -> None:
        """`num_observed`: features of the observation."""
        super().__init__()
        # Not a weight, and not in snapshots: it comes with the goals.
        self.vectors = nn.Buffer(torch.zeros(MAX_GOALS + 1, GOAL_WIDTH), persistent=False)
        self.goal = nn.Linear(GOAL_WIDTH, FEATURES, bias=False)
        self.observed = nn.Linear(num_observed, FEATURES, bias=False)
        for layer in (self.goal, self.observed):
            nn.init.orthogonal_(layer.weight)

    @torch.no_grad()
    def set_vectors(self, vectors: np.ndarray) -> None:
        """The vectors [G, 384] of goals 0 to G - 1, of unit length. Raises ValueError for others."""
        if vectors.ndim != 2 or len(vectors) > MAX_GOALS or vectors.shape[1] != GOAL_WIDTH:
            wanted = f"wanted at most {MAX_GOALS} of {GOAL_WIDTH} numbers, as the encoder minilm gives them"
            raise ValueError(f"policy.reads_goal: got goal vectors of shape {vectors.shape}, {wanted}")
        self.vectors.zero_()
        self.vectors[1 : len(vectors) + 1] = torch.from_numpy(np.array(vectors, np.float32))

    def read(self, goals: Tensor, cache: EncodingCache | None = None, *, reuses: bool) -> RepeatedRows:
        """Features [N, FEATURES] of `goals` [N], from the `cache` where there is one; `reuses`: see `encode_rows`."""
        rows = goals.unsqueeze(1)
        return RepeatedRows(cache(rows, self._features)) if cache else encode_rows(rows, self._features, reuses=reuses)

    def with_products(self, read: Tensor) -> Tensor:
        """[..., F + FEATURES], features of the observation and then of goals, followed by their products."""
        observed, goals = read.split([self.observed.in_features, FEATURES], -1)
        return torch.cat([read, goals * self.observed(observed)], -1)

    def _features(self, goals: Tensor) -> Tensor:
        """[M, 1] -> [M, FEATURES]."""
        # Numbers of about unit size, as other features are: those of a unit vector are small.
        return self.goal(self.vectors[goals[:, 0].long()] * math.sqrt(GOAL_WIDTH))
