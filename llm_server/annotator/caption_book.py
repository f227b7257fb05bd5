"""The caption book: the bounded record of every distinct caption, how often it was seen, and its judgement.

Invariant: a report is counted once; a caption with a text is asked about at most once at a time and, once answered, not
again while it is in the book; at most `max_captions` are held, and the least recently seen are evicted to the archive.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from llm_server.annotation import Caption, JudgedCaption, Status
from llm_server.annotator.caption_archive import ArchivedRow, CaptionArchive
from llm_server.annotator.priorities import log_priorities
from llm_server.annotator.report_window import ReportWindow

ARCHIVE_CHUNK = 10_000


class CaptionState(IntEnum):
    """How far a caption is on the way to a label."""

    NO_TEXT = 0
    PENDING = 1
    ASKED = 2
    OK = 3
    UNPARSED = 4
    REJECTED = 5


COLUMNS: dict[str, Any] = {
    "id": np.uint64,
    "count": np.int64,
    "first_seen": np.int64,  # environment steps
    "last_seen": np.int64,
    "state": np.uint8,
    "probability": np.float64,
    "answer_mass": np.float64,
    "margin": np.float64,  # of the newest reward model
}
ARCHIVED = [name for name in COLUMNS if name != "margin"]
# Meaningless to another process, so not part of the state.
LOCAL_COLUMNS: dict[str, Any] = {"entered_s": np.float64, "archived": np.bool_}
NEW_ROW = {"state": CaptionState.NO_TEXT, "probability": np.nan, "answer_mass": np.nan, "margin": np.nan}


class CaptionBook:
    """Rows of captions in numpy columns; thread-safe. `clock` gives seconds (for the age of judgements)."""

    def __init__(
        self,
        max_captions: int,
        recency_half_life_env_steps: int,
        archive: CaptionArchive | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: str = "recency_frequency",
    ) -> None:
        if max_captions < 1 or recency_half_life_env_steps < 1:
            got = f"{max_captions} and {recency_half_life_env_steps}"
            raise ValueError(f"max_captions and recency_half_life_env_steps must be at least 1, got {got}")
        self.book_epoch = secrets.token_hex(8)
        """Identity of this book. A restored book has a new one: it lacks the reports that came after the checkpoint."""
        self.revision = 0
        """Increases whenever the set of captions with a text changes."""
        self.num_evicted = 0
        """Captions evicted in the run."""
        self.wants_margins = policy == "uncertainty"
        """Whether priorities depend on `note_margins`."""
        self._max_captions, self._half_life, self._policy = max_captions, recency_half_life_env_steps, policy
        self._archive, self._clock = archive, clock
        self._lock = threading.RLock()
        self._columns = _empty_columns(1024)
        self._captions: list[Caption | None] = []  # row -> caption, None while its text is missing
        self._rows: dict[int, int] = {}
        self._reports = ReportWindow()
        self._ages_s: deque[float] = deque(maxlen=1000)

    # -- reports ------------------------------------------------------------------------------------------------------

    def take_report(
        self, texts: Mapping[int, str], counts: Mapping[int, int], worker_id: str, sequence_number: int, env_steps: int
    ) -> tuple[str, int]:
        """Add one worker's report (id -> text, id -> occurrences), seen at `env_steps`; a repeated one changes nothing.

        Returns `(book_epoch, sequence_number)` of the newest report held of this worker. Because a report carries every
        text that its worker has no acknowledgement for, the texts of all earlier reports are then held as well.
        """
        with self._lock:
            if self._reports.admit(worker_id, sequence_number):
                self._take(texts, counts, env_steps)
            return self.book_epoch, self._reports.newest(worker_id)

    def _take(self, texts: Mapping[int, str], counts: Mapping[int, int], env_steps: int) -> None:
        new = [number for number in {**counts, **texts} if number and number not in self._rows]
        # Workers do not send an acknowledged text again, so an evicted caption that returns is read from the archive.
        archived = self._archive.look_up(new) if self._archive and self.num_evicted else {}
        for number in new:
            text, count, first_seen = archived.get(number, ("", 0, env_steps))
            self._add(number, text, count, first_seen)
        for number, text in texts.items():
            if number and self._captions[self._rows[number]] is None:
                self._set_text(self._rows[number], number, text)
        rows = np.fromiter((self._rows[number] for number in counts if number), np.int64)
        self._columns["count"][rows] += np.fromiter((count for number, count in counts.items() if number), np.int64)
        seen = np.append(rows, [self._rows[number] for number in new]).astype(np.int64)
        self._columns["last_seen"][seen] = np.maximum(self._columns["last_seen"][seen], env_steps)
        self._columns["archived"][seen] = False
        if len(self._captions) > self._max_captions:
            self._evict()

    def _add(self, number: int, text: str, count: int, first_seen: int) -> None:
        row = len(self._captions)
        if row == len(self._columns["id"]):
            self._columns = {name: np.resize(column, 2 * row) for name, column in self._columns.items()}
        known = {"id": number, "count": count, "first_seen": first_seen, "last_seen": first_seen}
        for name, value in (NEW_ROW | known | {"entered_s": self._clock(), "archived": False}).items():
            self._columns[name][row] = value
        self._rows[number] = row
        self._captions.append(None)
        self._set_text(row, number, text)

    def _set_text(self, row: int, number: int, text: str) -> None:
        if text:
            valid = text.encode("utf-8", "replace").decode()  # lone surrogates can be neither sent nor archived
            self._captions[row] = Caption(id=number, text=valid)
            self._columns["state"][row] = CaptionState.PENDING
            self.revision += 1

    def _evict(self) -> None:
        """Evict the least recently seen, a 64th more than needed so that this happens rarely."""
        excess = min(len(self) - self._max_captions + self._max_captions // 64, len(self) - 1)
        leaving = np.argpartition(self._column("last_seen"), excess - 1)[:excess]
        self._write_archive(leaving[~self._column("archived")[leaving]])
        staying = np.delete(np.arange(len(self)), leaving)
        self._columns = {name: np.resize(column[staying], len(column)) for name, column in self._columns.items()}
        self._captions = [self._captions[row] for row in staying]
        self._rows = {number: row for row, number in enumerate(self._column("id").tolist())}
        self.num_evicted += excess
        self.revision += 1

    # -- asking -------------------------------------------------------------------------------------------------------

    def next_batch(self, max_captions: int) -> list[Caption]:
        """The pending captions of highest priority, at most `max_captions`, highest first; they count as asked from now
        on. Equal priorities are ordered by caption id, so the order is a function of the reports."""
        with self._lock:
            pending = np.flatnonzero(self._column("state") == CaptionState.PENDING)
            if not len(pending) or max_captions < 1:
                return []
            priorities = self._log_priorities(pending)
            if len(pending) > max_captions:
                best = priorities >= np.partition(priorities, -max_captions)[-max_captions]
                pending, priorities = pending[best], priorities[best]
            rows = pending[np.lexsort((self._columns["id"][pending], -priorities))[:max_captions]]
            self._columns["state"][rows] = CaptionState.ASKED
            return [caption for row in rows if (caption := self._captions[row])]

    def ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For all captions with a text, ids [N] u64, probabilities [N] f64 (NaN: no label), log2 of priorities [N]
        f64."""
        with self._lock:
            rows = np.flatnonzero(self._column("state") != CaptionState.NO_TEXT)
            return self._columns["id"][rows], self._columns["probability"][rows], self._log_priorities(rows)

    def captions_of(self, ids: Iterable[int]) -> dict[int, Caption]:
        """The captions among `ids` that are in the book and have a text."""
        with self._lock:
            rows = {number: self._rows[number] for number in ids if number in self._rows}
            return {number: caption for number, row in rows.items() if (caption := self._captions[row])}

    def note_margins(self, ids: np.ndarray, margins: np.ndarray) -> None:
        """The reward model's newest margins [N] f64 of captions `ids` [N] u64, for the policy `uncertainty`."""
        with self._lock:
            by_id = zip(ids.tolist(), margins.tolist(), strict=True)
            by_row = {self._rows[number]: margin for number, margin in by_id if number in self._rows}
            self._columns["margin"][list(by_row)] = list(by_row.values())

    def _log_priorities(self, rows: np.ndarray) -> np.ndarray:
        columns = self._columns
        return log_priorities(
            self._policy, columns["count"][rows], columns["last_seen"][rows], columns["margin"][rows], self._half_life
        )

    def put_back(self, captions: Sequence[Caption]) -> None:
        """Make captions whose request failed pending again."""
        with self._lock:
            for caption in captions:
                row = self._rows.get(caption.id)
                if row is not None and self._columns["state"][row] == CaptionState.ASKED:
                    self._columns["state"][row] = CaptionState.PENDING

    def record(self, judged: Sequence[JudgedCaption]) -> list[JudgedCaption]:
        """Record answers; returns those whose caption is still in the book. An answered caption is not asked again."""
        kept = []
        with self._lock:
            now, columns = self._clock(), self._columns
            for item in judged:
                row = self._rows.get(item.caption.id)
                if row is None:
                    continue
                is_label = item.judgement.status is Status.OK
                columns["state"][row] = CaptionState[item.judgement.status.name]
                columns["probability"][row] = item.judgement.probability if is_label else np.nan
                columns["answer_mass"][row] = item.judgement.answer_mass
                columns["archived"][row] = False
                self._ages_s.append(now - columns["entered_s"][row])
                kept.append(item)
        return kept

    def forget_answers(self) -> None:
        """Drop all answers, in the archive too, and make their captions pending: another judge answers from now on."""
        with self._lock:
            answered = np.isin(self._column("state"), (CaptionState.OK, CaptionState.UNPARSED, CaptionState.REJECTED))
            self._column("state")[answered] = CaptionState.PENDING
            for name in ("probability", "answer_mass", "margin"):
                self._column(name)[:] = np.nan
            if self._archive:
                self._archive.forget_answers()
            self._column("archived")[:] = False

    # -- reading ------------------------------------------------------------------------------------------------------

    def captions(self) -> list[Caption]:
        """Every caption whose text is known, in order of arrival."""
        with self._lock:
            return [caption for caption in self._captions if caption is not None]

    def counted_captions(self) -> tuple[list[Caption], np.ndarray]:
        """As `captions`, with their counts [N] i64."""
        with self._lock:
            has_text = np.fromiter((caption is not None for caption in self._captions), np.bool_, len(self))
            return self.captions(), self._column("count")[has_text]

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Counts [N] i64, probabilities [N] f64 (NaN: no label), texts of `ids` [N] u64; if unknown, 0, NaN and ""."""
        with self._lock:
            rows = [self._rows.get(number, -1) for number in np.asarray(ids, np.uint64).tolist()]
            count, probability = self._columns["count"], self._columns["probability"]
            counts = np.array([count[row] if row >= 0 else 0 for row in rows], np.int64)
            probabilities = np.array([probability[row] if row >= 0 else np.nan for row in rows], np.float64)
            found = [self._captions[row] if row >= 0 else None for row in rows]
            return counts, probabilities, [caption.text if caption else "" for caption in found]

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics of the book."""
        with self._lock:
            return {
                "captions_distinct": len(self),
                "captions_evicted": self.num_evicted,
                "annotations_pending": int((self._column("state") == CaptionState.PENDING).sum()),
                "annotation_age_s": float(np.mean(self._ages_s)) if self._ages_s else None,
            }

    def __len__(self) -> int:
        return len(self._captions)

    def _column(self, name: str) -> np.ndarray:
        return self._columns[name][: len(self._captions)]

    # -- keeping ------------------------------------------------------------------------------------------------------

    def write_archive(self) -> None:
        """Bring the archive up to date, in chunks so that reports are not blocked for long."""
        while self._archive:
            with self._lock:
                rows = np.flatnonzero(~self._column("archived"))[:ARCHIVE_CHUNK]
                if not len(rows) or not self._write_archive(rows):
                    return

    def close(self) -> None:
        """Bring the archive up to date and close it."""
        self.write_archive()
        if self._archive:
            self._archive.close()

    def _write_archive(self, rows: np.ndarray) -> bool:
        # Captions without a text are left out; one that is being asked about has no answer yet.
        archived: list[ArchivedRow] = []
        columns = (self._columns[name][rows].tolist() for name in ARCHIVED)
        for row, number, count, first, last, state, probability, mass in zip(rows, *columns, strict=True):
            if (caption := self._captions[row]) is not None:
                status = CaptionState(state).name.replace("ASKED", "PENDING")
                archived.append((number, caption.text, count, first, last, probability, mass, status))
        written = self._archive is not None and self._archive.write(archived)
        self._columns["archived"][rows] = written
        return written

    def state_dict(self) -> dict[str, Any]:
        """Columns and one text blob. Captions that are being asked about are saved as pending; workers' report numbers
        are not saved: after a resume the same worker id may start again at 0."""
        with self._lock:
            columns = {name: self._column(name).copy() for name in COLUMNS}
            columns["state"][columns["state"] == CaptionState.ASKED] = CaptionState.PENDING
            texts = [caption.text.encode() if caption else b"" for caption in self._captions]
            return {
                "columns": columns,
                "text_bytes": np.frombuffer(b"".join(texts), np.uint8).copy(),
                "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
                "num_evicted": self.num_evicted,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, under a new `book_epoch`."""
        blob, ends = np.asarray(state["text_bytes"]).tobytes(), np.asarray(state["text_ends"]).tolist()
        ids = np.asarray(state["columns"]["id"]).tolist()
        starts = [0, *ends][: len(ends)]
        with self._lock:
            self._captions = [
                Caption(id=number, text=blob[start:end].decode()) if end > start else None
                for number, start, end in zip(ids, starts, ends, strict=True)
            ]
            self._rows = {number: row for row, number in enumerate(ids)}
            self._columns = _empty_columns(max(1024, len(ids)))
            for name in COLUMNS:
                self._columns[name][: len(ids)] = state["columns"][name]
            self._columns["entered_s"][:] = self._clock()
            self.num_evicted = int(state["num_evicted"])
            self.revision += 1
            self.book_epoch = secrets.token_hex(8)
            self._reports.clear()
            self._ages_s.clear()
            if len(self) > self._max_captions:
                self._evict()


def _empty_columns(num_rows: int) -> dict[str, np.ndarray]:
    return {name: np.zeros(num_rows, dtype) for name, dtype in (COLUMNS | LOCAL_COLUMNS).items()}
