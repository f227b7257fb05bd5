"""Hash tables in arrays hold what dictionaries would; texts stay those of their rows."""

import numpy as np

from llm_server.annotator.caption_texts import Captions, CaptionTexts, ids_of
from llm_server.annotator.id_rows import IdRows, IdValues


def test_rows_are_those_of_a_dictionary_also_where_ids_collide():
    rng = np.random.default_rng(0)
    spread = np.unique(rng.integers(0, 2**64, 5000, np.uint64))
    colliding = np.arange(1, 300, dtype=np.uint64) << np.uint64(40)  # all in one slot
    ids = rng.permutation(np.concatenate([spread, colliding]))
    rows, wanted = IdRows(), {}
    for part in np.array_split(ids, 37):
        np.testing.assert_array_equal(rows.add(part), range(len(wanted), len(wanted) + len(part)))
        wanted |= {number: len(wanted) + place for place, number in enumerate(part.tolist())}
    asked = np.concatenate([ids, rng.integers(0, 2**64, 1000, np.uint64)])
    assert rows.find(asked).tolist() == [wanted.get(number, -1) for number in asked.tolist()]
    rows.replace(ids[::2])
    assert len(rows) == len(ids[::2])
    assert rows.find(ids[:4]).tolist() == [0, -1, 1, -1]


def test_values_are_those_of_a_dictionary():
    values, wanted = IdValues(), {}
    rng = np.random.default_rng(1)
    for _ in range(50):
        new = {int(number): float(number) * rng.random() for number in rng.integers(1, 300, 20)}
        values.update(new)
        wanted |= new
    assert dict(zip(values.ids.tolist(), values.values.tolist(), strict=True)) == wanted
    values.retain({number for number in wanted if number % 2})
    got = values.of(np.arange(300, dtype=np.uint64))
    for number, value in enumerate(got.tolist()):
        assert value == wanted[number] if number % 2 and number in wanted else np.isnan(value)
    assert np.isnan(IdValues().of(np.array([7], np.uint64))).all()


def texts_of(texts: CaptionTexts, rows: list[int]) -> list[str]:
    numbers = np.array(rows)
    return [caption.text for caption in texts.captions(numbers.astype(np.uint64), numbers)]


def test_texts_stay_with_their_rows_whatever_order_they_came_in():
    for order in ([0, 1, 3, 4], [4, 0, 3, 1]):
        texts = CaptionTexts()
        texts.add_rows(5)
        texts.set(np.array(order), [f"tëxt {row} \ud800" for row in order])
        assert texts.has(np.arange(5)).tolist() == [True, True, False, True, True]
        assert texts_of(texts, [3, 0]) == ["tëxt 3 ?", "tëxt 0 ?"]
        kept = texts.kept(np.array([1, 2, 4]))
        assert kept.has(np.arange(3)).tolist() == [True, False, True]
        assert texts_of(kept, [0, 2]) == ["tëxt 1 ?", "tëxt 4 ?"]
        letters, ends = texts.arrays()
        again = CaptionTexts(letters, np.diff(ends, prepend=0))
        assert texts_of(again, [0, 1, 3, 4]) == texts_of(texts, [0, 1, 3, 4])


def test_captions_stay_as_they_were_when_the_texts_go_on():
    texts = CaptionTexts()
    texts.add_rows(2)
    texts.set(np.array([0, 1]), ["one", "two"])
    seen = texts.captions(np.array([11, 12], np.uint64), np.array([0, 1]))
    texts.add_rows(1000)
    texts.set(np.arange(2, 1002), ["more"] * 1000)
    texts.kept(np.array([1]))
    assert [(caption.id, caption.text) for caption in seen] == [(11, "one"), (12, "two")]
    assert isinstance(seen[1:], Captions)
    assert ids_of(seen[1:]).tolist() == ids_of(list(seen[1:])).tolist() == [12]
