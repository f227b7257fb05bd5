"""The rules of every supervised child: which state follows which, when it is given up, and that nothing of it is
left."""

import subprocess
import sys
import threading

import psutil
import pytest

from llm_server.child_process import ChildProcess, ChildSettings, ChildState, start_process_group
from tests.llm_server.waiting import wait_until

SLEEP = "import time; time.sleep(600)"
PATIENT = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-S', '-c', '{SLEEP}']).pid, flush=True)"


class Played(ChildProcess):
    """Runs `program`; a test says when it is up, when it must end and what time it is."""

    def __init__(self, program=SLEEP, **settings):
        self.now, self.program, self.watched, self.released = 0.0, program, lambda: None, 0
        super().__init__(ChildSettings(**{"name": "the child", "advice": " Try another."} | settings), lambda: self.now)

    def _start(self):
        if isinstance(self.program, Exception):
            raise self.program
        child = start_process_group([sys.executable, "-S", "-c", self.program], subprocess.PIPE, {})
        self.output = child.stdout
        return child

    def _watch(self):
        self.watched()

    def _last_words(self):
        return ": its last words"

    def _release(self):
        self.released += 1
        if hasattr(self, "output"):
            self.output.close()

    def fail(self):
        """Poll until the child that runs has ended."""
        wait_until(lambda: self.poll() in (ChildState.BACKING_OFF, ChildState.GAVE_UP))


@pytest.fixture
def play():
    made = []

    def play(*arguments, **settings):
        made.append(Played(*arguments, **settings))
        return made[-1]

    yield play
    for child in made:
        child.close()


def test_a_child_is_started_by_the_first_poll_and_is_up_when_that_is_said(play):
    child = play()
    assert (child.state, child.pid, child.restarts) == (ChildState.BACKING_OFF, None, 0)
    assert child.poll() is ChildState.STARTING
    assert psutil.pid_exists(child.pid)
    child._now_up()
    assert child.poll() is ChildState.UP
    pid = child.pid
    child.close()
    child._now_up()
    assert (child.poll(), child.pid, child.problem) == (ChildState.CLOSED, None, None)
    assert not psutil.pid_exists(pid)


def test_one_that_fails_too_often_in_a_row_is_given_up_and_says_why_even_when_closed(play):
    child = play("raise SystemExit(3)", max_failures=3, first_backoff_s=1.0, max_backoff_s=60.0)
    for wait_s in (1.0, 2.0):
        child.poll()
        child.fail()
        child.now += wait_s - 0.1
        assert child.poll() is ChildState.BACKING_OFF
        child.now += 0.1
    child.fail()
    assert child.poll() is ChildState.GAVE_UP
    child.close()
    assert child.problem == "the child ended with exit code 3: its last words Try another."
    assert child.restarts == 2


def test_a_final_exit_code_gives_up_at_once_even_one_that_was_up(play):
    child = play("raise SystemExit(2)", max_failures=9, final_exit_codes=(2,))
    child.poll()
    child._now_up()
    child.fail()
    assert child.poll() is ChildState.GAVE_UP


@pytest.mark.parametrize(("is_proven_by_first", "state"), [(True, ChildState.BACKING_OFF), (False, ChildState.GAVE_UP)])
def test_one_that_was_up_is_given_up_only_where_that_proves_nothing(play, is_proven_by_first, state):
    child = play("raise SystemExit(3)", max_failures=1, is_proven_by_first=is_proven_by_first)
    child.poll()
    child._now_up()
    child.fail()
    assert child.poll() is state


def test_failures_before_a_long_time_up_no_longer_count_and_only_that_time_counts(play):
    child = play("input(); raise SystemExit(3)", max_failures=9, first_backoff_s=1.0, stable_s=60.0)
    for _ in range(3):
        child.now += 1000.0
        child.poll()
        child._child.stdin.close()
        child.fail()
    assert child._due_at - child.now == 4.0
    child.now += 1000.0
    child.poll()
    child._now_up()
    child.now += 61.0
    child._child.stdin.close()
    child.fail()
    assert child._due_at - child.now == 1.0
    child.program = OSError("no memory")
    child.now += 1000.0
    assert child.poll() is ChildState.BACKING_OFF
    assert child._due_at - child.now == 2.0, "the time since an earlier child was up is no time up"


def test_one_that_must_not_go_on_is_told_to_end_and_killed_when_its_time_is_over(play):
    child = play(PATIENT)
    child.poll()
    assert child.output.readline() == b"ready\n"
    child._condemn("is not wanted", 5.0)
    child._condemn("for another reason", 0.0)
    child._now_up()
    child.now += 4.9
    pid = child.pid
    assert child.poll() is ChildState.ENDING
    assert psutil.pid_exists(pid)
    child.now += 0.1
    child.fail()
    assert child._reason == "is not wanted"
    assert child.released == 1


def test_one_that_has_ended_already_keeps_its_own_reason(play):
    child = play("raise SystemExit(3)")
    child.poll()
    child._child.wait()
    child._condemn("did not answer", 5.0)
    child.fail()
    assert child._reason == "ended with exit code 3: its last words"


def test_what_a_child_leaves_behind_is_killed(play):
    child = play(PARENT)
    child.poll()
    left = int(child.output.readline())
    child.fail()
    wait_until(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)


def test_whatever_keeps_a_child_from_being_started_or_watched_is_a_reason_and_leaves_none(play, caplog):
    caplog.set_level("INFO")

    def broken():
        raise LookupError("no such file")

    child = play(OSError("no memory"), max_failures=2)
    assert child.poll() is ChildState.BACKING_OFF
    assert child._reason == "cannot be run (OSError: no memory)"
    child.program, child.watched, child.now = SLEEP, broken, 1000.0
    assert child.poll() is ChildState.ENDING
    child.fail()
    assert child.problem == "the child cannot be run (LookupError: no such file) Try another."
    assert "Traceback" in caplog.text


def test_a_second_close_waits_for_the_first(play):
    child = play(PATIENT, end_budget_s=0.5)
    child.poll()
    child.output.readline()
    pid, first = child.pid, threading.Thread(target=child.close)
    first.start()
    wait_until(lambda: child.poll() is ChildState.CLOSED)
    child.close()
    assert not psutil.pid_exists(pid)
    first.join()


def test_a_close_that_a_signal_interrupts_leaves_no_process(play, monkeypatch):
    child = play(PATIENT, end_budget_s=60.0)
    child.poll()
    child.output.readline()
    pid, wait = child.pid, child._child.wait

    def interrupted(timeout=None):
        if timeout is not None:
            raise KeyboardInterrupt
        return wait()

    monkeypatch.setattr(child._child, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.close()
    assert not psutil.pid_exists(pid)


def test_only_the_first_failure_of_a_row_and_the_last_are_errors_in_the_log(play, caplog):
    child = play("raise SystemExit(3)", max_failures=4, first_backoff_s=0.0, max_backoff_s=0.0)
    for _ in range(4):
        child.poll()
        child.fail()
    assert child.state is ChildState.GAVE_UP
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
