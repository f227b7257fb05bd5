"""How large Ray's object store is for a run on this machine.

Invariant: a pure function; all rollouts that can exist at once fit twice over, so that nothing is moved to disk. Their number is
bounded (`actors.rollouts_in_flight` calls per worker, and the batch that is being gathered), so a store that is too small makes a
run slower and cannot fill a disk.
"""

import math

from actors.environment import EnvironmentSpec
from configs.schema import RunConfig

STEP_BYTES = 4096
"""At least this much is reckoned for one environment's step in a rollout: more than NetHack's observations take."""
SMALLEST_BYTES = 75 * 2**20
"""Ray takes no less."""
DEFAULT_BYTES = 200_000_000


def rollout_bytes(config: RunConfig, spec: EnvironmentSpec) -> int:
    """About what one rollout takes."""
    observations = sum(entry.dtype.itemsize * math.prod(entry.shape) for entry in spec.observations.values())
    per_step = max(STEP_BYTES, observations + 4 * spec.num_actions + 64)
    return per_step * config.actors.envs_per_worker * (config.actors.rollout_steps + 1)


def rollouts_at_once(config: RunConfig) -> int:
    """Calls in flight, one more per worker that the learner has taken, and the batch that it gathers."""
    return config.actors.num_workers * (config.actors.rollouts_in_flight + 1) + config.learner.rollouts_per_batch


def object_store_bytes(config: RunConfig, spec: EnvironmentSpec) -> int:
    """`cluster.object_store_bytes`, or what it is where that is 0."""
    return config.cluster.object_store_bytes or max(DEFAULT_BYTES, 2 * rollouts_at_once(config) * rollout_bytes(config, spec))
