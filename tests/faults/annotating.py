"""A run's annotation part by itself, built as a run builds it: captions go in, rewards come out, and nothing here plays
a game."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from actors.captions import caption_id
from cluster.run.directory import RunDirectory
from cluster.wiring import build_pipeline
from configs.loading import load_config
from configs.reward_schema import MAIN_TERM

SETTINGS = (
    "cluster.mode=local",
    "annotator.batch_size=8",
    "annotator.max_backoff_s=1",
    "reward_model.publish_interval_s=0.05",
)
LIMIT_S = 60.0


class Annotating:
    """The pipeline of `debug`'s scripted judge with `overrides`, started; `close` ends it and the service it
    started."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        config = load_config(preset="debug", overrides=[f"run_dir={folder / 'run'}", *SETTINGS, *overrides])
        run = RunDirectory(folder / "run")
        run.path.mkdir(parents=True, exist_ok=True)
        self.pipeline = build_pipeline(config, run, 1)
        self.pipeline.start()
        self.log = run.path / "service.log"
        self._num_reports = 0

    def report(self, texts: Iterable[str], states: Iterable[str] = ()) -> None:
        """As a worker that saw each of these captions, and of these states, once."""
        shown = {"caption": texts, "state": states}
        known = {channel: {caption_id(text): text for text in its} for channel, its in shown.items()}
        channels = {channel: (its, dict.fromkeys(its, 1)) for channel, its in known.items()}
        self.pipeline.report(channels, "0.a", self._num_reports, self._num_reports)
        self._num_reports += 1

    def rewarded(self, texts: Iterable[str], term: str = MAIN_TERM) -> list[float | None]:
        """The reward of each item in the newest table of a term; None where it has no label."""
        ids = np.array([caption_id(text) for text in texts], np.uint64)
        values, known = self.pipeline.latest_reward().tables[term].look_up(ids)
        return [value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)]

    def figure(self, name: str) -> float:
        """A figure of the catalogue; 0 where it is not known yet."""
        return self.pipeline.metrics().get(name) or 0.0

    @property
    def pid(self) -> int | None:
        """Of the service that the pipeline started."""
        service = self.pipeline._main._service
        assert service is not None
        return service.pid

    def wait_until(self, condition: Callable[[], Any], limit_s: float = LIMIT_S) -> float:
        """Seconds until `condition` held; AssertionError with the figures and the service's last words where it does
        not in time."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                words = self.log.read_text()[-2000:] if self.log.exists() else ""
                raise AssertionError(f"{self.pipeline.metrics()}\nproblem: {self.pipeline.problem}\n{words}")
            time.sleep(0.02)
        return time.monotonic() - began

    def wait_for_rewards(self, texts: Iterable[str], limit_s: float = LIMIT_S, term: str = MAIN_TERM) -> float:
        """Seconds until each has a label of the term."""
        wanted = list(texts)
        return self.wait_until(lambda: None not in self.rewarded(wanted, term), limit_s)

    def close(self) -> None:
        self.pipeline.close()


def expected(texts: Iterable[str]) -> list[float]:
    """What `debug`'s script and threshold make of captions."""
    return [1.0 if any(word in text for word in ("kill", "destroy", "level", "stairs")) else 0.0 for text in texts]


def captions(number: int, first: int = 0) -> list[str]:
    """So many distinct captions, half of them rewarded."""
    return [f"you kill newt {n}" if n % 2 else f"a wall {n}" for n in range(first, first + number)]
