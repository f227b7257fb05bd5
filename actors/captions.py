"""Captions at their source: normalised, hashed, counted per episode, and reported until the caption book has their
text.

Invariant: equal captions have equal ids everywhere and in every run. An unacknowledged text is forgotten only if more
than `MAX_TEXTS` distinct ones wait; when the caption is seen again, its text is sent again.
"""

import functools
import itertools
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from actors.rollout import Acknowledgement

MAX_CAPTION_BYTES = 256
"""UTF-8 bytes of a normalised caption; a longer one is cut at its beginning."""
MAX_TEXTS = 32_768
"""Texts that a tracker holds (about 10 MB); the least recently seen is forgotten first."""
MAX_RAW = 8_192
"""Raw captions whose ids and texts a tracker remembers (some 3 MB). In 600,000 steps of 64 NetHack games, two captions
were looked up after they had been evicted from a cache of this size."""
MAX_EPISODE_CAPTIONS = 65_536
"""Distinct captions counted in one episode; then the one first seen is forgotten, and counts from 1 again."""

_DIGITS = re.compile(r"\d+")
_SPACES = re.compile(r"\s{2,}")
_SEPARATOR = b"  "
_NOT_TEXT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})
"""Unicode categories replaced by spaces: control, format (bidi, zero-width), surrogate, separators."""


def normalize(raw: bytes, *, fold_case: bool = False, fold_digits: bool = False) -> str:
    """The text that is hashed, shown and judged: at most 256 UTF-8 bytes without control or format characters. Runs of
    spaces become two, which separate the messages of one step; single spaces stay. A text that is too long loses its
    beginning (whole messages if there are several), because the outcome of the step comes last."""
    text = printable(raw)
    if fold_case:
        text = text.lower()
    if fold_digits:
        text = _DIGITS.sub("0", text)
    return latest_messages(text, MAX_CAPTION_BYTES)


def printable(raw: bytes) -> str:
    """UTF-8 as text without control and format characters, in which runs of spaces have become two."""
    text = raw.decode("utf-8", "replace")
    if not text.isascii() or not text.isprintable():
        text = "".join(" " if unicodedata.category(char) in _NOT_TEXT else char for char in text)
    return _SPACES.sub("  ", text).strip()


def latest_messages(text: str, max_bytes: int) -> str:
    """The last messages of a text that fit into `max_bytes`, whole ones if there are several."""
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    _, _, whole = encoded[-max_bytes - len(_SEPARATOR) :].partition(_SEPARATOR)
    return (whole or encoded[-max_bytes:]).decode("utf-8", "ignore").strip()


def caption_id(text: str) -> int:
    """64-bit xxh3 hash of a normalised caption; 0 is reserved for the empty one."""
    return (xxhash.xxh3_64_intdigest(text.encode()) or 1) if text else 0


