"""The caption book: reports counted once, asked by priority, bounded, and complete after a resume."""

import sqlite3
import time

import numpy as np
import pytest

from llm_server.annotation import Caption, JudgedCaption, Judgement, Status
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import MAX_WORKERS, CaptionBook


def make_book(max_captions=1000, archive=None, clock=lambda: 0.0):
    return CaptionBook(max_captions, 100, archive, clock)


def report(book, captions, env_steps=0, number=0, worker="0.0"):
    """`captions`: id -> count, each with the text `caption <id>`."""
    return book.take_report({i: f"caption {i}" for i in captions}, captions, worker, number, env_steps)


def counts(book, *ids):
    return book.look_up(np.array(ids, np.uint64))[0].tolist()


def judged(number, probability=0.9, status=Status.OK):
    judgement = Judgement(
        status=status, probability=probability if status is Status.OK else float("nan"), answer_mass=0.5
    )
    return JudgedCaption(caption=Caption(id=number, text=f"caption {number}"), judgement=judgement)


def asked(book, k=1000):
    return [caption.id for caption in book.next_batch(k)]


def test_a_report_is_counted_once_and_acknowledged_each_time():
    book = make_book()
    assert report(book, {1: 3}) == (book.book_epoch, 0)
    assert report(book, {1: 3}) == (book.book_epoch, 0)
    assert report(book, {1: 2}, number=1) == (book.book_epoch, 1)
    assert report(book, {1: 4}, worker="0.1") == (book.book_epoch, 0)
    assert counts(book, 1) == [9]


def test_an_overtaken_report_is_counted_and_still_once():
    book = make_book()
    for number in (5, 3, 4, 3, 5, 200, 150, 150, 100):  # 100 is too old to tell: counted as held
        newest = report(book, {1: 1}, number=number)[1]
    assert newest == 200
    assert counts(book, 1) == [5]


def test_what_is_remembered_of_workers_is_bounded():
    book = make_book()
    for worker in range(MAX_WORKERS + 50):
        report(book, {1: 1}, worker=str(worker))
    assert len(book._reports) == MAX_WORKERS


def test_the_empty_caption_is_never_in_the_book():
    book = make_book()
    book.take_report({0: "", 1: "a"}, {0: 50, 1: 1}, "0.0", 0, 0)
    assert len(book) == 1
    assert asked(book) == [1]


def test_a_caption_without_its_text_is_counted_and_asked_once_the_text_comes():
    book = make_book()
    book.take_report({}, {7: 4}, "0.0", 0, 10)
    assert asked(book) == []
    assert not book.captions()
    book.take_report({7: "seven", 8: "eight"}, {7: 1}, "0.0", 1, 20)
    assert counts(book, 7, 8) == [5, 0]
    assert asked(book) == [7, 8]


def test_frequent_and_recent_captions_are_asked_first():
    book = make_book()
    report(book, {1: 8}, env_steps=0)
    report(book, {2: 2, 3: 1}, env_steps=400, number=1)  # four half-lives: 8 counts as 0.5
    report(book, {4: 1, 5: 1}, env_steps=450, number=2)
    assert asked(book) == [2, 4, 5, 3, 1]


def test_a_batch_of_any_size_is_the_head_of_the_same_order():
    rng = np.random.default_rng(0)
    books = make_book(), make_book()
    for number in range(20):
        seen = {int(i): int(c) for i, c in zip(rng.integers(1, 300, 40), rng.integers(1, 4, 40), strict=True)}
        for book in books:
            report(book, seen, env_steps=number * 37, number=number)
    whole, pieces = asked(books[0]), []
    while batch := asked(books[1], 7):
        pieces += batch
    assert pieces == whole


def test_a_caption_is_asked_again_only_after_it_was_put_back():
    book = make_book()
    report(book, {1: 2, 2: 1})
    batch = book.next_batch(1)
    assert asked(book) == [2]
    book.put_back(batch)
    assert asked(book) == [1]


@pytest.mark.parametrize("status", Status)
def test_an_answered_caption_is_not_asked_again_whatever_the_answer(status):
    book = make_book()
    report(book, {1: 1})
    book.next_batch(1)
    assert book.record([judged(1, 0.75, status), judged(99)]) == [judged(1, 0.75, status)] or status is not Status.OK
    book.put_back([Caption(id=1, text="caption 1")])
    report(book, {1: 5}, number=1)
    assert asked(book) == []
    probability = book.look_up(np.array([1], np.uint64))[1][0]
    assert (probability == 0.75) if status is Status.OK else np.isnan(probability)


def test_the_least_recently_seen_leave_and_their_late_answers_are_dropped():
    book = make_book(max_captions=64)
    report(book, dict.fromkeys(range(1, 65), 1), env_steps=1)
    report(book, {5: 1, 6: 1}, env_steps=2, number=1)
    assert (len(book), book.num_evicted) == (64, 0)
    batch = book.next_batch(64)
    report(book, dict.fromkeys(range(100, 132), 1), env_steps=3, number=2)
    assert len(book) == 63
    assert counts(book, 5, 6, 100, 131) == [2, 2, 1, 1]
    kept = book.record([judged(caption.id) for caption in batch])
    assert len(kept) == 31
    assert {5, 6} <= {item.caption.id for item in kept}
    assert {caption.id for caption in book.captions()} == {item.caption.id for item in kept} | set(range(100, 132))


def test_a_report_larger_than_the_book_keeps_the_bound():
    book = make_book(max_captions=3)
    report(book, dict.fromkeys(range(1, 5000), 1))
    assert len(book) == 3
    assert len(asked(book)) == 3


