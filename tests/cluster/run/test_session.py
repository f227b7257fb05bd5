"""The first signal asks a run to stop; a second SIGINT or SIGTERM ends it; a terminal that closes may say so as often
as it likes."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from cluster.run.session import StopRequest


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(first: int, second: int) -> None:
    said: list[str] = []
    with StopRequest(said.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), first)
        assert stop.requested
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_never_counts_as_the_second_signal(first: int) -> None:
    with StopRequest(lambda text: None) as stop:
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.requested


def test_nohup_keeps_a_run_going() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_in_the_midst_of_another_line_is_taken_all_the_same() -> None:
    def say(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopRequest(say) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_what_ray_starts_does_not_hear_a_terminal_close_and_sigterm_stays_the_runs() -> None:
    from cluster.on_ray.driver import _own_signals

    with StopRequest(lambda text: None) as stop:
        handler = signal.getsignal(signal.SIGTERM)
        with _own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as `ray.init` does with one of its own
            child = subprocess.run(["kill -HUP $$; echo alive"], shell=True, capture_output=True, text=True)
            signal.pthread_kill(
                threading.get_ident(), signal.SIGHUP
            )  # other threads, which other tests may have left, hear it
            assert not stop.requested
        assert child.stdout == "alive\n"
        assert signal.getsignal(signal.SIGTERM) == handler
        assert stop.requested, "it was heard meanwhile"
