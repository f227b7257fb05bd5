"""The texts of the caption book, as bytes in one array, and `Captions`, a sequence of captions made from them one by
one.

A Python string with the object that holds it takes some 200 bytes beside its letters, one row here 12.

Invariant: bytes once written are never changed, so a `Captions` stays as it was made.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from llm_server.annotation import Caption
from llm_server.annotator.id_rows import grown


class Captions(Sequence[Caption]):
    """Captions in the order of `ids`, each made when it is asked for."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, letters: np.ndarray) -> None:
        self.ids = ids
        """[N] u64."""
        self._starts, self._lengths, self._letters = starts, lengths, letters

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Caption: ...

    @overload
    def __getitem__(self, place: slice) -> "Captions": ...

    def __getitem__(self, place: "int | slice") -> "Caption | Captions":
        if isinstance(place, slice):
            return Captions(self.ids[place], self._starts[place], self._lengths[place], self._letters)
        start = int(self._starts[place])
        text = self._letters[start : start + int(self._lengths[place])].tobytes().decode()
        return Caption(id=int(self.ids[place]), text=text)

    def __iter__(self) -> Iterator[Caption]:
        letters, places = self._letters.data, (self.ids.tolist(), self._starts.tolist(), self._lengths.tolist())
        for number, start, length in zip(*places, strict=True):
            yield Caption(id=number, text=str(letters[start : start + length], "utf-8"))


def ids_of(captions: Sequence[Caption]) -> np.ndarray:
    """[N] u64: the ids of `captions`."""
    if isinstance(captions, Captions):
        return captions.ids
    return np.fromiter((caption.id for caption in captions), np.uint64, len(captions))


class CaptionTexts:
    """The texts of numbered rows, none for a new row; not thread-safe."""

    def __init__(self, text_bytes: "np.ndarray | None" = None, lengths: "np.ndarray | None" = None) -> None:
        """Empty, or with the texts [N] of these `lengths` in `text_bytes` [sum of lengths] u8, row after row."""
        self._lengths = np.zeros(0, np.int32) if lengths is None else lengths.astype(np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self._letters = np.zeros(0, np.uint8) if text_bytes is None else np.asarray(text_bytes, np.uint8)
        self._num_rows, self._num_letters = len(self._lengths), len(self._letters)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """[M] bool: which of `rows` [M] have a text."""
        return self._lengths[rows] > 0

    def add_rows(self, num: int) -> None:
        """That many further rows, without texts."""
        self._starts = grown(self._starts, self._num_rows + num)
        self._lengths = grown(self._lengths, self._num_rows + num)
        self._starts[self._num_rows : self._num_rows + num] = 0
        self._lengths[self._num_rows : self._num_rows + num] = 0
        self._num_rows += num

    def set(self, rows: np.ndarray, texts: Iterable[str]) -> None:
        """Give `rows` [M], which have none yet, these texts."""
        encoded = [text.encode("utf-8", "replace") for text in texts]  # a lone surrogate can be neither sent nor stored
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        written = self._num_letters + np.cumsum(lengths)
        self._starts[rows], self._lengths[rows] = written - lengths, lengths
        end = self._num_letters + int(lengths.sum())
        self._letters = grown(self._letters, end)
        self._letters[self._num_letters : end] = np.frombuffer(b"".join(encoded), np.uint8)
        self._num_letters = end

    def captions(self, ids: np.ndarray, rows: np.ndarray) -> Captions:
        """The captions of `rows` [M], which have texts; their `ids` [M] u64."""
        return Captions(ids, self._starts[rows], self._lengths[rows], self._letters)

    def kept(self, rows: np.ndarray) -> "CaptionTexts":
        """These rows only, numbered anew in this order."""
        return CaptionTexts(self._in_order(rows), self._lengths[rows])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All texts row after row, [bytes] u8, and where each ends, [N] i64."""
        rows = np.arange(self._num_rows)
        return self._in_order(rows), np.cumsum(self._lengths[rows], dtype=np.int64)

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """The texts of `rows` one after another, a copy. Mostly rows get their texts in the order of their numbers, and
        then those that stay are found by one mask over all bytes."""
        with_text = rows[self._lengths[rows] > 0]
        starts, lengths = self._starts[with_text], self._lengths[with_text]
        if (starts[1:] > starts[:-1]).all():
            is_kept = np.zeros(self._num_letters + 1, np.int8)
            is_kept[starts] += 1
            is_kept[starts + lengths] -= 1
            return self._letters[: self._num_letters][np.cumsum(is_kept[:-1], dtype=np.int8).view(np.bool_)]
        letters = self._letters.data
        pieces = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        return np.frombuffer(b"".join(letters[start:end] for start, end in pieces), np.uint8)
