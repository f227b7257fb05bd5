"""The trackers by name: what Weights & Biases, MLflow and Trackio are told of a run. To add one, write its class,
and add it to `CLASSES` here and to `TRACKERS` in `configs.checks`.

Invariant: a tracker's library is imported only in the tracker's own process (`cluster.trackers.child`), so whatever it
does there (waits, prints, signals, exits) stays there. Credentials are the library's own business: it takes them from
the environment or from its login, and nothing here reads or stores them.
"""

import importlib
import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from configs.checks import ConfigError

DEFAULT_PROJECT = "delphi"
PARAMETERS_PER_REQUEST, PARAMETER_CHARACTERS, TEXT_CHARACTERS = 100, 500, 5000
"""MLflow's limits."""
FAILURE = "failed"
"""The outcome of a run that raised; the others are `finished` and `stopped`."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told when it starts (driver -> tracker's process)."""

    name: str
    run_dir: str
    config: dict[str, Any]
    """The resolved configuration; nested."""
    project: str = ""
    """Empty: the tracker's own environment variable, else `delphi`."""
    tags: list[str] = field(default_factory=list)
    run_id: str | None = None
    """The tracked run to continue; None for a new one."""
    env_steps: int = -1
    """Environment steps up to which the tracker has the metric lines."""

    def project_or(self, variable: str) -> str:
        """The configured project, else that of the environment variable, else the default."""
        return self.project or os.environ.get(variable) or DEFAULT_PROJECT


class Tracker(Protocol):
    """One run at one tracker, in the tracker's own process; any method may raise, which ends the tracking. Made by
    calling the class with the `TrackedRun`, whose configuration it takes if the run is new."""

    run_id: str
    """Continues this run when the training is resumed."""
    place: str
    """Where the user finds the run: a URL or a folder, without credentials."""

    def log(self, line: Mapping[str, float], env_steps: int) -> None:
        """Add one metric line; `env_steps` increases from line to line."""

    def close(self, outcome: str, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Add the run's summary and evaluation, mark it `finished`, `stopped` or `failed`, and deliver everything."""


class WandbTracker:
    """Weights & Biases; with WANDB_MODE=offline a folder in the run directory, which `wandb sync` uploads."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self.run_id = run.run_id or secrets.token_hex(8)
        # No copy of this program's output, code, git state or machine: the run directory has what is needed of them.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True
        )
        self._run = wandb.init(
            project=run.project_or("WANDB_PROJECT"),
            id=self.run_id,
            name=run.name,
            tags=run.tags,
            config=run.config if run.run_id is None else None,
            dir=os.environ.get("WANDB_DIR") or run.run_dir,
            resume="allow",
            settings=settings,
        )
        self.place = self._run.url or f"`wandb sync {Path(self._run.dir).parent}` uploads it"

    def log(self, line: Mapping[str, float], env_steps: int) -> None:
        self._run.log(dict(line), step=env_steps)

    def close(self, outcome: str, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        self._run.summary.update({**numbers, **texts, "outcome": outcome})
        self._run.finish(exit_code=int(outcome == FAILURE))


class MlflowTracker:
    """MLflow: the server, folder or database of MLFLOW_TRACKING_URI."""

    STATUS: Mapping[str, str] = {"finished": "FINISHED", "stopped": "KILLED", FAILURE: "FAILED"}

    def __init__(self, run: TrackedRun) -> None:
        # MLflow's own limits (120 s, 7 attempts) would hide an unreachable server for a quarter of an hour.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient, get_tracking_uri
        from mlflow.entities import Metric, Param

        self._client, self._metric, self._env_steps = MlflowClient(), Metric, max(run.env_steps, 0)
        name = run.project_or("MLFLOW_EXPERIMENT_NAME")
        self.place = f"experiment {name} of {get_tracking_uri()}"
        if run.run_id is not None:
            self.run_id = run.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        tags = dict.fromkeys(run.tags, "true")
        self.run_id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        params = [Param(key, value[:PARAMETER_CHARACTERS]) for key, value in flat_texts(run.config)]
        for start in range(0, len(params), PARAMETERS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMETERS_PER_REQUEST])

    def log(self, line: Mapping[str, float], env_steps: int) -> None:
        now, self._env_steps = int(time.time() * 1000), env_steps
        metrics = [self._metric(name, value, now, env_steps) for name, value in line.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, outcome: str, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        if numbers:
            self.log(numbers, self._env_steps)
        for name, text in texts.items():
            self._client.set_tag(self.run_id, name, text[:TEXT_CHARACTERS])
        self._client.set_terminated(self.run_id, status=self.STATUS[outcome])


class TrackioTracker:
    """Trackio: its local store (TRACKIO_DIR), or the Space or server that its environment variables name."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        # Trackio continues a run by its name, so the name must be this run's alone.
        self.run_id = run.run_id or f"{run.name}-{secrets.token_hex(4)}"
        project, self._env_steps = run.project_or("TRACKIO_PROJECT"), max(run.env_steps, 0)
        self._run = trackio.init(
            project=project,
            name=self.run_id,
            config={**run.config, "tags": run.tags},  # it would replace an earlier one by none
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.place = f'`trackio show --project "{project}"` shows {self.run_id}'

    def log(self, line: Mapping[str, float], env_steps: int) -> None:
        self._env_steps = env_steps
        self._run.log(dict(line), step=env_steps)

    def close(self, outcome: str, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        self._run.log({**numbers, **texts, "outcome": outcome}, step=self._env_steps)
        self._run.finish()


CLASSES: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def make_tracker(name: str, run: TrackedRun) -> Tracker:
    """The tracker of that name, or of `module:Class`, with its run begun or continued; raises what it raises."""
    module, _, attribute = name.partition(":")
    made = getattr(importlib.import_module(module), attribute) if attribute else CLASSES[name]
    return made(run)


def check_trackers(names: Sequence[str]) -> None:
    """ConfigError that says what to install if the package of a tracker is missing; imports none."""
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of a parent package
            found = None
        if found is None or found.origin is None:  # a mere folder of this name, as wandb leaves one
            how = "put it on the Python path" if attribute else f"pip install 'delphi-rl[{name}]'"
            raise ConfigError(f"logging.trackers: {name} needs the package {module}, which is not installed: {how}")


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(slashed name, number) of all numbers in nested values; truth values are 0 and 1."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def flat_texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of a nested configuration."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_texts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
