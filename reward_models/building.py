"""The reward model that a configuration names.

Invariant: whatever is wrong with the configuration is a ValueError here, before anything is asked or trained.
"""

from configs.annotation_schema import RewardModelConfig
from reward_models.baselines import ConstantModel
from reward_models.classification import ClassificationModel
from reward_models.embedding import EmbeddingModel
from reward_models.interface import RewardModel
from reward_models.ranking import RankingModel
from reward_models.retrieval import RetrievalModel

NAMES = ("retrieval", "classification", "ranking", "embedding", "counts", "none")


def build_reward_model(config: RewardModelConfig, seed: int = 0) -> RewardModel:
    """The reward model that `config` names, its weights drawn from `seed`; raises ValueError for an unknown name or a wrong setting."""
    if config.name == "retrieval":
        return RetrievalModel(config)
    if config.name == "classification":
        return ClassificationModel(config, seed)
    if config.name == "ranking":
        return RankingModel(config, seed)
    if config.name == "embedding":
        return EmbeddingModel(config)
    if config.name == "counts":
        return ConstantModel.counts()
    if config.name == "none":
        return ConstantModel.none()
    raise ValueError(f"reward_model.name is one of {', '.join(NAMES)}, got {config.name!r}")
