"""The reward models by name: to add one, write its class and put it into `MODELS`.

Invariant: whatever is wrong with the configuration is a ValueError here, before anything is asked or trained.
"""

from configs.annotation_schema import RewardModelConfig
from configs.errors import did_you_mean
from configs.schema import RunConfig
from reward_models.baselines import CountsModel, NoneModel
from reward_models.classification import ClassificationModel
from reward_models.embedding import EmbeddingModel
from reward_models.interface import Asks, RewardModel
from reward_models.ranking import RankingModel
from reward_models.retrieval import RetrievalModel

MODELS: dict[str, type[RewardModel]] = {
    model.name: model
    for model in (RetrievalModel, ClassificationModel, RankingModel, EmbeddingModel, CountsModel, NoneModel)
}


def build_reward_model(config: RewardModelConfig, seed: int = 0) -> RewardModel:
    """The reward model that `config` names, its weights drawn from `seed`; raises ValueError for an unknown name or a wrong setting."""
    model = MODELS.get(config.name)
    if model is None:
        raise ValueError(
            f"reward_model.name: got {config.name!r}{did_you_mean(config.name, MODELS)}, wanted one of {', '.join(MODELS)}"
        )
    return model(config, seed)


def check_reward_model(config: RunConfig) -> RewardModel:
    """The reward model of a run, against the rest of its configuration. ValueError for the first setting that does not fit it."""
    settings, service = config.reward_model, config.service
    model = build_reward_model(settings, config.seed)

    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ValueError(message)

    is_judged = model.asks in (Asks.JUDGEMENTS, Asks.PAIRS)
    refuse(
        bool(settings.judgements) and not is_judged,
        f"reward_model.judgements: got a file with reward_model.name={model.name}, which learns from no judgements",
    )
    asks_while_training = model.asks is not Asks.NOTHING and not settings.judgements
    refuse(
        is_judged and asks_while_training and service.engine == "none" and not config.annotator.address,
        f"service.engine: got none with reward_model.name={model.name}, which learns from judgements and would get none",
    )
    refuse(
        model.asks is Asks.EMBEDDINGS and len(settings.goals) > service.max_items_per_request,
        f"service.max_items_per_request: got {service.max_items_per_request}, wanted at least the number of goals ({len(settings.goals)})",
    )
    refuse(
        settings.warmup_labels > 0 and not asks_while_training,
        f"reward_model.warmup_labels: got {settings.warmup_labels}, but this reward model asks nothing while the policy trains; leave it at 0",
    )
    refuse(
        settings.goal_once_per_episode and not model.takes_goals,
        f"reward_model.goal_once_per_episode: got true with reward_model.name={model.name}, which knows no goals",
    )
    return model
