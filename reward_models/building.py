"""The reward models by name (to add one, write its class and add it to `MODELS`), and the two that need no module of
their own: `counts` gives every caption the same reward, `none` gives no reward.

Invariant: a configuration that does not fit the reward model raises ValueError here, before anything is asked or
trained.
"""

from collections.abc import Sequence

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.errors import did_you_mean
from configs.reward_schema import RobustConfig
from configs.schema import RunConfig
from configs.terms import term_runs
from llm_server.annotation import Caption
from reward_models.classification import ClassificationModel
from reward_models.embedding import EmbeddingModel
from reward_models.interface import UNGUARDED, Asks, RewardModel, without_empty
from reward_models.ranking import RankingModel
from reward_models.retrieval import RetrievalModel


class CountsModel(RewardModel):
    """R = 1 for every non-empty caption, so that intrinsic reward is 1 / N^beta: the episodic novelty of captions."""

    name = "counts"
    asks = Asks.NOTHING
    reward = 1.0

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        return without_empty(captions, self.margins(captions))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        return np.full(len(captions), self.reward)


class NoneModel(CountsModel):
    """R = 0: extrinsic reward only."""

    name = "none"
    reward = 0.0


MODELS: dict[str, type[RewardModel]] = {
    model.name: model
    for model in (RetrievalModel, ClassificationModel, RankingModel, EmbeddingModel, CountsModel, NoneModel)
}


def build_reward_model(config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> RewardModel:
    """The reward model of `config`, with weights drawn from `seed`; raises ValueError for a wrong name or setting. A
    model without networks has no use for `robust`."""
    if config.name not in MODELS:
        raise ValueError(
            f"reward_model.name: got {config.name!r}{did_you_mean(config.name, MODELS)},"
            f" wanted one of {', '.join(MODELS)}"
        )
    return MODELS[config.name](config, seed, robust)


def check_reward_model(config: RunConfig) -> RewardModel:
    """The reward model of a run; raises ValueError for the first setting of the configuration that does not fit it."""
    settings, max_items = config.reward_model, config.service.max_items_per_request
    model = build_reward_model(settings, config.seed, config.robust)
    named = f"with reward_model.name={model.name}, which"
    is_judged = model.asks in (Asks.JUDGEMENTS, Asks.PAIRS)
    asks_while_training = model.asks is not Asks.NOTHING and not settings.judgements
    has_judge = config.service.engine != "none" or config.annotator.address
    if settings.judgements and not is_judged:
        raise ValueError(f"reward_model.judgements: got a file {named} does not learn from judgements")
    if is_judged and asks_while_training and not has_judge:
        raise ValueError(f"service.engine: got none {named} learns from judgements and would get none")
    if model.asks is Asks.EMBEDDINGS and len(settings.goals) > max_items:
        wanted = f"wanted at least {len(settings.goals)}, one per goal"
        raise ValueError(f"service.max_items_per_request: got {max_items}, {wanted}")
    if settings.warmup_labels > 0 and not asks_while_training:
        raise ValueError(
            f"reward_model.warmup_labels: got {settings.warmup_labels}, but this reward model asks nothing while the"
            " policy trains; leave it at 0"
        )
    if settings.goal_once_per_episode and not model.takes_goals:
        raise ValueError(f"reward_model.goal_once_per_episode: got true {named} has no goals")
    return model


def check_safeguards(config: RunConfig) -> None:
    """ValueError for a safeguard of networks in a run of which no term has a reward model with networks."""
    names = [run.reward_model.name for run in term_runs(config).values()]
    if any(MODELS[name].is_trained for name in names if name in MODELS):
        return
    trained = " or ".join(name for name, model in MODELS.items() if model.is_trained)
    for key in ("ensemble", "pessimism", "noise_rate", "pseudo_confidence", "pseudo_share"):
        if (got := getattr(config.robust, key)) != getattr(UNGUARDED, key):
            named = ", ".join(sorted({*names}))
            why = f"which trains no network; set it to its default, or take {trained}"
            raise ValueError(f"robust.{key}: got {got} with reward_model.name={named}, {why}")
