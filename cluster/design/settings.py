"""From a command to the plan of a campaign, and what makes it another campaign than the one in its folder.

Invariant: what the journal holds was done with the settings in its first line; only the number of rounds, budgets and
what concerns the machine may change.
"""

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.design.authors import Pool
from cluster.design.journal import Journal
from cluster.design.kind import BY_MODEL, DesignKind, load_kind
from cluster.design.plan import Plan
from cluster.design.runs import TERM, run_of
from cluster.run.directory import find_run
from cluster.sweep.sweep_file import OF_EVERY_RUN
from cluster.wiring import check_parts
from configs.checks import ConfigError
from configs.errors import one_line
from configs.features import SOURCES
from configs.goal_schema import GOAL_TERM, GoalsConfig
from configs.loading import experiment_settings, load_config
from configs.schema import RunConfig
from learner.episodes import read_episodes
from llm_server.progress import say_on_stderr

OF_PROGRAMS = {"reward_model.name": "none"}
"""Settings of the runs below the given ones: a program is the only intrinsic reward."""
MAY_CHANGE = ("kind.rounds",)
LEAST = {"steps": 1, "episodes": 1, "envs": 1, "jobs": 1, "max_env_steps": 0, "max_writings": 0}
"""Of the numbers among the flags."""
PLACEHOLDERS = {
    "reward": "def reward(before, after, start, action):\n    return 0",
    "progress": "def progress(state):\n    return 0",
}
"""A program of each form, in any environment, for the check of a run before there is any."""


def planned(arguments: argparse.Namespace) -> Plan:
    """The plan that a command asks for, but for remarks. Raises ConfigError."""
    for name, least in LEAST.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}, wanted at least {least}")
    changed = ("rounds", "samples", "seeds", "select", "critic", "analyse")
    kind = load_kind(arguments.kind, **{name: getattr(arguments, name) for name in changed})
    if arguments.programs:
        kind = _of_pool(kind, arguments)
    elif arguments.shuffle:
        raise ConfigError("--shuffle: got it without --programs, whose order it means")
    layers: list[Mapping[str, Any]] = [OF_EVERY_RUN, OF_PROGRAMS]
    given = load_config(preset=arguments.preset, file=arguments.config, layers=layers, overrides=arguments.overrides)
    if TERM in given.terms:
        raise ConfigError(f"terms.{TERM}: got a term of this name, which is the campaign's; leave it out")
    base, left_out = _without_rewards(given)
    if not base.env.features:
        raise ConfigError(f"env.features: got none, wanted {SOURCES}: programs are written about features")
    out = Path(arguments.out).absolute()
    steps = arguments.steps or base.total_env_steps
    run = run_of(base, kind, PLACEHOLDERS[kind.form], steps=steps, seed=base.seed, run_dir=out / "runs")
    spec, _, _ = check_parts(run)
    task = arguments.task or given.goals.task
    if not task.strip() and not arguments.programs:
        raise ConfigError("--task: got none, wanted the task in one sentence, for the writer")
    plan = Plan(
        kind=kind,
        task=one_line(task),
        base=base,
        features=spec.features,
        actions=spec.action_names,
        steps=steps,
        out=out,
        archive=_archive(arguments.archive, spec.features, spec.action_names) if arguments.archive else None,
        jobs=arguments.jobs,
        max_env_steps=arguments.max_env_steps,
        max_writings=arguments.max_writings,
    )
    if 0 < plan.max_env_steps < plan.cost:
        what = f"one program takes that many, with --seeds {kind.seeds} and --steps {steps}"
        raise ConfigError(f"--max-env-steps: got {plan.max_env_steps}, wanted at least {plan.cost}: {what}")
    if left_out:
        what = f"{', '.join(left_out)} of the configuration left out"
        say_on_stderr(f"delphi design: {what}: terms.{TERM}, the program, is the one term of every run")
    return plan


def check_settings(journal: Journal, plan: Plan, arguments: argparse.Namespace) -> Plan:
    """The plan with the remarks of all commands so far; a new one is recorded. ConfigError, with what differs, for the
    folder of another campaign."""
    settings = _settings(plan, arguments)
    begun = journal.once("begin", lambda: {"settings": settings})["settings"]
    names = [name for name in {**begun, **settings} if name not in MAY_CHANGE]
    differences = [
        f"{name}: {begun.get(name)!r} -> {settings.get(name)!r}"
        for name in names
        if begun.get(name) != settings.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{plan.out} holds another campaign: {one_line('; '.join(differences))}. Give the same settings to continue"
            " it, or another --out"
        )
    remarks = [record["text"] for record in journal.all("remark")]
    if arguments.feedback and arguments.feedback not in remarks[-1:]:
        journal.add("remark", {"text": arguments.feedback}, number=len(remarks))
        remarks.append(arguments.feedback)
    return replace(plan, remarks=tuple(remarks))


def _of_pool(kind: DesignKind, arguments: argparse.Namespace) -> DesignKind:
    """The kind where nobody writes: each text is taken once, and there is no model to ask."""
    if arguments.critic or arguments.analyse or kind.select == BY_MODEL:
        what = "--select judge" if kind.select == BY_MODEL else "--critic" if arguments.critic else "--analyse"
        raise ConfigError(f"{what}: got it with --programs, wanted one of the two: nobody writes")
    if arguments.feedback:
        raise ConfigError("--feedback: got it with --programs, wanted one of the two: nobody reads remarks")
    return replace(kind, attempts=1, critic=False, analyse=False)


def _without_rewards(given: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration without its terms and goals, and what these are."""
    left_out, base = [f"terms.{name}" for name in given.terms], replace(given, terms={})
    if base.goals.sources:
        left_out.append(GOAL_TERM)
        base = replace(base, goals=GoalsConfig(), policy=replace(base.policy, reads_goal=False))
    return base, left_out


def _archive(run: str, features: tuple[str, ...], actions: tuple[str, ...]) -> Path:
    """The directory of a run that keeps episodes with these features and actions."""
    path = find_run(run)[0].path
    try:
        episodes = read_episodes(path)
    except ValueError as error:
        raise ConfigError(f"--archive: {error}") from None
    if not episodes.episodes or episodes.features != features:
        got = ", ".join(episodes.features) or "none"
        got = f"{len(episodes.episodes)} episodes with the features {got}"
        raise ConfigError(f"--archive: {run} has {got}, wanted at least one with {', '.join(features)}")
    if episodes.actions != actions:
        got, wanted = (", ".join(names) or "without names" for names in (episodes.actions, actions))
        raise ConfigError(f"--archive: {run} has the actions {got}, wanted those of the environment here: {wanted}")
    return path


def _settings(plan: Plan, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """The settings that make the campaign what it is, as JSON values."""
    texts = Pool(Path(arguments.programs)).texts if arguments.programs else []
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16] if texts else ""
    kind = {
        f"kind.{name}": list(value) if isinstance(value, tuple) else value for name, value in asdict(plan.kind).items()
    }
    return {
        **kind,
        "task": plan.task,
        "steps": plan.steps,
        "episodes": arguments.episodes,
        "envs": arguments.envs,
        "archive": str(plan.archive or ""),
        "programs": digest,
        "shuffle": arguments.shuffle,
        **experiment_settings(plan.base),
    }
