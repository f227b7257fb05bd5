"""`captions.sqlite` of a run: every caption the run has seen, including those evicted from its caption book.

Invariant: a row holds the newest state written of its caption; a failing disk costs rows of the archive, never the run.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_server.annotation import signed_id

LOG = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS captions (
  id INTEGER PRIMARY KEY,  -- the 64-bit caption id as a signed integer
  text TEXT NOT NULL,
  count INTEGER NOT NULL,
  first_seen INTEGER NOT NULL,  -- environment steps
  last_seen INTEGER NOT NULL,
  probability REAL,  -- of progress; NULL where there is no label
  answer_mass REAL,
  status TEXT NOT NULL
)
"""
UPSERT = "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

ArchivedRow = tuple[int, str, int, int, int, float, float, str]
"""id, text, count, first_seen, last_seen, probability (NaN: none), answer_mass (NaN: none), status."""


class CaptionArchive:
    """The SQLite file; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._failing = False
        try:
            self._connection = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(SCHEMA)
        except sqlite3.Error as error:
            what_to_do = "move it away or choose another run_dir"
            raise ValueError(f"caption archive {path} cannot be opened ({error}); {what_to_do}") from error

    def write(self, rows: Iterable[ArchivedRow]) -> bool:
        """Insert or replace rows in one transaction; False where the disk refused (only the first time is logged)."""
        try:
            with self._lock, self._connection:
                self._connection.executemany(UPSERT, ((signed_id(row[0]), *row[1:]) for row in rows))
        except sqlite3.Error as error:
            if not self._failing:
                effect = "training goes on, the archive lacks what is evicted meanwhile"
                LOG.error("captions.sqlite could not be written (%s); %s", error, effect)
            self._failing = True
            return False
        self._failing = False
        return True

    def forget_answers(self) -> None:
        """Remove the answers of all captions."""
        update = "UPDATE captions SET probability = NULL, answer_mass = NULL, status = 'PENDING'"
        try:
            with self._lock, self._connection:
                self._connection.execute(update)
        except sqlite3.Error as error:
            LOG.error("captions.sqlite could not be written (%s): answers of a former judge stay in it", error)

    def look_up(self, ids: Sequence[int]) -> dict[int, tuple[str, int, int]]:
        """id -> (text, count, first_seen) of those that are archived."""
        query = "SELECT id, text, count, first_seen FROM captions WHERE id IN (SELECT value FROM json_each(?))"
        by_signed = {signed_id(number): number for number in ids}
        found: dict[int, tuple[str, int, int]] = {}
        try:
            with self._lock:
                for signed, *row in self._connection.execute(query, (json.dumps([*by_signed]),)):
                    found[by_signed[signed]] = tuple(row)
        except sqlite3.Error as error:
            effect = "evicted captions stay unknown until workers send their texts again"
            LOG.error("captions.sqlite could not be read (%s); %s", error, effect)
        return found

    def close(self) -> None:
        """Close the file; later writes are refused."""
        with self._lock:
            self._connection.close()
