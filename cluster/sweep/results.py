"""What the runs of a sweep left behind: which of them are done, and the figures that arms are compared by.

Invariant: a run counts once it was trained to its end and evaluated on as many episodes as the sweep says.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.sweep.recorded import figures_of, recorded_figures
from cluster.sweep.sweep_file import PlannedRun, Sweep
from configs.checks import ConfigError
from configs.loading import experiment_diff, experiment_settings, to_dict
from configs.schema import RunConfig

LATE = 0.2
"""The last share of training that `late` figures cover."""
TOP_CAPTIONS = 10
PLAYERS = ("policy", "blind", "random")


def is_trained(run_dir: Path, config: RunConfig) -> bool:
    """Whether the run in `run_dir` has reached the end that `config` sets."""
    summary = _json(run_dir / "summary.json")
    reached = summary.get("env_steps", 0) >= config.total_env_steps or config.max_time_s > 0
    return bool(summary.get("finished")) and reached


def is_done(run: PlannedRun, sweep: Sweep) -> bool:
    """Whether a run is trained and evaluated as the sweep wants it. ConfigError where its directory holds a run with
    other settings."""
    if recorded_figures(run):
        return True
    run_dir = Path(run.config.run_dir)
    saved = _json(run_dir / "config.json")
    if saved and (differences := experiment_diff(saved, to_dict(run.config))):
        found = f"{run_dir} holds a run with other settings: {'; '.join(differences[:3])}"
        raise ConfigError(f"{found}. Give another --out, or remove that folder to run it again")
    evaluation = _json(run_dir / "evaluation.json")
    is_evaluated = evaluation.get("episodes", 0) >= sweep.episodes
    is_newest = evaluation.get("env_steps") == _json(run_dir / "summary.json").get("env_steps")
    return is_evaluated and is_newest and is_trained(run_dir, run.config)


def collect(runs: Iterable[PlannedRun], sweep: Sweep) -> list[dict[str, Any]]:
    """The figures of the runs that are done, as JSON values, in the order of tasks and arms, then by seed."""
    done = [run for run in runs if is_done(run, sweep)]
    tasks, arms = list(sweep.tasks), list(sweep.arms)
    done.sort(key=lambda run: (tasks.index(run.task), arms.index(run.arm), run.seed))
    return [{"task": run.task, "arm": run.arm, "seed": run.seed, **_read(run, sweep)} for run in done]


def _read(run: PlannedRun, sweep: Sweep) -> dict[str, Any]:
    if recorded := recorded_figures(run):
        return figures_of(recorded, run, sweep)
    run_dir = Path(run.config.run_dir)
    summary, evaluation = _json(run_dir / "summary.json"), _json(run_dir / "evaluation.json")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    late = [line for line in lines if line["env_steps"] > (1 - LATE) * summary["env_steps"]]
    policy = evaluation["policy"]
    for key, metrics in (("metric", (sweep.metric,)), ("metrics", sweep.metrics)):
        for unknown in set(metrics) - set(policy):
            raise ConfigError(f"{key}: got {unknown!r}, but the evaluation of {run_dir} has {', '.join(policy)}")
    last_start = _json(run_dir / "provenance.json")[-1]
    curve = _curve(lines, sweep.metric)
    return {
        "env_steps": summary["env_steps"],
        "time_s": summary["time_s"],
        "commit": last_start["commit"],
        "processor": last_start["hardware"].get("processor", "an unnamed processor"),
        "settings": experiment_settings(run.config),
        **{player: evaluation[player][sweep.metric]["mean"] for player in PLAYERS},
        "per_1000_steps": 1000 * policy[sweep.metric]["mean"] / policy["length"]["mean"],
        "over_training": float(np.mean([value for _, value in curve])) if curve else None,
        "solved_at": next((steps for steps, value in curve if value >= sweep.solved), None),
        "intrinsic_per_1000_steps": 1000 * _mean(late, "intrinsic_reward_mean"),
        "state_information": _mean(late, "policy_state_information"),
        "labels": summary.get("annotations_total"),
        "forward_passes": summary.get("forward_passes"),
        "captions": summary.get("captions_distinct"),
        "evaluation": {
            player: {name: metric["mean"] for name, metric in evaluation[player].items()} for player in PLAYERS
        },
        "paid": {
            caption["text"]: caption["count"]
            for caption in summary["top_rewarded"][:TOP_CAPTIONS]
            if caption["reward"] > 0
        },
        "curve": [[steps, round(value, 4)] for steps, value in curve],
    }


def _curve(lines: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(environment steps, mean over the last episodes) of an evaluation's metric in training, from the first line on
    that defines it; empty for a metric that training does not record."""
    name = f"episode_{'return_extrinsic' if metric == 'return' else metric}_mean"
    return [(line["env_steps"], line[name]) for line in lines if line.get(name) is not None]


def _mean(lines: Iterable[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([line.get(name) or 0.0 for line in lines] or [0.0]))


def _json(file: Path) -> Any:
    """The file's content; an empty dict where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}
