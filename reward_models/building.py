"""The reward models by name (to add one, write its class and add it to `MODELS`), and the two that need no module of
their own: `counts` gives every caption the same reward, `none` gives no reward.

Invariant: a configuration that does not fit the reward model raises ValueError here, before anything is asked or
trained.
"""

from collections.abc import Sequence

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.errors import did_you_mean
from configs.goal_schema import MAX_GOALS
from configs.reward_schema import RobustConfig
from configs.schema import RunConfig
from configs.terms import term_runs
from llm_server.annotation import Caption
from reward_models.classification import ClassificationModel
from reward_models.embedding import EmbeddingModel
from reward_models.goals.book import MAX_CHARS, goal_text
from reward_models.goals.model import GoalModel
from reward_models.interface import UNGUARDED, Asks, RewardModel, without_empty
from reward_models.ranking import RankingModel
from reward_models.retrieval import RetrievalModel


class CountsModel(RewardModel):
    """R = 1 for every non-empty caption, so that intrinsic reward is 1 / N^beta: the episodic novelty of captions."""

    name = "counts"
    asks = Asks.NOTHING
    reads_texts = False
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
    for model in (RetrievalModel, ClassificationModel, RankingModel, EmbeddingModel, GoalModel, CountsModel, NoneModel)
}


def build_reward_model(config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> RewardModel:
    """The reward model of `config`, with weights drawn from `seed`; raises ValueError for a wrong name or setting. A
    model without networks has no use for `robust`."""
    if config.name not in MODELS:
        names = [name for name in MODELS if name != GoalModel.name]  # which goals.sources chooses
        near = did_you_mean(config.name, names)
        raise ValueError(f"reward_model.name: got {config.name!r}{near}, wanted one of {', '.join(names)}")
    return MODELS[config.name](config, seed, robust)


def check_reward_model(config: RunConfig) -> RewardModel:
    """The reward model of a run; raises ValueError for the first setting of the configuration that does not fit it."""
    settings, max_items = config.reward_model, config.service.max_items_per_request
    model = build_reward_model(settings, config.seed, config.robust)
    named = f"with reward_model.name={model.name}, which"
    is_matched = model.asks is Asks.GOALS and config.goals.achieved_by != "similarity"
    is_judged = model.asks in (Asks.JUDGEMENTS, Asks.PAIRS) or is_matched
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
    if model.asks is Asks.GOALS:
        _check_goals(config)
    if settings.goal_once_per_episode and not model.takes_goals:
        raise ValueError(f"reward_model.goal_once_per_episode: got true {named} has no goals")
    return model


def _check_goals(config: RunConfig) -> None:
    """ValueError for a text in the configuration that is no goal."""
    wanted = f"wanted one printable line of at most {MAX_CHARS} characters"
    for text in config.goals.texts:
        if not goal_text(text):
            shown = f"{text[:MAX_CHARS]!r}{' ...' if len(text) > MAX_CHARS else ''}"
            raise ValueError(f"goals.texts: got {shown}, {wanted}")
    if len(config.goals.texts) > MAX_GOALS:
        raise ValueError(f"goals.texts: got {len(config.goals.texts)}, wanted at most {MAX_GOALS}")
    if len({goal_text(text) for text in config.goals.texts}) < len(config.goals.texts):
        raise ValueError(f"goals.texts: got a text twice in {config.goals.texts}, wanted each once")


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
