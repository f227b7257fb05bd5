"""The states of a supervised actor's place, by a clock and actors that the test plays, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.on_ray import slot as slots
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.supervision import GiveUp, restart_pause_s

EMPTY, STARTING, ALIVE, BACKING_OFF = SlotState


class Call:
    """A call of an actor; `answer` is what comes back, an exception is raised, and None is no answer yet."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer


class Stage:
    """A clock, and what `ray` does to calls and actors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.killed: list[str] = []
        self.looks = 0
        fake = SimpleNamespace(wait=self.wait, get=self.get, kill=self.killed.append)
        monkeypatch.setattr(slots, "ray", fake)
        monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
        self.looks += 1
        return [call for call in calls if call.answer is not None], []

    def get(self, call: Call) -> Any:
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def alive_slot(name: str = "actor") -> Slot:
    slot = Slot(interval_s=2.0)
    slot.start(name)
    slot.ask(Call("hello"))
    slot.take_answer()
    return slot


def test_a_slot_goes_through_the_states_of_its_table(stage: Stage) -> None:
    slot = Slot(interval_s=2.0)
    assert slot.state is EMPTY
    slot.start("first")
    assert slot.state is STARTING
    slot.ask(Call())
    stage.now += 10_000
    assert slot.state is STARTING, "waiting for resources has no limit of its own"
    slot.call.answer = "hello"
    assert answered([slot]) == [slot]
    assert (slot.take_answer(), slot.answer, slot.state) == ("hello", "hello", ALIVE)
    slot.lost()
    assert (slot.state, slot.actor, slot.answer, slot.call) == (EMPTY, None, None, None)
    slot.back_off(5.0)
    assert slot.state is BACKING_OFF
    stage.now += 4.9
    assert slot.state is BACKING_OFF
    stage.now += 0.2
    assert slot.state is EMPTY
    slot.start("second")
    assert slot.state is STARTING, "what the first has answered is nothing that the second has"
    slot.lost()
    assert (slot.state, slot.losses, stage.killed) == (EMPTY, 2, ["first", "second"])


def test_no_answer_is_an_answer_too(stage: Stage) -> None:
    slot = Slot(interval_s=2.0)
    slot.start("actor")
    slot.ask(Call(False))
    assert slot.take_answer() is False
    assert slot.state is ALIVE


def test_an_actor_is_asked_one_thing_at_a_time_and_not_too_often(stage: Stage) -> None:
    slot = Slot(interval_s=2.0)
    assert not slot.may_ask, "nobody is there"
    slot.start("actor")
    assert slot.may_ask
    slot.ask(Call())
    stage.now += 60
    assert not slot.may_ask
    assert slot.silent_s == 60
    slot.call.answer = "at last"
    slot.take_answer()
    assert (slot.may_ask, slot.silent_s) == (True, 0.0)
    slot.ask(Call("at once"))
    slot.take_answer()
    assert not slot.may_ask
    stage.now += 2.0
    assert slot.may_ask
    slot.back_off(3.0)
    assert (slot.may_ask, slot.state) == (False, ALIVE), "an actor that is there is asked later"


def test_an_error_instead_of_an_answer_is_raised_and_leaves_the_decision_to_the_owner(stage: Stage) -> None:
    slot = alive_slot()
    slot.ask(Call(OSError("unreachable")))
    with pytest.raises(OSError, match="unreachable"):
        slot.take_answer()
    assert (slot.state, slot.answer, slot.call, stage.killed) == (ALIVE, "hello", None, [])


def test_all_slots_are_looked_at_at_once(stage: Stage) -> None:
    there = [alive_slot(str(number)) for number in range(4)]
    assert answered(there) == []
    assert stage.looks == 0, "nothing was asked"
    for slot, call in zip(there, (Call(), Call(1), Call(OSError())), strict=False):
        slot.ask(call)
    assert answered(there) == there[1:3]
    assert stage.looks == 1


def test_crashes_with_progress_between_never_end_a_run(stage: Stage) -> None:
    slot = Slot(interval_s=2.0)
    for _ in range(1000):
        slot.start("worker")
        slot.lost()
        assert restart_pause_s(slot.failures, "it failed", 2, "x") == 0.0
        slot.failures = 0


def test_one_workers_progress_does_not_excuse_anothers_crash_loop_and_a_lost_node_is_nobodys_failure(
    stage: Stage,
) -> None:
    slot, other = Slot(interval_s=2.0), Slot(interval_s=2.0)
    for _ in range(3):
        other.failures = 0
        slot.start("worker")
        slot.lost()
        slot.start("worker")
        slot.lost(is_own_fault=False)
        restart_pause_s(slot.failures, "it failed", 3, "x")
    slot.lost()
    assert (slot.failures, slot.losses) == (4, 7)
    with pytest.raises(GiveUp):
        restart_pause_s(slot.failures, "it failed", 3, "x")


def test_ending_what_is_not_there_is_harmless(stage: Stage) -> None:
    slot = alive_slot()
    slot.end()
    slot.end()
    assert (stage.killed, slot.state, slot.losses) == (["actor"], EMPTY, 0)
