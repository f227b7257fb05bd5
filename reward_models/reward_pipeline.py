"""`RewardPipeline`: the annotation pipelines of all terms of the reward as one.

    worker's report ──by channel──▶ pipeline of each term ──tables──▶ PublishedReward
            │                             │ ▲                               ▲
            │                       the judge that they share               │
            └───states, missions, counts──▶ goal writer ───────goals────────┘

Invariant: all books live, are saved and are restored together, so that what the main term's has acknowledged, the
others hold as well; goals are saved last, so that no saved mask has a goal that the saved book lacks. A term that fails
keeps its last table, and disturbs no other.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from configs.goal_schema import GOAL_TERM
from configs.reward_schema import MAIN_TERM
from configs.terms import setting_of
from reward_models.goals.published import PublishedGoals
from reward_models.goals.run_goals import Items
from reward_models.goals.writer import GoalWriter
from reward_models.pipeline import AnnotationPipeline, RewardedCaption
from reward_models.published import PublishedReward

NOTHING: Items = {}, {}


class RewardPipeline:
    """One `AnnotationPipeline` per term; every method may be called from any thread. Use either `start` or `turn`.

    `reads` says which channel's items each term rewards; `goals` is None in a run without goals. The pipelines may
    share a service: each reports its answers to it and restarts it where that is due, and `close` ends it once.
    """

    def __init__(
        self, pipelines: Mapping[str, AnnotationPipeline], reads: Mapping[str, str], goals: GoalWriter | None = None
    ) -> None:
        self._pipelines, self._reads, self._goals = dict(pipelines), reads, goals
        self._main = self._pipelines[MAIN_TERM]

    @property
    def problem(self) -> str | None:
        """Why items of a term are no longer judged, the first term's that has a problem, or why goals are no longer
        written; None while there is no problem."""
        of_terms = (_named(name, each.problem) for name, each in self._pipelines.items() if each.problem)
        return next(of_terms, self._goals.problem if self._goals else None)

    @property
    def is_loading(self) -> bool:
        """Whether the judge is still loading its model."""
        return any(pipeline.is_loading for pipeline in self._pipelines.values())

    def report(
        self,
        channels: Mapping[str, Items],
        worker_id: str,
        sequence_number: int,
        env_steps: int,
        goal_counts: Mapping[str, Any] | None = None,
    ) -> tuple[str, int]:
        """Add a worker's report, its items by channel, to the books of all terms; see `CaptionBook.take_report`.
        `goal_counts` as `GoalStatistics.add` takes them."""
        if self._goals:
            self._goals.report(channels, worker_id, sequence_number, env_steps, goal_counts)
        acknowledged = {
            name: pipeline.report(*channels.get(self._reads[name], NOTHING), worker_id, sequence_number, env_steps)
            for name, pipeline in self._pipelines.items()
        }
        return acknowledged[MAIN_TERM]

    def turn(self, max_labels: int) -> PublishedReward:
        """`GoalWriter.turn`, and `AnnotationPipeline.turn` of each term, of at most `max_labels` answers each."""
        if self._goals:
            self._goals.turn()
        tables = {name: pipeline.turn(max_labels) for name, pipeline in self._pipelines.items()}
        return PublishedReward(tables=tables, goals=self._published_goals)

    def start(self) -> None:
        """Start to ask, learn and publish in the background."""
        for pipeline in self._pipelines.values():
            pipeline.start()
        if self._goals:
            self._goals.start()

    def adopt_goals(self, published: PublishedGoals) -> None:
        """See `RunGoals.adopt`; before `start`."""
        if self._goals:
            self._goals.adopt(published)

    def latest_reward(self) -> PublishedReward:
        """The newest table of every term, and the newest goals; never blocks."""
        tables = {name: pipeline.latest_table() for name, pipeline in self._pipelines.items()}
        return PublishedReward(tables=tables, goals=self._published_goals)

    @property
    def _published_goals(self) -> PublishedGoals | None:
        return self._goals.published if self._goals else None

    def metrics(self) -> dict[str, Any]:
        """The main term's, by name; with other terms also `terms`: for each of them, the main one included, `labels`
        (usable answers), `captions` (distinct items) and `problem`."""
        metrics = {name: pipeline.metrics() for name, pipeline in self._pipelines.items()}
        if len(metrics) == 1:
            return metrics[MAIN_TERM]
        terms = {
            name: {
                "labels": (of_term.get("annotations_total") or 0) - (of_term.get("annotations_unparsed") or 0),
                "captions": of_term["captions_distinct"],
                "problem": self._pipelines[name].problem,
            }
            for name, of_term in metrics.items()
        }
        return {**metrics[MAIN_TERM], **(self._goals.metrics() if self._goals else {}), "terms": terms}

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """`AnnotationPipeline.top_rewarded` of the main term, then of the others: `n` items in all, in equal parts."""
        return [
            replace(rewarded, term=name)
            for name, pipeline in self._pipelines.items()
            for rewarded in pipeline.top_rewarded(-(-n // len(self._pipelines)), min_count)
        ]

    def interrupt(self) -> None:
        """End a `turn`'s wait for the service; called from a signal handler."""
        for pipeline in self._pipelines.values():
            pipeline.interrupt()
        if self._goals:
            self._goals.interrupt()

    def state_dict(self) -> dict[str, Any]:
        """`AnnotationPipeline.state_dict` of the main term, with those of other terms under `terms`, and goals under
        `goals`."""
        states = {name: pipeline.state_dict() for name, pipeline in self._pipelines.items()}
        main = states.pop(MAIN_TERM)
        state = {**main, "terms": states} if states else main
        return {**state, GOAL_TERM: self._goals.state_dict()} if self._goals else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, of_term in states_by_term(state).items():
            self._pipelines[name].load_state_dict(of_term)
        if self._goals and GOAL_TERM in state:
            self._goals.load_state_dict(state[GOAL_TERM])

    def close(self) -> None:
        """Stop asking and training, all terms at once, stop the service, and write the archives."""
        if self._goals:
            self._goals.close()
        with ThreadPoolExecutor(len(self._pipelines)) as at_once:
            list(at_once.map(AnnotationPipeline.close, self._pipelines.values()))


def states_by_term(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The states of the terms' pipelines in a `RewardPipeline.state_dict`; none in an empty one."""
    return {MAIN_TERM: state, **state.get("terms", {})} if state else {}


def _named(term: str, problem: str | None) -> str | None:
    return problem if term == MAIN_TERM else f"{setting_of(term)}: {problem}"
