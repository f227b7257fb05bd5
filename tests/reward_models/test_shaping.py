"""Options of any reward model: warm-up, clipping, and the control whose rewards mean nothing."""

import numpy as np
import pytest

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import Caption, EmbeddedCaption, JudgedCaption, Judgement, Status
from llm_server.annotator.caption_book import CaptionBook
from reward_models.building import build_reward_model
from reward_models.interface import Asks
from reward_models.shaping import BAND, Permutation, RewardShaping
from reward_models.training import RewardTrainer

N = 42
IDS = np.arange(1, N + 1, dtype=np.uint64)
COUNTS = np.array([2 ** (number % 7) for number in range(N)])
REWARDS = np.where(np.arange(N) % 3 == 0, 1.0, 0.0).astype(np.float32)


def judged(number, probability=0.9, status=Status.OK):
    judgement = Judgement(status=status, probability=probability, answer_mass=1.0)
    return JudgedCaption(caption=Caption(id=number, text=f"caption {number}"), judgement=judgement)


def trainer_of(**settings):
    config = RewardModelConfig(**settings)
    model, book = build_reward_model(config), CaptionBook(1000, 1000)
    book.take_report(
        {number: f"caption {number}" for number in range(1, 10)}, dict.fromkeys(range(1, 10), 1), "0.0", 0, 0
    )
    model.calibrate(0.5)
    return RewardTrainer(model, RewardShaping(config, 0), book, 1)


def test_nothing_is_rewarded_before_the_warm_up_is_over():
    trainer = trainer_of(warmup_labels=3)
    trainer.learn([judged(1), judged(2), judged(4)])
    trainer.note_labels(2)
    trainer.publish()
    assert len(trainer.table) == 1, "the empty caption alone is known"
    trainer.note_labels(3)
    trainer.publish()
    assert trainer.table.look_up(np.array([1, 2, 4], np.uint64))[0].tolist() == [1, 1, 1]
    resumed = trainer_of(warmup_labels=3)
    resumed.load_state_dict(trainer.state_dict())
    resumed.learn([judged(5)])
    assert resumed.publish() is not None


def test_the_accuracy_is_the_newest_one_or_none(monkeypatch):
    trainer = trainer_of(name="classification")
    trainer.learn([judged(1), judged(2, 0.1)])
    for metrics in ({"accuracy": 0.7}, {}):
        monkeypatch.setattr(trainer._model, "train", lambda metrics=metrics: metrics)
        trainer.train()
        assert trainer.metrics()["reward_model_accuracy"] == metrics.get("accuracy")


def test_models_that_ask_nothing_need_no_warm_up():
    trainer = trainer_of(name="counts", warmup_labels=1000)
    trainer.publish()
    assert len(trainer.table) == 10


def test_rewards_are_clipped_on_both_sides_and_unknown_ones_stay_unknown():
    shaping = RewardShaping(RewardModelConfig(clip=0.5), 0)
    rewards = shaping.apply(IDS[:4], COUNTS[:4], np.array([-2.0, 0.25, 3.0, np.nan], np.float32))
    np.testing.assert_array_equal(rewards, np.array([-0.5, 0.25, 0.5, np.nan], np.float32))


def sources(permutation, ids=IDS, counts=COUNTS):
    """Whose reward each caption gets, read off from rewards that name their captions."""
    return permutation.apply(ids, counts, ids.astype(np.float32))


def test_permuted_rewards_are_those_of_others_of_similar_frequency():
    got = sources(Permutation(seed=1))
    assert sorted(got.tolist()) == IDS.tolist(), "every reward is given once, so their amount is kept"
    assert not (got == IDS).any(), "nobody keeps its own"
    ranks = np.empty(N, int)
    ranks[np.lexsort((IDS, -COUNTS))] = np.arange(N)
    of_source = ranks[got.astype(int) - 1]
    assert np.abs(of_source - ranks).max() < 2 * BAND


