"""Ranking: rewards are normalised over the table by frequency, and V-trace consumes exactly that."""

import itertools
import math

import numpy as np
import pytest
import torch

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RewardConfig
from configs.schema import LearnerConfig
from learner import update
from learner.update import Learner
from llm_server.annotation import Caption, CaptionPair, JudgedPair, PairJudgement, Status
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.pairs import pointwise_preference
from reward_models.published import PublishedReward
from reward_models.ranking import RankingModel
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer
from tests.learner.toy_rollouts import RECALL_SPEC, SMALL_POLICY, random_rollout

CAPTIONS = [Caption(id=number, text=f"caption {number}") for number in range(1, 8)]
OUTPUTS = dict(zip(range(1, 8), (-1.0, 0.5, 2.0, 0.1, -0.3, 4.0, 0.0), strict=True))
NAMES = [
    "newt",
    "jackal",
    "rat",
    "kobold",
    "gnome",
    "grid bug",
    "lichen",
    "fox",
    "orc",
    "bat",
    "dog",
    "cat",
    "imp",
    "ant",
    "bee",
    "owl",
]
COUNTS = [900, 50, 3, 20, 300, 1, 7]


def make_model(monkeypatch=None, **settings) -> RankingModel:
    model = RankingModel(RewardModelConfig(name="ranking", **settings), seed=0)
    if monkeypatch:
        outputs = lambda captions: np.array([[OUTPUTS.get(c.id, 9.0) for c in captions]], np.float64)  # noqa: E731
        monkeypatch.setattr(model._networks, "outputs", outputs)
    return model


def slow_rewards(counts: list[int], epsilon: float | None = None, quantile: float | None = None) -> list[float]:
    """z = (f - mu) / sigma over every occurrence; R = z where z > epsilon, else 0."""
    occurrences = [OUTPUTS[number] for number, count in zip(OUTPUTS, counts, strict=True) for _ in range(count)]
    mu = sum(occurrences) / len(occurrences)
    sigma = math.sqrt(sum((f - mu) ** 2 for f in occurrences) / len(occurrences))
    z = [(f - mu) / sigma for f in OUTPUTS.values()]
    if quantile is not None:
        place = quantile * (len(z) - 1)
        below, above = sorted(z)[math.floor(place)], sorted(z)[math.ceil(place)]
        epsilon = below + (place - math.floor(place)) * (above - below)
    return [value if value > epsilon else 0.0 for value in z]


@pytest.mark.parametrize("counts", [COUNTS, [1] * 7, [1, 2, 3, 4, 5, 6, 7]])
def test_rewards_are_z_scores_over_occurrences_above_epsilon(monkeypatch, counts) -> None:
    rewards = make_model(monkeypatch, epsilon_quantile=-1.0, epsilon=-0.5).score(CAPTIONS, np.array(counts))
    np.testing.assert_allclose(rewards, slow_rewards(counts, epsilon=-0.5), rtol=1e-5)


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 0.9])
def test_or_above_a_quantile_over_distinct_captions(monkeypatch, quantile) -> None:
    rewards = make_model(monkeypatch, epsilon_quantile=quantile).score(CAPTIONS, np.array(COUNTS))
    np.testing.assert_allclose(rewards, slow_rewards(COUNTS, quantile=quantile), rtol=1e-5)
    assert (rewards != 0).sum() == sum(value != 0 for value in slow_rewards(COUNTS, quantile=quantile))


def judged_pair(first: int, second: int, p: float, q: float) -> JudgedPair:
    pair = CaptionPair(first=CAPTIONS[first - 1], second=CAPTIONS[second - 1])
    return JudgedPair(pair=pair, judgement=pointwise_preference(p, q))


def test_by_default_as_many_judged_captions_earn_as_the_judge_puts_above_theta(monkeypatch) -> None:
    """Outputs of captions 1 to 7: -1, 0.5, 2, 0.1, -0.3, 4, 0. The judge knows 1 to 4, of which 2 and 3 lie above its
    theta."""
    model = make_model(monkeypatch)
    model.calibrate(0.4)
    model.learn([judged_pair(1, 2, 0.2, 0.45), judged_pair(3, 4, 0.9, 0.4)])
    rewards = model.score(CAPTIONS, np.array([1] * 7))
    earning = {number for number, reward in zip(OUTPUTS, rewards.tolist(), strict=True) if reward > 0}
    assert earning == {3, 6}, "2 lies below the average"
    again = make_model(monkeypatch)
    again.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(again.score(CAPTIONS, np.array([1] * 7)), rewards)
    model.calibrate(0.95)
    assert not model.score(CAPTIONS[:4], np.array([1] * 4)).any(), "the judge pays none of them"


