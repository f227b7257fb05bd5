"""What `delphi doctor` examines: a configuration, with what its checks derive from it.

Invariant: derived by the code that a run uses.
"""

from functools import cached_property

from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec
from cluster.on_ray.placement import object_store_bytes
from cluster.wiring import build_model, needs_service, service_config
from configs.annotation_schema import ServiceConfig
from configs.schema import RunConfig
from reward_models.interface import Asks


class Subject:
    """A configuration, with what checks ask of it; each answer is found once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """Of one environment."""
        config = self.config
        env = make_environment(
            config.env, num_envs=1, run_seed=config.seed, worker_index=0, stream="doctor",
            policy=config.policy,
        )  # fmt: skip
        env.close()
        return env.spec

    @cached_property
    def asks(self) -> Asks:
        """What the reward model asks of the annotation service."""
        return build_model(self.config).asks

    @property
    def needs_service(self) -> bool:
        """Whether anything is asked of an annotation service."""
        return self.asks is not Asks.NOTHING and not self.config.reward_model.judgements

    @property
    def starts_service(self) -> bool:
        """Whether the run brings its own judge: a service as its child, or, `inline`, one in its process."""
        return needs_service(self.config)

    @property
    def service(self) -> ServiceConfig:
        """Of the service that the run starts."""
        return service_config(self.config, self.asks)

    @property
    def object_store_bytes(self) -> int:
        """Of the object store that a run in `local` starts."""
        return object_store_bytes(self.config, self.spec)
