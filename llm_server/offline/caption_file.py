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
from dataclasses import dataclass, replace
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
    """A caption and what a person says of it."""

    text: str
    is_positive: bool
    """Whether it is progress; of graded labels, whether the value is above 0."""
    about: str = ""
    """What it is judged about, if anything."""
    value: float | None = None
    """In [0, 1]; None where the label is not graded."""

    @property
    def label(self) -> float:
        """The value, or 1 for progress and 0 for none."""
        return float(self.is_positive) if self.value is None else self.value


def read_labelled(path: str) -> list[LabelledCaption]:
    """The captions of a JSON-lines file with rows {"caption": text, "helpful": 0 or 1}, or all graded, {"caption":
    text, "value": 0 to 1}; `about` beside it says what the caption is judged about. Raises ValueError for a file that
    cannot be read or holds anything else, fewer than two labels, or a caption with two. The other keys of an export are
    ignored."""
    found: dict[tuple[str, str], LabelledCaption] = {}
    for place, text, row in _rows(path, required={"caption"}, others={"helpful", "value", "about"}):
        caption = LabelledCaption(text=text, about=_about(place, row), **_label(place, row))
        first = found.setdefault((caption.about, text), caption)
        if (caption.value is None) != (next(iter(found.values())).value is None):
            raise ValueError(f"{place}: this file has labels `helpful` and `value`: wanted one of the two throughout")
        if first != caption:
            before = int(first.is_positive) if first.value is None else first.value
            raise ValueError(f"{place}: caption {text!r} was labelled {before} before: keep one of them")
    captions = list(found.values())
    if len({caption.label for caption in captions}) < 2:
        name = "helpful" if not captions or captions[0].value is None else "value"
        got = "no captions" if not captions else f"only captions with {name} = {captions[0].label:g}"
        wanted = "some with 1 and some with 0" if name == "helpful" else "captions of different values"
        raise ValueError(f"{path} has {got}: an audit needs {wanted}")
    return captions


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledGoal:
    """A caption and the goal that it achieves, as a person says."""

    text: str
    goal: str | None
    """None where it achieves none."""


def read_goals(path: str) -> list[LabelledGoal]:
    """The captions of a JSON-lines file with rows {"caption": text, "goal": text or null}. Raises ValueError for a file
    that cannot be read or holds anything else, or a caption with two goals."""
    found: dict[str, LabelledGoal] = {}
    for place, text, row in _rows(path, required={"caption", "goal"}, others={"goal"}):
        goal = row["goal"]
        if goal is not None and (not isinstance(goal, str) or not goal.strip()):
            raise ValueError(f"{place}: goal is {goal!r}, wanted text, or null where the caption achieves none")
        caption = LabelledGoal(text=text, goal=goal)
        if (before := found.setdefault(text, caption)) != caption:
            raise ValueError(f"{place}: caption {text!r} had the goal {before.goal!r} before: keep one of them")
    return list(found.values())


def captions_about(captions: Sequence[LabelledCaption], about: str, *, keep_about: bool) -> list[LabelledCaption]:
    """Those that are judged about `about`, which is left out of them unless `keep_about`; ValueError for none."""
    found = [caption for caption in captions if caption.about == about]
    if not found:
        others = ", ".join(repr(other) for other in sorted({caption.about for caption in captions} - {""}))
        raise ValueError(f"--about: got {about!r}, wanted one of the file's lines: {others or 'none has an about'}")
    return found if keep_about else [replace(caption, about="") for caption in found]


def _label(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """`is_positive` and `value` of a row."""
    if "value" in row and "helpful" in row:
        raise ValueError(f"{place} has both helpful and value: keep one of them")
    if "value" in row:
        value = row["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{place}: value is {value!r}, wanted a number from 0 to 1")
        return {"value": float(value), "is_positive": value > 0}
    if "helpful" not in row:
        raise ValueError(f"{place} has no 'helpful': wanted caption, helpful (or value, for graded labels)")
    if row["helpful"] not in (0, 1, True, False):
        raise ValueError(f"{place}: helpful is {row['helpful']!r}, wanted 0 or 1")
    return {"is_positive": bool(row["helpful"])}


def _about(place: str, row: Mapping[str, Any]) -> str:
    about = row.get("about", "")
    if not isinstance(about, str) or ("about" in row and not about.strip()):
        raise ValueError(f"{place}: about is {about!r}, wanted text")
    return about


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


def archive_rows(path: str, ids: Iterable[int] | None = None) -> list[tuple[Any, ...]]:
    """The same captions in any order, or those of some (signed) `ids`, as tuples of id (signed), text, count,
    first_seen, probability, answer_mass and status: for readers of a million of them, which dictionaries would slow
    down."""
    query = "SELECT id, text, count, first_seen, probability, answer_mass, status FROM captions WHERE text <> ''"
    if ids is None:
        return _query(path, query)
    return _query(path, f"{query} AND id IN (SELECT value FROM json_each(?))", json.dumps([*ids]))


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


def _rows(
    path: str, required: set[str], others: Iterable[str] = ("helpful",)
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each non-blank line's place for error messages, caption, and object."""
    known = {*ARCHIVE_COLUMNS, *others}
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
