"""Caption files: JSON lines of captions with labels (for audits) or counts (for offline annotation), a run's
captions.sqlite, and `delphi export`, which writes a run's captions as such a file.

Invariant: a file is read whole or refused, by the number of its first wrong line, what it holds and what was wanted. An
export has one line per distinct caption, the most frequent first, with null for missing answers.
"""

import argparse
import json
import os
import sqlite3
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import did_you_mean
from configs.paths import path_argument
from llm_server.annotation import signed_id, unsigned_id
from llm_server.standard_output import guarded

MAX_CAPTION_BYTES = 256
"""The limit to which workers truncate captions."""
MAX_COUNT = 2**53
"""The largest count that sampling in float64 represents exactly."""
ARCHIVE_COLUMNS = ("caption", "count", "first_seen", "last_seen", "probability", "answer_mass", "status")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the run does not exist or the file cannot be written."""
    parser = argparse.ArgumentParser(
        prog="delphi export",
        description="Write every caption of a run as one JSON object per line: caption, count, first_seen and last_seen"
        " (environment steps), and the judge's probability, answer_mass and status.",
        epilog="example: delphi export runs/nethack_score > captions.jsonl",
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory or its captions.sqlite")
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="write to FILE instead of standard output")
    arguments = parser.parse_args(argv)
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in read_archive(arguments.run)]
        if arguments.out:
            if os.path.exists(arguments.out) and os.path.samefile(arguments.out, _archive(arguments.run)):
                raise ValueError(f"--out: got {arguments.out}, the run's own file, which is kept; give another file")
            Path(arguments.out).write_text("".join(lines), "utf-8")
        else:
            sys.stdout.flush()
            sys.stdout.buffer.writelines(line.encode() for line in lines)  # UTF-8 whatever the terminal's encoding
    except (ValueError, OSError) as error:
        print(f"delphi export: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCaption:
    """A caption and whether a person calls it progress."""

    text: str
    is_positive: bool


def read_labelled(path: str) -> list[LabelledCaption]:
    """The captions of a JSON-lines file with rows {"caption": text, "helpful": 0 or 1}, of both labels. Raises
    ValueError for a file that cannot be read or holds anything else, or a caption with two labels. The other keys of an
    export are ignored."""
    labels: dict[str, bool] = {}
    for place, text, row in _rows(path, required={"caption", "helpful"}):
        if row["helpful"] not in (0, 1, True, False):
            raise ValueError(f"{place}: helpful is {row['helpful']!r}, wanted 0 or 1")
        is_positive = bool(row["helpful"])
        if labels.setdefault(text, is_positive) != is_positive:
            raise ValueError(f"{place}: caption {text!r} was labelled {int(not is_positive)} before: keep one of them")
    if len(set(labels.values())) < 2:
        got = "no captions" if not labels else f"only captions with helpful = {int(next(iter(labels.values())))}"
        raise ValueError(f"{path} has {got}: an audit needs some with 1 and some with 0")
    return [LabelledCaption(text=text, is_positive=is_positive) for text, is_positive in labels.items()]


def read_counted(path: str) -> dict[str, int]:
    """Captions by text with their counts, from JSON lines {"caption": text, "count": n (default 1)}, a run directory,
    or its captions.sqlite. Counts of repeated lines are summed, 0 (shown by a reset only) counts as 1, and the empty
    caption is left out.

    Raises ValueError for unreadable files, and for captions that are not normalised, which training never produces.
    """
    source = Path(path)
    if source.suffix == ".sqlite" or _is_there(source / "captions.sqlite"):
        return {row["caption"]: max(row["count"], 1) for row in read_archive(path)}
    if os.path.isdir(source):
        raise ValueError(
            f"{path} is a folder without captions.sqlite: give a run directory of `delphi train`, or a JSON-lines file"
        )
    counts: dict[str, int] = {}
    for place, text, row in _rows(path, required={"caption"}):
        count = row.get("count", 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{place}: count is {count!r}, wanted a whole number of at least 0")
        if counts.get(text, 0) + count > MAX_COUNT:
            raise ValueError(
                f"{place}: count is {count!r}, wanted at most {MAX_COUNT} for all lines of a caption together"
            )
        if not is_normalised(text):
            raise ValueError(
                f"{place}: {text[:60]!r} is not a caption as training makes them: wanted at most {MAX_CAPTION_BYTES}"
                " bytes of printable text, no space at either end, at most two in a row"
            )
        counts[text] = counts.get(text, 0) + max(count, 1)
    if not counts:
        raise ValueError(f'{path} has no captions: wanted lines like {{"caption": "You kill the newt!", "count": 3}}')
    return counts


def read_archive(path: str) -> list[dict[str, Any]]:
    """The captions of a run except the empty one, most frequent first, as rows with `ARCHIVE_COLUMNS`; `path` is the
    run directory or its captions.sqlite. Raises ValueError where that is missing or damaged."""
    columns = ", ".join(["text", *ARCHIVE_COLUMNS[1:]])
    rows = _query(path, f"SELECT {columns} FROM captions WHERE text <> '' ORDER BY count DESC, text")
    return [dict(zip(ARCHIVE_COLUMNS, row, strict=True)) for row in rows]


def read_probabilities(path: str, caption_ids: Iterable[int]) -> dict[int, float]:
    """The judge's probabilities by caption id, of those captions that have one; `path` and errors as `read_archive`."""
    query = "SELECT id, probability FROM captions WHERE probability IS NOT NULL AND id IN"
    rows = _query(path, f"{query} (SELECT value FROM json_each(?))", json.dumps([*map(signed_id, caption_ids)]))
    return {unsigned_id(number): probability for number, probability in rows}


