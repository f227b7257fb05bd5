"""Runs that another machine has done: their figures, from its results.json, stand in for their directories.

Invariant: a run is taken over only if it was made with the settings that this sweep gives it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.run.directory import write_atomically
from cluster.sweep.sweep_file import PlannedRun, Sweep
from configs.checks import ConfigError
from configs.loading import experiment_settings


def figures_file(run: PlannedRun) -> Path:
    """Where the figures of a run that was taken over lie: beside its directory, which there is none of."""
    return Path(f"{run.config.run_dir}.figures.json")


def recorded_figures(run: PlannedRun) -> dict[str, Any] | None:
    """The figures of a run that was taken over, if its settings are still those of the sweep."""
    file = figures_file(run)
    if not file.exists():
        return None
    figures = json.loads(file.read_text())
    return figures if _is_of(figures, run) else None


def take_over(results: Path, runs: Iterable[PlannedRun], sweep: Sweep) -> tuple[int, list[str]]:
    """Lay the figures in a results.json beside the directories of the runs of `sweep` that they belong to; how many,
    and the places of those that have other settings here. ConfigError for a file that cannot be used."""
    recorded = _read(results, sweep)
    taken, others = 0, []
    for run in runs:
        figures = recorded.get(run.place)
        if figures is None:
            continue
        if not _is_of(figures, run):
            others.append(run.place)
            continue
        file = figures_file(run)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(figures) + "\n")
        except OSError as error:
            raise ConfigError(f"--out: cannot write {file}: {error.strerror}; choose another --out") from None
        taken += 1
    return taken, others


def _is_of(figures: Mapping[str, Any], run: PlannedRun) -> bool:
    is_whole = figures["env_steps"] >= run.config.total_env_steps or run.config.max_time_s > 0
    return is_whole and figures["settings"] == experiment_settings(run.config)


def _read(file: Path, sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Place -> figures."""
    try:
        results = json.loads(file.read_text())
        runs = {f"{run['task']}/{run['arm']}/{run['seed']}": run for run in results["runs"]}
        measured = {"metric": results["metric"], "episodes": results["episodes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--recorded: {file} is no results.json of `delphi sweep` ({error})") from None
    wanted = {"metric": sweep.metric, "episodes": sweep.episodes}
    if measured != wanted:
        raise ConfigError(f"--recorded: the runs of {file} were measured by {measured}, this sweep wants {wanted}")
    if any("settings" not in run for run in runs.values()):
        raise ConfigError(f"--recorded: the runs of {file} do not say their settings; it is of an earlier version")
    return runs


def figures_of(recorded: Mapping[str, Any], run: PlannedRun, sweep: Sweep) -> dict[str, Any]:
    """A recorded run's figures for this sweep, whose threshold may be another."""
    solved_at = next((steps for steps, value in recorded["curve"] if value >= sweep.solved), None)
    return {**recorded, "solved_at": solved_at, "task": run.task, "arm": run.arm, "seed": run.seed}
