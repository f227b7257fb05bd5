"""What `delphi doctor` examines: a configuration, with what several of its checks need to know about it.

Invariant: found out by the code that a run uses, once, and only when a check asks; an error is found again by each
check that asks.
"""

from dataclasses import dataclass
from functools import cached_property

from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec, VectorEnvironment
from cluster.on_ray.placement import object_store_bytes
from cluster.plan import RunPlan, check_rubrics, plan_run
from configs.schema import RunConfig
from llm_server.engines.model_check import ModelFacts, check_model
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric


@dataclass
class Subject:
    """A configuration, and what follows from it."""

    config: RunConfig

    @cached_property
    def plan(self) -> RunPlan:
        """What the run needs. Raises ValueError for a reward model that does not fit the configuration."""
        return plan_run(self.config)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """The specification of one environment."""
        env = self.make_environment(1, self.config.seed)
        env.close()
        return env.spec

    @cached_property
    def rubrics(self) -> list[Rubric]:
        """What the judge is asked, by all terms. Raises ValueError."""
        check_rubrics(self.plan)
        return [load_rubric(rubric) for rubric in self.plan.rubrics]

    @cached_property
    def models(self) -> list[ModelFacts]:
        """The language model that the run's own service loads, under each of the rubrics. Raises ValueError, of which
        ModelNotHere is one."""
        return [check_model(self.plan.service, rubric) for rubric in self.rubrics]

    @property
    def object_store_bytes(self) -> int:
        """Size of the object store that a run in `local` starts."""
        return object_store_bytes(self.config, self.spec)

    def make_environment(self, num_envs: int, seed: int) -> VectorEnvironment:
        """The run's environment, with seeds of a stream that training does not use."""
        config = self.config
        return make_environment(
            config.env, num_envs=num_envs, run_seed=seed, worker_index=0, stream="doctor", policy=config.policy
        )
