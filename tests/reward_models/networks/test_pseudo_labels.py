"""Predictions that are sure enough are trained on, until the judge answers; what is held out stays unseen."""

import math

import numpy as np
import pytest

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from llm_server.annotation import Caption, CaptionPair, JudgedCaption, JudgedPair, Judgement, Status
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.pairs import pointwise_preference
from llm_server.offline.judgement_file import caption_of
from reward_models.classification import ClassificationModel
from reward_models.networks.fitting import is_held_out, unflipped
from reward_models.ranking import RankingModel
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer

NUM_ANSWERED = 500
ANSWERED = [caption_of(f"answered {number}") for number in range(NUM_ANSWERED)]
NEW = [caption_of(f"new {number}") for number in range(200)]
SURE = 0.9
COUNTS = np.array([1] * NUM_ANSWERED + [3] * 150 + [2] * 50)


def judged(caption: Caption, probability: float) -> JudgedCaption:
    judgement = Judgement(status=Status.OK, probability=probability, answer_mass=1.0)
    return JudgedCaption(caption=caption, judgement=judgement)


def paired(first: Caption, second: Caption) -> JudgedPair:
    return JudgedPair(pair=CaptionPair(first=first, second=second), judgement=pointwise_preference(0.6, 0.4))


def logit(number: int) -> float:
    """What the network says about new caption `number`: every third is surely good, every third surely bad."""
    return (4.0, 0.0, -4.0)[number % 3] + number / 1000


OUTPUTS = {caption.id: logit(number) for number, caption in enumerate(NEW)}


@pytest.fixture
def make(monkeypatch):
    def build(kind=ClassificationModel, robust=None, **settings):
        config = RewardModelConfig(name=kind.name, held_out_fraction=0.2, **settings)
        model = kind(config, 0, RobustConfig(pseudo_confidence=SURE, **(robust or {})))
        model.calibrate(0.4)
        outputs = lambda captions: np.array([[OUTPUTS.get(c.id, 0.0) for c in captions]])  # noqa: E731
        monkeypatch.setattr(model._networks, "outputs", outputs)
        if kind is ClassificationModel:
            model.learn([judged(caption, 0.7) for caption in ANSWERED])
        else:
            model.learn([paired(a, b) for a, b in zip(ANSWERED, [*ANSWERED[1:], ANSWERED[0]], strict=True)])
        return model

    return build


def evaluated(model, step: int = 25):
    model._networks.members[0].best_step = step
    model.adopt_confident([*ANSWERED, *NEW], COUNTS)
    return model


def sure(caption: Caption) -> bool:
    return abs(OUTPUTS[caption.id]) > 2


def test_sure_predictions_about_what_was_seen_three_times_join_the_training_examples(make) -> None:
    model = make()
    answered = model.num_train
    evaluated(model)
    held_out = [caption for caption in NEW if is_held_out(caption.id, 0.2, answered)]
    assert len(held_out) > 10
    wanted = {caption.text.encode() for caption in NEW[:150] if sure(caption) and caption not in held_out}
    rows = np.arange(answered, model.num_train)
    texts, p = model.answers(rows, held_out=False)
    assert {*texts} == wanted
    assert model.metrics() == {"pseudo_labels": len(wanted)}
    by_text = {caption.text.encode(): 1 / (1 + math.exp(-OUTPUTS[caption.id])) for caption in NEW}
    np.testing.assert_allclose(p, [by_text[text] for text in texts], rtol=1e-6)
    held_out_texts, _ = model.answers(np.arange(model.num_held_out), held_out=True)
    assert not {*held_out_texts} & {caption.text.encode() for caption in NEW}


def test_there_are_at_most_a_share_of_the_answers_the_surest_first(make) -> None:
    model = make(robust={"pseudo_share": 0.02})
    answered = model.num_train
    evaluated(model)
    assert model.num_train - answered == int(0.02 * answered) > 3
    texts, p = model.answers(np.arange(answered, model.num_train), held_out=False)
    rest = [OUTPUTS[c.id] for c in NEW[:150] if sure(c) and not is_held_out(c.id, 0.2, answered)]
    assert sorted(np.abs(np.log(p / (1 - p)))) == pytest.approx(sorted(np.abs(rest))[-len(texts) :], rel=1e-6)


def test_they_are_made_again_after_a_better_evaluation_only(make) -> None:
    model = evaluated(make())
    before = model.metrics()
    learnt = model._networks.members[0]._num_learnt
    model.adopt_confident([*ANSWERED, *NEW], np.full(700, 3))
    assert model.metrics() == before
    model._networks.members[0].best_step = 50
    model.adopt_confident([*ANSWERED, *NEW], np.full(700, 3))
    more = model.metrics()["pseudo_labels"] - before["pseudo_labels"]
    assert more > 10
    assert model._networks.members[0]._num_learnt == learnt + more, "old ones are not new evidence"


