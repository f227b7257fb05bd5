"""What is asked next: priorities match their formulas, budgets hold, pairs are valid and never repeated."""

import itertools
import math

import numpy as np
import pytest

from configs.annotation_schema import AnnotatorConfig
from llm_server.annotation import Caption, JudgedCaption, JudgedPair, Judgement, PairJudgement, Status
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.caption_columns import log_priorities
from llm_server.annotator.feedback import CaptionQuestions, EmbeddingQuestions
from llm_server.annotator.pairs import (
    ComparedPairs,
    PairSampler,
    PointwisePairs,
    pairs_of_judgements,
    pointwise_preference,
)
from llm_server.client import ServiceUnavailable
from llm_server.token_bucket import TokenBucket
from tests.llm_server.fake_clients import FakeService


def book_of(counts, policy="frequency", half_life=100):
    book = CaptionBook(10_000, half_life, policy=policy)
    book.take_report({number: f"caption {number}" for number in counts}, counts, "0.0", 0, 0)
    return book


def judged(number, probability=0.9, status=Status.OK):
    judgement = Judgement(status=status, probability=probability, answer_mass=1.0)
    return JudgedCaption(caption=Caption(id=number, text=f"caption {number}"), judgement=judgement)


# -- policies
# -------------------------------------------------------------------------------------------------------------------


def test_priorities_are_their_formulas():
    counts, last_seen, margins = np.array([8, 1, 3]), np.array([0, 300, 100]), np.array([0.0, 2.0, np.nan])
    now = 300
    recency = [n * 0.5 ** ((now - seen) / 50) for n, seen in zip(counts, last_seen, strict=True)]
    s = [1 / (1 + math.exp(-m)) for m in (0.0, 2.0, 0.0)]
    doubt = [n * 4 * p * (1 - p) for n, p in zip(counts, s, strict=True)]
    disagreement = [8 * 1e-6, 1 * 2.0, 3 * 1.0]
    for policy, wanted in (
        ("recency_frequency", recency),
        ("frequency", counts.tolist()),
        ("uncertainty", doubt),
        ("disagreement", disagreement),
    ):
        got = np.exp2(log_priorities(policy, counts, last_seen, margins, 50))
        np.testing.assert_allclose(got / got[0], np.array(wanted) / wanted[0], rtol=1e-9)
    with pytest.raises(ValueError, match=r"annotator\.policy"):
        log_priorities("random", counts, last_seen, margins, 50)


def test_uncertainty_asks_first_where_most_rewards_are_in_doubt():
    book = book_of({1: 10, 2: 9, 3: 2}, policy="uncertainty")
    book.note_margins(np.array([1, 2, 99], np.uint64), np.array([5.0, 0.1, 0.0]))
    assert [caption.id for caption in book.next_batch(3)] == [2, 3, 1]
    restored = CaptionBook(100, 100, policy="uncertainty")
    restored.load_state_dict(book.state_dict())
    assert [caption.id for caption in restored.next_batch(3)] == [2, 3, 1]


def test_disagreement_asks_first_about_the_occurrences_on_which_networks_disagree_most():
    book = book_of({1: 10, 2: 9, 3: 2}, policy="disagreement")
    assert [book.wants_deviations, book.wants_margins] == [True, False]
    book.note_margins(np.array([1, 2], np.uint64), np.array([0.1, 0.4]))
    assert [caption.id for caption in book.next_batch(3)] == [2, 3, 1], "what is not known yet counts as 1"


# -- budgets
# --------------------------------------------------------------------------------------------------------------------


def test_a_budget_is_reserved_spent_and_given_back():
    service, book = FakeService(), book_of(dict.fromkeys(range(1, 40), 1))
    annotator = Annotator(service.connect, CaptionQuestions(book), AnnotatorConfig(max_labels=10))
    batches = [annotator._next_batch(num) for num in (7, 7, 1)]
    assert [len(batch) for batch in batches] == [7, 3, 0]
    annotator._questions.put_back(batches[0][3:])
    annotator._refund(4)
    for batch in (batches[0][:3], batches[1]):
        annotator._record(annotator._attempt(batch), [])
    assert annotator.num_answers == 6
    assert len(annotator._next_batch(9)) == 4
    annotator.load_state_dict(annotator.state_dict())
    assert len(annotator._next_batch(1)) == 0
    annotator.close()


def test_a_rate_allows_a_second_at_once_and_then_as_time_goes_by():
    now = [0.0]
    limit = TokenBucket(4.0, lambda: now[0])
    assert limit.take(100) == 4
    assert limit.take(1) == 0
    now[0] = 0.5
    assert limit.take(100) == 2
    limit.put_back(1)
    assert limit.take(100) == 1
    now[0] = 1000.0
    assert limit.take(100) == 4
    slow = TokenBucket(0.1, lambda: now[0])
    assert slow.take(5) == 1
    now[0] += 9.9
    assert slow.take(5) == 0
    now[0] += 0.2
    assert slow.take(5) == 1


