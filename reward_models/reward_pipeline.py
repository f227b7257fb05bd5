"""`RewardPipeline`: the annotation pipelines of all terms of the reward as one.

    worker's report ──by channel──▶ pipeline of each term ──tables──▶ PublishedReward
                                          │ ▲
                                    the judge that they share

Invariant: all books live, are saved and are restored together, so that what the main term's has acknowledged, the
others hold as well. A term that fails keeps its last table, and disturbs no other.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias

from configs.reward_schema import MAIN_TERM
from reward_models.pipeline import AnnotationPipeline, RewardedCaption
from reward_models.published import PublishedReward

Items: TypeAlias = tuple[Mapping[int, str], Mapping[int, int]]
"""Of one channel of a report: id -> text, and id -> steps that showed it."""
NOTHING: Items = {}, {}


class RewardPipeline:
    """One `AnnotationPipeline` per term; every method may be called from any thread. Use either `start` or `turn`.

    `reads` says which channel's items each term rewards. The pipelines may share a service: each reports its answers to
    it and restarts it where that is due, and `close` ends it once.
    """

    def __init__(self, pipelines: Mapping[str, AnnotationPipeline], reads: Mapping[str, str]) -> None:
        self._pipelines, self._reads = dict(pipelines), reads
        self._main = self._pipelines[MAIN_TERM]

    @property
    def problem(self) -> str | None:
        """Why items of a term are no longer judged, the first term's that has a problem; None while there is none."""
        return next((_named(name, each.problem) for name, each in self._pipelines.items() if each.problem), None)

    @property
    def is_loading(self) -> bool:
        """Whether the judge is still loading its model."""
        return any(pipeline.is_loading for pipeline in self._pipelines.values())

    def report(
        self, channels: Mapping[str, Items], worker_id: str, sequence_number: int, env_steps: int
    ) -> tuple[str, int]:
        """Add a worker's report, its items by channel, to the books of all terms; see `CaptionBook.take_report`."""
        acknowledged = {
            name: pipeline.report(*channels.get(self._reads[name], NOTHING), worker_id, sequence_number, env_steps)
            for name, pipeline in self._pipelines.items()
        }
        return acknowledged[MAIN_TERM]

    def turn(self, max_labels: int) -> PublishedReward:
        """`AnnotationPipeline.turn` of each term, of at most `max_labels` answers each."""
        return PublishedReward(tables={name: pipeline.turn(max_labels) for name, pipeline in self._pipelines.items()})

    def start(self) -> None:
        """Start to ask, learn and publish in the background."""
        for pipeline in self._pipelines.values():
            pipeline.start()

    def latest_reward(self) -> PublishedReward:
        """The newest table of every term; never blocks."""
        tables = {name: pipeline.latest_table() for name, pipeline in self._pipelines.items()}
        return PublishedReward(tables=tables)

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
        return {**metrics[MAIN_TERM], "terms": terms}

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

    def state_dict(self) -> dict[str, Any]:
        """`AnnotationPipeline.state_dict` of the main term, with those of other terms under `terms`."""
        states = {name: pipeline.state_dict() for name, pipeline in self._pipelines.items()}
        main = states.pop(MAIN_TERM)
        return {**main, "terms": states} if states else main

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, of_term in states_by_term(state).items():
            self._pipelines[name].load_state_dict(of_term)

    def close(self) -> None:
        """Stop asking and training, all terms at once, stop the service, and write the archives."""
        with ThreadPoolExecutor(len(self._pipelines)) as at_once:
            list(at_once.map(AnnotationPipeline.close, self._pipelines.values()))


def states_by_term(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The states of the terms' pipelines in a `RewardPipeline.state_dict`; none in an empty one."""
    return {MAIN_TERM: state, **state.get("terms", {})} if state else {}


def _named(term: str, problem: str | None) -> str | None:
    return problem if term == MAIN_TERM else f"terms.{term}: {problem}"
