"""Time shares of the stages of workers and learner in an interval, and the bottleneck that follows from them.

Invariant: the shares of workers or of the learner add up to at most 1; the rest is the learner's `other`, or the
workers' idle time.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WORKER_STAGES = ("env", "inference", "other")
LEARNER_STAGES = ("wait", "relabel", "transfer", "train", "publish")
SATURATED = 0.1
"""Workers or a learner that are idle for less than this share of the time are the bottleneck."""


class StageClock:
    """Seconds by stage since the last line."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._worker = dict.fromkeys(WORKER_STAGES, 0.0)
        self._learner = dict.fromkeys(LEARNER_STAGES, 0.0)

    def add_rollout(self, timings: Mapping[str, float]) -> None:
        """Seconds by stage of one `collect`."""
        for stage in WORKER_STAGES:
            self._worker[stage] += timings[stage]

    def add_learner(self, timings: Mapping[str, float]) -> None:
        """Seconds by stage of the learner, each any of `LEARNER_STAGES`."""
        for stage, seconds in timings.items():
            self._learner[stage] += seconds

    @contextmanager
    def learner(self, stage: str) -> Iterator[None]:
        """Count what happens inside as the learner's `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._learner[stage] += time.perf_counter() - started

    def take_line(self, seconds: float) -> dict[str, float]:
        """Shares of the `seconds` since the last line, as metrics; resets the clock."""
        workers = {stage: spent / (seconds * self._num_workers) for stage, spent in self._worker.items()}
        learner = {stage: spent / seconds for stage, spent in self._learner.items()}
        learner["other"] = max(0.0, 1.0 - sum(learner.values()))
        line = {f"worker_{stage}_fraction": share for stage, share in workers.items()}
        line["worker_idle_fraction"] = max(0.0, 1.0 - sum(workers.values()))
        line |= {f"learner_{stage}_fraction": share for stage, share in learner.items()}
        self._worker = dict.fromkeys(self._worker, 0.0)
        self._learner = dict.fromkeys(self._learner, 0.0)
        return line


def bottleneck(line: Mapping[str, Any], mode: str) -> str | None:
    """The bottleneck in a metric line, as text for the user; None before the first line."""
    stages = ("worker_env", "worker_inference", "worker_idle", "learner_wait", "learner_train")
    shares = [line.get(f"{stage}_fraction") for stage in stages]
    if None in shares:
        return None
    env, inference, idle, wait, train = (float(share or 0.0) for share in shares)
    if mode == "inline":
        stages_text = f"environments {env:.0%}, inference {inference:.0%}, training {train:.0%}"
        return f"one process for all: {stages_text} of the time"
    if wait < SATURATED:
        return f"learner-bound: it trains {train:.0%} of the time, workers idle {idle:.0%}"
    if idle < SATURATED:
        kind, share = ("environment", env) if env >= inference else ("inference", inference)
        return f"worker-bound: {kind} {share:.0%} of the workers' time, learner waits {wait:.0%}"
    return f"balanced, or held up in between: learner waits {wait:.0%}, workers idle {idle:.0%}"
