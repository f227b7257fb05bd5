"""An ensemble learns from bootstrap samples in turns, and pays the lower bound of what its networks say."""

import math

import numpy as np
import pytest

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, CaptionPair, JudgedPair
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.pairs import pointwise_preference
from reward_models.classification import ClassificationModel
from reward_models.networks.ensemble import Ensemble, bootstrap_weights
from reward_models.networks.fitting import Fitting
from reward_models.ranking import RankingModel
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer
from tests.reward_models.networks.test_fitting import BAD, GOOD, Falling, labels

IDS = np.random.default_rng(0).integers(2**64, size=20_000, dtype=np.uint64)
CAPTIONS = [Caption(id=number, text=f"caption {number}") for number in range(1, 6)]
OUTPUTS = np.array([[-2.0, -0.5, 0.0, 1.0, 3.0], [-1.0, -1.5, 0.5, 1.0, 1.0], [-3.0, 0.5, 0.0, 1.0, 2.0]])
COUNTS = np.array([50, 20, 7, 4, 1])


def test_bootstrap_weights_are_poisson_draws_that_depend_on_caption_and_network_alone() -> None:
    weights = np.array([bootstrap_weights(IDS, member) for member in range(4)])
    for number in range(5):
        wanted = math.exp(-1) / math.factorial(number)
        np.testing.assert_allclose((weights == number).mean(axis=1), wanted, atol=0.012)
    np.testing.assert_allclose(np.corrcoef(weights), np.eye(4), atol=0.03)
    np.testing.assert_array_equal(bootstrap_weights(IDS[:5][::-1], 2), weights[2, :5][::-1])
    small = bootstrap_weights(np.arange(1, 20_001, dtype=np.uint64), 0)
    assert small.var() == pytest.approx(1.0, abs=0.05), "ids need not be hashes"


def networks(num: int, **settings) -> Ensemble:
    robust = RobustConfig(ensemble=num, **settings)
    return Ensemble((16,), 0.1, RewardModelConfig(batch_size=16), 7, robust)


class Weighted(Falling):
    """All captions are in every sample once."""

    def weights(self, rows, member):
        return np.ones(len(rows))


def test_one_network_is_trained_as_without_an_ensemble_and_saved_alike() -> None:
    one, alone = networks(1), Fitting((16,), 0.1, RewardModelConfig(batch_size=16), 7)
    for trained in (one, alone):
        trained.train(Falling(), 30)
    assert one.state_dict().keys() == alone.state_dict().keys()
    for name, weights in alone.state_dict()["weights"].items():
        np.testing.assert_array_equal(one.state_dict()["weights"][name], weights)


def test_weights_of_one_change_nothing() -> None:
    alone, member = (Fitting((16,), 0.1, RewardModelConfig(batch_size=16), 7, member=member) for member in (None, 0))
    for fitting in (alone, member):
        fitting.train(Weighted(), 10)
    for name, weights in alone.state_dict()["weights"].items():
        np.testing.assert_allclose(member.state_dict()["weights"][name], weights, atol=1e-6)


class Absent(Falling):
    """Every other caption is in no sample."""

    def weights(self, rows, member):
        return (rows % 2) * 3.0

    def answers(self, rows, held_out):
        assert held_out or (rows % 2 == 1).all(), "a caption that is not in the sample is not computed"
        return super().answers(rows, held_out)


def test_a_network_sees_its_own_sample_only() -> None:
    networks(2).train(Absent(), 24)


def test_networks_take_turns_and_those_that_pause_are_passed_over() -> None:
    ensemble = networks(3)
    for _ in range(4):
        ensemble.train(Weighted(), 10)
    assert [member.step for member in ensemble.members] == [20, 10, 10]
    ensemble.members[1]._rests_until = 10
    for _ in range(2):
        ensemble.train(Weighted(), 10)
    assert [member.step for member in ensemble.members] == [30, 10, 20]
    assert not ensemble.is_settled(Weighted())
    resumed = networks(3)
    resumed.load_state_dict(ensemble.state_dict())
    for each in (ensemble, resumed):
        each.train(Weighted(), 1)
    assert [member.step for member in resumed.members] == [member.step for member in ensemble.members]


def test_networks_differ_from_the_start() -> None:
    first, second = networks(2).members
    captions = [Caption(id=1, text="You kill the newt!")]
    for member in (first, second):
        member.has_best = True
    assert first.outputs(captions) != second.outputs(captions)


