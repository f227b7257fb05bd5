"""The charts of a report as JSON values: which metrics are drawn together, over environment steps, and thinned.

Invariant: a point is the mean of the metric lines that it stands for; a metric that a run never defines has no chart.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.metrics import CATALOGUE, LEARNERS_TIME, OF_TERMS, TERMS, WORKERS_TIME
from cluster.report.captions import Captions
from cluster.report.checkpoints import PaidLine

POINTS = 240
"""The most points of a curve; a run has as many metric lines as it takes."""
PAID_INTERVALS = 60
PAID_CAPTIONS = 8
BY_NAME = {metric.name: metric for metric in (*CATALOGUE, *OF_TERMS)}
PER_STEPS = "Over all steps of each log interval: not biased by which episodes have ended."
OF_EPISODES = (
    "Means over ended episodes; undefined until as many have ended as the window holds, in the order of starts."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Which metrics one chart draws."""

    title: str
    names: tuple[str, ...]
    note: str = ""
    is_stacked: bool = False


def _of_panel(title: str, panel: str, note: str) -> Chart:
    """All metrics of a panel of the dashboard, which are shares of one whole."""
    names = tuple(metric.name for metric in CATALOGUE if metric.panel == panel)
    return Chart(title=title, names=names, note=note, is_stacked=True)


LEARNING = (
    Chart(title="Extrinsic reward per 1,000 steps", names=("reward_extrinsic_per_1000_steps",), note=PER_STEPS),
    Chart(title="Intrinsic reward per 1,000 steps", names=("reward_intrinsic_per_1000_steps",), note=PER_STEPS),
    Chart(title="In-game score per 1,000 steps", names=("in_game_score_per_1000_steps",)),
    Chart(title="Kills per 1,000 steps", names=("kills_per_1000_steps",)),
    Chart(title="Success", names=("episode_success_mean",), note=OF_EPISODES),
    Chart(title="In-game score of an episode", names=("episode_in_game_score_mean",), note=OF_EPISODES),
    Chart(title="Extrinsic return of an episode", names=("episode_return_extrinsic_mean",), note=OF_EPISODES),
    Chart(title="Length of an episode", names=("episode_length_mean",), note=OF_EPISODES),
    Chart(
        title="Information between state and action",
        names=("policy_state_information",),
        note="What the policy's choice tells about what it saw. Below 0.01 nats it hardly looks.",
    ),
    Chart(title="Entropy of the policy", names=("entropy",)),
    Chart(title="Explained variance", names=("explained_variance",)),
    Chart(title="KL divergence", names=("update_kl", "approx_kl")),
    Chart(title="Losses", names=("policy_loss", "value_loss")),
)
TIME = (
    _of_panel("Time of the workers", WORKERS_TIME, "Shares of the workers' time."),
    _of_panel("Time of the learner", LEARNERS_TIME, "Shares of the learner's time."),
    Chart(title="Environment steps per second", names=("env_steps_per_s",)),
    Chart(title="Policy lag", names=("policy_lag_mean", "policy_lag_max")),
)
LABELS = (
    Chart(title="Judgements per second", names=("annotations_per_s",)),
    Chart(title="Captions waiting for a judgement", names=("annotations_pending",)),
    Chart(title="Distinct captions", names=("captions_distinct",)),
    Chart(title="Judgements", names=("annotations_total", "annotations_cached")),
    Chart(title="Judgements that are no label", names=("annotations_unparsed", "annotations_undecided")),
    Chart(title="Age of a judgement", names=("annotation_age_s",)),
    Chart(title="Steps with an unknown caption", names=("intrinsic_unknown_fraction",)),
)
REWARD_MODEL = (
    Chart(title="Agreement of the reward model with its judge", names=("reward_model_accuracy",)),
    Chart(title="Version of the reward table", names=("reward_version",), note="Begins anew at each start of the run."),
    Chart(title="Scale of the intrinsic reward", names=("intrinsic_scale",)),
)
TERM_CHARTS = {
    "share": "Share of each term in the intrinsic reward",
    "trust": "Trust in each term",
    "coefficient": "Coefficient of each term",
    "unknown": "Steps with an item without a reward, by term",
}
"""The metrics of a term that are drawn, with their titles."""
ACROSS_SEEDS = (*LEARNING[:7], *LEARNING[8:11])
"""The charts that are drawn over groups of runs."""


