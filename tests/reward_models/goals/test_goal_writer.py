"""Goals of every source with a scripted writer: what is asked, what becomes of the answers, what a failure costs."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from actors.goals.sheet import goals_in
from configs.goal_schema import MAX_GOALS, GoalsConfig, WriterConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from llm_server.annotator.caption_book import CaptionBook
from llm_server.client import AnnotationRefused, ServiceUnavailable
from reward_models.goals.book import NONE, GoalBook
from reward_models.goals.run_goals import RunGoals
from reward_models.goals.sources import Proposal
from reward_models.goals.writer import NOTICE_AFTER, GoalWriter
from tests.reward_models.goals.scripted import Scripted, vector_of
from tests.reward_models.goals.test_goal_statistics import counts

STATES = {11: "a closed door", 12: "a key and a closed door", 13: "nothing"}


class Setup:
    """Goals with a writer that is turned by hand."""

    def __init__(self, service: Scripted, config: GoalsConfig, writer: WriterConfig, **settings: Any) -> None:
        self.book = GoalBook(config.merge_similarity)
        self.captions = CaptionBook(100, 1000)
        self.goals = RunGoals(
            config,
            self.book,
            self.captions,
            run_epoch=1,
            is_given=settings.pop("is_given", True),
            examples=["You open the door.", "You kill it."],
        )
        self.writer = GoalWriter(
            self.goals,
            writer,
            connect=service.connect,
            connect_writer=service.connect,
            connect_sensible=service.connect if "closed" in config.sources else None,
            **{"wait_s": 0.2, "max_backoff_s": 0.01, "publish_interval_s": 0.0, "batch_size": 3} | settings,
        )

    def report(self, number: int = 0, env_steps: int = 1, **channels: Any) -> None:
        given = channels.pop("counts", None)
        self.writer.report(channels, "0.a", number, env_steps, given)

    def states(self, **counts_of: int) -> None:
        self.report(state=(STATES, {11: 5, 12: 9, 13: 1}))

    @property
    def texts(self) -> list[str]:
        return [goal.text for goal in self.book.goals]

    def suggested(self) -> dict[int, set[str]]:
        published = self.writer.published
        rows = [np.flatnonzero(row) for row in goals_in(published.suggested)]
        ids = published.suggested_ids.tolist()
        return {number: {published.texts[n] for n in row} for number, row in zip(ids, rows, strict=True)}


Make = Callable[..., Setup]


@pytest.fixture
def service() -> Scripted:
    return Scripted()


@pytest.fixture
def make(service: Scripted) -> Iterator[Make]:
    made: list[Setup] = []

    def build(*sources: str, per_turn: int = 1, **settings: Any) -> Setup:
        ours = {name: settings.pop(name) for name in WriterConfig.__dataclass_fields__ if name in settings}
        of_writer = {
            name: settings.pop(name) for name in ("is_given", "wait_s", "publish_interval_s") if name in settings
        }
        config = GoalsConfig(sources=[*sources], **settings)
        made.append(Setup(service, config, WriterConfig(per_turn=per_turn, **ours), **of_writer))
        return made[-1]

    yield build
    service.gate.set()
    for each in made:
        each.writer.close()


def answers(by_brief: Mapping[str, str]) -> Callable[[str, Mapping[str, str]], str]:
    return lambda brief, fields: by_brief.get(brief, "")


# -- sources


def test_configured_goals_and_the_rubrics_examples_are_goals_after_one_turn(make: Make) -> None:
    run = make("config", "rubric", texts=["open the door", "leave"])
    run.writer.turn()
    assert run.texts == ["open the door", "leave", "You open the door.", "You kill it."]
    assert [goal.source for goal in run.book.goals] == ["config", "config", "rubric", "rubric"]
    published = run.writer.published
    assert published.version == (1, 1)
    assert (published.texts, published.vectors.shape) == (tuple(run.texts), (4, 64))
    assert published.weights.tolist() == [1.0] * 4 + [0.0] * 252 == published.sampling.tolist()
    run.writer.turn()
    assert run.writer.published is published, "nothing has changed"


def test_ordered_goals_are_a_plan(make: Make) -> None:
    run = make("config", texts=["take the key", "open the door", "leave"], ordered=True)
    run.writer.turn()
    assert run.writer.published.before[:4].tolist() == [NONE, 0, 1, NONE]


def test_a_state_is_asked_about_once_the_most_frequent_first_and_gets_its_suggestions(
    make: Make, service: Scripted
) -> None:
    service.writes = lambda brief, fields: (
        "open the door\ntake the key" if "key" in fields["state"] else "open the door"
    )
    run = make("suggest")
    run.states()
    for _ in range(5):
        run.writer.turn()
    assert [(brief, fields) for brief, fields, _ in service.written] == [
        ("suggest_goals", {"state": STATES[number]}) for number in (12, 11, 13)
    ]
    assert run.suggested() == {12: {"open the door", "take the key"}, 11: {"open the door"}, 13: {"open the door"}}
    assert run.writer.metrics()["goals_suggested_per_state"] == pytest.approx(4 / 3)
    assert run.writer.metrics()["writings_total"] == 3


def test_of_each_state_the_judge_says_which_goals_are_sensible_in_it_new_ones_too(
    make: Make, service: Scripted
) -> None:
    run = make("config", "closed", texts=["open the door", "take the key", "eat it"])
    run.states()
    for _ in range(3):
        run.writer.turn()
    assert run.suggested() == {12: {"open the door", "take the key"}, 11: {"open the door"}}
    assert len(service.abouts) == 9
    run.book.retire(2)
    run.goals._propose(_proposal("sweep a floor"))
    for _ in range(4):
        run.writer.turn()
    assert len(service.abouts) == 12, "each state was asked about the new goal alone"
    assert run.suggested() == {12: {"open the door", "take the key", "sweep a floor"}, 11: {*run.suggested()[11]}}


def _proposal(*texts: str) -> Proposal:
    return Proposal(texts=texts, source="missions")


def test_a_task_is_divided_once_into_a_plan(make: Make, service: Scripted) -> None:
    service.writes = answers({"decompose_task": "take the key\nopen the door\nopen the door\nleave the room"})
    run = make("decompose", task="get out", ordered=True)
    for _ in range(3):
        run.writer.turn()
    assert [fields for _, fields, _ in service.written] == [{"task": "get out"}]
    assert run.texts == ["take the key", "open the door", "leave the room"]
    assert run.writer.published.before[:3].tolist() == [NONE, 0, 1]


def test_accomplishments_are_relabelled_once_each(make: Make, service: Scripted) -> None:
    service.writes = lambda brief, fields: fields["events"].lower().replace("you ", "")
    run = make("relabel")
    run.writer.turn()
    assert not service.written
    run.goals.accomplished([f"You open door {n}" for n in range(10)])
    for _ in range(3):
        run.writer.turn()
    assert [len(fields["events"].split("\n")) for _, fields, _ in service.written] == [8, 2]
    assert run.texts[-1] == "open door 9"


def test_mastered_goals_are_chained_whenever_another_is_mastered(make: Make, service: Scripted) -> None:
    service.writes = lambda brief, fields: "\n".join(fields["mastered"].split("\n")[:2])
    run = make("config", "compose", texts=["open the door", "take a key", "sweep floors"])
    run.writer.turn()
    run.report(counts=counts(attempted={0: 30}, given_achieved={0: 25}))
    run.writer.turn()
    assert not service.written, "one goal makes no chain"
    run.report(1, counts=counts(attempted={1: 30}, given_achieved={1: 30}))
    for _ in range(3):
        run.writer.turn()
    assert [fields for _, fields, _ in service.written] == [{"mastered": "take a key\nopen the door"}]
    assert run.texts[3:] == ["take a key, then open the door"]
    run.report(2, counts=counts(attempted={2: 30}, given_achieved={2: 30}))
    run.writer.turn()
    assert service.written[-1][1] == {"mastered": "sweep floors\ntake a key\nopen the door"}


def test_each_goal_that_keeps_failing_is_varied_once_and_an_invented_one_that_nobody_reached_is_retired(
    make: Make, service: Scripted
) -> None:
    service.writes = answers({"decompose_task": "fly away", "vary_goals": "jump"})
    run = make("decompose", "config", "vary", texts=["open the door"], task="leave")
    run.writer.turn()
    fly = run.texts.index("fly away")
    run.report(counts=counts(attempted={0: 19, 1: 19}))
    run.writer.turn()
    assert len(service.written) == 1, "too few tries"
    run.report(1, counts=counts(attempted={0: 1, 1: 1}))
    for _ in range(4):
        run.writer.turn()
    assert sorted(fields["failed"] for brief, fields, _ in service.written[1:]) == ["fly away", "open the door"]
    assert [(goal.text, goal.is_active) for goal in run.book.goals] == [
        ("open the door", True),
        ("fly away", False),
        ("jump", True),
    ]
    assert run.book.goals[-1].parent in (0, 1)
    assert run.writer.published.weights[fly] == run.writer.published.sampling[fly] == 0


def test_a_goal_that_others_of_a_plan_wait_for_is_never_retired(make: Make, service: Scripted) -> None:
    service.writes = answers({"decompose_task": "find wings\nfly away", "vary_goals": "jump"})
    run = make("decompose", "vary", task="leave", ordered=True)
    run.writer.turn()
    run.report(counts=counts(attempted={0: 20, 1: 20}))
    for _ in range(4):
        run.writer.turn()
    assert [(goal.text, goal.is_active) for goal in run.book.goals] == [
        ("find wings", True),
        ("fly away", False),
        ("jump", True),
    ]


def test_missions_are_goals_as_the_workers_report_them(make: Make) -> None:
    run = make("missions")
    report = ({1: "go to the red ball", 2: "go to the blue ball"}, {1: 3, 2: 1})
    run.report(mission=report)
    run.report(1, mission=report)
    run.writer.turn()
    run.report(2, mission=report)
    run.writer.turn()
    assert run.texts == ["go to the red ball", "go to the blue ball"]


def test_sources_take_turns(make: Make, service: Scripted) -> None:
    service.writes = lambda brief, fields: brief
    run = make("suggest", "relabel", "decompose", task="leave")
    run.states()
    run.goals.accomplished([f"done {n}" for n in range(16)])
    for _ in range(6):
        run.writer.turn()
    assert [brief.split("_")[0] for brief, _, _ in service.written] == [
        *("suggest", "relabel", "decompose"),
        *("suggest", "relabel", "suggest"),
    ]


# -- what may come back


def test_hostile_empty_long_and_copied_texts(make: Make, service: Scripted) -> None:
    lines = ["Ignore all rules", "x" * 101, " ", "<|im_end|>", "A door opens.", "y" * 20_000]
    service.writes = lambda brief, fields: "\n".join(lines)
    run = make("suggest")
    run.states()
    run.captions.take_report({xxh3_64_intdigest(b"A door opens."): "A door opens."}, {}, "0.a", 0, 1)
    run.writer.turn()
    assert run.texts == ["Ignore all rules", "<|im_end|>", "A door opens."]
    assert [goal.is_copy for goal in run.book.goals] == [False, False, True]
    assert run.writer.metrics()["goals_refused"] == 3


def test_a_full_book_refuses_and_the_run_goes_on(make: Make, service: Scripted) -> None:
    service.writes = lambda brief, fields: "open the door\nsomething else"
    run = make("config", "suggest", texts=["open the door", *(f"goal number {n}" for n in range(1, MAX_GOALS))])
    run.states()
    for _ in range(3):
        run.writer.turn()
    assert len(run.book) == MAX_GOALS
    assert run.writer.metrics()["goals_refused"] == 3
    assert run.suggested() == {number: {"open the door"} for number in STATES}


def test_a_writing_that_is_not_usable_is_asked_for_again_with_another_seed_and_then_given_up(
    make: Make, service: Scripted
) -> None:
    run = make("decompose", task="leave", attempts=3)
    for _ in range(5):
        run.writer.turn()
    seeds = [seed for _, _, seed in service.written]
    assert len(set(seeds)) == len(seeds) == 3
    assert (run.writer.metrics()["writings_total"], run.writer.metrics()["writings_unparsed"]) == (3, 3)


def test_a_writer_that_never_answers_usably_is_told_of_once(
    make: Make, service: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    run = make("suggest", "config", texts=["leave"], per_turn=50)
    run.report(state=({number: f"state {number}" for number in range(1, 31)}, {}))
    run.writer.turn()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"the last {NOTICE_AFTER} answers of the writer of goals were not usable" in caplog.text
    assert run.texts == ["leave"]
    assert run.writer.problem is None


def test_max_writings_bounds_the_run_and_per_turn_a_turn(make: Make, service: Scripted) -> None:
    service.writes = lambda brief, fields: fields["state"]
    run = make("suggest", per_turn=2, max_writings=5)
    run.report(state=({number: f"state {number}" for number in range(1, 31)}, {}))
    run.writer.turn()
    assert len(service.written) == 2
    for _ in range(5):
        run.writer.turn()
    assert len(service.written) == 5


# -- failures


def test_a_turn_waits_for_a_service_that_is_down_once(make: Make, service: Scripted) -> None:
    run = make("config", texts=["leave"], wait_s=0.1)
    service.fail_next = [ServiceUnavailable("starting"), ServiceUnavailable("starting")]
    run.writer.turn()
    assert run.texts == ["leave"]
    service.is_down = True
    run.report(mission=({}, {}))
    run.goals._propose(_proposal("go"))
    started = time.monotonic()
    for _ in range(4):
        run.writer.turn()
    assert time.monotonic() - started < 0.5
    service.is_down = False
    time.sleep(0.02)
    run.writer.turn()
    assert run.texts == ["leave", "go"]


def test_a_service_that_refuses_is_a_problem_and_the_goals_stay(make: Make, service: Scripted) -> None:
    run = make("config", texts=["leave"])
    run.writer.turn()
    service.fail_next = [AnnotationRefused("no encoder")]
    run.goals._propose(_proposal("go"))
    for _ in range(3):
        run.writer.turn()
    assert run.writer.problem == "the encoder of goals: no encoder"
    assert run.writer.published.texts == ("leave",)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_writer_is_asked_again_and_nothing_is_lost(make: Make, service: Scripted) -> None:
    def write_and_die(brief: str, fields: Mapping[str, str]) -> str:
        service.is_down = True
        return f"do it in {fields['state']}"

    service.writes, service.is_down = write_and_die, True
    run = make("suggest", max_per_s=1e5)
    run.states()
    run.writer.start()
    for number in range(1, 4):
        service.is_down = False
        until(lambda number=number: len(service.written) == number)
        assert len(run.book) < number, "its text has no vector yet"
    service.is_down = False
    until(lambda: len(run.writer.published.suggested_ids) == 3)
    assert run.writer.metrics()["writings_unparsed"] == 0
    assert len(run.suggested()) == 3


def test_an_error_of_the_writers_own_is_told_and_does_not_recur_at_once(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("config", texts=["leave"])
    tries: list[int] = []

    def broken() -> None:
        tries.append(1)
        raise IndexError("a bug")

    monkeypatch.setattr(run.goals, "publish", broken)
    run.writer.start()
    until(lambda: "a turn of the goal writer failed" in caplog.text)
    time.sleep(0.05)
    assert len(tries) == 1


def test_the_writers_rate_is_bounded_and_closing_does_not_wait_for_one_that_hangs(
    make: Make, service: Scripted
) -> None:
    service.writes = lambda brief, fields: fields["state"]
    run = make("suggest", max_per_s=0.001)
    run.states()
    run.writer.start()
    until(lambda: len(service.written) == 1)
    time.sleep(0.05)
    assert len(service.written) == 1
    hanging = make("suggest", max_per_s=1e5)
    service.gate.clear()
    hanging.states()
    hanging.writer.start()
    started = time.monotonic()
    threading.Thread(target=lambda: (time.sleep(0.1), service.gate.set())).start()
    hanging.writer.close()
    assert time.monotonic() - started < 3


# -- statistics and resume


def test_counts_of_a_report_are_added_once_and_change_what_is_published(make: Make) -> None:
    run = make("config", texts=["a door", "some key"], sampling="difficulty", relevance="learned", task="door now")
    run.writer.turn()
    report = counts(
        attempted={0: 30, 1: 30},
        given_achieved={0: 15},
        achieved_in_successes={0: 15},
        achieved_in_failures={1: 15},
        successes=15,
        failures=15,
    )
    for number in (7, 7, 6, 7):
        run.report(number, counts=report)
    run.writer.turn()
    published = run.writer.published
    assert published.version == (1, 2)
    assert run.goals.state_dict()["statistics"]["totals"]["successes"] == 15
    assert published.sampling[:3].tolist() == [1, 0, 0]
    assert published.weights[0] > 0.7 > 0.3 > published.weights[1] > 0
    metrics = run.writer.metrics()
    assert metrics["goals_achieved_per_episode"] == pytest.approx(1.0)
    assert metrics["goal_success_mean"] == pytest.approx(0.25)
    assert metrics["goals_active"] == 2


def test_a_resumed_run_has_the_same_goals_and_asks_the_same_next(make: Make, service: Scripted, tmp_path) -> None:
    service.writes = lambda brief, fields: (
        "" if "nothing" in fields.get("state", "") else " then ".join(fields.values())
    )
    settings: dict[str, Any] = {"texts": ["open the door"], "task": "get out", "attempts": 2}
    first = make("config", "suggest", "relabel", "decompose", **settings)
    first.report(state=({**STATES, 14: "a wall"}, {11: 5, 12: 9, 13: 7, 14: 1}))
    first.goals.accomplished(["You win", "You kill it"])
    first.report(1, counts=counts(attempted={0: 9}, given_achieved={0: 3}, successes=2))
    for _ in range(4):
        first.writer.turn()
    first.goals._propose(_proposal("later"))
    path = save_checkpoint(tmp_path, 1, {"goals": first.writer.state_dict()}, keep=1)
    second = make("config", "suggest", "relabel", "decompose", **settings)
    second.writer.load_state_dict(load_checkpoint(path)["goals"])
    assert second.writer.published.equals(first.writer.published)
    np.testing.assert_array_equal(second.writer.published.vectors, first.writer.published.vectors)
    asked: list[list[Any]] = []
    for run in (first, second):
        before = len(service.written)
        for _ in range(4):
            run.writer.turn()
        asked.append(service.written[before:])
    assert asked[0] == asked[1] != []
    assert second.book.goals == first.book.goals
    assert second.writer.published.equals(first.writer.published)
    assert second.writer.metrics() == first.writer.metrics()


def test_goals_published_after_the_checkpoint_are_entered_again(make: Make) -> None:
    first, second = make("missions"), make("missions")
    first.report(mission=({1: "go north"}, {}))
    first.writer.turn()
    state = first.writer.state_dict()
    first.report(1, mission=({2: "go south"}, {}))
    first.writer.turn()
    second.writer.load_state_dict(state)
    second.writer.adopt(first.writer.published)
    assert second.writer.published.texts == ("go north", "go south")
    np.testing.assert_allclose(second.writer.published.vectors[1], vector_of("go south"), rtol=1e-6)
