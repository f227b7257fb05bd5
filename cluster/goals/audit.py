"""How well captions are matched with goals: the rule of `goals.achieved_by` held to captions whose goal people have
labelled.

Invariant: the rule is the one that training uses, on the same vectors and judgements; captions that the rubric shows as
examples are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.annotation_schema import RewardModelConfig
from configs.goal_schema import MAX_GOALS, GoalsConfig
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.goal_questions import GoalQuestions
from llm_server.offline.audit import folded, shown_by
from llm_server.offline.caption_file import LabelledGoal
from llm_server.offline.judge_flags import ITEMS_PER_REQUEST, OfflineJudgeClient
from llm_server.offline.judgement_file import caption_of
from llm_server.progress import progress
from llm_server.rubrics.rubric import Rubric
from reward_models.goals.book import Goal, GoalBook, goal_text
from reward_models.goals.masks import numbers_of
from reward_models.goals.model import GoalModel


def audit_goals(
    judge: OfflineJudgeClient, rubric: Rubric, labelled: Sequence[LabelledGoal], similarity: float
) -> dict[str, Any]:
    """Figures of the rule that fits the rubric (`judged` with an about_label, else `both`) and of `similarity` alone,
    by rule: `precision` (of captions that achieve a goal by the rule, how many are labelled with one), `recall` and
    `right_goal` (of those labelled with a goal, how many achieve any, and that very one), None where undefined. Raises
    ValueError where the file has no goals or too many."""
    examples = {folded(text) for text in shown_by(rubric)}
    kept = [row for row in labelled if folded(row.text) not in examples]
    texts = list(dict.fromkeys(row.goal for row in labelled if row.goal))
    if not 0 < len(texts) <= MAX_GOALS:
        raise ValueError(f"got {len(texts)} different goals, wanted 1 to {MAX_GOALS}")
    for text in texts:
        if goal_text(text) != text:
            raise ValueError(f"goal {text!r} is no goal, wanted one printable line of at most 100 characters")
    book = GoalBook(merge_similarity=1.01)  # goals of a file are told apart however alike they are
    for text, vector in zip(texts, judge.embed([text.encode() for text in texts]), strict=True):
        book.add(Goal(text=text, source="config"), vector)
    rule = "judged" if rubric.about_label else "both"
    questions = GoalQuestions(CaptionBook(1, 1), rule, lambda vectors: book.nearest(vectors, 4))
    captions, matched = [caption_of(row.text) for row in kept], []
    size = min(ITEMS_PER_REQUEST, judge.describe().max_items_per_request)
    with progress("captions", len(captions)) as advance:
        for start in range(0, len(captions), size):
            matched += questions.ask(judge, captions[start : start + size])
            advance(len(matched) - start)
    wanted = [texts.index(row.goal) if row.goal else None for row in kept]
    figures = {}
    for name in (rule, "similarity"):
        goals = GoalsConfig(achieved_by=name, similarity=similarity)
        model = GoalModel(RewardModelConfig(), goals=goals, book=book)
        model.calibrate(judge.describe().threshold)
        model.learn(matched)
        model.score(captions, np.ones(len(captions), np.int64))
        masks = model.goals(captions)
        assert masks is not None
        figures[name] = _figures(numbers_of(masks), wanted)
    return {
        "captions": len(kept),
        "examples_left_out": len(labelled) - len(kept),
        "goals": len(texts),
        "similarity": similarity,
        "rules": figures,
    }


def _figures(masks: Sequence[int], wanted: Sequence[int | None]) -> dict[str, float | None]:
    paid = [goal is not None for mask, goal in zip(masks, wanted, strict=True) if mask]
    found = [(bool(mask), mask >> goal & 1) for mask, goal in zip(masks, wanted, strict=True) if goal is not None]
    any_found, right = zip(*found, strict=True) if found else ((), ())
    return {
        "precision": float(np.mean(paid)) if paid else None,
        "recall": float(np.mean(any_found)) if found else None,
        "right_goal": float(np.mean(right)) if found else None,
    }


def print_goal_audit(report: Mapping[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("rule", "precision", "recall", "right goal", title=report["title"], title_justify="left")
    for name, figures in report["rules"].items():
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in figures.values()))
    Console(soft_wrap=True, markup=False, emoji=False).print(table)
