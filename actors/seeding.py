"""Seeds of environments, derived from where an episode belongs.

Invariant: the same run, stream, worker, environment and episode give the same seed in every process and on every machine.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStream:
    """The seeds of one worker's episodes."""

    run_seed: int
    """The run's seed."""
    stream: str
    """What the episodes are for (`train`, `eval`): different streams share no episode."""
    worker_index: int
    """Which worker."""

    def seed(self, env_index: int, episode: int, purpose: str = "episode") -> int:
        """A seed in [0, 2^63) for one episode of one environment; `purpose` separates several generators within it."""
        place = f"{self.run_seed}/{self.stream}/{self.worker_index}/{env_index}/{episode}/{purpose}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1
