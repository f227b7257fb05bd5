"""The facts of a Reward Report as JSON values: what is optimised, by whom it is judged, when that changed, which term
the reward came from over the run, what was paid, with what precision, which alarms there are, and what is unknown.

Invariant: both forms of the report, the Markdown file and the part of the page, are made from these facts alone, which
follow from the record.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np

from cluster.goals.facts import goal_facts
from cluster.metrics import TERMS
from cluster.report.alarms import all_alarms
from cluster.report.reading import RunRecord
from cluster.report.terms import term_facts, top_item

PARTS = 10
"""Parts of the run for which the shares of the terms are given."""
OF_PART = {
    "extrinsic": "reward_extrinsic_per_1000_steps",
    "intrinsic": "reward_intrinsic_per_1000_steps",
    "unknown": "intrinsic_unknown_fraction",
}
OF_TERM = ("share", "mean", "trust", "coefficient", "unknown")
PRECISION = ("reward_model_accuracy", "reward_model_disagreement", "pair_order_disagreement", "pseudo_labels")
UNKNOWN = (
    "intrinsic_unknown_fraction",
    "steps_without_table_fraction",
    "captions_distinct",
    "captions_evicted",
    "annotations_total",
    "annotations_pending",
    "annotations_unparsed",
    "annotations_undecided",
    "annotations_rejected",
)


def reward_facts(run: RunRecord) -> dict[str, Any]:
    """All facts of the run, of which none is NaN or infinite."""
    config, terms = run.config, term_facts(run)
    reward = config.reward
    top = top_item(terms)
    facts = {
        "run": run.name,
        "env_steps": run.env_steps,
        "total_env_steps": config.total_env_steps,
        "environment": config.env.id + (f", {config.env.options}" if config.env.options else ""),
        "seconds": run.last("time_s"),
        "optimised": {
            "gamma": config.learner.gamma,
            "extrinsic": {
                "coefficient": reward.extrinsic_coefficient,
                "scale": reward.extrinsic_scale,
                "clip": reward.extrinsic_clip,
            },
            "max_intrinsic_share": reward.max_intrinsic_share,
            "robust": asdict(config.robust),
        },
        "terms": terms,
        "goals": goal_facts(config, run.learnt.state_of_goals) if run.learnt.state_of_goals else [],
        "starts": _starts(run),
        "judge_replaced": _judge_replaced(run),
        "parts": parts_of(run.lines, run.env_steps),
        "precision": {"audit": run.audit, "top_item": top and top._asdict(), **_last(run, PRECISION)},
        "alarms": [alarm._asdict() for alarm in all_alarms(run, top)],
        "unknown": _last(run, UNKNOWN),
        "missing": run.missing,
    }
    return _finite(facts)


def parts_of(lines: Sequence[dict[str, Any]], env_steps: int) -> list[dict[str, Any]]:
    """Ten equal parts of the run, without those that no metric line ends in: `from_steps` and `to_steps`, means of
    OF_PART, and under `terms` those of OF_TERM by term; a line counts by its steps."""
    edges = np.linspace(0, max(env_steps, 1), PARTS + 1)
    sizes = [after["env_steps"] - before for before, after in zip(_starts_of(lines), lines, strict=True)]
    place = np.searchsorted(edges, [line["env_steps"] for line in lines]).clip(1) - 1
    found = []
    for part in np.unique(place).tolist():
        rows = np.flatnonzero(place == part).tolist()
        own, weights = [lines[row] for row in rows], [sizes[row] for row in rows]
        names = dict.fromkeys(itertools.chain.from_iterable(line.get(TERMS, ()) for line in own))
        of_terms = {name: [line.get(TERMS, {}).get(name, {}) for line in own] for name in names}
        terms = {name: {key: _mean(values, key, weights) for key in OF_TERM} for name, values in of_terms.items()}
        # The metric counts updates in which nothing was paid as shares of 0.
        paid = sum(term["share"] or 0.0 for term in terms.values())
        found.append(
            {
                "from_steps": round(edges[part]),
                "to_steps": round(edges[part + 1]),
                **{key: _mean(own, metric, weights) for key, metric in OF_PART.items()},
                "terms": {
                    name: term | {"share": term["share"] / paid if paid and term["share"] is not None else None}
                    for name, term in terms.items()
                },
            }
        )
    return found


def _starts_of(lines: Sequence[dict[str, Any]]) -> list[int]:
    return [0, *(line["env_steps"] for line in lines[:-1])][: len(lines)]


def _mean(lines: Sequence[dict[str, Any]], name: str, weights: Sequence[float]) -> float | None:
    pairs = [(line[name], weight) for line, weight in zip(lines, weights, strict=True) if line.get(name) is not None]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _starts(run: RunRecord) -> list[dict[str, Any]]:
    """Every start of the run on record: its run epoch and time, the step from which it trained, commit, rubric hash,
    and how many reward tables it published."""
    first: dict[int, int] = {}
    versions: dict[int, int] = {}
    for before, line in zip(_starts_of(run.lines), run.lines, strict=True):
        epoch = int(line.get("run_epoch", 1))
        first.setdefault(epoch, before)
        versions[epoch] = int(line.get("reward_version") or versions.get(epoch, 0))
    known = {start.get("run_epoch"): start for start in run.starts}
    return [
        {
            "run_epoch": epoch,
            **{key: known.get(epoch, {}).get(key) for key in ("started", "commit", "rubric_hash")},
            "from_steps": first.get(epoch),
            "reward_versions": versions.get(epoch),
        }
        for epoch in sorted({*first, *(epoch for epoch in known if isinstance(epoch, int))})
    ]


def _judge_replaced(run: RunRecord) -> list[dict[str, Any]]:
    """Where the judge was replaced: by which step, and how many labels of the former one were dropped."""
    found, dropped = [], 0
    for line in run.lines:
        if (now := line.get("annotations_dropped", dropped)) > dropped:
            found.append({"env_steps": line["env_steps"], "labels_dropped": now - dropped})
        dropped = now
    return found


def _last(run: RunRecord, names: Sequence[str]) -> dict[str, Any]:
    return {name: run.last(name) for name in names}


def _finite(value: Any) -> Any:
    """A JSON value with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
