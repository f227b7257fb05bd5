"""A worker's environments in parts that are stepped one after the other.

Invariant: together the parts are the undivided vector: environment for environment the same episodes with the same
seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.environments.errors import EnvironmentFailure
from actors.environments.vector import VectorEnvironment


class SplitEnvironment:
    """The methods of `VectorEnvironment` but `step`, for which there are `parts`."""

    def __init__(self, parts: Sequence[VectorEnvironment]) -> None:
        """`parts` in the order of their environments' numbers; they are closed with this. Raises EnvironmentFailure if
        their features have not the same names."""
        self.parts = tuple(parts)
        self.spec, self.num_envs = parts[0].spec, sum(part.num_envs for part in parts)
        if len({part.spec.features for part in parts}) > 1:
            self.close()
            got = " and ".join(", ".join(part.spec.features) for part in parts)
            raise EnvironmentFailure(f"env.features: got other names for equal seeds: {got}; wanted the same each time")

    @property
    def states(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return _each([part.states for part in self.parts])

    @property
    def features(self) -> np.ndarray | None:
        """See `VectorEnvironment`."""
        there = [part.features for part in self.parts if part.features is not None]
        return np.concatenate(there) if there else None

    @property
    def missions(self) -> list[bytes] | None:
        """See `VectorEnvironment`."""
        return _each([part.missions for part in self.parts])

    def reset(self) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """See `VectorEnvironment`."""
        started = [part.reset() for part in self.parts]
        return _joined([obs for obs, _ in started]), [caption for _, captions in started for caption in captions]

    def take_errors(self) -> tuple[int, str]:
        """See `VectorEnvironment`."""
        taken = [part.take_errors() for part in self.parts]
        return sum(number for number, _ in taken), next((first for _, first in taken if first), "")

    def take_notices(self) -> tuple[str, ...]:
        """See `VectorEnvironment`; what several parts say is said once."""
        return tuple(dict.fromkeys(notice for part in self.parts for notice in part.take_notices()))

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnvironment`."""
        states = {str(number): part.state_dict() for number, part in enumerate(self.parts)}
        return {"exact": all(state["exact"] for state in states.values()), "parts": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """See `VectorEnvironment`."""
        loaded = [part.load_state_dict(state["parts"][str(number)]) for number, part in enumerate(self.parts)]
        there = [obs for obs in loaded if obs is not None]
        return _joined(there) if len(there) == len(self.parts) else None

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.close()


def _each(texts: Sequence[list[bytes] | None]) -> list[bytes] | None:
    """The texts of all parts; None where a part has none."""
    return None if None in texts else [text for of_part in texts for text in of_part or ()]


def _joined(observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Observations name -> [B, ...] of all parts."""
    return {name: np.concatenate([obs[name] for obs in observations]) for name in observations[0]}
