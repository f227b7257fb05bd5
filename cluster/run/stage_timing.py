"""Where the time goes: what share of an interval each stage of workers and learner took, and which of them holds the others up.

Invariant: the shares of one part add up to 1 at most; what no stage claims is its `other`, or, of the workers, idleness.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WORKER_STAGES = ("env", "inference", "other")
LEARNER_STAGES = ("wait", "relabel", "transfer", "train", "publish")
SATURATED = 0.1
"""A part that is idle for less than this share of the time is what holds the others up."""


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
        """Shares of the `seconds` since the last line, as metrics; the clock starts anew."""
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
    """In plain words what more of would make the run faster, from a metric line; None before there is one."""
    shares = {
        name: line.get(name) for name in ("worker_env_fraction", "worker_inference_fraction", "worker_idle_fraction")
    }
    wait, train = line.get("learner_wait_fraction"), line.get("learner_train_fraction")
    if wait is None or train is None or None in shares.values():
        return None
    env, inference, idle = (float(share or 0.0) for share in shares.values())
    if mode == "inline":
        return (
            f"one process for all: environments {env:.0%}, inference {inference:.0%}, training {train:.0%} of the time"
        )
    if wait < SATURATED:
        return f"learner-bound: it trains {train:.0%} of the time, workers idle {idle:.0%}"
    if idle < SATURATED:
        kind, share = ("environment", env) if env >= inference else ("inference", inference)
        return f"worker-bound: {kind} {share:.0%} of the workers' time, learner waits {wait:.0%}"
    return f"balanced, or held up in between: learner waits {wait:.0%}, workers idle {idle:.0%}"
