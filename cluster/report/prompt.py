"""The prompt that the judge of a term was asked, as a template for the page, which puts an item into it.

Invariant: made by the rubric itself (`llm_server.rubrics.rubric`), so it shows what engines are given; a rubric that is
no longer the run's is said to be another one.
"""

from typing import Any

from cluster.report.reading import RunRecord
from cluster.run.rubric_record import hashes_by_setting, rubric_setting
from configs.reward_schema import MAIN_TERM

ITEM = "\ue000"
"""Stands for the item; a private character, which no rubric holds."""


def prompt_template(run: RunRecord, term: str = MAIN_TERM) -> dict[str, Any]:
    """`before` and `after` the text, how an item is divided (`separator`, `maxParts`, `maxChars`), the rubric's `name`,
    `id`, `version`, `goal` and `hash`, and `notes` for the reader; only notes where nothing was asked."""
    from cluster.plan import embedding_goals, plan_run
    from llm_server.rubrics.loading import load_rubric
    from llm_server.rubrics.rubric import MAX_PARTS
    from reward_models.interface import Asks

    try:
        plan = plan_run(run.config).terms[term]
        config = plan.config
        if plan.asks is Asks.GOALS and not plan.judges:
            return {"notes": ["No prompt: an encoder compared items with goals, and no judge was asked about them."]}
        if plan.asks is Asks.EMBEDDINGS:
            goals = "; ".join(embedding_goals(config))
            return {"notes": [f"No prompt: an encoder compared the caption with these goals: {goals}"]}
        if not plan.asks_judge and not config.reward_model.judgements:
            return {"notes": [f"No prompt: the reward model {config.reward_model.name} asks no judge."]}
        rubric = load_rubric(config.annotator.rubric)
    except ValueError as error:
        return {"notes": [f"The prompt cannot be shown: {error}"]}
    notes = []
    before = _hash_on_record(run, term)
    if before and before != rubric.content_hash:
        notes.append("The rubric has been edited since this run: the prompt below is of the newer rubric.")
    if config.reward_model.judgements:
        notes.append("The judgements are of a file that was made before the run; the prompt is of the run's rubric.")
    if plan.asks is Asks.PAIRS and config.annotator.pairs == "compared":
        question, shown = rubric.pair_question(), rubric.pair_text("(another caption)", ITEM)
        notes.append("The judge compared two captions, in both orders.")
    else:
        question, shown = rubric.question(), ITEM
        if rubric.about_label:
            shown = rubric.about_text(rubric.item_text(plan.any_about.encode()) or "", ITEM)
            if plan.asks is Asks.GOALS:
                notes.append(f"The judge was asked about each of an item's nearest goals, not “{plan.any_about}”.")
    if question.style == "chat":
        notes.append("A conversation: the model's own chat template joins the turns.")
        turns = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in question.chat_messages(shown))
        whole = f"{turns}\n\n[assistant]\n{question.answer_prefix}"
    else:
        begins, ends = question.completion_prompt()
        whole = f"{begins} {shown}{ends}"
    first, _, rest = whole.partition(ITEM)
    answers = [
        f"{answer.strip()} ({weight:g})" for answer, weight in zip(question.answers, question.weights, strict=False)
    ]
    return {
        "before": first,
        "after": rest,
        "separator": rubric.separator,
        "maxParts": MAX_PARTS,
        "maxChars": rubric.max_item_chars,
        "answers": ", ".join(answers),
        "name": config.annotator.rubric,
        "id": rubric.id,
        "version": rubric.version,
        "goal": rubric.goal,
        "hash": rubric.content_hash,
        "notes": notes,
    }


def _hash_on_record(run: RunRecord, term: str) -> str | None:
    """The hash of the rubric that the term's judge used, of a checkpoint or else of the last start."""
    if found := run.learnt.of(term).judge.get("rubric_hash"):
        return str(found)
    started = next((str(start["rubric_hash"]) for start in reversed(run.starts) if start.get("rubric_hash")), None)
    found = hashes_by_setting(started).get(rubric_setting(term))
    return found.split("/")[0] if found else None