class CaptionTracker:
    """Ids and per-episode counts of one worker's captions, and its side of the reporting protocol."""

    def __init__(self, num_envs: int, text_of: Callable[[bytes], str] = normalize) -> None:
        """`text_of`: the normalised text of a raw one."""
        self.num_envs = num_envs
        self._text_of = text_of
        self._read = functools.lru_cache(MAX_RAW)(self._id_and_text)
        self._counts: list[dict[int, int]] = [{} for _ in range(num_envs)]
        self._occurred: dict[int, int] = {}  # since the last report: id -> steps that showed it
        self._occurred_texts: dict[int, str] = {}
        self._texts: OrderedDict[int, str] = OrderedDict()  # least recently seen first
        self._unacknowledged: dict[int, int | None] = {}  # id -> the first report that carried its text
        self._book_epoch: str | None = None

    def observe(self, raw_captions: Sequence[bytes], first_env: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Ids [N] u64 and counts [N] i32 of the captions of one step of the environments from `first_env` on. A count
        is how often the caption has occurred in the environment's running episode, this time included: at least 1."""
        read, occurred, ids, counts = self._read, self._occurred, [], []
        for raw, seen in zip(raw_captions, self._counts[first_env : first_env + len(raw_captions)], strict=True):
            id_, text = read(raw)
            seen[id_] = count = seen.get(id_, 0) + 1
            if count == 1 and len(seen) > MAX_EPISODE_CAPTIONS:
                del seen[next(iter(seen))]
            if id_ in occurred:
                occurred[id_] += 1
            elif id_:
                occurred[id_], self._occurred_texts[id_] = 1, text
            ids.append(id_)
            counts.append(count)
        return np.array(ids, np.uint64), np.array(counts, np.int32)

    def restart(self, env_index: int, reset_caption: bytes) -> int:
        """Start a new episode in one environment: its counts restart with the caption of its first observation, whose
        id is returned."""
        id_, text = self._read(reset_caption)
        self._counts[env_index] = {id_: 1}
        if id_ and id_ not in self._occurred:
            self._occurred[id_], self._occurred_texts[id_] = 0, text
        return id_

    def report(self, sequence_number: int) -> tuple[dict[int, str], dict[int, int]]:
        """All unacknowledged texts, and by id how many steps showed the caption since the last report (0: only resets
        did); both without the empty caption."""
        for id_, text in self._occurred_texts.items():
            if id_ not in self._texts:
                self._unacknowledged[id_] = None
            self._texts[id_] = text
            self._texts.move_to_end(id_)
        while len(self._texts) > MAX_TEXTS:
            forgotten, _ = self._texts.popitem(last=False)
            self._unacknowledged.pop(forgotten, None)
        for id_, first_sent in self._unacknowledged.items():
            if first_sent is None:
                self._unacknowledged[id_] = sequence_number
        counts, self._occurred, self._occurred_texts = self._occurred, {}, {}
        return {id_: self._texts[id_] for id_ in self._unacknowledged}, counts

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Stop sending what the book holds; if the book's epoch has changed, send all held texts again."""
        if self._book_epoch not in (None, acknowledgement.book_epoch):
            self._unacknowledged = dict.fromkeys(self._texts)
        else:
            self._unacknowledged = {
                id_: first_sent
                for id_, first_sent in self._unacknowledged.items()
                if first_sent is None or first_sent > acknowledgement.sequence_number
            }
        self._book_epoch = acknowledgement.book_epoch

    def state_dict(self) -> dict[str, Any]:
        """State that reproduces counts and reports for the same captions: nested dict of arrays and JSON values."""
        return {
            "episode_ids": _ids(itertools.chain.from_iterable(self._counts)),
            "episode_counts": np.array([n for counts in self._counts for n in counts.values()], np.int32),
            "episode_sizes": np.array([len(counts) for counts in self._counts], np.int64),
            "occurred_ids": _ids(self._occurred),
            "occurred_counts": np.array(list(self._occurred.values()), np.int64),
            "occurred_texts": [self._occurred_texts[id_] for id_ in self._occurred],
            "text_ids": _ids(self._texts),
            "texts": list(self._texts.values()),
            "unacknowledged_ids": _ids(self._unacknowledged),
            "book_epoch": self._book_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of a tracker for as many environments. A resumed worker numbers its reports from 0
        again, so unacknowledged texts count as not sent."""
        if len(state["episode_sizes"]) != self.num_envs:
            saved = len(state["episode_sizes"])
            raise ValueError(f"the saved captions are of {saved} environments, this tracker has {self.num_envs}")
        pairs = zip(state["episode_ids"].tolist(), state["episode_counts"].tolist(), strict=True)
        self._counts = [dict(itertools.islice(pairs, size)) for size in state["episode_sizes"].tolist()]
        occurred = state["occurred_ids"].tolist()
        self._occurred = dict(zip(occurred, state["occurred_counts"].tolist(), strict=True))
        self._occurred_texts = dict(zip(occurred, state["occurred_texts"], strict=True))
        self._texts = OrderedDict(zip(state["text_ids"].tolist(), state["texts"], strict=True))
        self._unacknowledged = dict.fromkeys(state["unacknowledged_ids"].tolist())
        self._book_epoch = state["book_epoch"]

    def _id_and_text(self, raw: bytes) -> tuple[int, str]:
        text = self._text_of(raw)
        return caption_id(text), text


def _ids(ids: Any) -> np.ndarray:
    return np.fromiter(ids, np.uint64)
