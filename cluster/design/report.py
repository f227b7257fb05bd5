"""What a campaign leaves behind: report.md, and winner.py, the program that a run takes as `terms.NAME.program`.

Invariant: both are made from the campaign's state alone, so a finished campaign that is started again writes the same.
What was written is data: the report shows it as it is, and none of it is markup.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.design.campaign import Campaign
from cluster.design.candidates import Candidate
from cluster.design.runs import TERM
from cluster.report.reward_files import escaped, fenced
from cluster.run.directory import write_atomically

REPORT, WINNER = "report.md", "winner.py"
MAX_PROBLEMS = 10


def write_report(campaign: Campaign) -> None:
    """Write both files into the campaign's folder; no winner.py where there is no winner."""
    out = campaign.plan.out
    write_atomically(out / REPORT, report_text(campaign))
    if campaign.winner:
        told = "; ".join(run.told for run in campaign.winner.outcomes)
        write_atomically(out / WINNER, f"# program {campaign.winner.name}: {told}\n{campaign.winner.program.text}")


def report_text(campaign: Campaign) -> str:
    """The report in Markdown."""
    plan, kind = campaign.plan, campaign.plan.kind
    title = one_line_of(plan.task or plan.base.env.id)
    measures = {run.measure: None for each in campaign.candidates.values() for run in each.outcomes if run.measure}
    names = [*dict.fromkeys([*measures, "return", "length"])]
    refused = sum(each.is_refused for each in campaign.candidates.values())
    lines = [
        f"# Campaign: {title}",
        "",
        f"Kind `{kind.id}`, environment {one_line_of(plan.base.env.id)}: {plan.num_rounds} rounds of"
        f" {kind.samples} programs, each trained for {plan.steps:,} steps, with {kind.seeds}"
        f" seed{'s' * (kind.seeds > 1)}; gates {', '.join(kind.gates)}; ordered by {kind.select}.",
        "",
        f"- environment steps of training: {campaign.spent_steps:,}"
        + (f" of at most {plan.max_env_steps:,}" if plan.max_env_steps else ""),
        f"- saved by gates: {campaign.saved_steps:,} ({refused} program{'s' * (refused != 1)} not trained)",
        f"- writings: {campaign.room.num_writings}, with {campaign.room.num_tokens:,} tokens"
        + (f", of at most {plan.max_writings}" if plan.max_writings else ""),
        *([f"- ended early: {one_line_of(campaign.ended)}"] if campaign.ended else []),
        *([f"- remarks: {'; '.join(map(one_line_of, plan.remarks))}"] if plan.remarks else []),
        "",
        *_winner(campaign.winner),
        "## Programs",
        "",
        f"| program | gates | {' | '.join(map(one_line_of, names))} | what came of it |",
        f"|---|---|{'---|' * len(names)}---|",
        *(_row(each, names, campaign.winner) for each in campaign.candidates.values()),
        "",
        *_texts(campaign),
    ]
    return "\n".join(lines)


def one_line_of(text: str) -> str:
    """Text within a line of Markdown, which shows it as it is."""
    return escaped(" ".join(text.split()))


def _winner(winner: Candidate | None) -> list[str]:
    if winner is None:
        return ["No program was trained to its end.", ""]
    told = "; ".join(run.told for run in winner.outcomes)
    use = f"As a term of a run: `env.features` as here, `terms.{TERM}.reads=features terms.{TERM}.program={WINNER}`."
    return [
        f"## Winner: program {winner.name}, {one_line_of(told)}",
        "",
        fenced(winner.program.text.rstrip(), "python"),
        "",
        use,
        "",
    ]


def _row(each: Candidate, names: Sequence[str], winner: Candidate | None) -> str:
    by = {passed: [verdict for verdict in each.verdicts if verdict.passed is passed] for passed in (True, None, False)}
    gates = [
        *(f"**refused** by {verdict.gate}: {one_line_of(verdict.message)}" for verdict in by[False]),
        *([f"pass: {', '.join(verdict.gate for verdict in by[True])}"] if by[True] else []),
        *([f"abstain: {', '.join(verdict.gate for verdict in by[None])}"] if by[None] else []),
    ]
    cells = [_mean(each, name) for name in names]
    came = each.problem or ("not trained" if each.is_refused or not each.outcomes else "trained")
    came = "**wins**" if winner and each.name == winner.name else one_line_of(came)
    return f"| {each.name} | {'; '.join(gates)} | {' | '.join(cells)} | {came} |"


def _mean(each: Candidate, name: str) -> str:
    known = [run.figures[name] for run in each.outcomes if name in run.figures]
    return f"{sum(known) / len(known):.3g}" if known else ""


def _texts(campaign: Campaign) -> list[str]:
    lines = []
    if problems := Counter(campaign.room.problems()):
        lines += ["## Texts that gave no new program", ""]
        lines += [f"- {number} x {one_line_of(what)}" for what, number in problems.most_common(MAX_PROBLEMS)]
        lines += [f"- and {len(problems) - MAX_PROBLEMS} others"] * (len(problems) > MAX_PROBLEMS) + [""]
    if steady := campaign.room.steady_features():
        lines += [f"Features that did not vary where they were measured: {one_line_of(', '.join(steady))}.", ""]
    for each in campaign.candidates.values():
        lines += [f"### Program {each.name}", "", fenced(each.program.text.rstrip(), "python"), ""]
    return lines


def paths(out: Path) -> tuple[Path, Path]:
    """The report and the winner in a campaign's folder."""
    return out / REPORT, out / WINNER