def test_an_evicted_caption_comes_back_with_text_and_count_although_its_text_is_not_sent_again(tmp_path):
    archive = CaptionArchive(tmp_path / "captions.sqlite")
    book = make_book(max_captions=2, archive=archive)
    big = 2**64 - 3  # SQLite's integers are signed
    report(book, {big: 3}, env_steps=1)
    report(book, {1: 1, 2: 1}, env_steps=2, number=1)
    assert counts(book, big) == [0]
    book.take_report({}, {big: 2}, "0.0", 2, 3)
    assert counts(book, big) == [5]
    assert big in asked(book)
    book.close()
    rows = sqlite3.connect(tmp_path / "captions.sqlite")
    found = rows.execute("SELECT text, count, first_seen FROM captions WHERE id = ?", (big - 2**64,)).fetchall()
    assert found == [(f"caption {big}", 5, 1)]
    rows.close()


def test_counts_are_those_of_the_captions_when_an_answer_comes_for_one_whose_text_is_lost():
    book = make_book(max_captions=1)
    report(book, {1: 1})
    assert asked(book) == [1]
    report(book, {2: 9}, number=1)  # evicts the first, whose text no archive keeps
    book.take_report({}, {1: 7}, "0.0", 2, 0)
    book.record([judged(1)])
    captions, captions_counts = book.counted_captions()
    assert len(captions) == len(captions_counts)
    book.forget_answers()
    assert asked(book) == [], "its text is not there to be asked about"
    book.take_report({1: "caption 1"}, {}, "0.0", 3, 0)
    assert asked(book) == [1]


def test_the_archive_holds_every_caption_with_its_answer(tmp_path):
    book = make_book(archive=CaptionArchive(tmp_path / "captions.sqlite"))
    report(book, {1: 2, 2: 1, 3: 1}, env_steps=5)
    book.write_archive()
    book.next_batch(3)
    book.record([judged(1, 0.8), judged(2, status=Status.UNPARSED)])
    book.close()
    rows = sqlite3.connect(tmp_path / "captions.sqlite")
    assert rows.execute("SELECT id, count, last_seen, probability, status FROM captions ORDER BY id").fetchall() == [
        (1, 2, 5, 0.8, "OK"),
        (2, 1, 5, None, "UNPARSED"),
        (3, 1, 5, None, "PENDING"),
    ]
    rows.close()


def test_a_broken_archive_is_refused_at_the_start_and_survived_later(tmp_path, caplog):
    (tmp_path / "broken.sqlite").write_text("this is not a database" * 100)
    with pytest.raises(ValueError, match="move it away"):
        CaptionArchive(tmp_path / "broken.sqlite")
    archive = CaptionArchive(tmp_path / "captions.sqlite")
    book = make_book(max_captions=2, archive=archive)
    archive.close()
    report(book, {1: 1, 2: 1, 3: 1})
    report(book, {4: 1, 1: 1}, number=1)
    assert len(book) <= 2
    assert caplog.text.count("could not be written") == 1


def test_a_restored_book_is_equal_but_has_a_new_identity_and_knows_no_workers():
    book = make_book()
    report(book, {2**64 - 1: 3, 5: 2, 6: 1}, env_steps=9)
    book.take_report({}, {77: 1}, "0.0", 1, 9)
    book.take_report({8: "é \U0001f600 \ud800"}, {8: 1}, "0.0", 2, 9)  # a lone surrogate cannot be sent: replaced
    first = book.next_batch(2)
    book.record([judged(first[0].id, 0.1 + 0.2)])
    restored = make_book()
    report(restored, {3: 1}, number=4)
    before = restored.book_epoch
    restored.load_state_dict(book.state_dict())
    assert restored.book_epoch not in (before, book.book_epoch)
    assert list(restored.captions()) == list(book.captions())
    assert restored.captions()[-1].text == "é \U0001f600 ?"
    ids = np.array([2**64 - 1, 5, 6, 77, 8], np.uint64)
    for one, other in zip(restored.look_up(ids), book.look_up(ids), strict=True):
        np.testing.assert_array_equal(one, other)
    book.put_back(first)
    assert asked(restored) == asked(book)  # what was being asked is pending again
    assert report(restored, {5: 1}) == (restored.book_epoch, 0)  # a resumed worker starts again at 0
    assert counts(restored, 5) == [3]


def test_a_smaller_bound_holds_after_a_resume():
    book = make_book()
    report(book, dict.fromkeys(range(1, 101), 1))
    small = make_book(max_captions=10)
    small.load_state_dict(book.state_dict())
    assert len(small) == 10


def test_the_age_is_from_a_captions_first_report_to_its_answer():
    now = [100.0]
    book = make_book(clock=lambda: now[0])
    assert book.metrics()["annotation_age_s"] is None
    report(book, {1: 1})
    now[0] = 104.0
    report(book, {1: 1, 2: 1}, number=1)
    now[0] = 106.0
    book.record([judged(caption.id) for caption in book.next_batch(2)])
    assert book.metrics() == {
        "captions_distinct": 2,
        "captions_evicted": 0,
        "annotations_pending": 0,
        "annotation_age_s": 4.0,
    }


def test_choosing_among_a_hundred_thousand_takes_milliseconds():
    book = make_book(max_captions=200_000)
    rng = np.random.default_rng(0)
    for number in range(10):
        report(book, {int(i): 1 for i in rng.integers(1, 2**63, 10_000)}, env_steps=number, number=number)
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        assert len(book.next_batch(32)) == 32
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.03


@pytest.mark.parametrize(("max_captions", "half_life"), [(0, 1), (1, 0)])
def test_bounds_that_hold_nothing_are_refused(max_captions, half_life):
    with pytest.raises(ValueError, match="at least 1"):
        CaptionBook(max_captions, half_life)
