"""How features change in random play.

Invariant: a change lies within one episode; the same seed gives the same play.
"""

from collections.abc import Iterator

import numpy as np

from actors.environments.errors import EnvironmentFailure
from actors.environments.vector import VectorEnvironment, VectorStep


def random_steps(env: VectorEnvironment, num_steps: int, seed: int) -> Iterator[VectorStep]:
    """At least `num_steps` steps of random play, over all environments together, from the states that they are in.
    Raises EnvironmentFailure at the end if one failed."""
    rng = np.random.default_rng(seed)
    for _ in range(-(-num_steps // env.num_envs)):
        yield env.step(rng.integers(0, env.spec.num_actions, env.num_envs))
    errors, failure = env.take_errors()
    if errors:
        raise EnvironmentFailure(failure.splitlines()[-1])


def feature_changes(env: VectorEnvironment, num_steps: int, seed: int) -> np.ndarray:
    """[N, F] f32: the changes of all features in about `num_steps` steps of random play, over all environments
    together; NaN where a value is unknown. Raises EnvironmentFailure where one fails."""
    env.reset()
    before, changes = _features(env.features), []
    for step in random_steps(env, num_steps, seed):
        changes.append(_features(step.features) - before)
        before = _features(env.features)
    return np.concatenate(changes)


def _features(given: np.ndarray | None) -> np.ndarray:
    assert given is not None, "the environment was made with features"
    return given.copy()
