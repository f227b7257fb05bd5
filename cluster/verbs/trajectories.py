"""`delphi audit --trajectories`: holds the reward of a run, or of a program, to the episodes that a run has archived.

Invariant: a reward is computed as the learner would pay it, by the tables of the newest checkpoint; a gate that
abstains is shown as such, and is not passed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cluster.run.directory import find_run
from configs.goal_schema import GOAL_TERM
from configs.loading import from_dict
from configs.reward_schema import MAIN_TERM, TermConfig
from configs.schema import RunConfig
from configs.terms import resolved_terms
from learner.checkpoint import load_latest
from learner.checkpoint_format import CheckpointError
from learner.episode_archive import MAX_STEPS
from learner.episodes import Episodes, read_episodes
from learner.reward.archived import archived_outcomes, archived_rewards, judged_program, summed
from reward_models.gates import Rewards, Verdict, judge
from reward_models.programs.compiling import compile_program
from reward_models.programs.refusal import ProgramError
from reward_models.reward_pipeline import states_by_term
from reward_models.table import RewardTable
from reward_models.training import saved_table

ALL_TERMS = "all terms"
SHOWN = {True: "passed", False: "FAILED", None: "abstains"}


class _Run(NamedTuple):
    path: Path
    config: RunConfig


def audit_trajectories(run_dir: str, program: str | None, other: str | None, *, as_json: bool) -> int:
    """Print the verdicts on the program in the file `program`, on the terms of the run `other`, or, without either, on
    the run's own. Exit code: 0 no gate failed, 1 one did. Raises ValueError, in one line, where there is nothing to
    judge or to judge by."""
    run = _run(run_dir)
    archive = read_episodes(run.path)
    if not archive.episodes:
        raise ValueError(f"{run_dir} has archived no episode yet: none has finished")
    own = _rewards(run, archive)
    if program:
        text = _read_program(program)
        verdicts = {program: judged_program(text, archive, _of_others(text, run, archive, own))}
    else:
        judged = _rewards(_run(other), archive) if other else own
        outcomes, verdicts = archived_outcomes(archive), {}
        for name, rewards in judged.items():
            earlier = own if other else {each: own[each] for each in own if each != name}
            verdicts[name] = judge(rewards, outcomes, earlier)
        if len(judged) > 1:
            verdicts[ALL_TERMS] = judge(summed([*judged.values()]), outcomes, own if other else {})
        if not verdicts:
            which = other or run_dir
            raise ValueError(
                f"{which} has no term of the reward that can be judged; give --program FILE or --run OTHER"
            )
    _print(_report(run_dir, program or other, archive, verdicts), as_json=as_json)
    return int(any(verdict.passed is False for found in verdicts.values() for verdict in found))


def _run(run_dir: str) -> _Run:
    run, saved = find_run(run_dir)
    return _Run(run.path, from_dict(saved))


def _read_program(path: str) -> str:
    try:
        return Path(path).read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, ValueError) as error:
        raise ValueError(f"--program: got {path!r} ({error}), wanted the file of a program") from None


def _of_others(text: str, run: _Run, archive: Episodes, own: dict[str, Rewards]) -> dict[str, Rewards]:
    """What the run's terms pay, without those that are this very program: it is no distance from itself."""
    try:
        program_id = compile_program(text, archive.features, archive.actions).program_id
    except ProgramError:
        return own  # the static gate says why
    programs = {name: term.program for name, term in resolved_terms(run.config).items() if term.program}
    same = {
        name
        for name, other in programs.items()
        if compile_program(other, archive.features, archive.actions).program_id == program_id
    }
    return {name: rewards for name, rewards in own.items() if name not in same}


def _rewards(run: _Run, archive: Episodes) -> dict[str, Rewards]:
    """What the terms of a run pay for the episodes, by name. Goals are left out: they are paid by what the agent
    pursued."""
    tables, rewards = _tables(run), {}
    for name, term in resolved_terms(run.config).items():
        if name != GOAL_TERM and not (name == MAIN_TERM and run.config.reward_model.name == "none"):
            rewards[name] = _of_term(run, name, term, archive, tables)
    return rewards


def _of_term(run: _Run, name: str, term: TermConfig, archive: Episodes, tables: Mapping[str, RewardTable]) -> Rewards:
    try:
        return archived_rewards(term, archive, tables.get(name))
    except ValueError as error:
        raise ValueError(f"term {name} of {run.path}: {error}") from None


def _tables(run: _Run) -> dict[str, RewardTable]:
    """The reward table of each judged term, in the newest checkpoint."""
    directory = run.path / "checkpoints"
    try:
        state = load_latest(directory, parts=("annotation",))
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    saved = states_by_term(state["annotation"]) if state else {}
    return {name: saved_table(of_term["trainer"], 0) for name, of_term in saved.items()}


def _report(run_dir: str, what: str | None, archive: Episodes, verdicts: Mapping[str, list[Verdict]]) -> dict[str, Any]:
    success = archive.outcomes("success")
    return {
        "run": run_dir,
        "judged": what or run_dir,
        "successes": int(success.sum()),
        "failures": int((~success).sum()),
        "successes_seen": archive.seen[1],
        "failures_seen": archive.seen[0],
        "cut": int((archive.outcomes("length") > MAX_STEPS).sum()),
        "rewards": {name: [asdict(verdict) for verdict in found] for name, found in verdicts.items()},
    }


def _print(report: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    from rich.console import Console
    from rich.table import Table

    counts = f"{report['successes']:,} of {report['successes_seen']:,} successes"
    counts += f" and {report['failures']:,} of {report['failures_seen']:,} failures"
    cut = f", {report['cut']:,} of them longer than the {MAX_STEPS} steps kept" if report["cut"] else ""
    title = f"{report['judged']} by {counts} of {report['run']}{cut}"
    table = Table("reward", "gate", "verdict", "figure", "", title=title, title_justify="left")
    for name, verdicts in report["rewards"].items():
        for verdict in verdicts:
            figure = "-" if verdict["figure"] is None else f"{verdict['figure']:.3g}"
            table.add_row(name, verdict["gate"], SHOWN[verdict["passed"]], figure, verdict["message"])
    Console(soft_wrap=True, markup=False, emoji=False).print(table)
