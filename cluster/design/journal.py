"""`Journal`: what a campaign has done so far, as JSON lines that are only ever appended to (`campaign.jsonl`).

A campaign runs as plain sequential code in which everything that takes time, or depends on anything but earlier lines,
is a step: `once` gives what the journal has for it, and only where it has nothing does the step. So whatever ends the
campaign, the same code goes on at the first step that is not finished.

Invariant: a line is on disk before what follows from it begins. A line that was cut off counts as not written.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.checks import ConfigError

Record = Mapping[str, Any]


class Journal:
    """The journal at `path`, which is made where there is none. Thread-safe; the folder's owner holds its lock. Raises
    ConfigError for a file that is damaged."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._records: dict[str, Record] = {}
        if not path.exists():
            path.touch()
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                key = _key(record["step"], record["of"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                damaged = f"{path} is damaged in line {number} ({type(error).__name__}: {error})"
                raise ConfigError(
                    f"{damaged}; remove that line and those after it: what they say is done again"
                ) from None
            self._records.setdefault(key, record)

    def find(self, step: str, **of: Any) -> Record | None:
        """What was recorded for a step; None where nothing was."""
        return self._records.get(_key(step, of))

    def all(self, step: str) -> list[Record]:
        """Every record of a kind of step, in the order of writing."""
        return [record for record in self._records.values() if record["step"] == step]

    def once(self, step: str, do: Callable[[], Mapping[str, Any]], **of: Any) -> Record:
        """What the journal has for the step `of`; else what `do` returns, JSON values, after it was recorded."""
        return self.find(step, **of) or self.add(step, do(), **of)

    def add(self, step: str, result: Mapping[str, Any], **of: Any) -> Record:
        """Record the result of a step that has none yet."""
        record = {"step": step, "of": of, **result}
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            with self._path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._records[_key(step, of)] = json.loads(line)
        return self._records[_key(step, of)]


def _key(step: str, of: Mapping[str, Any]) -> str:
    return json.dumps([step, of], sort_keys=True)
