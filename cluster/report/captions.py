"""The captions of a run, and the items of its other terms, for the page's browser: all that fit, in compressed blocks,
the most important first.

Invariant: important is, in this order, what was paid (or cost) most, has the highest R, occurred most often, was seen
first; the page says how many captions are left out. A text is data: control characters do not end its line.
"""

import base64
import gzip
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.report.checkpoints import LearntTerm
from cluster.report.reading import RunRecord
from configs.errors import one_line
from configs.reward_schema import MAIN_TERM
from llm_server.offline.caption_file import archive_rows

BLOCK = 32_768
"""Captions that are compressed together; within a block they are in alphabetic order, which compresses better."""
LEAST_BLOCK = 1024
"""What does not fit any more is halved down to this many."""
TAG_BYTES = 100
"""Around a block in the page."""
STATUSES = ("PENDING", "OK", "UNPARSED", "REJECTED", "NO_TEXT")
UNKNOWN = 65_535
"""Of probability and answer mass, which are counted in steps of 1 / PARTS."""
PARTS = 10_000
COLUMNS: dict[str, str] = {
    "reward": "<f4",
    "paid": "<f4",
    "count": "<u4",
    "firstSeen": "<u4",
    "probability": "<u2",
    "answerMass": "<u2",
    "status": "u1",
    "term": "u1",
}
"""The columns of a block in their order, each as planes of its bytes, which compress better than its numbers; the texts
follow, a line each. `term` is a number in the order of the run's terms, the main one's is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """All captions of a run, the most important first."""

    ids: np.ndarray
    """[N] u64: caption ids."""
    texts: list[str]
    columns: Mapping[str, np.ndarray]
    """Each of COLUMNS [N]; `reward` is NaN for captions that are not in the reward table."""
    step_unit: int
    """Environment steps in a unit of `firstSeen`."""

    def texts_of(self, ids: Collection[int]) -> dict[int, str]:
        """The texts of those caption ids that are known."""
        rows = np.flatnonzero(np.isin(self.ids, np.array([*ids], np.uint64)))
        return {int(self.ids[row]): self.texts[row] for row in rows.tolist()}


def read_captions(run: RunRecord) -> Captions:
    """The captions in `captions.sqlite` and the items of other terms, with R and payment of the newest checkpoint.
    Raises ValueError where captions.sqlite is missing or damaged; what another term lacks is named in `run.missing`."""
    parts = []
    for number, name in enumerate([MAIN_TERM, *run.config.terms]):
        try:
            parts.append(_of_term(number, archive_rows(str(run.directory.captions_of(name))), run.learnt.of(name)))
        except ValueError as error:
            if name == MAIN_TERM:
                raise
            run.missing.append(f"items of the term {name} are left out: {one_line(error)}")
    all_ids, all_texts, all_columns = zip(*parts, strict=True)
    ids, texts = np.concatenate(all_ids), [text for texts in all_texts for text in texts]
    columns = {name: np.concatenate([part[name] for part in all_columns]) for name in COLUMNS}
    reward = np.nan_to_num(columns["reward"], nan=-np.inf)
    order = np.lexsort((columns["firstSeen"], -columns["count"], -reward, -np.abs(columns["paid"])))
    step_unit = int(columns["firstSeen"].max(initial=0)) // 2**32 + 1
    columns["firstSeen"] = columns["firstSeen"] // step_unit
    ordered = {name: column[order].astype(COLUMNS[name]) for name, column in columns.items()}
    return Captions(ids=ids[order], texts=[texts[row] for row in order.tolist()], columns=ordered, step_unit=step_unit)


def _of_term(
    number: int, rows: list[tuple[Any, ...]], learnt: LearntTerm
) -> tuple[np.ndarray, tuple[str, ...], dict[str, np.ndarray]]:
    """Ids [N] u64, texts and columns [N] of a term's archive in the order of its rows."""
    signed, texts, count, first, probability, mass, status = zip(*rows, strict=True) if rows else ((),) * 7
    ids = np.array(signed, np.int64).astype(np.uint64)
    codes = {name: code for code, name in enumerate(STATUSES)}
    columns = {
        "reward": _joined(ids, learnt.ids, learnt.rewards, np.nan),
        "paid": _joined(ids, learnt.paid_ids, learnt.paid, 0.0),
        "count": np.array(count, np.int64).clip(0, 2**32 - 1),
        "firstSeen": np.array(first, np.int64).clip(0),
        "probability": _in_parts(probability),
        "answerMass": _in_parts(mass),
        "status": np.array([codes.get(name, 0) for name in status], np.uint8),
        "term": np.full(len(ids), number, np.uint8),
    }
    return ids, texts, columns


def blocks(captions: Captions, budget: int) -> Iterator[tuple[int, str]]:
    """Number of captions and content, in base64, of each block; with their tags at most `budget` characters."""
    start, size = 0, BLOCK
    while start < len(captions.texts) and size >= LEAST_BLOCK:
        encoded = _block(captions, slice(start, start + size))
        if len(encoded) + TAG_BYTES > budget:
            size //= 2
            continue
        yield len(captions.texts[start : start + size]), encoded
        start, budget = start + size, budget - len(encoded) - TAG_BYTES


def _block(captions: Captions, rows: slice) -> str:
    texts = captions.texts[rows]
    order = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)
    parts = [captions.columns[name][rows][order].view(np.uint8).reshape(len(texts), -1).T.tobytes() for name in COLUMNS]
    lines = "\n".join(" ".join(texts[row].split("\n")) for row in order.tolist())
    return base64.b64encode(gzip.compress(b"".join([*parts, lines.encode("utf-8", "replace")]), 6, mtime=0)).decode()


def _joined(ids: np.ndarray, known: np.ndarray, values: np.ndarray, otherwise: float) -> np.ndarray:
    """[N] f64: for each of `ids` the value beside it in `known` (any order), or `otherwise`."""
    found = np.full(len(ids), otherwise, np.float64)
    if len(known):
        order = np.argsort(known)
        places = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
        is_known = known[order][places] == ids
        found[is_known] = values[order][places[is_known]]
    return found


def _in_parts(values: tuple[float | None, ...]) -> np.ndarray:
    """[N] u16 of probabilities; None is UNKNOWN."""
    numbers = np.array(values, np.float64)
    return np.where(np.isfinite(numbers), np.rint(numbers.clip(0, 1) * PARTS), UNKNOWN).astype(np.uint16)