def test_where_captions_were_compared_there_is_no_theta_and_motifs_quantile_stands(monkeypatch) -> None:
    model = make_model(monkeypatch)
    model.calibrate(0.4)
    compared = PairJudgement(status=Status.OK, preference=0.9, answer_mass=1.0, position_bias=0.0)
    model.learn([JudgedPair(pair=CaptionPair(first=CAPTIONS[0], second=CAPTIONS[1]), judgement=compared)])
    np.testing.assert_allclose(model.score(CAPTIONS, np.array(COUNTS)), slow_rewards(COUNTS, quantile=0.5), rtol=1e-5)


def test_the_empty_caption_neither_earns_nor_weighs(monkeypatch) -> None:
    empty = Caption(id=0, text="")
    rewards = make_model(monkeypatch).score([empty, *CAPTIONS], np.array([10**9, *COUNTS]))
    np.testing.assert_allclose(rewards, [0.0, *slow_rewards(COUNTS, quantile=0.5)], rtol=1e-5)


def test_captions_that_all_score_alike_earn_nothing(monkeypatch) -> None:
    model = make_model(monkeypatch, epsilon_quantile=-1.0)
    monkeypatch.setattr(model._networks, "outputs", lambda captions: np.full((1, len(captions)), 3.0))
    assert not model.score(CAPTIONS, np.array(COUNTS)).any()


def test_vtrace_consumes_the_normalised_thresholded_reward(monkeypatch) -> None:
    """From the network's outputs through table, mixing and learner to V-trace, at two versions of the table."""
    book = CaptionBook(100, 1000)
    settings = RewardModelConfig(name="ranking", epsilon_quantile=0.5, clip=0.0)
    model = make_model(monkeypatch, epsilon_quantile=0.5)
    trainer = RewardTrainer(model, RewardShaping(settings, 0), book, run_epoch=0)
    reward = RewardConfig(extrinsic_coefficient=0.1, intrinsic_coefficient=0.5, count_exponent=2.0)
    learner = Learner(
        RECALL_SPEC,
        SMALL_POLICY,
        LearnerConfig(epochs=1, minibatches=1, precision="fp32", device="cpu"),
        reward,
        run_epoch=0,
        seed=1,
    )
    seen = []
    real = update.vtrace_targets
    monkeypatch.setattr(update, "vtrace_targets", lambda **inputs: seen.append(inputs["rewards"]) or real(**inputs))
    rng = np.random.default_rng(0)
    counts = [0] * 7
    for number, more in enumerate((COUNTS, [0, 0, 500, 0, 0, 90, 0])):
        counts = [a + b for a, b in zip(counts, more, strict=True)]
        book.take_report(
            {c.id: c.text for c in CAPTIONS},
            {c.id: n for c, n in zip(CAPTIONS, more, strict=True) if n},
            "0.0",
            number,
            0,
        )
        table = trainer.publish()
        assert table is not None, "new counts alone make a new table"
        rollout = random_rollout(
            seed=number,
            caption_ids=rng.integers(0, 8, (5, 3)).astype(np.uint64),
            policy_version=learner.policy_version,
            sequence_number=number,
        )
        learner.step([rollout], PublishedReward.of(table))
        by_id = {0: 0.0, **dict(zip(OUTPUTS, slow_rewards(counts, quantile=0.5), strict=True))}
        wanted = [
            [
                0.1 * float(np.clip(rollout.extrinsic_rewards[t, b], -10, 10))
                + 0.5 * by_id[int(rollout.caption_ids[t, b])] / int(rollout.caption_counts[t, b]) ** 2
                for b in range(3)
            ]
            for t in range(5)
        ]
        np.testing.assert_allclose(seen[-1].numpy(), wanted, rtol=1e-4, atol=1e-6)
    assert not torch.equal(seen[0], seen[1])


def test_ties_teach_that_both_are_alike_and_preferences_their_order() -> None:
    model = make_model(steps_per_turn=75, batch_size=8, epsilon_quantile=-1.0)

    def pair(first: int, second: int, preference: float) -> JudgedPair:
        judgement = PairJudgement(status=Status.OK, preference=preference, answer_mass=1.0, position_bias=0.0)
        return JudgedPair(pair=CaptionPair(first=CAPTIONS[first], second=CAPTIONS[second]), judgement=judgement)

    model.learn([pair(0, 1, 0.9), pair(2, 1, 0.9), pair(0, 2, 0.5), pair(3, 1, 0.98), pair(0, 3, 0.2)])
    model.train()
    f = model._networks.outputs(CAPTIONS)[0]
    assert f[0] - f[1] == pytest.approx(math.log(9), abs=0.5)
    assert f[0] - f[2] == pytest.approx(0.0, abs=0.5)
    assert f[3] > f[0]


