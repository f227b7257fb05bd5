"""What a run needs besides a policy to train: whether it asks a judge, and whether it starts an annotation service, and
which.

Invariant: all of it follows from the configuration and from what its reward model asks; the model is built once to
learn that."""

from dataclasses import dataclass, replace

from configs.annotation_schema import ServiceConfig
from configs.schema import RunConfig
from llm_server.rubrics.loading import load_rubric
from reward_models.building import MODELS, check_reward_model
from reward_models.embedding import MAX_GOALS
from reward_models.interface import Asks, RewardModel

LOCAL_ENGINES = ("transformers", "vllm")
"""Engines that load a language model on the machine of the service."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A configuration and what follows from it."""

    config: RunConfig
    asks: Asks
    """What the reward model learns from."""

    @property
    def asks_judge(self) -> bool:
        """Whether an annotation service is asked while the policy trains."""
        return self.asks is not Asks.NOTHING and not self.config.reward_model.judgements

    @property
    def starts_service(self) -> bool:
        """Whether the run starts its own judge: services as child processes, or in `inline` one in its own process."""
        return self.asks_judge and not self.config.annotator.address

    @property
    def service(self) -> ServiceConfig:
        """Of the service that the run starts; embeddings take no language model."""
        service = self.config.service
        return replace(service, engine="none") if self.asks is Asks.EMBEDDINGS else service

    @property
    def loads_language_model(self) -> bool:
        """Whether the service that the run starts loads a language model."""
        return self.starts_service and self.service.engine in LOCAL_ENGINES


def plan_run(config: RunConfig) -> RunPlan:
    """The plan of a configuration. Raises ValueError for a reward model that does not fit it."""
    return RunPlan(config, build_model(config).asks)


def build_model(config: RunConfig) -> RewardModel:
    """The reward model of a configuration, goals filled in. Raises ValueError for a wrong setting."""
    model = MODELS.get(config.reward_model.name)
    if model is not None and model.takes_goals:
        config = replace(config, reward_model=replace(config.reward_model, goals=embedding_goals(config)))
    return check_reward_model(config)


def embedding_goals(config: RunConfig) -> list[str]:
    """What `embedding` compares with: `reward_model.goals`, else the rubric's positive examples, else its goal."""
    if config.reward_model.goals:
        return list(config.reward_model.goals)
    rubric = load_rubric(config.annotator.rubric)
    return [example.item for example in rubric.examples if example.positive][:MAX_GOALS] or [rubric.goal]