def test_the_judges_own_answer_replaces_the_prediction(make) -> None:
    model = make()
    answered = model.num_train
    evaluated(model)
    num = model.metrics()["pseudo_labels"]
    caption = next(c for c in NEW[:150] if sure(c) and not is_held_out(c.id, 0.2, answered))
    model.learn([judged(caption, 0.123)])
    texts, p = model.answers(np.arange(model.num_train), held_out=False)
    assert [q for text, q in zip(texts, p, strict=True) if text == caption.text.encode()] == [0.123]
    assert model.metrics() == {"pseudo_labels": num - 1}


def test_nothing_is_adopted_before_twenty_captions_are_held_out_when_frozen_or_not_enabled(make) -> None:
    few = ClassificationModel(RewardModelConfig(), 0, RobustConfig(pseudo_confidence=SURE))
    few._networks.outputs = lambda captions: np.full((1, len(captions)), 9.0)
    few.learn([judged(caption, 0.7) for caption in ANSWERED[:210]])
    assert evaluated(few).metrics() == {"pseudo_labels": 0}
    frozen = make()
    frozen.freeze(ANSWERED, np.ones(NUM_ANSWERED))
    assert evaluated(frozen).is_settled
    disabled = ClassificationModel(RewardModelConfig(), 0)
    assert disabled.metrics() == {}
    assert "pseudo_labels" not in disabled.state_dict()


def test_predictions_are_not_corrected_for_the_judges_noise(make) -> None:
    model = make(robust={"noise_rate": 0.2})
    answered = model.num_train
    evaluated(model)
    texts, p = model.answers(np.arange(answered, model.num_train), held_out=False)
    by_text = {caption.text.encode(): 1 / (1 + math.exp(-OUTPUTS[caption.id])) for caption in NEW}
    targets = unflipped(model.targets(p), 0.2).numpy()
    np.testing.assert_allclose(targets, [by_text[text] for text in texts], rtol=1e-4, atol=1e-6)


def test_with_hard_labels_predictions_become_yes_or_no(make) -> None:
    model = make(labels="hard")
    answered = model.num_train
    evaluated(model)
    _, p = model.answers(np.arange(answered, model.num_train), held_out=False)
    assert {*model.targets(p).tolist()} == {0.0, 1.0}


def test_ranking_takes_disjoint_pairs_of_captions_that_were_never_compared(make) -> None:
    model = make(RankingModel)
    answered = model.num_train
    evaluated(model)
    rows = np.arange(answered, model.num_train)
    assert len(rows) > 10
    texts, p = model.answers(rows, held_out=False)
    assert len({*texts}) == len(texts) == 2 * len(rows)
    assert {*texts} <= {caption.text.encode() for caption in NEW[:150]}
    outputs = [OUTPUTS[caption_of(text.decode()).id] for text in texts]
    wanted = [1 / (1 + math.exp(b - a)) for a, b in zip(outputs[: len(rows)], outputs[len(rows) :], strict=True)]
    np.testing.assert_allclose(p, wanted, rtol=1e-6)
    assert (np.maximum(p, 1 - p) >= SURE).all()
    assert model.metrics() == {"pseudo_labels": len(texts)}
    model.learn([paired(caption_of(texts[0].decode()), ANSWERED[0])])
    assert model.metrics() == {"pseudo_labels": len(texts) - 2}


@pytest.mark.parametrize("kind", [ClassificationModel, RankingModel])
def test_they_survive_a_checkpoint_and_leave_with_their_captions(make, kind, tmp_path) -> None:
    model, restored = evaluated(make(kind)), make(kind)
    state = load_checkpoint(save_checkpoint(tmp_path, 1, {"model": model.state_dict()}, keep=1))["model"]
    restored.load_state_dict(state)
    rows = np.arange(model.num_train)
    for got, wanted in zip(restored.answers(rows, False), model.answers(rows, False), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not restored._pseudo.is_due(restored._networks.best_steps)
    restored.retain({caption.id for caption in [*ANSWERED, *NEW[:100]]})
    assert 0 < restored.metrics()["pseudo_labels"] <= 100


def test_the_trainer_lets_the_model_adopt_them_with_the_table() -> None:
    config = RewardModelConfig(name="classification", held_out_fraction=0.2, steps_per_turn=25, batch_size=16)
    book = CaptionBook(1000, 1000)
    model = ClassificationModel(config, 0, RobustConfig(pseudo_confidence=0.6))
    trainer = RewardTrainer(model, RewardShaping(config, 0), book, 1)
    captions = [*ANSWERED, *NEW]
    texts = {caption.id: caption.text for caption in captions}
    book.take_report(texts, {c.id: int(n) for c, n in zip(captions, COUNTS, strict=True)}, "0.0", 0, 0)
    trainer.calibrate(0.5)
    trainer.learn([judged(caption, 0.95) for caption in ANSWERED])
    trainer.note_labels(NUM_ANSWERED)
    trainer.train()
    trainer.publish()
    assert 50 < trainer.metrics()["pseudo_labels"] < 150