def _query(path: str, query: str, *values: str) -> list[tuple[Any, ...]]:
    """The rows of a query to a run's captions."""
    file = _archive(path)
    if not _is_there(file):
        raise ValueError(f"no captions.sqlite at {path}: give a run directory of `delphi train`")
    # Without a log beside it nobody is writing, and SQLite need not make one: the folder may be protected.
    is_written = _is_there(file.with_name(f"{file.name}-wal")) or os.access(file.parent, os.W_OK)
    mode = "mode=ro" if is_written else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True, timeout=10.0)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{file} is not the captions.sqlite of a run, or it is damaged ({error})") from None


def archive_rows(path: str) -> list[tuple[Any, ...]]:
    """The same captions in any order, as tuples of id (signed), text, count, first_seen, probability, answer_mass and
    status: for readers of a million of them, which dictionaries would slow down."""
    columns = "id, text, count, first_seen, probability, answer_mass, status"
    return _query(path, f"SELECT {columns} FROM captions WHERE text <> ''")


def _archive(path: str) -> Path:
    """The captions.sqlite of a run directory, or the file itself."""
    return Path(path) / "captions.sqlite" if os.path.isdir(path) else Path(path)


def is_normalised(text: str) -> bool:
    """Whether `text` is a fixed point of the normalisation that workers apply to captions (actors/captions.py)."""
    if text != text.strip() or "   " in text or len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
        return False
    return not any(char != " " and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"} for char in text)


def _is_there(file: Path) -> bool:
    """Whether there is such a file; ValueError where its folder may not be searched, or no file can have that name."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ValueError(f"cannot read {file.parent}: {error.strerror}; give a file or run directory") from None
    return True


def _rows(path: str, required: set[str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each non-blank line's place for error messages, caption, and object."""
    known = {*ARCHIVE_COLUMNS, "helpful"}
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}; give a file with one JSON object per line") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at column {error.colno}; wanted one JSON object per line"
            raise ValueError(f"{place} is not JSON: {problem}") from None
        except _GivenTwiceError as error:
            raise ValueError(f"{place}: key '{error}' is given twice; remove one of the two") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{place} has a number too long or brackets too deep to parse: correct the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is {type(row).__name__}, wanted an object with {' and '.join(sorted(required))}")
        for key in [key for key in row if key not in known]:
            wanted = ", ".join(sorted(known))
            raise ValueError(f"{place}: unknown key '{key}'{did_you_mean(key, known)}: wanted {wanted}")
        for key in sorted(required - set(row)):
            raise ValueError(f"{place} has no '{key}': wanted {', '.join(sorted(required))}")
        text = row["caption"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: caption is {text!r}, wanted text")
        if any(unicodedata.category(char) == "Cs" for char in text):
            raise ValueError(
                f"{place}: caption {text!r} has an escape that is half of a character; write the character"
            )
        yield place, text, row


class _GivenTwiceError(Exception):
    """A key that one object has twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _GivenTwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


if __name__ == "__main__":
    sys.exit(guarded(main))
