"""What a run was and what came of it, in words and facts: the headline, and the Reward Report.

Invariant: every sentence follows from the record; where it does not hold what is asked, the sentence says so.
"""

from collections.abc import Mapping
from typing import Any

from cluster.report.captions import Captions
from cluster.report.reading import RunRecord

Facts = list[tuple[str, str]]
"""Term and description."""
SOURCE = (
    "After “Reward Reports for Reinforcement Learning” (Gilbert et al. 2022, arXiv 2204.10817): what a system"
    " optimises, by whom that is judged, and how it changes, written down beside its results."
)
HOW = {
    "retrieval": "the judge's own answer about the caption",
    "classification": "a network trained on the judge's answers",
    "ranking": "a network trained on preferences between captions, normalised over the caption table",
    "embedding": "the similarity of the caption to goal sentences",
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
    machine = ", ".join(str(hardware[key]) for key in ("host", "machine") if hardware.get(key)) or "not known"
    if hardware.get("cpus"):
        machine += f", {hardware['cpus']} processors"
    packages = start.get("packages") or {}
    return [
        ("Run", run.name),
        ("Environment", config.env.id + (f", {config.env.options}" if config.env.options else "")),
        ("Reward model", f"{config.reward_model.name}, {config.reward_model.output}"),
        ("Judge", _judge(run)),
        ("Seed", str(config.seed)),
        ("Steps", f"{run.env_steps:,} of {config.total_env_steps:,}"),
        ("Time", duration(run.last("time_s")) if run.last("time_s") else "not known"),
        ("Started", ", ".join(str(start.get("started")) for start in run.starts) or "not known"),
        ("Commit", _commit(start)),
        ("Machine", machine),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version) or "not known"),
    ]


def reward_report(run: RunRecord, captions: Captions | None) -> list[tuple[str, list[str]]]:
    """Sections of sentences: what is optimised, by whom it is judged, how it changed, with what precision, limits."""
    return [
        ("What is optimised", _optimised(run)),
        ("By whom it is judged", [_judge(run) + ".", *_judging(run)]),
        ("How it changed over the run", _changes(run)),
        ("With what precision", _precision(run, captions)),
        ("Known limits", _limits(run)),
    ]


