"""The caption book: the bounded record of every distinct caption, how often it was seen, and its judgement.

A caption takes about 150 bytes, text included, and no Python object.

Invariant: a report is counted once; a caption with a text is asked about at most once at a time and, once answered, not
again while it is in the book; at most `max_captions` are held, and the least recently seen are evicted to the archive.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_server.annotation import Caption, JudgedCaption, Status
from llm_server.annotator.ask_order import AskOrder
from llm_server.annotator.caption_archive import ArchivedRow, CaptionArchive
from llm_server.annotator.caption_columns import ARCHIVED, COLUMNS, NEW_ROW, CaptionState, empty_columns, log_priorities
from llm_server.annotator.caption_texts import Captions, CaptionTexts, ids_of
from llm_server.annotator.id_rows import IdRows, grown

ARCHIVE_CHUNK = 10_000
MAX_WORKERS = 4096
REPORT_WINDOW = 64
STATE_OF = {status: CaptionState[status.name] for status in Status}
ARCHIVED_AS = [state.name.replace("ASKED", "PENDING") for state in CaptionState]


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
        """Whether priorities depend on the margins of `note_margins`."""
        self.wants_deviations = policy == "disagreement"
        """Whether priorities depend on deviations, which `note_margins` takes too."""
        self._max_captions, self._half_life, self._policy = max_captions, recency_half_life_env_steps, policy
        self._archive, self._clock = archive, clock
        self._lock = threading.RLock()
        self._rows, self._texts, self._columns, self._order = IdRows(), CaptionTexts(), empty_columns(), AskOrder()
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
        numbers = {**counts, **texts}
        numbers.pop(0, None)
        given = np.fromiter(numbers, np.uint64, len(numbers))
        rows = self._rows.find(given)
        is_new = rows < 0
        rows[is_new] = self._add(given[is_new], env_steps)
        self._set_texts(texts)
        counted = rows[: len(counts) - (0 in counts)]
        self._columns["count"][counted] += np.fromiter((n for number, n in counts.items() if number), np.int64)
        seen = np.append(counted, rows[is_new])  # a row that is among both gets the same values twice
        self._columns["last_seen"][seen] = np.maximum(self._columns["last_seen"][seen], env_steps)
        self._columns["archived"][seen] = False
        self._order.note(rows[self._columns["state"][rows] == CaptionState.PENDING])
        if len(self) > self._max_captions:
            self._evict()

    def _add(self, ids: np.ndarray, env_steps: int) -> np.ndarray:
        """New rows [M] for `ids` [M] u64."""
        num_before, rows = len(self), self._rows.add(ids)
        self._columns = {name: grown(column, len(self)) for name, column in self._columns.items()}
        known = {"first_seen": env_steps, "last_seen": env_steps, "entered_s": self._clock(), "archived": False}
        for name, value in (NEW_ROW | known).items():
            self._columns[name][num_before : len(self)] = value
        self._texts.add_rows(len(ids))
        # Workers do not send an acknowledged text again, so an evicted caption that returns is read from the archive.
        archived = self._archive.look_up(ids.tolist()) if self._archive and self.num_evicted and len(ids) else {}
        self._set_texts({number: text for number, (text, _, _) in archived.items()})
        for row in self._rows.find(np.fromiter(archived, np.uint64)):
            _, self._columns["count"][row], first_seen = archived[int(self._rows.ids[row])]
            self._columns["first_seen"][row] = self._columns["last_seen"][row] = first_seen
        return rows

    def _set_texts(self, texts: Mapping[int, str]) -> None:
        """Set the texts that are not known yet; their rows exist."""
        given = {number: text for number, text in texts.items() if number and text}
        rows = self._rows.find(np.fromiter(given, np.uint64))
        is_new = ~self._texts.has(rows)
        if is_new.any():
            self._texts.set(rows[is_new], (text for text, new in zip(given.values(), is_new, strict=True) if new))
            self._columns["state"][rows[is_new]] = CaptionState.PENDING
            self.revision += 1

    def _evict(self) -> None:
        """Evict the least recently seen, a 64th more than needed so that this happens rarely."""
        excess = min(len(self) - self._max_captions + self._max_captions // 64, len(self) - 1)
        leaving = np.argpartition(self._column("last_seen"), excess - 1)[:excess]
        self._write_archive(leaving[~self._column("archived")[leaving]])
        staying = np.delete(np.arange(len(self)), leaving)
        self._columns = {name: column[staying] for name, column in self._columns.items()}
        self._texts = self._texts.kept(staying)
        self._rows.replace(self._rows.ids[staying])
        self._order.forget()
        self.num_evicted += excess
        self.revision += 1

    def next_batch(self, max_captions: int) -> list[Caption]:
        """The pending captions of highest priority, at most `max_captions`, highest first; they count as asked from now
        on. Equal priorities are ordered by caption id, so the order is a function of the reports."""
        with self._lock:
            rows = self._order.take(max_captions, self._column("state"), self._rows.ids, self._log_priorities)
            self._columns["state"][rows] = CaptionState.ASKED
            return list(self._captions(rows))

    def ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All captions with a text: ids [N] u64, probabilities [N] f64 (NaN: no label), log2 of priorities [N] f64."""
        with self._lock:
            rows = np.flatnonzero(self._column("state") != CaptionState.NO_TEXT)
            return self._rows.ids[rows], self._columns["probability"][rows], self._log_priorities(rows)

    def captions_of(self, ids: Iterable[int]) -> dict[int, Caption]:
        """The captions among `ids` that are in the book and have a text."""
        with self._lock:
            rows = self._rows.find(np.fromiter(ids, np.uint64))
            rows = rows[rows >= 0]
            return {caption.id: caption for caption in self._captions(rows[self._texts.has(rows)])}

    def _captions(self, rows: np.ndarray) -> Captions:
        return self._texts.captions(self._rows.ids[rows], rows)

    def note_margins(self, ids: np.ndarray, margins: np.ndarray) -> None:
        """The reward model's newest margins, or with `disagreement` deviations, [N] f64 of captions `ids` [N] u64."""
        with self._lock:
            rows = self._rows.find(ids)
            self._columns["margin"][rows[rows >= 0]] = margins[rows >= 0]
            self._order.forget()

    def _log_priorities(self, rows: np.ndarray) -> np.ndarray:
        columns = self._columns
        return log_priorities(
            self._policy, columns["count"][rows], columns["last_seen"][rows], columns["margin"][rows], self._half_life
        )

    def put_back(self, captions: Sequence[Caption]) -> None:
        """Make captions whose request failed pending again."""
        with self._lock:
            rows = self._rows.find(ids_of(captions))
            rows = rows[rows >= 0]
            asked = rows[self._columns["state"][rows] == CaptionState.ASKED]
            self._columns["state"][asked] = CaptionState.PENDING
            self._order.note(asked)

    def record(self, judged: Sequence[JudgedCaption]) -> list[JudgedCaption]:
        """Record answers; returns those whose caption is still in the book. An answered caption is not asked again."""
        with self._lock:
            rows, columns = self._rows.find(ids_of([item.caption for item in judged])), self._columns
            kept = [item for item, row in zip(judged, rows.tolist(), strict=True) if row >= 0]
            rows, judgements = rows[rows >= 0], [item.judgement for item in kept]
            labels = [each.probability if each.status is Status.OK else np.nan for each in judgements]
            columns["state"][rows] = [STATE_OF[judgement.status] for judgement in judgements]
            columns["probability"][rows] = labels
            columns["answer_mass"][rows] = [judgement.answer_mass for judgement in judgements]
            columns["archived"][rows] = False
            self._ages_s.extend((self._clock() - columns["entered_s"][rows]).tolist())
        return kept

    def forget_answers(self) -> None:
        """Drop all answers, in the archive too, and make their captions pending: another judge answers from now on."""
        with self._lock:
            answered = np.flatnonzero(self._column("state") >= CaptionState.OK)
            has_text = self._texts.has(answered)  # not of one that was evicted and returned while it was asked about
            self._columns["state"][answered] = np.where(has_text, CaptionState.PENDING, CaptionState.NO_TEXT)
            for name in ("probability", "answer_mass", "margin"):
                self._column(name)[:] = np.nan
            if self._archive:
                self._archive.forget_answers()
            self._column("archived")[:] = False
            self._order.forget()

    def captions(self) -> Captions:
        """Every caption whose text is known, in order of arrival, as it is now."""
        return self.counted_captions()[0]

    def counted_captions(self) -> tuple[Captions, np.ndarray]:
        """As `captions`, with their counts [N] i64."""
        with self._lock:
            # Not by state: an answer may come for a caption that was evicted and returned without its text.
            rows = np.flatnonzero(self._texts.has(np.arange(len(self))))
            return self._captions(rows), self._columns["count"][rows]

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts [N] i64 and probabilities [N] f64 (NaN: no label) of `ids` [N] u64; if unknown, 0 and NaN."""
        with self._lock:
            rows = self._rows.find(ids)
            counts, probabilities = np.zeros(len(ids), np.int64), np.full(len(ids), np.nan)
            counts[rows >= 0] = self._columns["count"][rows[rows >= 0]]
            probabilities[rows >= 0] = self._columns["probability"][rows[rows >= 0]]
            return counts, probabilities

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
        return len(self._rows)

    def _column(self, name: str) -> np.ndarray:
        return self._columns[name][: len(self)]

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
        with_text = rows[self._texts.has(rows)]
        columns = (self._columns[name][with_text].tolist() for name in ARCHIVED)
        archived: list[ArchivedRow] = []
        for caption, count, first, last, state, probability, mass in zip(
            self._captions(with_text), *columns, strict=True
        ):
            archived.append((caption.id, caption.text, count, first, last, probability, mass, ARCHIVED_AS[state]))
        written = self._archive is not None and self._archive.write(archived)
        self._columns["archived"][rows] = written
        return written

    def state_dict(self) -> dict[str, Any]:
        """Columns and one text blob. Captions that are being asked about are saved as pending; workers' report numbers
        are not saved: after a resume the same worker id may start again at 0."""
        with self._lock:
            columns = {"id": self._rows.ids.copy()} | {name: self._column(name).copy() for name in COLUMNS}
            columns["state"][columns["state"] == CaptionState.ASKED] = CaptionState.PENDING
            text_bytes, text_ends = self._texts.arrays()
            texts = {"text_bytes": text_bytes, "text_ends": text_ends}
            return {"columns": columns, **texts, "num_evicted": self.num_evicted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, under a new `book_epoch`."""
        columns, ends = state["columns"], np.asarray(state["text_ends"])
        with self._lock:
            self._rows.replace(columns["id"])
            self._texts = CaptionTexts(np.asarray(state["text_bytes"]), np.diff(ends, prepend=0))
            self._columns = {name: grown(column, len(self)) for name, column in empty_columns().items()}
            for name in COLUMNS:
                self._column(name)[:] = columns[name]
            self._columns["archived"][:] = False
            self._order.forget()
            self._columns["entered_s"][:] = self._clock()
            self.num_evicted = int(state["num_evicted"])
            self.revision += 1
            self.book_epoch = secrets.token_hex(8)
            self._reports.clear()
            self._ages_s.clear()
            if len(self) > self._max_captions:
                self._evict()