def test_a_run_asks_no_faster_than_max_labels_per_s_and_what_was_not_asked_is_not_counted():
    service, book = FakeService(), book_of({1: 1, 2: 1, 3: 1})
    annotator = Annotator(service.connect, CaptionQuestions(book), AnnotatorConfig(max_labels_per_s=4.0))
    now = [0.0]
    annotator._rate_limit = TokenBucket(4.0, lambda: now[0])
    first = annotator._next_batch(100)
    assert len(first) == 3
    annotator._questions.put_back(first[1:])
    annotator._refund(2)
    assert len(annotator._next_batch(100)) == 2
    report = dict.fromkeys(range(10, 20), 1)
    book.take_report({number: f"caption {number}" for number in report}, report, "0.0", 1, 0)
    assert len(annotator._next_batch(100)) == 1
    annotator.close()


def test_a_run_asks_no_more_than_max_labels_failures_and_resumes_included():
    service, book = FakeService(), book_of(dict.fromkeys(range(1, 40), 1))
    config = AnnotatorConfig(batch_size=4, max_labels=10, max_backoff_s=0.01, request_timeout_s=5.0)
    annotator = Annotator(service.connect, CaptionQuestions(book), config)
    service.fail_next = [ServiceUnavailable("gone")]
    assert len(annotator.turn(6)) == 6
    state = annotator.state_dict()
    annotator.close()
    resumed = Annotator(service.connect, CaptionQuestions(book), config)
    resumed.load_state_dict(state)
    assert len(resumed.turn(100)) == 4
    assert resumed.turn(100) == []
    assert len(service.answered) == 10
    assert book.metrics()["annotations_pending"] == 29
    resumed.close()


# -- pairs
# ----------------------------------------------------------------------------------------------------------------------


def key(pair):
    return frozenset((pair.first.id, pair.second.id))


def drain(questions, size=7):
    pairs = []
    while batch := questions.next_batch(size):
        pairs += batch
        judgement = PairJudgement(status=Status.OK, preference=0.6, answer_mass=1.0, position_bias=0.0)
        questions.record([JudgedPair(pair=pair, judgement=judgement) for pair in batch])
    return pairs


