"""The terms of a run's reward as facts: what each reads, who judges it and with which question, how it is paid, and the
items that it paid most and that cost most.

Invariant: facts are JSON values, and what is not on record is None. Sums are of what the learner was paid, with their
sign; the main term's are kept as absolute values, and get the sign of their caption's present reward.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from cluster.metrics import TERMS
from cluster.report.checkpoints import LearntTerm
from cluster.report.prompt import ITEM, prompt_template
from cluster.report.reading import RunRecord
from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from configs.errors import one_line
from configs.reward_schema import MAIN_TERM, TermConfig
from configs.schema import RunConfig
from configs.terms import resolved_terms, term_runs
from llm_server.annotation import signed_id, unsigned_id
from llm_server.offline.caption_file import archive_rows

TOP = 20
"""Items shown of those that were paid most, and of those that cost most."""
ENDS = "(the end of an episode)"
"""Shown for the empty item, which `potential` pays for where an episode terminates."""


OF_PROGRAM = {
    "model": {"name": "program", "permute": False},
    "rubric": {"notes": []},
    "judge": None,
    "judged_by": "Nobody: a program computes it from the numbers of each state",
}
"""Facts of a term that is a program."""


class TopItem(NamedTuple):
    """The item with the largest sum of all terms (facts -> alarms)."""

    text: str
    share: float
    """In [0, 1], of the sums' absolute values."""


def term_facts(run: RunRecord) -> dict[str, dict[str, Any]]:
    """By term, the main one first: its settings with those taken from other sections, `rubric`, `judge`, `judged_by`
    (in words), `now` (its newest metrics), `drifts`, and what it paid; of a program that of its items is nothing."""
    runs, found = term_runs(run.config), {}
    for name, term in resolved_terms(run.config).items():
        learnt = run.learnt.of(name)
        found[name] = {
            **asdict(term),
            **(OF_PROGRAM if term.program else _model_facts(run, name, runs[name], learnt)),
            "now": _newest(run, name),
            "drifts": [drift._asdict() for drift in learnt.drifts],
            **_payments(run, name, term, learnt),
        }
    return found


def _model_facts(run: RunRecord, name: str, settings: RunConfig, learnt: LearntTerm) -> dict[str, Any]:
    return {
        "model": asdict(settings.reward_model),
        "rubric": _rubric(run, name, learnt),
        "judge": _judge(learnt, settings.annotator, settings.service),
        "judged_by": judged_by(learnt, settings.reward_model, settings.annotator, settings.service),
    }


def top_item(terms: Mapping[str, Mapping[str, Any]]) -> TopItem | None:
    """The item that has most of what all terms paid, from `term_facts`; None where nothing was paid."""
    total = sum(term["paid_absolute"] for term in terms.values())
    items = [item for term in terms.values() for item in (*term["most_paid"][:1], *term["most_costly"][:1])]
    if not total or not items:
        return None
    top = max(items, key=lambda item: abs(item["paid"]))
    return TopItem(top["text"], abs(top["paid"]) / total)


def judged_by(learnt: LearntTerm, model: RewardModelConfig, annotator: AnnotatorConfig, service: ServiceConfig) -> str:
    """Who answers for a term, in words without a full stop."""
    judge = learnt.judge
    if model.name in ("none", "counts"):
        return "None: this reward model asks no judge"
    if model.judgements:
        return f"The judgements in {model.judgements}, made before the run"
    if not judge:
        return f"{service.model} ({service.engine}), rubric {annotator.rubric}; no answer is on record"
    return (
        f"{judge.get('model')} ({judge.get('engine')}), rubric {judge.get('rubric_id')} {judge.get('rubric_version')}"
    )


def _rubric(run: RunRecord, term: str, learnt: LearntTerm) -> dict[str, Any]:
    """Name, hash, goal, and the whole question with ITEM in the place of an item; only `notes` where none was asked."""
    template = prompt_template(run, term)
    if "before" not in template:
        return {"notes": template["notes"]}
    return {
        **{key: template[key] for key in ("name", "id", "version", "goal", "answers", "notes")},
        "hash": learnt.judge.get("rubric_hash") or template["hash"],
        "text": template["before"] + ITEM + template["after"],
    }


def _judge(learnt: LearntTerm, annotator: AnnotatorConfig, service: ServiceConfig) -> dict[str, Any] | None:
    if not learnt.judge:
        return None
    known = ("model", "engine", "fingerprint", "rubric_hash", "threshold", "noise")
    return {
        **{key: learnt.judge.get(key) for key in known},
        "dtype": service.dtype,
        "service": annotator.address or "started by the run",
    }


def _newest(run: RunRecord, term: str) -> dict[str, Any]:
    """The term's entry in the newest metric line that has one; a run with one term writes its trust alone."""
    found = next((dict(line[TERMS][term]) for line in reversed(run.lines) if term in line.get(TERMS, {})), {})
    return found or {"trust": run.last("reward_trust_min")}


def _payments(run: RunRecord, name: str, term: TermConfig, learnt: LearntTerm) -> dict[str, Any]:
    """`paid_total` and `paid_absolute` (the sums of all items), `items_paid`, `most_paid` and `most_costly`."""
    sums = _signed(term, learnt) if name == MAIN_TERM else learnt.paid
    order = np.argsort(-sums, kind="stable")
    most, least = order[:TOP], order[::-1][:TOP]
    most, least = most[sums[most] > 0], least[sums[least] < 0]
    items = _items(run, name, learnt, learnt.paid_ids[np.concatenate([most, least])])
    return {
        "paid_total": float(sums.sum()),
        "paid_absolute": float(np.abs(sums).sum()),
        "items_paid": len(sums),
        **{
            key: [{**items[int(learnt.paid_ids[row])], "paid": float(sums[row])} for row in rows.tolist()]
            for key, rows in (("most_paid", most), ("most_costly", least))
        },
    }


def _signed(term: TermConfig, learnt: LearntTerm) -> np.ndarray:
    """[M] the main term's sums of absolute values with the sign that coefficient and present R give them."""
    rewards = term.coefficient * _rewards_of(learnt, learnt.paid_ids)
    return np.where(rewards < 0, -learnt.paid, learnt.paid)


def _rewards_of(learnt: LearntTerm, ids: np.ndarray) -> np.ndarray:
    """[N] R of each of `ids` [N]; NaN for one that is not in the reward table."""
    if not len(learnt.ids):
        return np.full(len(ids), np.nan)
    places = np.searchsorted(learnt.ids, ids).clip(max=len(learnt.ids) - 1)
    return np.where(learnt.ids[places] == ids, learnt.rewards[places], np.nan).astype(np.float64)


def _items(run: RunRecord, term: str, learnt: LearntTerm, ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """Text, occurrences, judgement and R by id; an item that the archive lacks is shown by its id."""
    rows = {}
    try:
        archive = archive_rows(str(run.directory.captions_of(term)), map(signed_id, ids.tolist())) if len(ids) else []
        rows = {unsigned_id(row[0]): row for row in archive}
    except ValueError as error:
        run.missing.append(f"texts of the items paid are left out: {one_line(error)}")
    found = {}
    for number, reward in zip(ids.tolist(), _rewards_of(learnt, ids).tolist(), strict=True):
        _, text, count, _, probability, _, status = rows.get(number, (None,) * 7)
        found[number] = {
            "id": f"{number:016x}",
            "text": text if text is not None else f"item {number:016x}" if number else ENDS,
            "count": count,
            "reward": None if np.isnan(reward) else reward,
            "probability": probability,
            "status": status,
        }
    return found