@pytest.fixture
def fixed(monkeypatch):
    """A model whose networks give `OUTPUTS`."""

    def make(kind, pessimism=1.0, **settings):
        model = kind(RewardModelConfig(**settings), 0, RobustConfig(ensemble=3, pessimism=pessimism))
        monkeypatch.setattr(model._networks, "outputs", lambda captions: OUTPUTS[:, [c.id - 1 for c in captions]])
        return model

    return make


def test_classification_pays_and_asks_by_the_mean_minus_the_deviation_of_the_log_odds(fixed) -> None:
    model = fixed(ClassificationModel, pessimism=0.5, output="probability")
    model.calibrate(0.4)
    lower = [np.mean(column) - 0.5 * np.std(column) for column in OUTPUTS.T]
    np.testing.assert_allclose(model.score(CAPTIONS, COUNTS), [1 / (1 + math.exp(-f)) for f in lower], rtol=1e-6)
    np.testing.assert_allclose(model.margins(CAPTIONS), [f - math.log(0.4 / 0.6) for f in lower], rtol=1e-6)
    np.testing.assert_allclose(model.deviations(CAPTIONS), [np.std(column) for column in OUTPUTS.T])
    mean = fixed(ClassificationModel, pessimism=0.0, output="probability")
    mean.calibrate(0.4)
    assert (mean.score(CAPTIONS, COUNTS) >= model.score(CAPTIONS, COUNTS)).all()


def test_ranking_normalises_each_network_and_pays_the_lower_bound_of_z(fixed) -> None:
    model = fixed(RankingModel, name="ranking", epsilon_quantile=-1.0, epsilon=-0.5)
    z = []
    for outputs in OUTPUTS:
        occurrences = np.repeat(outputs, COUNTS)
        z.append((outputs - occurrences.mean()) / occurrences.std())
    lower = np.mean(z, axis=0) - np.std(z, axis=0)
    rewards = model.score(CAPTIONS, COUNTS)
    np.testing.assert_allclose(rewards, np.where(lower > -0.5, lower, 0.0), rtol=1e-6)
    np.testing.assert_allclose(model.margins(CAPTIONS), lower + 0.5, rtol=1e-6)
    np.testing.assert_allclose(model.deviations(CAPTIONS), np.std(z, axis=0), rtol=1e-6)
    restored = fixed(RankingModel, name="ranking", epsilon_quantile=-1.0, epsilon=-0.5)
    restored.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(restored.margins(CAPTIONS), model.margins(CAPTIONS))


def test_a_pair_is_in_the_sample_by_the_product_of_both_captions() -> None:
    model = RankingModel(RewardModelConfig(name="ranking"), 0, RobustConfig(ensemble=2))
    captions = [Caption(id=int(number), text="x") for number in IDS[:40]]
    judgement = pointwise_preference(0.7, 0.4)
    pairs = [CaptionPair(first=a, second=b) for a in captions for b in captions]
    model.learn([JudgedPair(pair=pair, judgement=judgement) for pair in pairs])
    rows = np.arange(model.num_train)
    wanted = np.outer(bootstrap_weights(IDS[:40], 1), bootstrap_weights(IDS[:40], 1))[~np.eye(40, dtype=bool)]
    np.testing.assert_array_equal(model.weights(rows, 1), wanted)


def test_the_deviation_is_larger_where_nothing_like_it_was_answered() -> None:
    config = RewardModelConfig(name="classification", steps_per_turn=25, batch_size=16)
    book = CaptionBook(1000, 1000, policy="disagreement")
    model = ClassificationModel(config, 1, RobustConfig(ensemble=4))
    trainer = RewardTrainer(model, RewardShaping(config, 0), book, 1)
    texts = ["Xorn qua ptfk ogo!", "0123456789", "?? <> ?? {}"]
    captions = [judged.caption for judged in labels([*GOOD, *BAD, *texts], 0.5)]
    book.take_report({c.id: c.text for c in captions}, {c.id: 1 for c in captions}, "0.0", 0, 0)
    assert trainer.metrics()["reward_model_disagreement"] is None
    trainer.calibrate(0.4)
    trainer.learn([*labels(GOOD, 0.9), *labels(BAD, 0.1)])
    trainer.note_labels(60)
    for _ in range(8):
        trainer.train()
    trainer.publish()
    deviations = model.deviations(captions)
    assert deviations[-3:].mean() > 1.5 * deviations[:-3].mean()
    assert trainer.metrics()["reward_model_disagreement"] == pytest.approx(deviations.mean())
    assert {caption.text for caption in book.next_batch(6)} & {*texts}
    alone = RewardTrainer(ClassificationModel(config, 1), RewardShaping(config, 0), book, 1)
    alone.publish()
    assert alone.metrics()["reward_model_disagreement"] is None
