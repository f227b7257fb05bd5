"""The judgement file: captions with counts, their judgements and judged pairs, made by `delphi annotate` and read by
offline training.

Invariant: one file holds the answers of one model to one rubric (`Provenance`) and is refused for any other; every
answer is on disk before the next question, so an interrupted annotation continues where it stopped.
"""

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from llm_server.annotation import (
    Caption,
    CaptionPair,
    JudgedCaption,
    JudgedPair,
    Judgement,
    PairJudgement,
    ServiceDescription,
    Status,
    signed_id,
    unsigned_id,
)

APPLICATION_ID = 0x44454C50
"""`DELP` in SQLite's header, which distinguishes a judgement file from other databases."""
FORMAT_VERSION = 1
SCHEMA = """
CREATE TABLE provenance (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE captions (
    id INTEGER PRIMARY KEY,  -- the 64-bit caption id as a signed integer
    text TEXT NOT NULL, count INTEGER NOT NULL,
    status TEXT, probability REAL, answer_mass REAL  -- NULL status: not asked yet
);
CREATE TABLE pairs (
    first INTEGER NOT NULL REFERENCES captions (id), second INTEGER NOT NULL REFERENCES captions (id),
    status TEXT, preference REAL, answer_mass REAL, position_bias REAL,
    PRIMARY KEY (first, second)
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The rubric and the model of a file's answers."""

    rubric_id: str
    rubric_version: str
    rubric_hash: str
    """Hash of everything that decides a judgement of a single caption."""
    pairs_hash: str
    """Hash of everything that decides a judgement of a pair; empty if the rubric has no pairs."""
    model: str
    engine: str
    fingerprint: str
    """Hash of weights, tokenizer, engine and dtype."""
    about: str = ""
    """What the captions were judged about, if anything."""

    @staticmethod
    def of(description: ServiceDescription, about: str = "") -> "Provenance":
        """The provenance of a judge's answers."""
        names = [field.name for field in fields(Provenance) if field.name != "about"]
        return Provenance(**{name: getattr(description, name) for name in names}, about=about)

    def __str__(self) -> str:
        rubric = f"rubric '{self.rubric_id}' version {self.rubric_version} ({self.rubric_hash})"
        about = f" about {self.about!r}" * bool(self.about)
        return f"{rubric}{about}, model '{self.model}' ({self.engine}, {self.fingerprint[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """The content of a judgement file (annotate -> frozen reward models)."""

    captions: list[JudgedCaption]
    """The captions that were asked, of any status, the most frequent first."""
    pairs: list[JudgedPair]
    """The pairs that were asked, of any status."""
    counts: dict[int, int]
    """Occurrences by caption id, including captions that were not asked."""
    threshold: float
    """Theta of this rubric and model."""
    provenance: Provenance


def caption_of(text: str) -> Caption:
    """The caption of a normalised text, with the id that workers give it."""
    return Caption(id=(xxhash.xxh3_64_intdigest(text.encode()) or 1) if text else 0, text=text)


def read_judgements(path: str | Path) -> Judgements:
    """The content of the file; ValueError where it is missing, damaged or something else."""
    captions_query = "SELECT id, text, count, status, probability, answer_mass FROM captions ORDER BY count DESC, id"
    pairs_query = (
        "SELECT first, second, status, preference, answer_mass, position_bias FROM pairs WHERE status IS NOT NULL"
        " ORDER BY rowid"
    )
    with closing(_open(Path(path), "rw")) as connection, _sound(path):
        provenance, threshold = _provenance(connection, path)
        rows = list(connection.execute(captions_query))
        for row in rows:
            _check_row(*row)
        captions = {row[0]: Caption(id=unsigned_id(row[0]), text=row[1]) for row in rows}
        judged = [
            JudgedCaption(
                caption=captions[number],
                judgement=Judgement(status=Status[status], probability=_nan(p), answer_mass=mass, cached=True),
            )
            for number, _, _, status, p, mass in rows
            if status is not None
        ]
        compared = [
            JudgedPair(
                pair=CaptionPair(first=captions[first], second=captions[second]),
                judgement=PairJudgement(
                    status=Status[status], preference=_nan(p), answer_mass=mass, position_bias=_nan(bias), cached=True
                ),
            )
            for first, second, status, p, mass, bias in connection.execute(pairs_query)
        ]
    counts = {unsigned_id(row[0]): row[2] for row in rows}
    return Judgements(captions=judged, pairs=compared, counts=counts, threshold=threshold, provenance=provenance)


class _UnsoundError(Exception):
    """A row that `delphi annotate` cannot have written."""


def _check_row(number: int, text: Any, count: Any, status: Any, probability: Any, *_: Any) -> None:
    """_UnsoundError for a row of captions under which training would learn nothing, or something else, in silence."""
    if not isinstance(text, str) or caption_of(text).id != unsigned_id(number):
        raise _UnsoundError(f"id {number} is not that of the text {text!r}")
    if not isinstance(count, int) or count < 0:
        raise _UnsoundError(f"count of {text!r} is {count!r}")
    if status == Status.OK.name and not (isinstance(probability, float) and 0.0 <= probability <= 1.0):
        raise _UnsoundError(f"probability of {text!r} is {probability!r}")


class JudgementFile:
    """A judgement file being written: created, or continued if it holds answers of the same rubric and model.

    Not thread-safe; it is locked against other processes while it is open. Raises ValueError where the file cannot be
    opened, is something else, or holds answers of another rubric or model.
    """

    def __init__(self, path: Path, provenance: Provenance, threshold: float) -> None:
        self.path = path
        self._connection = _open(path, "rwc")
        try:
            with _sound(path):
                self._enter(provenance, threshold)
        except BaseException:
            self._connection.close()
            raise

    def add_captions(self, counts: Mapping[str, int]) -> None:
        """Add captions with their numbers of occurrences; the counts of existing captions are replaced."""
        rows = [(signed_id(caption_of(text).id), text, count) for text, count in counts.items() if text]
        insert = "INSERT INTO captions (id, text, count) VALUES (?, ?, ?)"
        self._write(f"{insert} ON CONFLICT (id) DO UPDATE SET count = excluded.count", rows)

    def unjudged(self) -> list[Caption]:
        """The captions not asked yet, the most frequent first."""
        query = "SELECT id, text FROM captions WHERE status IS NULL ORDER BY count DESC, id"
        return [Caption(id=unsigned_id(number), text=text) for number, text in self._connection.execute(query)]

    def write_captions(self, judged: Iterable[JudgedCaption]) -> None:
        """Write judgements of captions that were added."""
        rows = [  # SQLite stores NaN as NULL
            (j.judgement.status.name, j.judgement.probability, j.judgement.answer_mass, signed_id(j.caption.id))
            for j in judged
        ]
        self._write("UPDATE captions SET status = ?, probability = ?, answer_mass = ? WHERE id = ?", rows)

    def add_pairs(self, pairs: Iterable[CaptionPair]) -> None:
        """Add pairs of captions that were added; existing pairs are unchanged."""
        rows = [(signed_id(pair.first.id), signed_id(pair.second.id)) for pair in pairs]
        self._write("INSERT OR IGNORE INTO pairs (first, second) VALUES (?, ?)", rows)

    def pairs(self, *, unjudged: bool = False) -> list[CaptionPair]:
        """All pairs in the order added, or those not asked yet."""
        rows = self._connection.execute("SELECT id, text FROM captions")
        captions = {number: Caption(id=unsigned_id(number), text=text) for number, text in rows}
        query = f"SELECT first, second FROM pairs {'WHERE status IS NULL' if unjudged else ''} ORDER BY rowid"
        return [CaptionPair(first=captions[a], second=captions[b]) for a, b in self._connection.execute(query)]

    def write_pairs(self, judged: Iterable[JudgedPair]) -> None:
        """Write judgements of pairs that were added."""
        rows = [
            (
                j.judgement.status.name,
                j.judgement.preference,
                j.judgement.answer_mass,
                j.judgement.position_bias,
                signed_id(j.pair.first.id),
                signed_id(j.pair.second.id),
            )
            for j in judged
        ]
        update = "UPDATE pairs SET status = ?, preference = ?, answer_mass = ?, position_bias = ?"
        self._write(f"{update} WHERE first = ? AND second = ?", rows)

    def close(self) -> None:
        """Close the file and unlock it."""
        self._connection.close()

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        with self._connection:
            self._connection.executemany(statement, rows)

    def _enter(self, provenance: Provenance, threshold: float) -> None:
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._connection.execute("BEGIN EXCLUSIVE")
        with self._connection:
            if _is_empty(self._connection):
                for statement in filter(str.strip, SCHEMA.split(";\n")):
                    self._connection.execute(statement)
                values = {**asdict(provenance), "threshold": repr(threshold)}
                self._connection.executemany("INSERT INTO provenance VALUES (?, ?)", values.items())
                self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
                return
            theirs, _ = _provenance(self._connection, self.path)
            if theirs != provenance:
                raise ValueError(
                    f"judgement file '{self.path}' holds answers by {theirs}, requested is {provenance}: give another"
                    " --out"
                )


def read_provenance(path: Path) -> Provenance | None:
    """The provenance of the file, None if it is missing or empty; ValueError if it is damaged or something else."""
    if not path.exists():
        return None
    with closing(_open(path, "rw")) as connection, _sound(path):
        return None if _is_empty(connection) else _provenance(connection, path)[0]


def _open(path: Path, mode: str) -> sqlite3.Connection:
    """A connection; `rw` also serves reading, because SQLite then undoes a killed process's incomplete transaction, and
    falls back to read-only access by itself where the file is not writable."""
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder and no judgement file: give a file")
    if mode == "rw" and not path.is_file():
        raise ValueError(
            f"no judgement file '{path}': make one with `delphi annotate CAPTIONS --rubric RUBRIC --out {path}`"
        )
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=5.0)
    except sqlite3.Error as error:
        raise ValueError(
            f"judgement file '{path}' cannot be opened ({error}): give a file in a writable folder"
        ) from None


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def _provenance(connection: sqlite3.Connection, path: str | Path) -> tuple[Provenance, float]:
    """Rubric, model and theta of the file; ValueError for another kind of database, or another format."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise ValueError(f"'{path}' is a database but no judgement file: give one that `delphi annotate --out` wrote")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"judgement file '{path}' has format {version}, this program reads {FORMAT_VERSION}: annotate anew"
        )
    values = {"about": ""} | dict(connection.execute("SELECT name, value FROM provenance"))  # older files lack it
    provenance, threshold = Provenance(**{field.name: values[field.name] for field in fields(Provenance)}), math.nan
    with suppress(ValueError):
        threshold = float(values["threshold"])
    if not math.isfinite(threshold):
        raise _UnsoundError(f"theta is {values['threshold']!r}")
    return provenance, threshold


@contextmanager
def _sound(path: str | Path) -> Iterator[None]:
    """Turns what a locked, protected or damaged file raises into a ValueError that says what to do."""
    try:
        yield
    except (sqlite3.DatabaseError, KeyError, TypeError, _UnsoundError) as error:
        problem = (
            f"'{path}' is no sound judgement file ({error}): give one that `delphi annotate --out` wrote, or annotate"
            " anew"
        )
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            problem = (
                f"judgement file '{path}' is being written: wait until the `delphi annotate` that writes it has ended"
            )
        elif getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            advice = "make it and its folder writable"
            problem = f"judgement file '{path}' was left half-written and may not be repaired: {advice}"
        raise ValueError(problem) from None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
