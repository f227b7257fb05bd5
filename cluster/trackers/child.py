"""One tracker in a process of its own, which follows the run's metrics.jsonl: `python -m cluster.trackers.child`, with
the job as the first line of standard input and the run's outcome as the second.

Invariant: the file is the queue: a tracker that is slow or waits for its service holds nothing in memory and delays
nobody, and every line is told once, in order of env_steps. Standard input that ends without an outcome ends the
process. No message contains a credential.
"""

import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.metrics import TERMS
from cluster.trackers.backends import FAILURE, TrackedRun, Tracker, flat_numbers, make_tracker
from configs.errors import named

NICENESS = 10
POLL_S = 1.0
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
IN_URL = re.compile(r"(://)[^/@\s]+@|([?&][^=&\s]*(?:token|key|secret)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
MAX_TOP_REWARDED = 4000


class MetricLines:
    """The lines of a metrics.jsonl beyond a step, each once, also while it grows and after a resume replaced it."""

    def __init__(self, path: Path, env_steps: int) -> None:
        self.env_steps = env_steps
        """Of the last line read; lines up to it are left out."""
        self._path, self._inode, self._offset = path, 0, 0

    def new(self) -> Iterator[Mapping[str, Any]]:
        """The whole lines written since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._offset += len(raw)
                try:
                    line = json.loads(raw)
                    is_new = line["env_steps"] > self.env_steps
                except (ValueError, TypeError, LookupError, RecursionError):  # cut off by a kill
                    continue
                if is_new:
                    yield line
                    self.env_steps = line["env_steps"]


class Parent:
    """The pipe from and to the run."""

    def __init__(self) -> None:
        self._messages = os.fdopen(os.dup(1), "w")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # libraries print
        os.dup2(nowhere, 2)
        self.job = json.loads(sys.stdin.readline())
        self.outcome = FAILURE
        self.has_ended = threading.Event()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, **message: Any) -> None:
        """Send one message."""
        self._messages.write(json.dumps(message) + "\n")
        self._messages.flush()

    def _listen(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(1)  # the run was killed; a library's clean-up could wait for its service for ever
        self.outcome = json.loads(line)["outcome"]
        self.has_ended.set()


def main() -> int:
    """Exit code: 0 everything was delivered, 1 not."""
    os.nice(NICENESS)
    parent = Parent()
    try:
        run = TrackedRun(**parent.job["run"])
        lines = MetricLines(Path(run.run_dir) / "metrics.jsonl", run.env_steps)
        tracker = make_tracker(parent.job["tracker"], run)
        parent.tell(run_id=tracker.run_id, env_steps=lines.env_steps, place=redacted(tracker.place))
        try:
            _follow(lines, tracker, parent)
        finally:
            parent.tell(run_id=tracker.run_id, env_steps=lines.env_steps)
        summary = {} if parent.outcome == FAILURE else _summary(Path(run.run_dir))
        tracker.close(parent.outcome, *told_at_the_end(summary))
    except BaseException as error:
        parent.tell(problem=redacted(named(error)))
        return 1
    return 0


def _follow(lines: MetricLines, tracker: Tracker, parent: Parent) -> None:
    """Tell the tracker every line until the run has ended."""
    is_last, told_at = False, 0.0
    while not is_last:
        is_last = parent.has_ended.wait(POLL_S)
        for line in lines.new():
            numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
            numbers |= flat_numbers(line.get(TERMS) or {}, f"{TERMS}/")
            tracker.log(numbers, line["env_steps"])
            if time.monotonic() - told_at > POLL_S:
                parent.tell(run_id=tracker.run_id, env_steps=line["env_steps"])
                told_at = time.monotonic()


def told_at_the_end(summary: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers and texts for the end of a tracked run: the evaluation by `evaluation/<player>/<metric>/mean`, `low` and
    `high`, how the run ended, and what was rewarded most."""
    evaluation = summary.get("evaluation") or {}
    numbers = dict(flat_numbers({"evaluation": evaluation}))
    if "time_s" in summary:
        numbers["time_s"] = float(summary["time_s"])
    texts = {name: str(summary[name]) for name in ("ended_by", "judge_problem") if summary.get(name)}
    if "words" in evaluation:
        texts["evaluation"] = evaluation["words"]
    if summary.get("top_rewarded"):
        texts["top_rewarded"] = json.dumps(summary["top_rewarded"], ensure_ascii=False)[:MAX_TOP_REWARDED]
    return numbers, texts


def redacted(text: str) -> str:
    """`text` without the values of environment variables that hold credentials, and without those in URLs."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) > 5:
            text = text.replace(value, "***")
    return IN_URL.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "summary.json").read_bytes())
    except (OSError, ValueError):  # the disk was full
        return {}


def as_job(tracker: str, run: TrackedRun) -> str:
    """The first line of standard input."""
    return json.dumps({"tracker": tracker, "run": dataclasses.asdict(run)}) + "\n"


if __name__ == "__main__":
    # Without the interpreter's own clean-up, in which libraries wait for threads and services.
    os._exit(main())
