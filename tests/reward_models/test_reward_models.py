"""The contract that every reward model keeps, and what the rewards of those without a network are."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.annotation_schema import RewardModelConfig
from configs.goal_schema import GoalsConfig
from configs.reward_schema import RobustConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from llm_server.annotation import (
    Caption,
    CaptionPair,
    EmbeddedCaption,
    JudgedCaption,
    JudgedPair,
    Judgement,
    MatchedCaption,
    PairJudgement,
    Status,
)
from llm_server.annotator.caption_book import CaptionBook
from reward_models.building import build_reward_model
from reward_models.goals.book import Goal, GoalBook
from reward_models.goals.model import GoalModel
from reward_models.interface import UNGUARDED, Asks
from reward_models.networks import fitting
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer


@pytest.fixture(autouse=True)
def every_turn_ends_with_an_evaluation(monkeypatch):
    monkeypatch.setattr(fitting, "EVALUATION_INTERVAL_STEPS", FEW["steps_per_turn"])


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: with several, sums come in another order each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FEW = {"steps_per_turn": 5, "patience": 6, "batch_size": 8}
MODELS = {
    "retrieval": RewardModelConfig(name="retrieval"),
    "retrieval soft": RewardModelConfig(name="retrieval", output="soft"),
    "classification": RewardModelConfig(name="classification", output="probability", **FEW),
    "classification hard": RewardModelConfig(name="classification", labels="hard", label_smoothing=0.1, **FEW),
    "ranking": RewardModelConfig(name="ranking", epsilon_quantile=-1.0, **FEW),
    "classification ensemble": RewardModelConfig(name="classification", output="soft", **FEW),
    "ranking ensemble": RewardModelConfig(name="ranking", epsilon_quantile=-1.0, **FEW),
    "embedding": RewardModelConfig(name="embedding", goals=["kill", "open"], goal_once_per_episode=True),
    "embedding by words": RewardModelConfig(
        name="embedding", embedding="bag-of-words", goals=["caption 1", "open"], threshold=0.1
    ),
    "goals": RewardModelConfig(name="goals"),
    "goals by similarity": RewardModelConfig(name="goals"),
    "goals judged": RewardModelConfig(name="goals"),
    "counts": RewardModelConfig(name="counts"),
    "none": RewardModelConfig(name="none"),
}
ENSEMBLES = {
    name: RobustConfig(ensemble=3, pessimism=0.5, noise_rate=0.1, pseudo_confidence=0.8)
    for name in MODELS
    if name.endswith("ensemble")
}
EMPTY = Caption(id=0, text="")
NAN = float("nan")


def caption(number):
    return Caption(id=number, text=f"caption {number}")


def judged(number, probability, status=Status.OK):
    return JudgedCaption(
        caption=caption(number), judgement=Judgement(status=status, probability=probability, answer_mass=0.5)
    )


def paired(first, second, preference, status=Status.OK):
    judgement = PairJudgement(status=status, preference=preference, answer_mass=0.5, position_bias=0.0)
    return JudgedPair(pair=CaptionPair(first=caption(first), second=caption(second)), judgement=judgement)


def evidence(asks, labels):
    """What a model that `asks` so is given to learn number -> probability."""
    if asks is Asks.JUDGEMENTS:
        return [judged(number, p) for number, p in labels.items()]
    if asks is Asks.PAIRS:
        return [
            paired(a, b, 1 / (1 + math.exp(4 * (labels[b] - labels[a])))) for a, b in itertools.combinations(labels, 2)
        ]
    if asks is Asks.EMBEDDINGS:
        return [
            EmbeddedCaption(caption=caption(number), cosines=np.array([p, 0.1], np.float32))
            for number, p in labels.items()
        ]
    if asks is Asks.GOALS:
        return [matched(number, p) for number, p in labels.items()]
    return []


def matched(number, p, status=Status.OK):
    """A caption that achieves the goal to the degree p, by each of the rules."""
    return MatchedCaption(
        caption=caption(number),
        judgement=Judgement(status=status, probability=p, answer_mass=0.5),
        vector=np.array([p, np.sqrt(1 - p * p)]),
        achieves={0: p},
        num_goals=1,
    )


def goal_model(request):
    rule = {"goals by similarity": "similarity", "goals judged": "judged"}.get(request.param, "both")
    book = GoalBook()
    book.add(Goal(text="kill", source="config"), np.array([1.0, 0.0]))
    return GoalModel(MODELS[request.param], goals=GoalsConfig(achieved_by=rule, similarity=0.5), book=book)


@pytest.fixture(params=MODELS)
def make(request):
    def build():
        if MODELS[request.param].name == "goals":
            model = goal_model(request)
            model.calibrate(0.5)
            return model
        model = build_reward_model(MODELS[request.param], 3, ENSEMBLES.get(request.param, UNGUARDED))
        model.calibrate(0.5)
        return model

    return build


LABELS = {1: 0.9, 2: 0.1, 2**64 - 1: 0.7, 4: 0.3}
CAPTIONS = [caption(n) for n in (2**64 - 1, 1, 2, 3, 4)]
COUNTS = np.array([5, 1, 100, 2, 7])


def score(model, captions=CAPTIONS):
    counts = dict(zip((c.id for c in CAPTIONS), COUNTS.tolist(), strict=True))
    return model.score(captions, np.array([counts.get(c.id, 1) for c in captions], np.int64))


def taught(make, labels=LABELS, turns=1):
    model = make()
    model.learn(evidence(model.asks, labels))
    for _ in range(turns * (len(model._networks.members) if model.is_trained else 1)):
        model.train()
    return model


def same_state(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")


def test_scores_are_one_finite_number_or_nan_per_caption_and_zero_for_the_empty_one(make):
    model = taught(make)
    scores = score(model, [*CAPTIONS, EMPTY])
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    assert scores[-1] == 0
    assert not np.isinf(scores).any()
    assert np.isfinite(scores[[0, 1, 2, 4]]).all(), "of what it was taught it has an opinion"
    assert score(model, []).shape == (0,)
    assert score(make(), [EMPTY]).tolist() == [0]


def test_the_better_a_caption_the_higher_its_margin(make, request):
    model = taught(make, turns=25)
    score(model)
    margins = model.margins(CAPTIONS)
    assert margins.shape == (5,)
    if model.asks is not Asks.NOTHING:
        assert min(margins[:2]) > max(margins[[2, 4]])
        assert margins[1] > margins[0] or "hard" in request.node.name
        assert margins[4] > margins[2] or "hard" in request.node.name


def test_answers_that_are_not_ok_and_empty_captions_change_nothing(make):
    model, untouched = taught(make, turns=0), taught(make, turns=0)
    bad = Judgement(status=Status.UNPARSED, probability=NAN, answer_mass=0.0)
    if model.asks is Asks.PAIRS:
        bad_pair = PairJudgement(status=Status.UNPARSED, preference=NAN, answer_mass=0.0, position_bias=NAN)
        good = PairJudgement(status=Status.OK, preference=1.0, answer_mass=1.0, position_bias=0.0)
        model.learn([paired(1, 3, 0.9, Status.UNPARSED), paired(2, 3, 0.9, Status.REJECTED)])
        model.learn([JudgedPair(pair=CaptionPair(first=caption(1), second=caption(2)), judgement=bad_pair)])
        model.learn(
            [
                JudgedPair(pair=CaptionPair(first=a, second=b), judgement=good)
                for a, b in ((EMPTY, caption(1)), (caption(1), caption(1)))
            ]
        )
    elif model.asks is Asks.GOALS:
        model.learn([matched(1, 0.0, Status.UNPARSED), matched(3, 0.99, Status.REJECTED)])
        model.learn([replace(matched(1, 0.9), caption=EMPTY)])
    elif model.asks is Asks.EMBEDDINGS:
        model.learn([EmbeddedCaption(caption=caption(1), cosines=np.array([NAN, NAN], np.float32))])
    elif model.asks is Asks.JUDGEMENTS:
        model.learn(
            [
                judged(1, 0.0, Status.UNPARSED),
                judged(3, 0.99, Status.REJECTED),
                JudgedCaption(caption=caption(2), judgement=bad),
            ]
        )
        model.learn([JudgedCaption(caption=EMPTY, judgement=judged(1, 0.9).judgement)])
    for one in (model, untouched):
        one.train()
    np.testing.assert_array_equal(score(model), score(untouched))


def test_the_state_survives_a_checkpoint_exactly_and_training_goes_on_alike(make, tmp_path):
    model, restored = taught(make), make()
    score(model)
    restored.load_state_dict(
        load_checkpoint(save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, keep=1))["model"]
    )
    np.testing.assert_array_equal(score(restored), score(model))
    assert same_state(model.state_dict(), restored.state_dict())
    for one in (model, restored):
        one.learn(evidence(one.asks, {3: 0.8, 1: 0.9, 5: 0.2}))
        for _ in range(3):
            one.train()
    np.testing.assert_array_equal(score(restored), score(model))
    assert same_state(model.state_dict(), restored.state_dict())


def test_the_same_evidence_makes_the_same_model(make):
    assert same_state(taught(make, turns=2).state_dict(), taught(make, turns=2).state_dict())


def test_captions_that_left_the_book_are_forgotten(make):
    model = taught(make)
    score(model)
    model.retain({number for number in LABELS if number != 1})
    state = model.state_dict()

    def ids(value, name=""):
        if isinstance(value, dict):
            return set().union(*(ids(inner, key) for key, inner in value.items())) if value else set()
        return set(np.asarray(value).tolist()) if name.endswith("ids") or name in ("firsts", "seconds") else set()

    assert ids(state) <= {2, 2**64 - 1, 4}


def test_a_model_that_begins_anew_is_one_that_was_never_taught(make):
    untaught, model = make(), make()
    trainer = RewardTrainer(model, RewardShaping(RewardModelConfig(), 0), CaptionBook(10, 10), 1)
    model.learn(evidence(model.asks, LABELS))
    model.train()
    trainer.begin_anew()
    assert same_state(model.state_dict(), untaught.state_dict())
    np.testing.assert_array_equal(score(model), score(untaught))


def test_a_frozen_model_learns_nothing_more_and_keeps_its_normalisation(make, tmp_path):
    model = taught(make, turns=2)
    model.freeze(CAPTIONS, COUNTS)
    before = score(model)
    model.learn(evidence(model.asks, {1: 0.1, 2: 0.9}))
    model.train()
    model.retain({1})
    assert model.is_settled
    np.testing.assert_allclose(score(model), before, rtol=1e-5)
    np.testing.assert_allclose(score(model, CAPTIONS[:2]), before[:2], rtol=1e-5)
    restored = make()
    restored.load_state_dict(model.state_dict())
    assert restored.is_settled
    np.testing.assert_array_equal(score(restored), score(model))


def test_only_models_that_ask_wait_for_answers(make):
    model = make()
    assert (model.asks is not Asks.NOTHING) == np.isnan(score(model)).any()
    assert model.is_settled
    assert model.train() == {}


def test_training_comes_to_rest_and_new_evidence_ends_the_rest(make):
    model = taught(make, turns=0)
    for _ in range(200):
        if model.is_settled:
            break
        model.train()
    assert model.is_settled
    if model.name in ("classification", "ranking"):
        model.learn(evidence(model.asks, dict.fromkeys(range(10, 16), 0.5)))
        assert not model.is_settled


def test_goals_are_masks_or_none(make):
    model = taught(make)
    score(model)
    goals = model.goals([*CAPTIONS, EMPTY])
    if goals is not None:
        assert goals.dtype == np.uint64
        assert goals.tolist() == [[1, 0, 0, 0]] * 2 + [[0, 0, 0, 0]] * 4


# -- retrieval and the baselines
# ----------------------------------------------------------------------------------------------


def scores(config, *probabilities, threshold=0.5):
    model = build_reward_model(config)
    model.calibrate(threshold)
    model.learn([judged(number, p) for number, p in enumerate(probabilities, 1)])
    return score(model, [caption(number) for number in range(1, len(probabilities) + 1)]).tolist()


def test_binary_retrieval_rewards_what_lies_above_the_threshold():
    assert scores(RewardModelConfig(), 0.0, 0.5, 0.5000001, 1.0) == [0, 0, 1, 1]
    assert scores(RewardModelConfig(threshold=0.9), 0.6, 0.95) == [0, 1]


def test_soft_retrieval_rises_from_the_threshold_to_one_and_probability_is_the_judges_own():
    config = RewardModelConfig(output="soft")
    np.testing.assert_allclose(scores(config, 0.2, 0.6, 0.8, 1.0, threshold=0.6), [0, 0, 0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(scores(RewardModelConfig(output="probability"), 0.2, 0.8), [0.2, 0.8], rtol=1e-6)


def test_smoothing_draws_soft_labels_towards_the_threshold_so_that_no_decision_changes():
    config = RewardModelConfig(output="probability", label_smoothing=0.5)
    np.testing.assert_allclose(scores(config, 0.2, 0.6, 1.0, threshold=0.6), [0.4, 0.6, 0.8], rtol=1e-6)


def test_a_new_judgement_replaces_the_old_one_whatever_the_order_of_the_others():
    one, other = (build_reward_model(RewardModelConfig(threshold=0.5)) for _ in range(2))
    one.learn([judged(1, 0.9), judged(2, 0.1), judged(1, 0.1)])
    other.learn([judged(2, 0.1)])
    other.learn([judged(1, 0.1)])
    assert score(one).tolist()[1:3] == score(other).tolist()[1:3] == [0, 0]


def test_without_a_threshold_nothing_is_said_and_a_new_one_holds_for_all_labels():
    model = build_reward_model(RewardModelConfig())
    model.learn(evidence(Asks.JUDGEMENTS, LABELS))
    assert np.isnan(score(model)).all()
    model.calibrate(0.8)
    assert score(model, CAPTIONS[:3]).tolist() == [0, 1, 0]
    model.calibrate(0.6)
    assert score(model, CAPTIONS[:3]).tolist() == [1, 1, 0]


def test_a_configured_threshold_goes_before_the_rubrics_and_before_the_saved_one():
    saved = build_reward_model(RewardModelConfig())
    saved.calibrate(0.2)
    saved.learn(evidence(Asks.JUDGEMENTS, LABELS))
    model = build_reward_model(RewardModelConfig(threshold=0.8))
    model.load_state_dict(saved.state_dict())
    model.calibrate(0.1)
    assert score(model, CAPTIONS[:3]).tolist() == [0, 1, 0]


def test_counts_rewards_every_caption_alike_and_none_rewards_nothing():
    assert score(build_reward_model(RewardModelConfig(name="counts")), [caption(1), EMPTY]).tolist() == [1, 0]
    assert score(build_reward_model(RewardModelConfig(name="none")), [caption(1), EMPTY]).tolist() == [0, 0]


@pytest.mark.parametrize("config", [{"name": "motif"}, {"output": "hard"}, {"threshold": 1.0}, {"threshold": -0.5}])
def test_a_wrong_configuration_says_what_was_got_and_what_is_wanted(config):
    with pytest.raises(ValueError, match=r"got .*" + str(next(iter(config.values())))):
        build_reward_model(RewardModelConfig(**config))
