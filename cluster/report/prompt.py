"""The prompt that the judge was asked, as a template for the page, which puts a caption into it.

Invariant: made by the rubric itself (`llm_server.rubrics.rubric`), so it shows what engines are given; a rubric that is
no longer the run's is said to be another one.
"""

from typing import Any

from cluster.report.reading import RunRecord

TEXT = "\ue000"
"""Stands for the caption; a private character, which no rubric holds."""


def prompt_template(run: RunRecord) -> dict[str, Any]:
    """`before` and `after` the text, how a caption is divided (`separator`, `maxParts`, `maxChars`), and `notes` for
    the reader; only notes where no caption was asked about."""
    from cluster.plan import embedding_goals, plan_run
    from llm_server.rubrics.loading import load_rubric
    from llm_server.rubrics.rubric import MAX_PARTS
    from reward_models.interface import Asks

    try:
        plan = plan_run(run.config)
        if plan.asks is Asks.EMBEDDINGS:
            goals = "; ".join(embedding_goals(run.config))
            return {"notes": [f"No prompt: an encoder compared the caption with these goals: {goals}"]}
        if not plan.asks_judge and not run.config.reward_model.judgements:
            return {"notes": [f"No prompt: the reward model {run.config.reward_model.name} asks no judge."]}
        rubric = load_rubric(run.config.annotator.rubric)
    except ValueError as error:
        return {"notes": [f"The prompt cannot be shown: {error}"]}
    notes = []
    before = next((start["rubric_hash"] for start in reversed(run.starts) if start.get("rubric_hash")), None)
    if before and before.split("/")[0] != rubric.content_hash:
        notes.append("The rubric has been edited since this run: the prompt below is of the newer rubric.")
    if run.config.reward_model.judgements:
        notes.append("The judgements are of a file that was made before the run; the prompt is of the run's rubric.")
    if plan.asks is Asks.PAIRS and run.config.annotator.pairs == "compared":
        question, shown = rubric.pair_question(), rubric.pair_text("(another caption)", TEXT)
        notes.append("The judge compared two captions, in both orders.")
    else:
        question, shown = rubric.question(), TEXT
    if question.style == "chat":
        notes.append("A conversation: the model's own chat template joins the turns.")
        turns = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in question.chat_messages(shown))
        whole = f"{turns}\n\n[assistant]\n{question.answer_prefix}"
    else:
        begins, ends = question.completion_prompt()
        whole = f"{begins} {shown}{ends}"
    first, _, rest = whole.partition(TEXT)
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
        "notes": notes,
    }
