"""Reads what a run has left in its directory, whatever state it is in.

Invariant: nothing is written. What is absent or damaged is named in `missing` and left out; only a directory without a
readable configuration is an error.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.metrics import TERMS
from cluster.report.checkpoints import Learnt, PaidLine, read_checkpoints
from cluster.run.directory import RunDirectory, find_run
from cluster.run.metric_writer import PAID
from configs.errors import one_line
from configs.loading import from_dict
from configs.schema import RunConfig

DAMAGED = (ValueError, RecursionError, TypeError, AttributeError, KeyError)
"""Errors of reading JSON, and of JSON that is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run (run directory -> report)."""

    directory: RunDirectory
    config: RunConfig
    starts: list[dict[str, Any]]
    """provenance.json, one entry per start."""
    summary: dict[str, Any]
    """summary.json; empty while the run goes on."""
    lines: list[dict[str, Any]]
    """metrics.jsonl, in the order of environment steps: what is defined, and under `terms` that of each term."""
    audit: dict[str, Any]
    """audit.json, the report of `delphi audit --json`, where the user put it there; or empty."""
    learnt: Learnt
    paid: list[PaidLine]
    """What captions were paid, by environment steps: of paid.jsonl, else of the checkpoints that are kept."""
    missing: list[str]
    """What the report lacks, a sentence each."""

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.directory.path.name

    @property
    def env_steps(self) -> int:
        """Environment steps of the last metric line, or of the newest checkpoint."""
        return self.lines[-1]["env_steps"] if self.lines else self.learnt.env_steps

    def last(self, name: str) -> Any:
        """The newest defined value of a metric; None without one."""
        return next((line[name] for line in reversed(self.lines) if line.get(name) is not None), None)


def read_run(path: str, learnt: Learnt | None = None) -> RunRecord:
    """The run at `path`, with what its checkpoints say, unless `learnt` is that already. Raises ConfigError where there
    is none, or one of another version's configuration."""
    directory, saved = find_run(path)
    config, missing = from_dict(saved), list[str]()
    lines = _metric_lines(directory.path / "metrics.jsonl", missing)
    summary = _json(directory.summary, dict, missing, "the run goes on, or was killed: its newest metrics are shown")
    if summary and lines and summary.get("env_steps") != lines[-1]["env_steps"]:
        missing.append("summary.json is of an earlier end of this run: its evaluation is left out")
        summary = {}
    if not isinstance(summary.get("evaluation"), dict):
        summary.pop("evaluation", None)
    starts = _json(directory.path / "provenance.json", list, missing, "commit and machine are not known")
    audit = _json(directory.path / "audit.json", dict, [], "")
    if learnt is None:
        learnt = read_checkpoints(directory.checkpoints, missing)
    paid = _paid_lines(directory.path / PAID, {line["env_steps"] for line in lines}, missing) or learnt.paid_lines
    return RunRecord(
        directory=directory,
        config=config,
        starts=[start for start in starts if isinstance(start, dict)],
        summary=summary,
        lines=lines,
        audit=audit,
        learnt=learnt,
        paid=paid,
        missing=missing,
    )


def _json(path: Path, kind: type, missing: list[str], effect: str) -> Any:
    """The content of a JSON file; an empty `kind` where it is absent or damaged."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except FileNotFoundError:
        missing.append(f"{path.name} is not there: {effect}")
    except (OSError, *DAMAGED) as error:
        missing.append(f"{path.name} cannot be read ({one_line(error, 100)}): {effect}")
    return kind()


def _metric_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    lines = [line for line in _json_lines(path, missing) if isinstance(line.get("env_steps"), int)]
    return sorted(map(_numbers, lines), key=lambda line: line["env_steps"])


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """The defined metrics of a line, and under `terms` those of each term."""
    found = {name: value for name, value in line.items() if _is_number(value)}
    terms = line.get(TERMS)
    if isinstance(terms, dict):
        found[TERMS] = {name: _numbers(values) for name, values in terms.items() if isinstance(values, dict)}
    return found


def _paid_lines(path: Path, known_steps: set[int], missing: list[str]) -> list[PaidLine]:
    """The lines that belong to metric lines: those beyond the checkpoint of a resume do not; of two, the later."""
    found = {}
    for line in _json_lines(path, missing) if path.exists() else ():
        try:
            by_caption = {int(number): float(reward) for number, reward in line["captions"]}
            if line["env_steps"] in known_steps and all(map(_is_number, (line["total"], *by_caption.values()))):
                found[line["env_steps"]] = PaidLine(line["env_steps"], float(line["total"]), by_caption)
        except DAMAGED:
            continue
    return [found[steps] for steps in sorted(found)]


def _json_lines(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; others (a last line that is being written, a damaged one) are left out."""
    try:
        texts = path.read_text("utf-8", errors="replace").split("\n")
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({error.strerror}): there are no curves yet")
        return []
    found, damaged = [], 0
    for text in filter(str.strip, texts):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("no object")
            found.append(line)
        except DAMAGED:
            damaged += 1
    if damaged:
        missing.append(f"{path.name}: {damaged} damaged or unfinished lines are left out")
    if not found:
        missing.append(f"{path.name} has no complete line yet")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
