"""What the loop's handle of the annotator keeps while the annotator does not answer, and when it has died; Ray is
played by a fake."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from actors.goals.counts import GoalCounts
from actors.rollout import Acknowledgement, CaptionReport
from cluster.on_ray import annotation as ray_annotation
from cluster.on_ray import latest_table, slot
from cluster.on_ray.annotation import MAX_UNANSWERED_REPORTS, RayAnnotation
from cluster.on_ray.placement import Request
from configs.loading import load_config
from learner.checkpoint import load_checkpoint, save_checkpoint
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable
from tests.actors.goals.toy_goals import make_sheet

WORKER = "0.1-0"


class Reference:
    """A call's answer that is to come, or an object."""

    def __init__(self, value: Any = None, *, is_ready: bool = True) -> None:
        self.value, self.is_ready = value, is_ready


class FakeRay:
    """`get` and `wait` over references, and `kill`."""

    ObjectRef = Reference

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        if not reference.is_ready:
            raise GetTimeoutError
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: "FakeAnnotator") -> None:
        actor.has_died = True

    def wait(
        self, references: list[Reference], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list, list]:
        return [each for each in references if each.is_ready], [each for each in references if not each.is_ready]


class FakeAnnotator:
    """An annotator actor, which answers while `is_answering`."""

    def __init__(self) -> None:
        self.is_answering, self.has_died, self.judge_loads = True, False, False
        self.reports: list[CaptionReport] = []
        self.replicas: Any = "not told"
        self.tables: dict[str, RewardTable] = {}
        self.goals: PublishedGoals | None = None
        self.begun_with: PublishedGoals | None = None
        self.known: Any = None
        self.state: dict[str, Any] = {}
        self.calls: list[Reference] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(type(self), f"_{name}")

        class Method:
            remote = staticmethod(lambda *arguments: self._call(method, *arguments))

        return Method

    def answer(self) -> None:
        """Everything that was asked meanwhile."""
        self.is_answering = True
        for call in self.calls:
            call.is_ready = True

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Reference:
        given = [argument.value if isinstance(argument, Reference) else argument for argument in arguments]
        value = RayActorError() if self.has_died else method(self, *given)
        self.calls.append(Reference(value, is_ready=self.is_answering or self.has_died))
        return self.calls[-1]

    def _begin(self, state: Any, goals: Any, replicas: Any) -> None:
        self.begun_with, self.replicas = goals, replicas

    def _report(self, report: CaptionReport, env_steps: int) -> Acknowledgement:
        self.reports.append(report)
        return Acknowledgement(book_epoch="b", sequence_number=report.sequence_number)

    def _state_dict(self) -> dict[str, Any]:
        return self.state

    def _update(self, known: Any, known_goals: Any, replicas: Any) -> tuple[Any, ...]:
        self.replicas, self.known = replicas, known
        newer = {name: table for name, table in self.tables.items() if table.reward_version != known[name]}
        goals = self.goals if self.goals is not None and self.goals.version != known_goals else None
        return newer, goals, {}, None, self.judge_loads


@pytest.fixture
def annotators(monkeypatch: pytest.MonkeyPatch) -> list[FakeAnnotator]:
    """The annotators that are started, the newest last. Time passes fast."""
    started: list[FakeAnnotator] = []

    class Factory:
        @staticmethod
        def options(**options: Any) -> type["Factory"]:
            return Factory

        @staticmethod
        def remote(*arguments: Any) -> FakeAnnotator:
            started.append(FakeAnnotator())
            return started[-1]

    fake = FakeRay()
    monkeypatch.setattr(ray_annotation, "ray", fake)
    monkeypatch.setattr(slot, "ray", fake)
    monkeypatch.setattr(ray_annotation, "AnnotatorActor", Factory)
    ticks = itertools.count(100)
    for module in (latest_table, slot):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    return started


@pytest.fixture
def annotation(annotators: list[FakeAnnotator]) -> RayAnnotation:
    return RayAnnotation(load_config(preset="debug"), 1, Request(count=1, cpus=0.5, gpus=0.0))


