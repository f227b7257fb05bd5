"""What `delphi doctor` examines: a configuration, with what its checks derive from it.

Invariant: derived by the code that a run uses.
"""

from functools import cached_property

from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec
from cluster.on_ray.placement import object_store_bytes
from cluster.plan import RunPlan, plan_run
from configs.schema import RunConfig


class Subject:
    """A configuration and the values that checks derive from it, each computed once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @cached_property
    def plan(self) -> RunPlan:
        """What the run needs. Raises ValueError for a reward model that does not fit the configuration."""
        return plan_run(self.config)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """The specification of one environment."""
        config = self.config
        env = make_environment(
            config.env, num_envs=1, run_seed=config.seed, worker_index=0, stream="doctor", policy=config.policy
        )
        env.close()
        return env.spec

    @property
    def object_store_bytes(self) -> int:
        """Size of the object store that a run in `local` starts."""
        return object_store_bytes(self.config, self.spec)
