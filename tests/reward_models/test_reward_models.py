"""The contract that every reward model keeps, and what each one's reward is."""

import numpy as np
import pytest

from configs.service_schema import RewardModelConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from llm_server.annotation import Caption, JudgedCaption, Judgement, Status
from reward_models.training import build_reward_model

MODELS = {
    "retrieval": RewardModelConfig(name="retrieval"),
    "retrieval soft": RewardModelConfig(name="retrieval", output="soft"),
    "counts": RewardModelConfig(name="counts"),
    "none": RewardModelConfig(name="none"),
}
EMPTY = Caption(id=0, text="")


def caption(number):
    return Caption(id=number, text=f"caption {number}")


def judged(number, probability, status=Status.OK):
    return JudgedCaption(caption=caption(number), judgement=Judgement(status=status, probability=probability, answer_mass=0.5))


@pytest.fixture(params=MODELS)
def make(request):
    def build():
        model = build_reward_model(MODELS[request.param])
        model.calibrate(0.5)
        return model

    return build


LABELS = [judged(1, 0.9), judged(2, 0.1), judged(2**64 - 1, 0.7), judged(4, 0.3)]
CAPTIONS = [caption(n) for n in (2**64 - 1, 1, 2, 3, 4)]


def test_scores_are_one_finite_number_or_nan_per_caption_and_zero_for_the_empty_one(make):
    model = make()
    model.learn([*LABELS, JudgedCaption(caption=EMPTY, judgement=LABELS[0].judgement)])
    scores = model.score([*CAPTIONS, EMPTY])
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    assert scores[-1] == 0
    assert not np.isinf(scores).any()
    assert model.score([]).shape == (0,)


def test_judgements_that_are_not_ok_change_nothing(make):
    model, untouched = make(), make()
    for one in (model, untouched):
        one.learn(LABELS)
    model.learn([judged(1, 0.0, Status.UNPARSED), judged(3, 0.99, Status.REJECTED), judged(2, float("nan"), Status.UNPARSED)])
    np.testing.assert_array_equal(model.score(CAPTIONS), untouched.score(CAPTIONS))


def test_the_state_survives_a_checkpoint_exactly(make, tmp_path):
    model, restored = make(), make()
    model.learn(LABELS)
    restored.load_state_dict(load_checkpoint(save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, keep=1))["model"])
    np.testing.assert_array_equal(restored.score(CAPTIONS), model.score(CAPTIONS))
    for one in (model, restored):
        one.learn([judged(3, 0.8)])
    np.testing.assert_array_equal(restored.score(CAPTIONS), model.score(CAPTIONS))


def test_the_order_of_labels_does_not_matter(make):
    model, other = make(), make()
    model.learn(LABELS)
    for label in reversed(LABELS):
        other.learn([label])
    np.testing.assert_array_equal(other.score(CAPTIONS), model.score(CAPTIONS))


def test_captions_that_left_the_book_are_forgotten_and_the_others_are_not(make):
    model, never_told = make(), make()
    model.learn(LABELS)
    never_told.learn([label for label in LABELS if label.caption.id != 1])
    model.retain({label.caption.id for label in LABELS} - {1})
    np.testing.assert_array_equal(model.score(CAPTIONS), never_told.score(CAPTIONS))
    assert all(np.size(value) <= 3 for value in model.state_dict().values())


def test_only_models_that_ask_for_judgements_wait_for_them(make):
    assert make().needs_judgements == np.isnan(make().score(CAPTIONS)).any()


def scores(config, *probabilities, threshold=0.5):
    model = build_reward_model(config)
    model.calibrate(threshold)
    model.learn([judged(number, p) for number, p in enumerate(probabilities, 1)])
    return model.score([caption(number) for number in range(1, len(probabilities) + 1)]).tolist()


def test_binary_retrieval_rewards_what_lies_above_the_threshold():
    assert scores(RewardModelConfig(), 0.0, 0.5, 0.5000001, 1.0) == [0, 0, 1, 1]
    assert scores(RewardModelConfig(threshold=0.9), 0.6, 0.95) == [0, 1]


def test_soft_retrieval_rises_from_the_threshold_to_one():
    config = RewardModelConfig(output="soft")
    np.testing.assert_allclose(scores(config, 0.2, 0.6, 0.8, 1.0, threshold=0.6), [0, 0, 0.5, 1], rtol=1e-6)


def test_a_new_judgement_replaces_the_old_one():
    model = build_reward_model(RewardModelConfig(threshold=0.5))
    model.learn([judged(1, 0.9)])
    model.learn([judged(1, 0.1)])
    assert model.score([caption(1)]) == [0]


def test_without_a_threshold_nothing_is_said_and_a_new_one_holds_for_all_labels():
    model = build_reward_model(RewardModelConfig())
    model.learn(LABELS)
    assert np.isnan(model.score(CAPTIONS)).all()
    model.calibrate(0.8)
    assert model.score(CAPTIONS[:3]).tolist() == [0, 1, 0]
    model.calibrate(0.6)
    assert model.score(CAPTIONS[:3]).tolist() == [1, 1, 0]


def test_a_configured_threshold_goes_before_the_rubrics_and_before_the_saved_one():
    saved = build_reward_model(RewardModelConfig())
    saved.calibrate(0.2)
    saved.learn(LABELS)
    model = build_reward_model(RewardModelConfig(threshold=0.8))
    model.load_state_dict(saved.state_dict())
    model.calibrate(0.1)
    assert model.score(CAPTIONS[:3]).tolist() == [0, 1, 0]


def test_counts_rewards_every_caption_alike_and_none_rewards_nothing():
    assert build_reward_model(RewardModelConfig(name="counts")).score([caption(1), EMPTY]).tolist() == [1, 0]
    assert build_reward_model(RewardModelConfig(name="none")).score([caption(1), EMPTY]).tolist() == [0, 0]


@pytest.mark.parametrize("config", [{"name": "ranking"}, {"output": "hard"}, {"threshold": 1.0}, {"threshold": -0.5}])
def test_a_wrong_configuration_says_what_was_got_and_what_is_wanted(config):
    with pytest.raises(ValueError, match=r"got .*" + str(next(iter(config.values())))):
        build_reward_model(RewardModelConfig(**config))
