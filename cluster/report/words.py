"""What a run was and what came of it, in words and facts.

Invariant: every sentence follows from the record; where it does not hold what is asked, the sentence says so.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from cluster.report.reading import RunRecord
from cluster.report.terms import judged_by
from configs.reward_schema import MAIN_TERM
from configs.terms import term_runs

Facts = list[tuple[str, str]]
"""Term and description."""
HOW = {
    "retrieval": "the judge's own answer about the caption",
    "classification": "a network trained on the judge's answers",
    "ranking": "a network trained on preferences between captions, normalised over the caption table",
    "embedding": "the similarity of the caption to goal sentences",
    "goals": "1 for what achieves a goal, by the rule goals.achieved_by",
    "program": "the sum of a program's components, clipped",
    "counts": "1 for every caption: novelty within the episode, no judge",
    "none": "0: extrinsic reward only",
}
ENDS = {
    "total_env_steps": "It reached its number of steps.",
    "max_time_s": "Its time was up.",
    "a stop request": "It was stopped by hand.",
}
OUTPUTS = {
    "binary": "R = 1 where the probability is above the threshold, else 0",
    "soft": "R = max(0, p - threshold) / (1 - threshold)",
    "probability": "R = p",
}


def headline(run: RunRecord) -> str:
    """What was trained, and what came of it, in two or three sentences."""
    config = run.config
    seconds = run.last("time_s")
    lasted = f" in {duration(seconds)}" if seconds else ""
    judged = f"; its intrinsic reward is {HOW.get(config.reward_model.name, config.reward_model.name)}"
    if config.terms:
        judged += f", and what the terms {', '.join(config.terms)} pay"
    done = f"A policy for {config.env.id} was trained for {run.env_steps:,} of {config.total_env_steps:,} environment"
    done += f" steps{lasted}{judged}."
    if run.summary.get("ended_by"):
        done += f" {ENDS.get(run.summary['ended_by'], 'It has ended.')}"
    return f"{done} {evaluation(run)}"


def evaluation(run: RunRecord) -> str:
    """The evaluation at the end of the run in words, with intervals."""
    from cluster.run.outcome import METRICS, scores_as_text

    report = run.summary.get("evaluation") or {}
    if "problem" in report:
        return f"It was not evaluated: {report['problem']}."
    try:
        words = scores_as_text(report)
        name = next(name for name in METRICS if name in report["policy"])
        low, high = (report["differences"]["policy - blind"][name][end] for end in ("low", "high"))
        games = f"On {report['episodes']} held-out games each (mean and 95 % interval): {words}."
    except (KeyError, TypeError, StopIteration, ValueError):
        return "It was not evaluated at its end; `delphi eval` plays held-out games."
    if low > 0:
        return f"{games} The policy uses what it sees: it beats its own action frequencies played blindly."
    if high < 0:
        return f"{games} The policy does worse than its own action frequencies played blindly."
    return f"{games} That the policy uses what it sees was not shown: the interval of the difference holds 0."


def facts(run: RunRecord) -> Facts:
    """Environment, reward model, judge, length, code and machine."""
    config, start = run.config, run.starts[-1] if run.starts else {}
    hardware = start.get("hardware") or {}
    machine = ", ".join(str(hardware[key]) for key in ("host", "processor") if hardware.get(key)) or "not known"
    if hardware.get("cpus"):
        machine += f", {hardware['cpus']} processors"
    packages = start.get("packages") or {}
    return [
        ("Run", run.name),
        ("Environment", config.env.id + (f", {config.env.options}" if config.env.options else "")),
        ("Reward model", f"{config.reward_model.name}, {config.reward_model.output}"),
        *([("Further terms", ", ".join(config.terms))] if config.terms else []),
        ("Judge", _judges(run)),
        ("Seed", str(config.seed)),
        ("Steps", f"{run.env_steps:,} of {config.total_env_steps:,}"),
        ("Time", duration(run.last("time_s")) if run.last("time_s") else "not known"),
        ("Started", ", ".join(str(start.get("started")) for start in run.starts) or "not known"),
        ("Commit", commit_in_short(start.get("commit"))),
        ("Machine", machine),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version) or "not known"),
    ]


def duration(seconds: float) -> str:
    """`3 h 20 min`, `12 min` or `41 s`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def commit_in_short(commit: str | None) -> str:
    """Twelve digits, and whether files differed from it."""
    digits, _, is_dirty = str(commit or "not known").partition("-")
    return digits[:12] + ("-dirty" if is_dirty else "")


def visible(text: str) -> str:
    """`text` on one line: control, format and line-separating characters by code, as they can turn the order of
    letters, or end a line."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in hidden else c for c in text)


def _judges(run: RunRecord) -> str:
    runs = term_runs(run.config)
    of_terms = {
        name: judged_by(run.learnt.of(name), settings.reward_model, settings.annotator, settings.service)
        for name, settings in runs.items()
    }
    return of_terms[MAIN_TERM] if len(runs) == 1 else "; ".join(f"{name}: {by}" for name, by in of_terms.items())


def table_row(run: RunRecord, group: str, alarms: int) -> Mapping[str, Any]:
    """A run in the table of runs."""
    report = (run.summary.get("evaluation") or {}).get("words")
    outcome = {
        "success": run.last("episode_success_mean"),
        "score": run.last("episode_in_game_score_mean"),
        "return": run.last("episode_return_extrinsic_mean"),
    }
    best = next((f"{name} {value:.4g}" for name, value in outcome.items() if value is not None), "no episode has ended")
    return {
        "Run": run.name,
        "Group": group,
        "Seed": run.config.seed,
        "Steps": f"{run.env_steps:,}",
        "Last episodes": best,
        "Evaluation": report or "none",
        "Alarms": alarms,
    }
