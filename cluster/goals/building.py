"""Builds what a run's goals need: the goal model, what it asks, and the goal writer.

Invariant: model, questions and writer share one goal book, so that masks and published goals number goals alike.
"""

from cluster.judge import SharedJudge
from cluster.plan import RunPlan, TermPlan
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.goal_questions import GoalQuestions
from llm_server.rubrics.loading import load_rubric
from reward_models.goals.book import GoalBook
from reward_models.goals.model import NUM_NEAREST, GoalModel
from reward_models.goals.run_goals import RunGoals
from reward_models.goals.writer import GoalWriter


def build_goals(
    term: TermPlan, judge: SharedJudge, captions: CaptionBook, *, plan: RunPlan, run_epoch: int
) -> tuple[GoalModel, GoalQuestions, GoalWriter]:
    """For the term of goals, whose items `captions` holds. Raises ValueError for an error in a rubric."""
    config, rubric = plan.config, load_rubric(term.rubric)
    settings, asks = config.goals, config.annotator
    book = GoalBook(settings.merge_similarity)
    goals = RunGoals(
        settings,
        book,
        captions,
        run_epoch=run_epoch,
        is_given=config.policy.reads_goal,
        examples=[example.item for example in rubric.examples if example.positive],
    )
    questions = GoalQuestions(captions, settings.achieved_by, lambda vectors: book.nearest(vectors, NUM_NEAREST))
    model = GoalModel(term.config.reward_model, goals=settings, book=book)
    model.on_accomplished, model.on_unsettled = goals.accomplished, questions.ask_again
    writer = GoalWriter(
        goals,
        config.writer,
        connect=judge.connect(rubric),
        connect_writer=judge.connect_writer(config.writer.address, rubric) if plan.writes else None,
        connect_sensible=judge.connect(load_rubric(plan.sensible_rubric)) if plan.sensible_rubric else None,
        seed=term.config.seed,
        batch_size=asks.batch_size,
        wait_s=asks.request_timeout_s,
        max_backoff_s=asks.max_backoff_s,
        publish_interval_s=config.reward_model.publish_interval_s,
    )
    return model, questions, writer
