"""What a run says before it trains."""

import threading

from cluster.launch import _report_waiting


class Console:
    def __init__(self, enough: int) -> None:
        self.said: list[str] = []
        self.has_said_enough = threading.Event()
        self._enough = enough

    def say(self, text: str) -> None:
        self.said.append(text)
        if len(self.said) == self._enough:
            self.has_said_enough.set()


def test_what_is_waited_for_is_said_with_the_seconds_until_it_is_there() -> None:
    console = Console(enough=2)
    with _report_waiting(0.01, "the judge, which loads smollm2", console):  # type: ignore[arg-type]
        assert console.has_said_enough.wait(60)
    number = len(console.said)
    assert set(console.said) <= {f"waiting for the judge, which loads smollm2, {seconds} s" for seconds in range(20)}
    assert len(console.said) == number, "nothing more afterwards"
