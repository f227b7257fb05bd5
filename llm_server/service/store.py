"""The judgement store: a SQLite file in which nothing is asked twice, across restarts and across runs.

Invariant: a judgement is found again only by the same weights, tokenizer, prompt, engine, device and dtype (`fingerprint`), the same rubric
content and the same item bytes. The store is an economy, never a reason to fail: once open, an error of it is logged and
costs forward passes. It is bounded: the newest `MAX_JUDGEMENTS` are kept, trimmed whenever it is opened.
"""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import platformdirs

from llm_server.annotation import Judgement, Status

logger = logging.getLogger(__name__)

MAX_JUDGEMENTS = 5_000_000
"""About 0.6 GB of captions."""
CHUNK = 500
"""Items per query; SQLite limits the number of parameters."""
BUSY_TIMEOUT_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS judges (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, rubric_hash TEXT NOT NULL, UNIQUE (fingerprint, rubric_hash));
CREATE TABLE IF NOT EXISTS judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT, judge INTEGER NOT NULL, item BLOB NOT NULL,
    status TEXT NOT NULL, probability REAL, answer_mass REAL NOT NULL, UNIQUE (judge, item)
);
"""


def open_store(setting: str) -> "JudgementStore | None":
    """The store that `ServiceConfig.store` names: a file, the user's own where it is empty, or None for `memory`."""
    if setting == "memory":
        return None
    return JudgementStore(store_path(setting))


def store_path(setting: str) -> Path:
    """The file that `ServiceConfig.store` names, where it is not `memory`; nothing is created."""
    return Path(setting).expanduser() if setting else platformdirs.user_cache_path("delphi") / "judgements.sqlite"


class JudgementStore:
    """Judgements by (fingerprint, rubric hash, item); thread-safe, and several processes may share one file.

    A file that is not a sound database is moved aside with a warning; ValueError where it cannot be opened at all.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise ValueError(
                f"judgement store '{path}' cannot be opened ({error}): give a file in a writable folder, or `memory`"
            ) from None
        except sqlite3.DatabaseError as error:
            self._move_aside(error)
            self._connection = self._open()

    def look_up(self, fingerprint: str, rubric_hash: str, items: Sequence[bytes]) -> dict[bytes, Judgement]:
        """What is known of `items`, marked as cached."""
        query = (
            "SELECT item, status, probability, answer_mass FROM judgements JOIN judges ON judges.id = judge "
            "WHERE fingerprint = ? AND rubric_hash = ? AND item IN ({})"
        )
        found: dict[bytes, Judgement] = {}
        try:
            with self._lock:
                for start in range(0, len(items), CHUNK):
                    chunk = items[start : start + CHUNK]
                    marks = ",".join("?" * len(chunk))
                    for item, status, probability, mass in self._connection.execute(
                        query.format(marks), (fingerprint, rubric_hash, *chunk)
                    ):
                        p = math.nan if probability is None else probability
                        found[item] = Judgement(status=Status[status], probability=p, answer_mass=mass, cached=True)
        except sqlite3.Error as error:
            logger.warning("judgement store %s cannot be read, so judgements are made anew: %s", self.path, error)
        return found

    def put(self, fingerprint: str, rubric_hash: str, judgements: Mapping[bytes, Judgement]) -> None:
        """Keep `judgements` by item, in one transaction."""
        rows = [
            (item, j.status.name, None if math.isnan(j.probability) else j.probability, j.answer_mass)
            for item, j in judgements.items()
        ]
        try:
            with self._lock, self._connection:
                self._connection.execute(
                    "INSERT OR IGNORE INTO judges (fingerprint, rubric_hash) VALUES (?, ?)", (fingerprint, rubric_hash)
                )
                (judge,) = self._connection.execute(
                    "SELECT id FROM judges WHERE fingerprint = ? AND rubric_hash = ?", (fingerprint, rubric_hash)
                ).fetchone()
                self._insert(judge, rows)
        except sqlite3.Error as error:
            logger.warning(
                "judgement store %s cannot be written, so %d judgements are not kept: %s", self.path, len(rows), error
            )

    def close(self) -> None:
        """Close the file; nothing may be asked of the store afterwards."""
        with self._lock:
            self._connection.close()

    def _insert(self, judge: int, rows: Iterable[tuple[bytes, str, float | None, float]]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO judgements (judge, item, status, probability, answer_mass) VALUES (?, ?, ?, ?, ?)",
            [(judge, *row) for row in rows],
        )

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(SCHEMA)
            with connection:
                connection.execute(
                    "DELETE FROM judgements WHERE number <= (SELECT max(number) FROM judgements) - ?", (MAX_JUDGEMENTS,)
                )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        logger.warning(
            "judgement store %s is damaged (%s): moved to %s, starting an empty one", self.path, error, aside
        )