def report(number: int, counts: dict[int, int]) -> Any:
    return Reference(CaptionReport(texts={}, counts=counts, worker_id=WORKER, sequence_number=number))


def counted(annotator: FakeAnnotator) -> dict[int, int]:
    total: dict[int, int] = {}
    for each in annotator.reports:
        for id_, count in each.counts.items():
            total[id_] = total.get(id_, 0) + count
    return total


def test_while_the_judge_loads_that_is_what_is_waited_for(
    annotators: list[FakeAnnotator], annotation: RayAnnotation
) -> None:
    annotation.load_state_dict({})
    for loads, waited_for in ((True, "the judge, which loads smollm2"), (False, None)):
        annotators[0].judge_loads = loads
        for _ in range(2):  # asked for, and then there
            annotation.latest_reward()
        assert annotation.waiting == waited_for


def test_the_annotator_hears_of_the_replicas_with_every_update(
    annotators: list[FakeAnnotator], annotation: RayAnnotation
) -> None:
    annotation.load_state_dict({})
    annotation.latest_reward()
    assert annotators[0].replicas is None
    there = {"replica-0": "10.0.0.1:5"}
    replicas = SimpleNamespace(poll=lambda: None, addresses=lambda: there, problem=None, credentials=None)
    annotation._replicas = replicas  # type: ignore[assignment]
    for problem in (None, "no model folder"):
        replicas.problem = problem
        for _ in range(2):
            annotation.latest_reward()
        assert annotators[0].replicas == (there, problem)


def test_no_count_is_lost_while_the_annotator_does_not_answer(
    annotators: list[FakeAnnotator], annotation: RayAnnotation
) -> None:
    annotators[0].is_answering = False
    for number in range(MAX_UNANSWERED_REPORTS + 6):
        annotation.report(report(number, {1: 1, 2 + number % 2: 10}), WORKER, 100 * number)
    assert len(annotators[0].reports) == MAX_UNANSWERED_REPORTS, "the bound on what waits for the annotator"
    annotators[0].answer()
    annotation.latest_reward()
    annotation.report(report(70, {1: 1}), WORKER, 7000)
    annotation.report(report(71, {1: 1}), WORKER, 7100)
    assert counted(annotators[0]) == {1: 72, 2: 350, 3: 350}
    assert [each.sequence_number for each in annotators[0].reports[-2:]] == [70, 71]
    assert annotators[0].reports[-1].counts == {1: 1}, "withheld counts are handed over once"


def test_counts_that_wait_are_bounded_and_a_report_that_is_gone_takes_its_own_with_it(
    annotators: list[FakeAnnotator], annotation: RayAnnotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_annotation, "MAX_WITHHELD", 3)
    annotators[0].is_answering = False
    for number in range(MAX_UNANSWERED_REPORTS):
        annotation.report(report(number, {}), WORKER, 0)
    annotation.report(Reference(RayActorError()), WORKER, 0)
    for number in range(10):
        annotation.report(report(100 + number, {number: 1, 0: 1}), WORKER, 0)
    annotators[0].answer()
    annotation.latest_reward()
    annotation.report(report(200, {9: 1}), WORKER, 0)
    assert counted(annotators[0]) == {0: 10, 1: 1, 2: 1, 9: 1}


def table(rewards: dict[int, float], version: int) -> RewardTable:
    return RewardTable.build(np.array(list(rewards), np.uint64), np.array(list(rewards.values())), (1, version))


def rewards(annotation: RayAnnotation, ids: range) -> list[float]:
    for _ in range(4):  # an answer is fetched by one poll, a question asked by the next
        annotation.latest_reward()
    return annotation.latest_reward().main.look_up(np.array(ids, np.uint64))[0].tolist()


