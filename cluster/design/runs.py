"""The training runs of a campaign: ordinary runs with a program as the term `design`, each in a process of its own, and
what is read of them.

Invariant: an outcome is read from the run's directory once, when the run has ended; a run that died has an outcome too,
with why it died and no figures.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.design.kind import DesignKind
from cluster.run.directory import lock
from cluster.sweep.trial_process import POLL_S, STOP_BUDGET_S, WAS_STOPPED, run_trial, write_config
from configs.checks import ConfigError, validate
from configs.errors import one_line
from configs.loading import with_values
from configs.schema import RunConfig

TERM = "design"
"""The term that a program is paid as."""
NUM_POINTS = 10
"""Of a curve that is shown to a writer."""
FITNESS = ("success", "in_game_score", "return")
"""What programs are compared by: the first of these metrics of the evaluation that there is."""
CURVES = {
    "success": "episode_success_mean",
    "length": "episode_length_mean",
    "return": "episode_return_extrinsic_mean",
}
TAIL_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one training run (trainer -> campaign)."""

    run: str
    """Its directory."""
    env_steps: int
    """Environment steps of its training."""
    problem: str = ""
    """Why it died; empty for a run that was trained and evaluated."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Mean over held-out episodes of each of the evaluation's metrics."""
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    """At ten points of training: `component NAME`, and of CURVES what there is."""

    @property
    def measure(self) -> str:
        """The metric that it is compared by; empty for a run that died."""
        return next((name for name in FITNESS if name in self.figures), "")

    @property
    def told(self) -> str:
        """The measure in words."""
        return f"{self.measure} {self.figures[self.measure]:.3g}" if self.measure else "no episode was evaluated"

    def as_json(self) -> dict[str, Any]:
        """JSON values, from which `Outcome(**values)` is the same."""
        return asdict(self)


class Trainer(Protocol):
    """Trains runs; called from several threads."""

    def train(self, config: RunConfig, is_stopped: Callable[[], bool]) -> Outcome | None:
        """Train and evaluate a run, or go on with it; None where it was stopped before its end."""

    def env_steps(self, config: RunConfig) -> int:
        """How far a run has come."""


class TrialTrainer:
    """Trains each run as `delphi train` does and evaluates its policy on held-out episodes, in a process of its own."""

    def __init__(self, episodes: int, envs: int) -> None:
        self._episodes, self._envs = episodes, envs

    def train(self, config: RunConfig, is_stopped: Callable[[], bool]) -> Outcome | None:
        """See `Trainer`."""
        if not _is_free(Path(config.run_dir), is_stopped):
            return None
        problem = run_trial(write_config(config), self._episodes, self._envs, is_stopped=is_stopped, player="policy")
        if problem == WAS_STOPPED:
            return None
        run, steps = Path(config.run_dir), self.env_steps(config)
        if problem:
            return Outcome(run=str(run), env_steps=steps, problem=one_line(problem, 500))
        evaluation = json.loads((run / "evaluation.json").read_text())
        figures = {name: metric["mean"] for name, metric in evaluation["policy"].items()}
        return Outcome(run=str(run), env_steps=steps, figures=figures, curves=curves_of(run / "metrics.jsonl"))

    def env_steps(self, config: RunConfig) -> int:
        """See `Trainer`: by the last line of its metrics."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            with (Path(config.run_dir) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                tail = file.read()
            return int(json.loads(tail[: tail.rfind(b"\n")].splitlines()[-1])["env_steps"])
        return 0


def _is_free(run_dir: Path, is_stopped: Callable[[], bool]) -> bool:
    """Waits for a trial of a campaign that was killed, which still writes its checkpoint; False where it was stopped
    before that has ended. A run that stays in use is left to the trial, which says who has it."""
    deadline = time.monotonic() + STOP_BUDGET_S
    while run_dir.exists() and time.monotonic() < deadline:
        if is_stopped():
            return False
        try:
            lock(run_dir).close()
            break
        except ConfigError:
            time.sleep(POLL_S)
    return True


def run_of(base: RunConfig, kind: DesignKind, program: str, *, steps: int, seed: int, run_dir: Path) -> RunConfig:
    """The configuration of one run of a program. Raises ConfigError."""
    config = with_values(
        base,
        {
            f"terms.{TERM}.reads": "features",
            f"terms.{TERM}.program": program,
            f"terms.{TERM}.pays": kind.pays,
            f"terms.{TERM}.coefficient": kind.coefficient,
            "archive.keep": base.archive.keep or kind.keeps_episodes,
            "total_env_steps": steps,
            "seed": seed,
            "run_dir": str(run_dir),
        },
    )
    validate(config)
    return config


def curves_of(metrics: Path) -> dict[str, list[float]]:
    """The curves of a run at ten points of its training, or as many as it has lines: means over the lines around each,
    without those that do not define the number."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    series: dict[str, list[float | None]] = {}
    for name, key in CURVES.items():
        series[name] = [line.get(key) for line in lines]
    terms = [line.get("terms", {}).get(TERM, {}) for line in lines]
    for key in next((term for term in reversed(terms) if term), {}):
        if key.startswith("component_"):
            series[key.replace("_", " ", 1)] = [term.get(key) for term in terms]
    curves = {}
    for name, values in series.items():
        known = [value for value in values if value is not None]
        if known:
            parts = np.array_split(np.array(known), min(NUM_POINTS, len(known)))
            curves[name] = [float(f"{part.mean():.4g}") for part in parts]
    return curves
