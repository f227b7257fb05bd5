"""The judgement store: a SQLite file in which nothing is asked twice, across restarts and across runs.

Invariant: a judgement is found only by the same weights, tokenizer, prompt, engine, device and dtype (`fingerprint`),
the same rubric content and the same item bytes; a writing by its brief, text, seed and number instead. The store is
optional: once open, its errors are logged and only cost forward passes. It is bounded: the newest `MAX_JUDGEMENTS` are
kept, trimmed whenever it is opened, and the newest `MAX_WRITINGS`, trimmed with the first one.
"""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from configs.paths import user_path
from llm_server.annotation import Judgement, Status, Writing

LOG = logging.getLogger(__name__)
MAX_JUDGEMENTS = 5_000_000
"""About 0.6 GB of captions."""
MAX_WRITINGS = 200_000
"""About 0.1 GB."""
BUSY_TIMEOUT_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS judges (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, rubric_hash TEXT NOT NULL, UNIQUE (fingerprint, rubric_hash)
);
CREATE TABLE IF NOT EXISTS judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT, judge INTEGER NOT NULL, item BLOB NOT NULL,
    status TEXT NOT NULL, probability REAL, answer_mass REAL NOT NULL, UNIQUE (judge, item)
);
"""
NAMED = "INSERT OR IGNORE INTO judges (fingerprint, rubric_hash) VALUES (?, ?)"
WRITINGS_SCHEMA = """
CREATE TABLE IF NOT EXISTS writings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, writer INTEGER NOT NULL, asked TEXT NOT NULL, seed TEXT NOT NULL,
    number INTEGER NOT NULL, status TEXT NOT NULL, answer TEXT NOT NULL, tokens INTEGER NOT NULL,
    UNIQUE (writer, asked, seed, number)
);
"""
"""Made with the first writing, so that earlier versions go on with the file of whoever asks for none."""


def open_store(setting: str) -> "JudgementStore | None":
    """The store that `ServiceConfig.store` names: a file, the user's own where it is empty, or None for `memory`."""
    return None if setting == "memory" else JudgementStore(store_path(setting))


def store_path(setting: str) -> Path:
    """The file that `ServiceConfig.store` names, where it is not `memory`; nothing is created."""
    return Path(user_path(setting)) if setting else platformdirs.user_cache_path("delphi") / "judgements.sqlite"


def is_new_store(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database has no tables yet; ValueError where it has other tables than a store, which are kept."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    names = {name for (name,) in connection.execute(query)}
    if other := sorted(names - {"judges", "judgements", "writings"}):
        raise ValueError(
            f"judgement store '{path}' is a database of another kind, with the table {other[0]}: give another file for"
            " service.store, or `memory`"
        )
    return not names


class JudgementStore:
    """Judgements by (fingerprint, rubric hash, item); thread-safe, and several processes may share one file.

    A file that is not a sound database is moved aside with a warning; ValueError where it cannot be opened at all, or
    is another program's database.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock, self._has_writings = threading.Lock(), False
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
        """The stored judgements of `items`, marked as cached."""
        query = "SELECT status, probability, answer_mass FROM judgements WHERE judge = ? AND item = ?"
        found: dict[bytes, Judgement] = {}
        try:
            with self._lock, self._connection:
                self._connection.execute("BEGIN")  # one lock of the file for all
                judge = self._judge(fingerprint, rubric_hash)
                for item in items if judge is not None else ():
                    if row := self._connection.execute(query, (judge, item)).fetchone():
                        p = math.nan if row[1] is None else row[1]
                        found[item] = Judgement(status=Status[row[0]], probability=p, answer_mass=row[2], cached=True)
        except sqlite3.Error as error:
            LOG.warning("judgement store %s cannot be read, so the model is asked again: %s", self.path, error)
        return found

    def put(self, fingerprint: str, rubric_hash: str, judgements: Mapping[bytes, Judgement]) -> None:
        """Keep `judgements` by item, in one transaction."""
        insert = (
            "INSERT OR REPLACE INTO judgements (judge, item, status, probability, answer_mass) VALUES (?, ?, ?, ?, ?)"
        )
        try:
            with self._lock, self._connection:
                self._connection.execute(NAMED, (fingerprint, rubric_hash))
                judge = self._judge(fingerprint, rubric_hash)
                rows = ((judge, item, j.status.name, j.probability, j.answer_mass) for item, j in judgements.items())
                self._connection.executemany(insert, rows)  # SQLite stores NaN as NULL
        except sqlite3.Error as error:
            what = f"{len(judgements)} judgements are not kept"
            LOG.warning("judgement store %s cannot be written, so %s: %s", self.path, what, error)

    def look_up_writings(self, by: tuple[str, str], asked: tuple[str, int], num: int) -> dict[int, Writing]:
        """The stored ones of the writings 0 to `num` - 1 about a text with a seed (`asked`), marked as cached; `by` is
        the fingerprint and the hash of how the brief asks."""
        query = (
            "SELECT number, status, answer, tokens FROM writings"
            " WHERE writer = ? AND asked = ? AND seed = ? AND number < ?"
        )
        try:
            with self._lock, self._connection:
                self._make_writings()
                rows = self._connection.execute(query, (self._judge(*by), asked[0], str(asked[1]), num)).fetchall()
        except sqlite3.Error as error:
            LOG.warning("judgement store %s cannot be read, so the model is asked again: %s", self.path, error)
            return {}
        return {
            n: Writing(status=Status[name], text=text, tokens=tokens, cached=True) for n, name, text, tokens in rows
        }

    def put_writings(self, by: tuple[str, str], asked: tuple[str, int], writings: Mapping[int, Writing]) -> None:
        """Keep `writings` by number, in one transaction; `by` and `asked` as in `look_up_writings`."""
        insert = (
            "INSERT OR REPLACE INTO writings (writer, asked, seed, number, status, answer, tokens)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        try:
            with self._lock, self._connection:
                self._make_writings()
                self._connection.execute(NAMED, by)
                head = self._judge(*by), asked[0], str(asked[1])
                rows = ((*head, number, w.status.name, w.text, w.tokens) for number, w in writings.items())
                self._connection.executemany(insert, rows)
        except sqlite3.Error as error:
            what = f"{len(writings)} writings are not kept"
            LOG.warning("judgement store %s cannot be written, so %s: %s", self.path, what, error)

    def _make_writings(self) -> None:
        """Make the table of writings if there is none, and trim it, at its first use."""
        if not self._has_writings:
            self._connection.execute(WRITINGS_SCHEMA)
            trim = "DELETE FROM writings WHERE id <= (SELECT max(id) FROM writings) - ?"
            self._connection.execute(trim, (MAX_WRITINGS,))
            self._has_writings = True

    def _judge(self, fingerprint: str, rubric_hash: str) -> int | None:
        """The judge's number in the file; None while it has no judgements there."""
        query = "SELECT id FROM judges WHERE fingerprint = ? AND rubric_hash = ?"
        row = self._connection.execute(query, (fingerprint, rubric_hash)).fetchone()
        return row and row[0]

    def close(self) -> None:
        """Close the file; the store must not be used afterwards."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            is_new_store(connection, self.path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(SCHEMA)
            trim = "DELETE FROM judgements WHERE number <= (SELECT max(number) FROM judgements) - ?"
            with connection:
                connection.execute(trim, (MAX_JUDGEMENTS,))
        except (sqlite3.Error, ValueError):
            connection.close()
            raise
        return connection

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        said = f"is damaged ({error}): moved to {aside}, starting an empty one"
        LOG.warning("judgement store %s %s", self.path, said)
