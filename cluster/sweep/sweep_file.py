"""A sweep file: the tasks, arms and seeds of an experiment, and how its arms are compared.

Invariant: a file is read whole or refused in one line before anything runs; every run is a complete configuration, and
arms of one task differ only in what the file says of them. Seeds are outermost, so that a sweep that is stopped has
compared all arms on fewer seeds.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.checks import ConfigError
from configs.errors import did_you_mean
from configs.loading import load_config
from configs.schema import RunConfig
from configs.yaml_text import Plain, guess, kind_of, read_yaml

OF_EVERY_RUN = {
    "cluster.mode": "inline",
    "actors.torch_threads": 1,
    "learner.torch_threads": 1,
    "logging.tensorboard": False,
    "logging.console": "plain",
    "logging.console_interval_s": 60.0,
}
"""Settings below those of the file: one deterministic process with one thread per run."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Of a task or an arm, which is also a folder's name."""
KEYS = {
    "": "title metric solved episodes envs cpus gpus seeds settings tasks arms together compare gain metrics",
    "a task": "preset config settings arms without",
    "an arm": "settings seeds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    task: str
    arm: str
    seed: int
    config: RunConfig

    @property
    def place(self) -> str:
        """Its folder under `runs`."""
        return f"{self.task}/{self.arm}/{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep file's content."""

    title: str
    metric: str
    """The metric of `delphi eval` that arms are compared by."""
    solved: float
    """The value of `metric` from which a run counts as solved."""
    episodes: int
    """Held-out episodes per run and player."""
    envs: int
    """Environments of the evaluation."""
    cpus: float
    gpus: float
    """What a run requests of Ray."""
    settings: dict[str, Any]
    """Of every run."""
    tasks: dict[str, dict[str, Any]]
    """Task -> preset or config, settings, settings by arm, and the arms that it goes without."""
    arms: dict[str, tuple[dict[str, Any], tuple[int, ...]]]
    """Arm -> settings and seeds."""
    together: dict[str, tuple[str, ...]]
    """Further rows of the tables: name -> the arms whose runs are taken together, each a stratum."""
    compare: tuple[str, ...]
    """The arms that are compared with every other row."""
    gain: tuple[str, ...]
    """Two arms, or none: the tables say which share of the way from the first to the second every row goes."""
    metrics: tuple[str, ...]
    """Further metrics of `delphi eval` that the tables show."""

    def runs(self, out: Path) -> Iterator[PlannedRun]:
        """Every run, in the order in which they are started; run directories are `out`/runs/task/arm/seed. Raises
        ConfigError."""
        every_seed = sorted({seed for _, seeds in self.arms.values() for seed in seeds})
        for seed in every_seed:
            for task, values in self.tasks.items():
                for arm, (settings, seeds) in self.arms.items():
                    if seed in seeds and arm not in values["without"]:
                        yield self._run(task, arm, seed, settings, out)

    def _run(self, task: str, arm: str, seed: int, settings: Mapping[str, Any], out: Path) -> PlannedRun:
        values = self.tasks[task]
        layers = [OF_EVERY_RUN, self.settings, values["settings"], settings, values["arms"].get(arm, {})]
        own = {"seed": seed, "run_dir": str(out / "runs" / task / arm / str(seed))}
        try:
            config = load_config(preset=values["preset"], file=values["config"], layers=[*layers, own])
        except ConfigError as error:
            raise ConfigError(f"task {task}, arm {arm}: {error}") from None
        return PlannedRun(task=task, arm=arm, seed=seed, config=config)


def read_sweep(path: Path) -> Sweep:
    """The sweep file at `path`; its title defaults to its folder's name. Raises ConfigError."""
    try:
        values = read_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot read the sweep file {path}: {reason}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return _sweep(values, path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _sweep(values: Any, path: Path) -> Sweep:
    _check_keys(values, "", "the file")
    seeds = _seeds(guess(values.get("seeds", 5)), "seeds")
    arms = {}
    for name, arm in _named(values, "arms").items():
        where = f"arms.{name}"
        _check_keys(arm, "an arm", where)
        arms[name] = (_mapping(arm, "settings", where), _seeds(guess(arm["seeds"]), where) if "seeds" in arm else seeds)
    tasks = {name: _task(name, task, arms, path) for name, task in _named(values, "tasks").items()}
    together = {
        str(name): tuple(_arms(members, f"together.{name}", arms))
        for name, members in _mapping(values, "together", "").items()
    }
    return Sweep(
        title=str(values.get("title", path.absolute().parent.name)),
        metric=str(values.get("metric", "success")),
        solved=_number(values, "solved", 0.5, low=-math.inf),
        episodes=int(_number(values, "episodes", 100, low=1)),
        envs=int(_number(values, "envs", 20, low=1)),
        cpus=_number(values, "cpus", 1, low=0.01),
        gpus=_number(values, "gpus", 0, low=0),
        settings=_mapping(values, "settings", ""),
        tasks=tasks,
        arms=arms,
        together=together,
        compare=tuple(_arms(values.get("compare", []), "compare", {**arms, **together})),
        gain=_gain(values.get("gain", []), arms),
        metrics=tuple(map(str, _list(values.get("metrics", []), "metrics", "metrics"))),
    )


def _task(name: str, task: Any, arms: Mapping[str, Any], path: Path) -> dict[str, Any]:
    where = f"tasks.{name}"
    _check_keys(task, "a task", where)
    config = task.get("config")
    of_arms = _mapping(task, "arms", where)
    _arms(list(of_arms), f"{where}.arms", arms)
    return {
        "preset": task.get("preset"),
        "config": str(path.parent / str(config)) if config is not None else None,
        "settings": _mapping(task, "settings", where),
        "arms": {arm: _mapping(of_arms, arm, f"{where}.arms") for arm in of_arms},
        "without": _arms(task.get("without", []), f"{where}.without", arms),
    }


def _check_keys(values: Any, of: str, where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: got {kind_of(values)}, wanted keys with values ({KEYS[of].replace(' ', ', ')})")
    known = KEYS[of].split()
    for key in values:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"{where}: unknown key {key}{near}; there are: {', '.join(known)}")


def _named(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = _mapping(values, key, "")
    if not found:
        raise ConfigError(f"{key}: got nothing, wanted at least one name with its settings")
    for name in found:
        if not NAME.fullmatch(str(name)):
            wanted = "wanted letters, digits, `_`, `.` and `-`, because it is also a folder's"
            raise ConfigError(f"{key}: got the name {str(name)!r}, {wanted}")
    return {str(name): {} if value == "" else value for name, value in found.items()}


def _mapping(values: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = values.get(key, {})
    if isinstance(value, Plain) and not value:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{'.'.join(filter(None, (where, key)))}: got {kind_of(value)}, wanted keys with values")
    return value


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(1, value + 1))
    is_list = isinstance(value, list) and value and all(isinstance(seed, int) and seed >= 0 for seed in value)
    if not is_list or len(set(value)) < len(value):
        raise ConfigError(f"{where}: got {value!r}, wanted a number of seeds, or a list of different seeds")
    return tuple(value)


def _gain(names: Any, arms: Mapping[str, Any]) -> tuple[str, ...]:
    if names and len(_arms(names, "gain", arms)) != 2:
        raise ConfigError(
            f"gain: got {len(names)} arms, wanted two: the one to start from, and the best that can be had"
        )
    return tuple(names)


def _list(names: Any, where: str, of: str) -> list[Any]:
    if not isinstance(names, list):
        raise ConfigError(f"{where}: got {kind_of(names)}, wanted a list of {of}")
    return names


def _arms(names: Any, where: str, arms: Mapping[str, Any]) -> list[str]:
    for name in _list(names, where, "arms"):
        if name not in arms:
            near = did_you_mean(str(name), arms)
            raise ConfigError(f"{where}: there is no arm {name!r}{near}; there are: {', '.join(arms)}")
    return names


def _number(values: Mapping[str, Any], key: str, default: float, low: float) -> float:
    value = guess(values.get(key, default))
    if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
        least = f" of at least {low:g}" if math.isfinite(low) else ""
        raise ConfigError(f"{key}: got {value!r}, wanted a number{least}")
    return value


def selected(sweep: Sweep, tasks: Sequence[str], arms: Sequence[str], num_seeds: int | None) -> Sweep:
    """The part of a sweep with these tasks and arms (empty: all) and the first `num_seeds` seeds of each arm."""
    _arms(list(tasks), "--tasks", sweep.tasks)
    _arms(list(arms), "--arms", sweep.arms)
    return dataclasses.replace(
        sweep,
        tasks={name: task for name, task in sweep.tasks.items() if not tasks or name in tasks},
        arms={
            name: (settings, seeds[:num_seeds])
            for name, (settings, seeds) in sweep.arms.items()
            if not arms or name in arms
        },
    )