def test_tables_of_two_annotators_are_never_mixed(annotators: list[FakeAnnotator], annotation: RayAnnotation) -> None:
    """They may be normalised each in its own way: a table is taken whole, or not at all."""
    ids = range(1, 11)
    annotators[0].tables["main"] = table(dict.fromkeys(ids, 1.0), 7)
    assert rewards(annotation, ids) == [1.0] * 10
    version = annotation.latest_reward().main.reward_version
    annotators[0].has_died = True
    assert rewards(annotation, ids) == [1.0] * 10, "training goes on with the last table"
    assert len(annotators) == 2
    annotators[1].tables["main"] = table(dict.fromkeys(range(1, 6), 0.25), 1)
    assert rewards(annotation, ids) == [1.0] * 10, "half of the captions would be unknown"
    annotators[1].tables["main"] = table(dict.fromkeys(range(2, 12), 0.25), 2)
    assert rewards(annotation, range(1, 12)) == [0.0, *[0.25] * 10]
    assert annotation.latest_reward().main.reward_version > version, "what the learner sees only goes up"
    annotators[1].tables["main"] = table({1: 0.5}, 3)
    assert rewards(annotation, ids) == [0.5, *[0.0] * 9], "one annotator's next table may be smaller"


def test_a_successor_that_never_gets_to_know_as_much_is_believed_after_a_while(
    annotators: list[FakeAnnotator], annotation: RayAnnotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = range(1, 11)
    annotators[0].tables["main"] = table(dict.fromkeys(ids, 1.0), 7)
    rewards(annotation, ids)
    annotators[0].has_died = True
    rewards(annotation, ids)
    annotators[1].tables["main"] = table({1: 0.25}, 1)
    assert rewards(annotation, ids) == [1.0] * 10
    monkeypatch.setattr(latest_table, "INHERITED_S", 1.0)
    assert rewards(annotation, ids) == [0.25, *[0.0] * 9]


@pytest.fixture
def three_terms(annotators: list[FakeAnnotator]) -> RayAnnotation:
    terms = ["env.describer=minigrid", "terms.fight.coefficient=1", "terms.place.reads=state"]
    return RayAnnotation(load_config(preset="debug", overrides=terms), 1, Request(count=1, cpus=0.5, gpus=0.0))


def test_only_the_tables_of_terms_that_changed_travel_and_each_version_only_goes_up(
    annotators: list[FakeAnnotator], three_terms: RayAnnotation
) -> None:
    (annotator,) = annotators
    annotator.tables = {"main": table({1: 1.0}, 5), "fight": table({1: 0.5}, 9)}
    rewards(three_terms, range(1, 2))
    tables = three_terms.latest_reward().tables
    assert {name: len(each) - 1 for name, each in tables.items()} == {"main": 1, "fight": 1, "place": 0}
    assert annotator.known == {"main": (1, 5), "fight": (1, 9), "place": None}
    versions = {name: each.reward_version for name, each in tables.items()}
    annotator.tables["fight"] = table({1: 0.5, 2: 1.0}, 10)
    rewards(three_terms, range(1, 2))
    now = {name: each.reward_version for name, each in three_terms.latest_reward().tables.items()}
    assert now == versions | {"fight": (1, versions["fight"][1] + 1)}


def test_a_successor_is_believed_term_by_term(annotators: list[FakeAnnotator], three_terms: RayAnnotation) -> None:
    annotators[0].tables = {"main": table({1: 1.0, 2: 1.0}, 5), "fight": table({1: 1.0}, 9)}
    rewards(three_terms, range(1, 2))
    annotators[0].has_died = True
    rewards(three_terms, range(1, 2))
    annotators[1].tables = {"main": table({1: 0.25}, 1), "fight": table({1: 0.25}, 1)}
    rewards(three_terms, range(1, 2))
    tables = three_terms.latest_reward().tables
    found = {name: each.look_up(np.array([1], np.uint64))[0][0] for name, each in tables.items()}
    assert found == {"main": 1.0, "fight": 0.25, "place": 0.0}, "the new annotator knows fewer of the main term's"


def test_no_count_of_any_channel_is_lost_while_the_annotator_does_not_answer(
    annotators: list[FakeAnnotator], three_terms: RayAnnotation
) -> None:
    def shown(number: int) -> Any:
        content = report(number, {1: 1}).value
        return Reference(replace(content, channels={"state": ({7: "a door"}, {7: 2})}))

    annotators[0].is_answering = False
    for number in range(MAX_UNANSWERED_REPORTS + 6):
        three_terms.report(shown(number), WORKER, number)
    annotators[0].answer()
    three_terms.latest_reward()
    three_terms.report(shown(70), WORKER, 70)
    assert counted(annotators[0]) == {1: 71}
    assert sum(each.channels["state"][1][7] for each in annotators[0].reports) == 2 * 71
    assert annotators[0].reports[-1].channels["state"][0] == {7: "a door"}


def published_goals(texts: list[str], version: tuple[int, int]) -> PublishedGoals:
    sheet = make_sheet(texts)
    names = ("texts", "vectors", "sampling", "before", "suggested_ids", "suggested")
    return PublishedGoals(version=version, weights=sheet.sampling, **{name: getattr(sheet, name) for name in names})


def test_goals_come_with_versions_that_only_go_up_over_one_annotator_after_the_other(
    annotators: list[FakeAnnotator], annotation: RayAnnotation
) -> None:
    assert annotation.latest_reward().goals is None
    seen = []
    for texts in (["a"], ["a", "b"]):
        annotators[-1].goals = published_goals(texts, (1, 7))
        for _ in range(4):
            goals = annotation.latest_reward().goals
        assert goals is not None
        seen.append((goals.texts, goals.version))
        annotators[-1].has_died = True
        for _ in range(40):
            kept = annotation.latest_reward().goals
        assert kept is not None
        assert kept.texts == goals.texts, "the last ones stay in use"
        begun_with = annotators[-1].begun_with
        assert begun_with is not None
        assert begun_with.texts == goals.texts, "the next annotator numbers them alike"
    assert [texts for texts, _ in seen] == [("a",), ("a", "b")]
    assert seen[1][1] > seen[0][1]


def test_a_resumed_run_pays_and_numbers_goals_as_before_until_its_annotator_has_begun(
    annotators: list[FakeAnnotator], annotation: RayAnnotation, tmp_path: Path
) -> None:
    annotators[0].state = {"trainer": {"ids": np.zeros(1, np.uint64), "rewards": np.zeros(1), "goals": None}}
    assert annotation.state_dict()["published_goals"] == {}
    annotators[0].goals = published_goals(["a", "b"], (1, 7))
    for _ in range(4):
        annotation.latest_reward()
    annotators[0].is_answering = False  # what is saved of the annotator is older than its goals
    path = save_checkpoint(tmp_path, 1, {"annotation": annotation.state_dict()}, keep=1)
    resumed = RayAnnotation(load_config(preset="debug"), 2, Request(count=1, cpus=0.5, gpus=0.0))
    resumed.load_state_dict(load_checkpoint(path)["annotation"])
    goals = resumed.latest_reward().goals
    assert goals is not None
    assert (goals.texts, goals.version) == (("a", "b"), (2, 1))
    assert goals.equals(annotators[0].goals)
    assert annotators[1].begun_with is goals
    annotators[1].goals = published_goals(["a", "b", "c"], (2, 1))
    for _ in range(4):
        goals = resumed.latest_reward().goals
    assert goals is not None
    assert (goals.texts, goals.version) == (("a", "b", "c"), (2, 2))


def test_counts_of_goals_wait_with_those_of_captions(
    annotators: list[FakeAnnotator], annotation: RayAnnotation
) -> None:
    def with_goals(number: int) -> Any:
        counts = replace(GoalCounts.zeros(), successes=number)
        counts.attempted[3] = 1
        return Reference(replace(report(number, {}).value, goals=counts))

    annotation.load_state_dict({})
    annotators[0].is_answering = False
    for number in range(MAX_UNANSWERED_REPORTS + 2):
        annotation.report(with_goals(number), WORKER, 0)
    annotators[0].answer()
    annotation.report(with_goals(0), WORKER, 0)
    annotation.report(with_goals(0), WORKER, 0)
    counted_goals = [each.goals for each in annotators[0].reports if each.goals is not None]
    number = MAX_UNANSWERED_REPORTS + 4
    assert sum(int(goals.attempted[3]) for goals in counted_goals) == number
    assert sum(goals.successes for goals in counted_goals) == sum(range(number - 2))