def duration(seconds: float) -> str:
    """`3 h 20 min`, `12 min` or `41 s`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _commit(start: Mapping[str, Any]) -> str:
    """Twelve digits, and whether files differed from it."""
    digits, _, is_dirty = str(start.get("commit") or "not known").partition("-")
    return digits[:12] + ("-dirty" if is_dirty else "")


def _judge(run: RunRecord) -> str:
    judge, config = run.learnt.judge, run.config
    if config.reward_model.name in ("none", "counts"):
        return "None: this reward model asks no judge"
    if config.reward_model.judgements:
        return f"The judgements in {config.reward_model.judgements}, made before the run"
    if not judge:
        asked = f"{config.service.model} ({config.service.engine}), rubric {config.annotator.rubric}"
        return f"{asked}; no answer is on record"
    return (
        f"{judge.get('model')} ({judge.get('engine')}), rubric {judge.get('rubric_id')} {judge.get('rubric_version')}"
    )


def _optimised(run: RunRecord) -> list[str]:
    reward, model = run.config.reward, run.config.reward_model
    formula = (
        f"r = {reward.extrinsic_coefficient:g} · clip({reward.extrinsic_scale:g} · r_env, ±{reward.extrinsic_clip:g})"
    )
    formula += f" + {reward.intrinsic_coefficient:g} · R(caption) / N^{reward.count_exponent:g}"
    sentences = [
        f"The policy maximises the discounted sum (gamma = {run.config.learner.gamma:g}) of {formula}, where r_env is"
        " the environment's own reward, and N is how often the caption has occurred in the running episode.",
        f"R is {HOW.get(model.name, model.name)}.",
    ]
    if model.name in ("retrieval", "classification"):
        sentences.append(f"{OUTPUTS[model.output]}.")
    if model.permute:
        sentences.append("A control: R is permuted among captions of similar frequency, so it carries no meaning.")
    if reward.max_intrinsic_share < 1:
        sentences.append(f"Intrinsic reward is scaled to at most {reward.max_intrinsic_share:.0%} of all reward.")
    return sentences


def _judging(run: RunRecord) -> list[str]:
    from llm_server.rubrics.loading import load_rubric

    judge, sentences = run.learnt.judge, []
    if judge:
        sentences = [
            f"Threshold θ = {judge.get('threshold', float('nan')):.4f}, with a dead band of"
            f" ± {judge.get('noise', 0):.2g} in which a caption is undecided and not paid.",
            f"Fingerprint of the weights {judge.get('fingerprint')}, hash of the rubric {judge.get('rubric_hash')}.",
        ]
        try:
            sentences.append(f"A positive answer means: “{load_rubric(run.config.annotator.rubric).goal}”")
        except ValueError:
            sentences.append("The rubric's file is not here any more.")
    return sentences


def _changes(run: RunRecord) -> list[str]:
    starts = len(run.starts) or run.last("run_epoch") or 1
    commits = list(dict.fromkeys(str(start.get("commit")) for start in run.starts))
    hashes = list(dict.fromkeys(start["rubric_hash"] for start in run.starts if start.get("rubric_hash")))
    sentences = [f"The run was started {starts:.0f} time(s), with {len(commits) or 1} version(s) of the code."]
    sentences.append(
        f"The rubric stayed the same ({hashes[0]})." if len(hashes) == 1 else f"Rubrics: {hashes or 'none'}."
    )
    if (version := run.last("reward_version")) is not None:
        sentences.append(f"{version:,.0f} reward tables were published since the last start.")
    if dropped := run.last("annotations_dropped"):
        sentences.append(f"The judge was replaced: {dropped:,.0f} labels of a former one were dropped.")
    for drift in run.learnt.drifts:
        sentences.append(
            f"From step {drift.from_steps:,} to {drift.to_steps:,} the reward table moved by {drift.distance:.3f} (0:"
            " not at all, 1: entirely; captions that both know, weighted by how often they occurred)."
        )
    return sentences


def _precision(run: RunRecord, captions: Captions | None) -> list[str]:
    from llm_server.offline.audit import ROWS

    sentences = []
    if run.audit:
        sentences.append(f"Audit: {run.audit.get('title', 'captions labelled by people')}.")
        figures = ((row.label, run.audit.get(name)) for name, row in ROWS.items())
        sentences += [f"{label}: {value:.4g}." for label, value in figures if isinstance(value, int | float)]
    else:
        sentences.append(
            "Not audited. `delphi audit --run RUN LABELLED --json > RUN/audit.json` compares the rewards with captions"
            " that people have labelled, and this section then shows its figures."
        )
    if (accuracy := run.last("reward_model_accuracy")) is not None:
        sentences.append(f"The reward model agrees with its judge on {accuracy:.1%} of the held-out labels.")
    answers = run.last("annotations_total")
    if answers:
        counted = {word: run.last(f"annotations_{word}") or 0 for word in ("unparsed", "undecided", "rejected")}
        words = ", ".join(f"{number:,.0f} {word}" for word, number in counted.items())
        sentences.append(f"Of {answers:,.0f} answers: {words}.")
    if captions is not None and captions.top_share is not None:
        sentences.append(f"The caption that was paid most has {captions.top_share:.1%} of the intrinsic reward.")
    return sentences


def _limits(run: RunRecord) -> list[str]:
    sentences = [
        "The judge sees one caption, never the state of the game or the history: what has no caption cannot be paid.",
        f"The N-th time that a caption occurs in an episode it earns 1 / N^{run.config.reward.count_exponent:g} of its"
        " R, so novelty is part of what is optimised.",
    ]
    if run.config.annotator.max_labels:
        sentences.append(f"The judge was asked at most {run.config.annotator.max_labels:,} times.")
    if unknown := run.last("intrinsic_unknown_fraction"):
        sentences.append(f"At the end {unknown:.1%} of the steps had a caption without a reward yet.")
    if without := run.last("steps_without_table_fraction"):
        sentences.append(f"{without:.1%} of the steps were trained on before the first reward table came.")
    sentences.append("One run is one seed: differences between two runs may be chance.")
    return sentences


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