def test_a_permutation_is_a_function_of_the_seed_and_never_changes():
    one, same, other = Permutation(seed=1), Permutation(seed=1), Permutation(seed=2)
    before = sources(one)
    np.testing.assert_array_equal(sources(same), before)
    assert (sources(other) != before).any()
    np.testing.assert_array_equal(sources(one, counts=COUNTS[::-1]), before)
    more = np.arange(1, N + 9, dtype=np.uint64)
    np.testing.assert_array_equal(sources(one, more, np.ones(N + 8, int))[:N], before)
    resumed = Permutation(seed=1)
    resumed.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(sources(resumed), before)


def test_too_few_newcomers_wait_and_the_unknown_and_the_empty_are_left_alone():
    permutation = Permutation(seed=1)
    assert np.isnan(sources(permutation, IDS[: BAND - 1], COUNTS[: BAND - 1])).all()
    assert np.isfinite(sources(permutation, IDS[:BAND], COUNTS[:BAND])).all()
    rewards = permutation.apply(
        np.append(IDS[:BAND], np.uint64(0)), np.ones(BAND + 1, int), np.array([1, 1, 1, np.nan, 0], np.float32)
    )
    assert rewards[-1] == 0
    assert np.isnan(rewards).sum() == 1


def test_captions_that_left_the_book_leave_the_permutation_and_take_no_reward_with_them():
    permutation = Permutation(seed=1)
    before = dict(zip(IDS.tolist(), sources(permutation).tolist(), strict=True))
    staying = IDS[(IDS % 5 != 0) & (IDS > 8)]
    permutation.retain(set(staying.tolist()))
    after = sources(permutation, staying, COUNTS[staying.astype(int) - 1])
    assert sorted(after.tolist()) == staying.tolist(), "every reward that is left is given once"
    assert not (after == staying).any()
    assert all(
        got == before[number] for number, got in zip(staying.tolist(), after, strict=True) if before[number] in staying
    )
    assert (after != [before[number] for number in staying.tolist()]).any()


def test_a_caption_whose_whole_band_left_is_new():
    permutation = Permutation(seed=1)
    sources(permutation, IDS[:BAND], COUNTS[:BAND])
    permutation.retain({1})
    assert np.isnan(sources(permutation, IDS[:1], COUNTS[:1])).all()
    assert sorted(sources(permutation, IDS[[0, 9, 10, 11]], COUNTS[:BAND])) == [1, 10, 11, 12]


def test_rewards_are_exchanged_among_captions_that_steps_showed():
    """What only resets showed is never paid: a reward given to it would be lost, and one given by it would come from
    nothing."""
    permutation, counts = Permutation(seed=1), COUNTS.copy()
    counts[[2, 7]] = 0
    got = sources(permutation, counts=counts)
    shown = counts > 0
    assert sorted(got[shown].tolist()) == IDS[shown].tolist()
    assert np.isnan(got[~shown]).all()
    more = np.append(IDS, np.arange(N + 1, N + 3, dtype=np.uint64))
    later = sources(permutation, more, np.append(COUNTS, [1, 1]))
    np.testing.assert_array_equal(later[:N][shown], got[shown])
    assert sorted(later[np.append(~shown, [True, True])].tolist()) == [3, 8, N + 1, N + 2], "shown by a step after all"


@pytest.mark.parametrize("name", ["retrieval", "embedding"])
def test_a_permuted_table_has_the_same_rewards_for_other_captions(name):
    settings = {"name": name, "goals": ["kill"]} if name == "embedding" else {"name": name}
    plain, permuted = trainer_of(**settings), trainer_of(permute=True, **settings)
    for trainer in (plain, permuted):
        if build_reward_model(RewardModelConfig(**settings)).asks is Asks.JUDGEMENTS:
            trainer.learn([judged(number, 0.9 if number < 4 else 0.1) for number in range(1, 9)])
        else:
            trainer.learn(
                [
                    EmbeddedCaption(
                        caption=judged(number).caption, cosines=np.array([0.9 if number < 4 else 0.1], np.float32)
                    )
                    for number in range(1, 9)
                ]
            )
        trainer.publish()
    assert sorted(plain.table.rewards) == sorted(permuted.table.rewards)
    assert not np.array_equal(plain.table.rewards, permuted.table.rewards)
