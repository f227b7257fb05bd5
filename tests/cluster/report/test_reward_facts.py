"""Facts of runs with several terms, on records that hold exactly what is asked."""

from typing import Any

import numpy as np
import pytest

from cluster.report.checkpoints import Learnt, LearntTerm
from cluster.report.reading import RunRecord
from cluster.report.reward_facts import parts_of, reward_facts
from cluster.report.reward_files import markdown
from cluster.report.sections import sections
from configs.reward_schema import TermConfig
from configs.schema import RunConfig
from tests.cluster.report.records import record, series

TERMS = RunConfig(
    terms={
        "depth": TermConfig(reads="state", pays="potential", coefficient=2.0, trust="outcome", episode_cap=5.0),
        "fight": TermConfig(rubric="nethack_combat", coefficient=0.5, anneal_env_steps=1000),
    }
)


def with_terms(**changes: Any) -> RunRecord:
    """A run of 20 metric lines in which `depth` loses its trust, and its share, half-way."""
    lines = series(reward_intrinsic_per_1000_steps=[1.0] * 20)
    for row, line in enumerate(lines):
        depth = {"share": 0.5, "trust": 1.0} if row < 10 else {"share": 0.1, "trust": 0.2}
        line["terms"] = {"main": {"share": 0.9 - depth["share"]}, "depth": depth, "fight": {"share": 0.1}}
    return record(lines, config=TERMS, **changes)


def paid(sums: dict[int, float], rewards: dict[int, float] | None = None) -> LearntTerm:
    known = sorted(rewards or {})
    return LearntTerm(
        ids=np.array(known, np.uint64),
        rewards=np.array([(rewards or {})[number] for number in known], np.float32),
        paid_ids=np.array(list(sums), np.uint64),
        paid=np.array(list(sums.values())),
    )


def test_shares_and_trust_are_given_for_ten_equal_parts_of_the_run() -> None:
    facts = reward_facts(with_terms())
    assert [part["to_steps"] for part in facts["parts"]] == list(range(2, 21, 2))
    assert [part["terms"]["depth"]["share"] for part in facts["parts"]] == pytest.approx([0.5] * 5 + [0.1] * 5)
    (table,) = next(each for each in sections(facts) if each.title.startswith("Which term")).tables
    assert table.rows[0]["Share of depth"] == "50.0%"
    assert table.rows[-1]["Trust in depth"] == "0.2"
    assert "Trust in fight" not in table.rows[0], "a term that is not weighed has no trust to show"


def test_a_line_counts_in_its_part_by_its_steps() -> None:
    lines = [{"env_steps": 10, "intrinsic_unknown_fraction": 1.0}, {"env_steps": 40, "intrinsic_unknown_fraction": 0.0}]
    (part,) = parts_of(lines, 400)
    assert part["unknown"] == pytest.approx(10 / 40)


def test_shares_of_a_part_sum_up_to_one_although_some_updates_paid_nothing() -> None:
    line = {"env_steps": 10, "terms": {"main": {"share": 0.3}, "depth": {"share": 0.1}, "fight": {}}}
    (part,) = parts_of([line], 10)
    assert [part["terms"][name]["share"] for name in ("main", "depth", "fight")] == pytest.approx([0.75, 0.25, None])


def test_items_that_cost_are_shown_by_term_the_costliest_first() -> None:
    sums = {number: float(number - 30) for number in range(60)}
    facts = reward_facts(with_terms(learnt=Learnt(env_steps=20, terms={"depth": paid(sums)})))
    depth = facts["terms"]["depth"]
    assert [item["paid"] for item in depth["most_paid"]] == list(range(29, 9, -1))
    assert [item["paid"] for item in depth["most_costly"]] == list(range(-30, -10))
    assert depth["most_costly"][0]["text"] == "(the end of an episode)"
    assert depth["paid_total"] == sum(sums.values())
    assert "items that cost most" in markdown(facts)


def test_sums_of_the_main_term_get_the_sign_of_their_reward() -> None:
    main = paid({1: 3.0, 2: 5.0, 3: 1.0}, {1: 0.5, 2: -0.25})
    facts = reward_facts(record(learnt=Learnt(env_steps=1, terms={"main": main})))
    assert [item["paid"] for item in facts["terms"]["main"]["most_paid"]] == [3.0, 1.0]
    assert [item["paid"] for item in facts["terms"]["main"]["most_costly"]] == [-5.0]
    assert facts["precision"]["top_item"]["share"] == pytest.approx(5 / 9)


def test_every_terms_settings_are_there_with_those_taken_from_other_sections() -> None:
    facts = reward_facts(with_terms())
    assert facts["terms"]["depth"]["gamma"] == TERMS.learner.gamma
    assert facts["terms"]["fight"]["rubric"]["id"] == "nethack_combat"
    assert facts["terms"]["fight"]["max_labels"] == TERMS.annotator.max_labels
    text = markdown(facts)
    for name in ("main", "depth", "fight"):
        assert f"| {name} |" in text


def test_a_replaced_judge_is_dated() -> None:
    run = record(series(annotations_dropped=[0.0, 0.0, 40.0, 40.0, 50.0]))
    assert reward_facts(run)["judge_replaced"] == [
        {"env_steps": 3, "labels_dropped": 40.0},
        {"env_steps": 5, "labels_dropped": 10.0},
    ]


def test_what_is_no_number_in_json_is_none() -> None:
    facts = reward_facts(record(audit={"auc": float("nan"), "deep": [float("inf"), 1]}))
    assert facts["precision"]["audit"] == {"auc": None, "deep": [None, 1]}