def pair_of(first: Caption, second: Caption, preference: float) -> JudgedPair:
    judgement = PairJudgement(status=Status.OK, preference=preference, answer_mass=1.0, position_bias=0.0)
    return JudgedPair(pair=CaptionPair(first=first, second=second), judgement=judgement)


def test_a_judge_without_opinions_rewards_almost_nothing() -> None:
    model = make_model(steps_per_turn=75, batch_size=8)
    captions = [
        Caption(id=n, text=f"{'You kill' if n % 2 else 'You see'} the {name}.") for n, name in enumerate(NAMES, 1)
    ]
    model.learn([pair_of(a, b, 0.5) for a, b in itertools.combinations(captions, 2)])
    model.train()
    rewards = model.score(captions, np.ones(len(captions), np.int64))
    assert np.isfinite(rewards).all()
    assert rewards.max() < 0.01


def test_preferences_that_differ_by_three_hundredths_are_learnt() -> None:
    model = make_model(steps_per_turn=25, batch_size=8, learning_rate=3e-4)
    captions = [
        Caption(id=n, text=f"{'You kill' if n % 2 else 'You see'} the {name}.") for n, name in enumerate(NAMES, 1)
    ]
    training = [caption for n, caption in enumerate(captions) if n % 4 < 2]
    model.learn(
        [
            pair_of(a, b, 0.5 if a.id % 2 == b.id % 2 else 0.53 if a.id % 2 else 0.47)
            for a, b in itertools.combinations(training, 2)
        ]
    )
    for _ in range(10):
        model.train()
    asked = [caption for n, caption in enumerate(captions) if n % 4 >= 2]
    f = dict(zip([caption.id for caption in asked], model._networks.outputs(asked)[0], strict=True))
    differences = np.array([f[a] - f[b] for a in f for b in f if a % 2 and not b % 2])
    assert np.mean(differences > 0) > 0.9
    assert differences.mean() == pytest.approx(0.12, abs=0.06), "in log-odds"


def test_pairs_of_few_held_out_captions_do_not_stop_training() -> None:
    model = make_model(held_out_fraction=0.02)
    captions = [Caption(id=number, text=f"caption {number}") for number in range(1, 401)]
    model.learn([pair_of(a, b, 0.7) for a, b in itertools.pairwise(captions)])
    held_out = [caption for caption in captions if caption.id in model._held_out_captions]
    assert 2 < len(held_out) < 20
    model.learn([pair_of(held_out[0], other, 0.7) for other in captions[:100]])
    assert model.num_held_out > 100
    assert not model.holds_out(20)
    assert model.holds_out(len(held_out))
    assert not model.holds_out(len(held_out) + 1)


def test_a_pair_with_a_held_out_caption_is_not_trained_on() -> None:
    model = make_model(held_out_fraction=0.5)
    captions = [Caption(id=number, text=f"caption {number}") for number in range(1, 401)]
    judgement = PairJudgement(status=Status.OK, preference=0.7, answer_mass=1.0, position_bias=0.0)
    model.learn(
        [JudgedPair(pair=CaptionPair(first=a, second=b), judgement=judgement) for a, b in itertools.pairwise(captions)]
    )
    held_out = model._held_out_captions
    assert 50 < len(held_out) < 150
    for is_held_out, pairs in model._pairs.items():
        for first, second, _ in pairs:
            assert is_held_out == (first in held_out or second in held_out)


def test_the_share_of_compared_pairs_whose_orders_point_apart_is_counted_and_saved() -> None:
    model = make_model()
    assert model.metrics() == {}
    assert "orders" not in model.state_dict()

    def compared(first: int, second: int, log_odds: float, bias: float) -> JudgedPair:
        preference = 1 / (1 + math.exp(-log_odds))
        judgement = PairJudgement(status=Status.OK, preference=preference, answer_mass=1.0, position_bias=bias)
        return JudgedPair(pair=CaptionPair(first=CAPTIONS[first], second=CAPTIONS[second]), judgement=judgement)

    model.learn([compared(0, 1, 0.5, 0.4), compared(0, 2, -0.5, -0.6), compared(1, 2, 0.1, 0.3), compared(3, 4, 2, 0)])
    model.learn([judged_pair(1, 2, 0.9, 0.2)])  # not compared
    assert model.metrics() == {"pair_order_disagreement": 0.5}
    restored = make_model()
    restored.load_state_dict(model.state_dict())
    assert restored.metrics() == model.metrics()
