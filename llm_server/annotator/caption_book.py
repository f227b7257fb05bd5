"""The caption book: the bounded record of every distinct caption, how often it was seen, and its judgement.

Invariant: a report is counted once; a caption with a text is asked about at most once at a time and, once answered, not
again while it is in the book; at most `max_captions` are held, and the least recently seen are evicted to the archive.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llm_server.annotation import Caption, JudgedCaption, Status
from llm_server.annotator.caption_archive import ArchivedRow, CaptionArchive
from llm_server.annotator.caption_columns import ARCHIVED, COLUMNS, NEW_ROW, CaptionState, empty_columns, log_priorities

ARCHIVE_CHUNK = 10_000
MAX_WORKERS = 4096
REPORT_WINDOW = 64


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
        self._columns = empty_columns(1024)
        self._captions: list[Caption | None] = []  # row -> caption, None while its text is missing
        self._rows: dict[int, int] = {}
        # Worker -> its newest report, and a bit mask of the last `REPORT_WINDOW`; the `MAX_WORKERS` heard of last.
        self._reports: dict[str, tuple[int, int]] = {}
        self._ages_s: deque[float] = deque(maxlen=1000)

    def take_report(
        self, texts: Mapping[int, str], counts: Mapping[int, int], worker_id: str, sequence_number: int, env_steps: int
    ) -> tuple[str, int]:
        """Add one worker's report (id -> text, id -> occurrences), seen at `env_steps`; a repeated one changes nothing.

        Returns `(book_epoch, sequence_number)` of the newest report held of this worker. Because a report carries every
        text that its worker has no acknowledgement for, the texts of all earlier reports are then held as well.
        """
        with self._lock:
            if self._is_new_report(worker_id, sequence_number):
                self._take(texts, counts, env_steps)
            return self.book_epoch, self._reports[worker_id][0]

    def _is_new_report(self, worker_id: str, number: int) -> bool:
        """Whether it was not held before, as one older than the bit mask is taken to be; it is held from now on."""
        newest, held = self._reports.pop(worker_id, (number, 0))
        if number > newest:
            newest, held = number, held << min(number - newest, REPORT_WINDOW)
        bit = 1 << min(newest - number, REPORT_WINDOW)
        is_new = newest - number < REPORT_WINDOW and not held & bit
        self._reports[worker_id] = newest, (held | bit) & (2**REPORT_WINDOW - 1)
        if len(self._reports) > MAX_WORKERS:
            del self._reports[next(iter(self._reports))]
        return is_new

    def _take(self, texts: Mapping[int, str], counts: Mapping[int, int], env_steps: int) -> None:
        new = [number for number in {**counts, **texts} if number and number not in self._rows]
        # Workers do not send an acknowledged text again, so an evicted caption that returns is read from the archive.
        archived = self._archive.look_up(new) if self._archive and self.num_evicted else {}
        for number in new:
            self._add(number, *archived.get(number, ("", 0, env_steps)))
        for number, text in texts.items():
            if number:
                self._set_text(number, text)
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
        self._set_text(number, text)

    def _set_text(self, number: int, text: str) -> None:
        row = self._rows[number]
        if text and self._captions[row] is None:
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

    def next_batch(self, max_captions: int) -> list[Caption]:
        """The pending captions of highest priority, at most `max_captions`, highest first; they count as asked from now
        on. Equal priorities are ordered by caption id, so the order is a function of the reports."""
        with self._lock:
            pending = np.flatnonzero(self._column("state") == CaptionState.PENDING)
            priorities = self._log_priorities(pending)
            if len(pending) > max_captions:
                best = priorities >= np.partition(priorities, -max_captions)[-max_captions]
                pending, priorities = pending[best], priorities[best]
            rows = pending[np.lexsort((self._columns["id"][pending], -priorities))[:max_captions]]
            self._columns["state"][rows] = CaptionState.ASKED
            return [caption for row in rows if (caption := self._captions[row])]

    def ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All captions with a text: ids [N] u64, probabilities [N] f64 (NaN: no label), log2 of priorities [N] f64."""
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
            rows = np.array([self._rows[caption.id] for caption in captions if caption.id in self._rows], np.int64)
            state = self._columns["state"]
            state[rows[state[rows] == CaptionState.ASKED]] = CaptionState.PENDING

    def record(self, judged: Sequence[JudgedCaption]) -> list[JudgedCaption]:
        """Record answers; returns those whose caption is still in the book. An answered caption is not asked again."""
        kept = []
        with self._lock:
            now, columns = self._clock(), self._columns
            for item in judged:
                if (row := self._rows.get(item.caption.id)) is None:
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

    def captions(self) -> list[Caption]:
        """Every caption whose text is known, in order of arrival."""
        with self._lock:
            return [caption for caption in self._captions if caption is not None]

    def counted_captions(self) -> tuple[list[Caption], np.ndarray]:
        """As `captions`, with their counts [N] i64."""
        with self._lock:
            # Not by state: an answer may come for a caption that was evicted and returned without its text.
            has_text = np.fromiter((caption is not None for caption in self._captions), np.bool_, len(self))
            return self.captions(), self._column("count")[has_text]

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Counts [N] i64, probabilities [N] f64 (NaN: no label), texts of `ids` [N] u64; if unknown, 0, NaN and ""."""
        with self._lock:
            numbers = np.asarray(ids, np.uint64).tolist()
            rows = np.array([self._rows.get(number, -1) for number in numbers], np.int64)
            counts = np.where(rows < 0, 0, self._columns["count"][rows])
            probabilities = np.where(rows < 0, np.nan, self._columns["probability"][rows])
            found = self.captions_of(numbers)
            return counts, probabilities, [found[number].text if number in found else "" for number in numbers]

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
        with self._lock:
            self._captions = [
                Caption(id=number, text=blob[start:end].decode()) if end > start else None
                for number, (start, end) in zip(ids, pairwise([0, *ends]), strict=True)
            ]
            self._rows = {number: row for row, number in enumerate(ids)}
            self._columns = empty_columns(max(1024, len(ids)))
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
