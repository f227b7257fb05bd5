"""What the driver tells of a learner that waits, and what it does about one that is silent, dies or ends; learners are
played by the test."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, RayError, RayTaskError

from cluster.on_ray import learner, slot
from cluster.on_ray.failures import LearnerLost, ProcessId
from cluster.on_ray.learner import LearnerWatch, RunFailed
from configs.loading import load_config
from tests.run_sessions import session_in


class Call:
    """A call whose answer `answer` gives; None is no answer yet."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer


class PlayedLearner:
    """Reports progress in whatever it is asked, ends when it is told to; `end` and `line` are what the test sets."""

    def __init__(self) -> None:
        self.end: Any = None
        self.line: Any = {}
        self.unanswered = 0
        self.killed = False
        self.run = SimpleNamespace(remote=lambda: Call(lambda: self.end))
        self.progress = SimpleNamespace(remote=self.ask)
        self.stop = SimpleNamespace(remote=lambda: setattr(self, "end", {"finished": False}))

    def ask(self) -> Call:
        self.unanswered += 1
        return Call(self.tell)

    def tell(self) -> Any:
        if isinstance(self.line, dict):
            return {"process": ProcessId("node", "host", 7), "waiting": None, **self.line}
        return self.line


class Stage:
    """A clock, one learner after the other, and what `ray` does; `script` is called at every look with the seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path, *settings: str) -> None:
        self.now = 1000.0
        self.learners: list[PlayedLearner] = []
        self.said: list[str] = []
        self.steps: list[int] = []
        self.script: Callable[[float], None] = lambda seconds: None
        self.on_sleep: Callable[[], None] = lambda: None
        fake = SimpleNamespace(wait=self.wait, get=self.get, kill=self.kill, available_resources=dict)
        for module in (slot, learner):
            monkeypatch.setattr(module, "ray", fake)
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        monkeypatch.setattr("cluster.on_ray.failures._is_alive", lambda node_id: True)
        self.checkpoints = run_dir / "checkpoints"
        self.checkpoints.mkdir()
        overrides = ["cluster.placement_timeout_s=100", "cluster.learner_timeout_s=30", *settings]
        config = load_config(preset="debug", overrides=["cluster.max_learner_restarts=2", *overrides])
        self.session = session_in(run_dir, config)
        self.session.console.say = self.said.append  # type: ignore[method-assign]
        self.session.console.update = self.on_line  # type: ignore[method-assign]
        self.watch = LearnerWatch(self.session)

    def run(self) -> dict[str, Any]:
        """One learner after the other, as the driver does."""
        while True:
            self.learners.append(PlayedLearner())
            try:
                return self.watch.follow(self.learners[-1], self.learners[-1].run.remote())
            except (RayError, TimeoutError) as error:
                self.watch.back_off(error)

    def on_line(self, line: Mapping[str, Any]) -> None:
        assert "process" not in line
        self.steps.append(line["env_steps"])

    def wait(self, calls: list[Call], timeout: float, **_: Any) -> tuple[list[Call], list[Call]]:
        self.script(self.now - 1000.0)
        ready = [call for call in calls if call.answer() is not None]
        self.now += 0.01 if ready else timeout
        return ready[:1] if timeout else ready, []

    def get(self, call: Call) -> Any:
        answer = call.answer()
        if isinstance(answer, Exception):
            raise answer
        self.learners[-1].unanswered = 0
        return answer

    def kill(self, actor: PlayedLearner) -> None:
        actor.killed = True

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def test_progress_is_shown_until_the_learner_ends(stage: Stage) -> None:
    def script(seconds: float) -> None:
        stage.learners[-1].line = {"env_steps": int(seconds)}
        stage.learners[-1].end = {"finished": True} if seconds > 10 else None

    stage.script = script
    assert stage.run() == {"finished": True}
    assert stage.steps == sorted(stage.steps)
    assert 15 <= len(stage.steps) <= 21, "twice a second"


def test_a_stop_request_is_forwarded(stage: Stage) -> None:
    stage.script = lambda seconds: setattr(stage.session.stop, "requested", seconds > 5)
    assert stage.run() == {"finished": False}


def test_a_learner_that_is_not_placed_is_waited_for_aloud_and_ends_the_run(stage: Stage) -> None:
    def script(seconds: float) -> None:
        stage.learners[-1].line = None
        assert stage.learners[-1].unanswered <= 1, "nothing piles up at it"

    stage.script = script
    with pytest.raises(RunFailed, match=r"not placed within cluster.placement_timeout_s = 100 s; free resources"):
        stage.run()
    assert 100 < stage.now - 1000 < 103
    assert stage.said[0].startswith("waiting for the learner to start, 10 s")


def test_a_silent_learner_is_killed_and_started_again(stage: Stage) -> None:
    def script(seconds: float) -> None:
        if len(stage.learners) == 2:
            stage.learners[1].end = {"finished": True}
        elif seconds > 5:
            stage.learners[0].line = None

    stage.script = script
    assert stage.run() == {"finished": True}
    assert stage.learners[0].killed
    assert 5 + 30 + learner.KILL_S <= stage.now - 1000 < 5 + 30 + learner.KILL_S + 4
    assert "it answered nothing within cluster.learner_timeout_s = 30 s" in stage.said[-1]


@pytest.mark.parametrize("has_started", [True, False])
def test_a_driver_that_was_stopped_itself_believes_no_silence_before_it_has_looked_again(
    stage: Stage, has_started: bool
) -> None:
    """As after Ctrl-Z and `fg`: the time limit has passed at once, and the answer arrives a moment later."""

    def script(seconds: float) -> None:
        learner = stage.learners[0]
        if seconds < 5:
            learner.line = {} if has_started else None
        elif seconds < 1000:
            learner.line = None
            stage.now += 2000
        else:
            learner.line, learner.end = {}, {"finished": True} if seconds > 2020 else None

    stage.script = script
    assert stage.run() == {"finished": True}
    assert len(stage.learners) == 1


def test_a_learner_that_does_not_stop_in_time_is_ended_by_force(stage: Stage) -> None:
    def script(seconds: float) -> None:
        stage.learners[-1].stop = SimpleNamespace(remote=lambda: None)
        stage.session.stop.requested = seconds > 5

    stage.script = script
    with pytest.raises(
        RunFailed, match=r"the learner did not stop within cluster.shutdown_budget_s = .*; ended by force"
    ):
        stage.run()


def test_an_error_of_its_own_before_the_first_update_would_recur(stage: Stage) -> None:
    error = RayTaskError("run", "Traceback: no room", ValueError("no room"))
    stage.script = lambda seconds: setattr(stage.learners[-1], "end", error)
    with pytest.raises(RunFailed, match="no room"):
        stage.run()
    assert len(stage.learners) == 1


def test_the_loss_of_another_learner_is_that_of_the_learner_also_before_the_first_update(stage: Stage) -> None:
    lost = RayTaskError("progress", "Traceback: lost", LearnerLost("learner 2 of 2 failed: it was killed"))

    def script(seconds: float) -> None:
        if len(stage.learners) == 2:
            stage.learners[1].end = {"finished": True}
        elif seconds > 5:
            stage.learners[0].line = lost

    stage.script = script
    assert stage.run() == {"finished": True}
    assert stage.learners[0].killed, "it may wait for the lost one for ever"
    assert 5 + learner.KILL_S <= stage.now - 1000 < 5 + learner.KILL_S + 2
    assert "the learner failed: learner 2 of 2 failed: it was killed; it is started again" in stage.said[-1]


def test_a_stop_request_cuts_the_pause_before_the_next_learner_short(stage: Stage) -> None:
    def script(seconds: float) -> None:
        stage.learners[-1].end = ActorDiedError()

    stage.script = script
    stage.on_sleep = lambda: setattr(stage.session.stop, "requested", True)
    with pytest.raises(RunFailed):
        stage.run()
    assert len(stage.learners) == 3, "the first has no pause, the second's pause is cut, the third ends the run"
    assert stage.now - 1000 < 0.5, "one look of the pause"


@pytest.mark.parametrize(("writes", "ends_after"), [(False, 3), (True, 6)])
def test_a_learner_that_dies_without_a_new_checkpoint_in_between_ends_the_run(
    stage: Stage, writes: bool, ends_after: int
) -> None:
    def script(seconds: float) -> None:
        if writes and len(stage.learners) < 5:
            (stage.checkpoints / "latest").write_text(f"step_{len(stage.learners)}")
        stage.learners[-1].line = stage.learners[-1].end = ActorDiedError()

    stage.script = script
    with pytest.raises(RunFailed, match=r"3 times in a row without progress; cluster.max_learner_restarts = 2"):
        stage.run()
    assert len(stage.learners) == ends_after
    assert all(each.killed for each in stage.learners)


def test_a_lost_node_costs_no_restart_on_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(monkeypatch, tmp_path, "cluster.mode=connect", f"run_dir={tmp_path}", "annotator.address=localhost:1")

    def script(seconds: float) -> None:
        stage.learners[-1].end = NodeDiedError("gone") if len(stage.learners) < 6 else {"finished": True}

    stage.script = script
    assert stage.run() == {"finished": True}


def test_the_seconds_of_a_wait_are_its_own_and_are_told_ever_more_rarely(stage: Stage) -> None:
    for second in range(100):
        stage.now = 1000.0 + second
        stage.watch._say_waiting(
            "1 x annotator to start" if second < 30 else "the first reward table" if second < 60 else None
        )
    assert stage.said == [
        "waiting for 1 x annotator to start, 11 s",
        "waiting for 1 x annotator to start, 21 s",
        "waiting for the first reward table, 11 s",
        "waiting for the first reward table, 21 s",
    ]
