"""The goals of a run as facts: the goal book with what is known of each goal, from a checkpoint's state.

Invariant: facts are JSON values, in the order of the goals' numbers; what is not on record is None.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.goals.sheet import goals_in
from configs.schema import RunConfig
from learner.reward.paid import paid_rewards
from reward_models.goals.book import NONE, GoalBook
from reward_models.goals.statistics import GoalStatistics
from reward_models.goals.weights import goal_weights


def goal_facts(config: RunConfig, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per goal in a checkpoint's `state`; none for a run without goals.

    `goal` (its number), `text`, `source`, `after` (text of the goal that a plan wants first) and `parent` (that it is a
    variant of), None for none, `is_active`, `is_copy` (it is worded as a caption); `suggested` (states in which it is);
    `tries` (episodes that pursued it; all of them where the policy is given no goals), `achieved` (episodes),
    `in_successes` and `in_failures` of these; `success` (recent rate, None if never tried); `weight` (what it pays,
    coefficient not included); `paid` (reward in the whole run).
    """
    saved = state["annotation"].get("goals")
    if not saved:
        return []
    goals = saved["goals"]
    book, statistics = GoalBook(config.goals.merge_similarity), GoalStatistics(config.policy.reads_goal)
    book.load_state_dict(goals["book"])
    statistics.load_state_dict(goals["statistics"])
    weights = goal_weights(book, statistics, goals["task"] if config.goals.relevance == "learned" else None)
    totals, rates = statistics.totals, statistics.success_rates
    suggested = goals_in(goals["suggestions"]["masks"]).sum(axis=0)
    sums = state["learner"]["rewards"].get("paid_goals")
    paid = paid_rewards(sums) if sums else {}
    known = book.goals

    def text_of(index: int) -> str | None:
        return None if index == NONE else known[index].text

    return [
        {
            "goal": index,
            "text": goal.text,
            "source": goal.source,
            "after": text_of(goal.before),
            "parent": text_of(goal.parent),
            "is_active": goal.is_active,
            "is_copy": goal.is_copy,
            "suggested": int(suggested[index]),
            "tries": int(statistics.tries[index]),
            "achieved": int(totals["achieved"][index]),
            "in_successes": int(totals["achieved_in_successes"][index]),
            "in_failures": int(totals["achieved_in_failures"][index]),
            "success": None if np.isnan(rates[index]) else float(rates[index]),
            "weight": float(weights[index]),
            "paid": float(paid.get(index, 0.0)),
        }
        for index, goal in enumerate(known)
    ]


def goal_row(goal: Mapping[str, Any]) -> dict[str, str]:
    """A row of a table about goals; `States` are those in which it is suggested."""
    notes = [f"after “{goal['after']}”"] if goal["after"] else []
    notes += [f"varies “{goal['parent']}”"] if goal["parent"] else []
    notes += ["worded as a caption"] * goal["is_copy"] + ["not active"] * (not goal["is_active"])
    return {
        "Goal": goal["text"],
        "Source": goal["source"] or "-",
        "States": f"{goal['suggested']:,}",
        "Tried": f"{goal['tries']:,}",
        "Achieved": f"{goal['achieved']:,}",
        "Success": "-" if goal["success"] is None else f"{goal['success']:.2f}",
        "Weight": f"{goal['weight']:.2f}",
        "Paid": f"{goal['paid']:,.1f}",
        "Notes": "; ".join(notes),
    }