def test_no_pair_twice_none_of_one_caption_and_none_with_the_empty_one():
    book = book_of({number: 1000 // number for number in range(1, 31)})
    pairs = drain(ComparedPairs(book, AnnotatorConfig(pairs_per_caption=6), seed=1))
    assert len(pairs) == 180
    assert len({key(pair) for pair in pairs}) == 180
    assert all(len(key(pair)) == 2 and 0 not in key(pair) for pair in pairs)


def test_pairs_are_bounded_by_captions_and_by_what_exists():
    few = drain(ComparedPairs(book_of({1: 1, 2: 5, 3: 9}), AnnotatorConfig(), seed=1))
    assert {key(pair) for pair in few} <= {frozenset(pair) for pair in itertools.combinations((1, 2, 3), 2)}
    assert drain(ComparedPairs(book_of({1: 1}), AnnotatorConfig(), seed=1)) == []


def test_only_the_newest_pairs_are_remembered_and_more_are_made_all_the_same():
    config = AnnotatorConfig(max_pairs=50, pairs_per_caption=4)
    pairs = drain(ComparedPairs(book_of(dict.fromkeys(range(1, 31), 1)), config, seed=1))
    assert len(pairs) == 120
    assert all(len({key(pair) for pair in pairs[start : start + 50]}) == 50 for start in range(0, 70, 7))
    questions = PointwisePairs(book_of(dict.fromkeys(range(1, 31), 1)), config, seed=1)
    made = [len(questions.record([judged(number) for number in range(first, first + 5)])) for first in range(1, 31, 5)]
    assert made[1:] == [20] * 5
    assert len(questions.state_dict()["pairs"]) == 50


@pytest.mark.parametrize("kind", [ComparedPairs, PointwisePairs])
def test_captions_that_left_the_book_leave_what_is_remembered_of_pairs(kind):
    book = book_of(dict.fromkeys(range(1, 11), 1))
    questions = kind(book, AnnotatorConfig(pairs_per_caption=2), seed=1)
    if kind is ComparedPairs:
        assert len(drain(questions)) == 20
    else:
        assert len(questions.record([judged(number) for number in range(1, 11)])) == 20
    questions.retain(set(range(4, 11)))
    kept = questions.state_dict()["pairs"]
    assert 0 < len(kept) < 20
    assert kept.min() >= 4


def test_a_book_that_turned_over_is_compared_like_a_new_one():
    book = CaptionBook(20, 100, policy="frequency")
    questions = ComparedPairs(book, AnnotatorConfig(pairs_per_caption=2), seed=1)
    for turn in range(3):
        numbers = range(20 * turn + 1, 20 * turn + 21)
        book.take_report({n: f"caption {n}" for n in numbers}, dict.fromkeys(numbers, 1), "0.0", turn, 1000 * turn)
        questions.retain({caption.id for caption in book.captions()})
        resumed = ComparedPairs(book, AnnotatorConfig(pairs_per_caption=2), seed=1)
        resumed.load_state_dict(questions.state_dict())
        assert questions.pending() == resumed.pending() >= 38
        questions.put_back(questions.next_batch(3))
        drain(questions)
        assert questions.pending() == 0


def test_a_pair_that_waits_to_be_asked_again_leaves_with_its_caption():
    questions = ComparedPairs(book_of(dict.fromkeys(range(1, 31), 1)), AnnotatorConfig(pairs_per_caption=1), seed=1)
    batch = [*questions.next_batch(5)]
    questions.put_back(batch)
    questions.retain(set(range(1, 31)) - {batch[0].first.id})
    assert all(batch[0].first.id not in key(pair) for pair in questions.next_batch(4))


def test_more_captions_call_for_more_pairs():
    book = book_of(dict.fromkeys(range(1, 21), 1))
    questions = ComparedPairs(book, AnnotatorConfig(pairs_per_caption=2), seed=1)
    assert len(drain(questions)) == 40
    assert questions.pending() == 0
    book.take_report({100: "new"}, {100: 1}, "0.0", 1, 0)
    assert questions.pending() == 2


def test_members_are_drawn_by_the_square_root_of_their_priority():
    book = book_of({1: 1600, **dict.fromkeys(range(2, 402), 1)})
    ids, _, log2 = book.ranked()
    drawn = [PairSampler(AnnotatorConfig(), seed=seed).draw(ids, log2, ids, log2, 1)[0] for seed in range(600)]
    share = np.mean([1 in pair for pair in drawn])
    expected = (
        2 * (40 / 440) * (400 / 440) / (1 - (40 / 440) ** 2 - 400 / 440**2)
    )  # one member of two, identical ones left out
    assert share == pytest.approx(expected, abs=0.05)


def test_pairs_come_either_way_round():
    pairs = drain(ComparedPairs(book_of(dict.fromkeys(range(1, 31), 1)), AnnotatorConfig(), seed=3))
    assert 0.3 < np.mean([pair.first.id < pair.second.id for pair in pairs]) < 0.7


def test_the_same_seed_draws_the_same_pairs_and_a_resumed_run_goes_on():
    def make():
        return ComparedPairs(
            book_of({number: number for number in range(1, 31)}), AnnotatorConfig(pairs_per_caption=4), seed=5
        )

    whole, halves = make(), make()
    first = [*whole.next_batch(20)]
    assert [*halves.next_batch(20)] == first
    for questions in (whole, halves):
        questions.record([JudgedPair(pair=pair, judgement=pointwise_preference(0.5, 0.5)) for pair in first])
    resumed = make()
    resumed.load_state_dict(halves.state_dict())
    assert drain(resumed) == drain(whole)


def test_pairs_whose_request_failed_come_back_first_and_those_being_asked_are_saved_as_not_asked():
    questions = ComparedPairs(book_of(dict.fromkeys(range(1, 31), 1)), AnnotatorConfig(pairs_per_caption=1), seed=1)
    batch = [*questions.next_batch(5)]
    assert len(questions.state_dict()["pairs"]) == 0
    questions.put_back(batch)
    assert questions.pending() == 30
    assert [*questions.next_batch(5)] == batch


def test_a_preference_from_two_judgements_is_the_difference_of_their_log_odds():
    assert pointwise_preference(0.8, 0.5).preference == pytest.approx(0.8)
    assert pointwise_preference(0.5, 0.8).preference == pytest.approx(0.2)
    assert pointwise_preference(0.3, 0.3).preference == 0.5
    odds = (0.9 / 0.1) / (0.6 / 0.4)
    assert pointwise_preference(0.9, 0.6).preference == pytest.approx(odds / (1 + odds))
    assert pointwise_preference(1.0, 0.0).preference < 1.0 + 1e-12


def test_new_labels_are_paired_with_labelled_captions_only():
    book = book_of(dict.fromkeys(range(1, 41), 1))
    questions = PointwisePairs(book, AnnotatorConfig(pairs_per_caption=3), seed=1)
    questions.next_batch(40)
    first = questions.record([judged(number, 0.8 if number % 2 else 0.3) for number in range(1, 11)])
    assert len(first) == 30
    assert all(key(item.pair) <= set(range(1, 11)) for item in first)
    for item in first:
        p, q = ((0.8 if caption.id % 2 else 0.3) for caption in (item.pair.first, item.pair.second))
        assert item.judgement == pointwise_preference(p, q)
    second = questions.record([judged(11), judged(12, status=Status.UNPARSED)])
    assert len(second) == 3
    assert all(11 in key(item.pair) and 12 not in key(item.pair) for item in second)
    assert not {key(item.pair) for item in first} & {key(item.pair) for item in second}
    assert questions.record([judged(13, status=Status.UNPARSED)]) == []


@pytest.mark.parametrize("moment", ["record", "ranked"])
def test_labels_whose_caption_is_evicted_in_the_midst_of_it_cost_no_other_pair(monkeypatch, moment):
    book = CaptionBook(20, 100)
    book.take_report({n: f"caption {n}" for n in range(1, 21)}, dict.fromkeys(range(1, 21), 1), "0.0", 0, 0)
    questions = PointwisePairs(book, AnnotatorConfig(pairs_per_caption=3), seed=1)
    questions.record([judged(number) for number in range(1, 11)])
    real = getattr(book, moment)

    def then_evict(*arguments):
        result = real(*arguments)
        monkeypatch.undo()
        staying = [2, 4, 6, 8, 10, 12, 14, 16]
        book.take_report(
            dict.fromkeys(range(100, 112), "new"), dict.fromkeys([*range(100, 112), *staying], 1), "0.0", 1, 1000
        )
        return result

    monkeypatch.setattr(book, moment, then_evict)
    made = questions.record([judged(number) for number in (11, 12)])
    assert book.num_evicted > 0
    assert len(book.captions_of([11])) == 0
    assert any(12 in key(item.pair) for item in made)
    assert {number for item in made for number in key(item.pair)} <= {2, 4, 6, 8, 10, 11, 12}


def test_pairs_of_judgements_made_before_are_sound_too():
    labels = [judged(number, number / 30) for number in range(1, 25)] + [judged(25, status=Status.UNPARSED)]
    pairs = pairs_of_judgements(
        labels, {number: number for number in range(1, 26)}, AnnotatorConfig(pairs_per_caption=4), seed=1
    )
    assert len(pairs) == 96
    assert len({key(item.pair) for item in pairs}) == 96
    assert all(25 not in key(item.pair) for item in pairs)


def test_a_service_is_asked_for_pairs_and_its_answers_are_counted():
    class Comparing(FakeService):
        def connect(self):
            client = super().connect()
            client.annotate_pairs = lambda pairs: [
                PairJudgement(
                    status=Status.UNPARSED if b"7" in first + second else Status.OK,
                    preference=0.9,
                    answer_mass=1.0,
                    position_bias=0.1,
                )
                for first, second in pairs
            ]
            return client

    book = book_of(dict.fromkeys(range(1, 10), 1))
    annotator = Annotator(
        Comparing().connect, ComparedPairs(book, AnnotatorConfig(pairs_per_caption=2), 1), AnnotatorConfig(batch_size=5)
    )
    labels = annotator.turn(100)
    metrics = annotator.metrics()
    assert metrics["annotations_total"] == 18
    assert metrics["annotations_unparsed"] == 18 - len(labels) > 0
    assert metrics["annotations_pending"] == 0
    assert all(isinstance(item, JudgedPair) and 7 not in key(item.pair) for item in labels)
    annotator.close()


# -- embeddings
# -----------------------------------------------------------------------------------------------------------------


def test_captions_are_held_against_the_goals_and_what_cannot_be_embedded_is_no_label():
    vectors = {"kill": (1.0, 0.0), "open": (0.0, 1.0), "caption 1": (0.6, 0.8), "caption 2": (np.nan, np.nan)}

    class Embedding(FakeService):
        def connect(self):
            client = super().connect()
            client.embed = lambda items: (
                embedded.append(len(items)) or np.array([vectors[item.decode()] for item in items], np.float32)
            )
            return client

    embedded: list[int] = []

    book = book_of({1: 5, 2: 1})
    annotator = Annotator(Embedding().connect, EmbeddingQuestions(book, ["kill", "open"]), AnnotatorConfig())
    (label,) = annotator.turn(10)
    assert label.caption.id == 1
    np.testing.assert_allclose(label.cosines, [0.6, 0.8], rtol=1e-6)
    assert annotator.turn(10) == []
    metrics = annotator.metrics()
    assert (metrics["annotations_total"], metrics["annotations_unparsed"], metrics["forward_passes"]) == (2, 1, 1)
    book.take_report({3: "caption 1"}, {3: 1}, "0.0", 1, 0)
    annotator.turn(10)
    assert embedded == [2, 2, 1], "goals are embedded once per client"
    annotator.close()