def charts(group: Sequence[Chart], lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The charts of `group` of which `lines` define something, thinned."""
    all_steps, found = [line["env_steps"] for line in lines], []
    for chart in group:
        steps, series = _thinned(all_steps, lines, chart.names)
        if series:
            found.append(drawn(chart, steps, series))
    return found


def term_charts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The charts of the terms that `lines` know, a series per term, thinned."""
    of_terms = [line for line in lines if line.get(TERMS)]
    names = list(dict.fromkeys(name for line in of_terms for name in line[TERMS]))
    all_steps, found = [line["env_steps"] for line in of_terms], []
    for key, title in TERM_CHARTS.items():
        rows = [{name: values.get(key) for name, values in line[TERMS].items()} for line in of_terms]
        steps, series = _thinned(all_steps, rows, names)
        if series:
            found.append(drawn(Chart(title=title, names=(f"term_{key}",), is_stacked=key == "share"), steps, series))
    return found


def _thinned(
    steps: Sequence[float], rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """At most POINTS means of `steps`, and of each of the `names` that `rows` define somewhere."""
    parts = np.array_split(np.arange(len(rows)), min(len(rows), POINTS)) if rows else []
    series = [
        {"name": name, "y": [_mean([rows[row].get(name) for row in part.tolist()]) for part in parts]} for name in names
    ]
    x = [float(np.mean([steps[row] for row in part.tolist()])) for part in parts]
    return x, [one for one in series if any(value is not None for value in one["y"])]


def drawn(chart: Chart, steps: Sequence[float], series: list[dict[str, Any]]) -> dict[str, Any]:
    """One chart with its `series`, which have a `name`, `y`, and perhaps `low` and `high`; None is no value."""
    metrics = [BY_NAME[name] for name in chart.names]
    limits = sorted({limit for metric in metrics if (limit := _limit(metric.name)) is not None})
    return {
        "title": chart.title,
        "unit": metrics[0].unit,
        "about": " ".join([chart.note, *(f"{m.name}: {m.meaning} (healthy: {m.healthy})." for m in metrics)]).strip(),
        "stacked": chart.is_stacked,
        "limits": [] if chart.is_stacked else limits,
        "x": rounded(steps),
        "series": series,
    }


def reward_mass(paid: Sequence[PaidLine], captions: Captions | None) -> dict[str, Any] | None:
    """Who was paid when: the intrinsic reward per 1,000 steps of each interval, stacked by caption; None where nothing
    was paid. A caption that a line does not list is counted among the others until two lines in a row list it."""
    if not paid or not paid[-1].total:
        return None
    ends = np.unique(np.linspace(0, len(paid) - 1, min(len(paid), PAID_INTERVALS)).round().astype(int))
    kept = [PaidLine(0, 0.0, {}), *(paid[end] for end in ends.tolist())]
    top = sorted(paid[-1].captions, key=lambda number: -paid[-1].captions[number])[:PAID_CAPTIONS]
    texts = captions.texts_of(top) if captions else {}
    pairs = list(itertools.pairwise(kept))
    pairs = [(before, after) for before, after in pairs if after.env_steps > before.env_steps]
    shares = np.array([[_earned(number, *pair) for number in top] for pair in pairs])
    totals = np.array([after.total - before.total for before, after in pairs])
    per_1000 = 1000 / np.array([after.env_steps - before.env_steps for before, after in pairs])
    columns = [column * per_1000 for column in (*shares.T, np.maximum(totals - shares.sum(axis=1), 0))]
    names = [*(texts.get(number, f"caption {number:016x}") for number in top), "all others"]
    return {
        "title": "Intrinsic reward paid per 1,000 steps, by caption",
        "unit": "reward",
        "about": "The captions that were paid most in the whole run, and all others together: who the reward went to,"
        " and when. A caption among the first that stays there is what the policy is paid for.",
        "stacked": True,
        "limits": [],
        "x": [after.env_steps for _, after in pairs],
        "series": [{"name": name, "y": rounded(column)} for name, column in zip(names, columns, strict=True)],
    }


def _earned(number: int, before: PaidLine, after: PaidLine) -> float:
    """What a caption was paid in between; 0 where it is not listed, or only from now on."""
    if number not in after.captions or (before.env_steps and number not in before.captions):
        return 0.0
    return max(after.captions[number] - before.captions.get(number, 0.0), 0.0)


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """Six significant digits, which no chart can show more of."""
    return [float(f"{value:.6g}") for value in values]


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return rounded([sum(defined) / len(defined)])[0] if defined else None


def _limit(name: str) -> float | None:
    metric = BY_NAME[name]
    return metric.red_above if metric.red_above is not None else metric.red_below
