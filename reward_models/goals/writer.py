"""`GoalWriter`: fills the goal book beside the run: it asks for the vectors of goals' texts, has a language model write
goals, and asks the judge which goals are sensible in a state.

    consumes              waits for                              is unblocked by
    texts of goals        the encoder, with retries              its answer, `close`
    questions             `writer.max_per_s`, the writer         its answer, `close`
    states (`closed`)     `writer.max_per_s`, the judge          its answer, `close`

Invariant: nothing here makes the learner wait; a writer that is down, slow or never answers usably costs only goals.
Answers that were not usable are counted, never repaired.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from configs.goal_schema import WriterConfig
from llm_server.annotation import Status
from llm_server.annotator.feedback import JudgeClient
from llm_server.token_bucket import TokenBucket
from llm_server.writing.loading import load_brief
from reward_models.goals.asking import Asked
from reward_models.goals.published import PublishedGoals
from reward_models.goals.run_goals import Items, RunGoals
from reward_models.goals.sources import Question

LOG = logging.getLogger(__name__)
IDLE_S = 0.1
FAILURE_PAUSE_S = 10.0
"""After an error of the writer's own, which would fill the log if it recurred at once."""
CLOSE_BUDGET_S = 1.5
NOTICE_AFTER = 20
"""Unusable writings in a row."""


class GoalWriter:
    """Works in its own thread after `start`, or in the caller's with `turn`; not both."""

    def __init__(
        self,
        goals: RunGoals,
        config: WriterConfig,
        *,
        connect: Callable[[], JudgeClient],
        connect_writer: Callable[[], JudgeClient] | None = None,
        connect_sensible: Callable[[], JudgeClient] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        wait_s: float = 120.0,
        max_backoff_s: float = 30.0,
        publish_interval_s: float = 1.0,
    ) -> None:
        """`connect` makes clients that embed, `connect_writer` those that write, and `connect_sensible` those that
        judge goals about states, for the source `closed`; all as `Annotator`'s. `batch_size`: items per request.
        `wait_s`: how long a `turn` waits for a service that fails."""
        self._goals, self._config, self._seed, self._batch_size = goals, config, seed, batch_size
        self._encoder = Asked(connect, max_backoff_s, "the encoder of goals")
        self._writer = connect_writer and Asked(connect_writer, max_backoff_s, "the writer of goals")
        self._judge = connect_sensible and Asked(connect_sensible, max_backoff_s, "the judge of goals in states")
        self._rate_limits = [TokenBucket(config.max_per_s, time.monotonic) for _ in range(2)]
        self._open: tuple[Question, int] | None = None  # what is being asked, and unusable answers to it so far
        self._num_written = self._num_unparsed = self._unparsed_in_a_row = 0
        self._wait_s, self._may_wait = wait_s, True
        self._publish_interval_s = publish_interval_s
        self._stop, self._interrupted = threading.Event(), False
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str | None:
        """Why a service is asked no more; None as long as questions may succeed."""
        return next((asked.problem for asked in self._services() if asked.problem), None)

    def _services(self) -> list[Asked]:
        return [asked for asked in (self._encoder, self._writer, self._judge) if asked]

    def report(
        self,
        channels: Mapping[str, Items],
        worker_id: str,
        sequence_number: int,
        env_steps: int,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        """See `RunGoals.report`."""
        self._goals.report(channels, worker_id, sequence_number, env_steps, counts)

    @property
    def published(self) -> PublishedGoals:
        """The newest goals; never blocks."""
        return self._goals.published

    def adopt(self, published: PublishedGoals) -> None:
        """See `RunGoals.adopt`."""
        self._goals.adopt(published)

    def turn(self) -> None:
        """Ask for at most `writer.per_turn` writings, and about as many states, and publish, in this thread.

        A service that fails is waited for as `Annotator.turn` waits."""
        give_up_at = time.monotonic() + self._wait_s
        self._insist(self._embed, self._encoder, give_up_at)
        for step, service in ((self._write, self._writer), (self._ask_about_state, self._judge)):
            for _ in range(self._config.per_turn if service else 0):
                if not self._insist(step, service, give_up_at):
                    break
        self._insist(self._embed, self._encoder, give_up_at)
        self._goals.publish()

    def _insist(self, step: Callable[[], bool], service: Asked | None, give_up_at: float) -> bool:
        """`step`, again while its service fails and may be waited for; whether it did anything."""
        while not (is_done := step()) and service and service.retry_at > time.monotonic() and not service.problem:
            if not self._may_wait or self._interrupted or self._stop.is_set():
                return False
            time.sleep(0.02)
            self._may_wait = time.monotonic() < give_up_at
        self._may_wait |= is_done
        return is_done

    def interrupt(self) -> None:
        """End the wait of `turn` for a service that is down; safe in a signal handler (takes no lock)."""
        self._interrupted = True

    def start(self) -> None:
        """Begin to ask in the background."""
        self._thread = threading.Thread(target=self._run, name="goal-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        publish_at = time.monotonic()
        while not self._stop.is_set():
            try:
                is_busy = self._embed()
                for step, limit in zip((self._write, self._ask_about_state), self._rate_limits, strict=True):
                    if limit.take(1):
                        was_asked = step()
                        limit.put_back(not was_asked)
                        is_busy |= was_asked
                if time.monotonic() >= publish_at:
                    self._goals.publish()
                    publish_at = time.monotonic() + self._publish_interval_s
            except Exception:
                is_busy = False
                LOG.exception("a turn of the goal writer failed; training goes on with the goals that there are")
                self._stop.wait(FAILURE_PAUSE_S)
            self._stop.wait(0.0 if is_busy else IDLE_S)

    def _embed(self) -> bool:
        """Get the vectors of proposed texts and enter these into the book; whether there were any."""
        if self._goals.settle({}):  # known ones need none
            return True
        if not self._encoder.is_ready or not (texts := self._goals.texts_without_vector()):
            return False

        def vectors(client: JudgeClient) -> Mapping[str, np.ndarray]:
            rows: list[np.ndarray] = []
            for start in range(0, len(texts), self._batch_size):
                rows += [*client.embed([text.encode() for text in texts[start : start + self._batch_size]])]
            found = dict(zip(texts, rows, strict=True))
            self._goals.settle(found)
            return found

        return self._encoder.ask(vectors) is not None

    def _write(self) -> bool:
        """Ask for one writing; whether it was answered, usably or not."""
        limit = self._config.max_writings
        if not self._writer or not self._writer.is_ready or (limit and self._num_written >= limit):
            return False
        if self._open is None:
            question = self._goals.next_question()
            if question is None:
                return False
            self._open = question, 0
        question, num_failed = self._open
        asked = b"\0".join([question.brief.encode(), *question.fields.values()])
        seed = xxh3_64_intdigest(asked, self._seed) + num_failed
        brief = load_brief(question.brief)
        writings = self._writer.ask(lambda client: client.write(brief, question.fields, 1, seed % 2**64))
        if writings is None:
            return False
        is_usable = bool(writings) and writings[0].status is Status.OK
        self._count(is_usable)
        if is_usable or num_failed + 1 == self._config.attempts:
            self._goals.answered(question, writings[0].text if is_usable else "")
            self._open = None
        else:
            self._open = question, num_failed + 1
        return True

    def _count(self, is_usable: bool) -> None:
        self._num_written += 1
        self._num_unparsed += not is_usable
        self._unparsed_in_a_row = 0 if is_usable else self._unparsed_in_a_row + 1
        if self._unparsed_in_a_row == NOTICE_AFTER:
            what = f"the last {NOTICE_AFTER} answers of the writer of goals were not usable"
            LOG.warning("%s; training goes on with the goals that there are (writer.address: a larger model)", what)

    def _ask_about_state(self) -> bool:
        """Ask which of the goals that are new to a state are sensible in it; whether it was answered."""
        if not self._judge or not self._judge.is_ready or (found := self._goals.next_state()) is None:
            return False
        state, goals = found

        def sensible(client: JudgeClient) -> list[int]:
            threshold, chosen, items = client.describe().pays_above, [], [*goals.items()]
            for start in range(0, len(items), self._batch_size):
                some = items[start : start + self._batch_size]
                abouts = [text.encode() for _, text in some]
                judgements = client.annotate([state.text.encode()] * len(some), abouts=abouts)
                for (goal, _), judgement in zip(some, judgements, strict=True):
                    if judgement.status is Status.OK and judgement.probability > threshold:
                        chosen.append(goal)
            return chosen

        chosen = self._judge.ask(sensible)
        if chosen is not None:
            self._goals.suggest(state, goals, chosen)
        return chosen is not None

    def metrics(self) -> dict[str, float | None]:
        """Catalogue metrics."""
        written = {"writings_total": self._num_written, "writings_unparsed": self._num_unparsed}
        return {**self._goals.metrics(), **written}

    def state_dict(self) -> dict[str, Any]:
        """The goals and the counters. A question whose answer has not come counts as not asked."""
        counters = {
            "written": self._num_written,
            "unparsed": self._num_unparsed,
            "in_a_row": self._unparsed_in_a_row,
            "attempt": self._open[1] if self._open else 0,
        }
        return {"goals": self._goals.state_dict(), "counters": counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, before `start`."""
        self._goals.load_state_dict(state["goals"])
        counters = state["counters"]
        self._num_written, self._num_unparsed = counters["written"], counters["unparsed"]
        self._unparsed_in_a_row = counters["in_a_row"]
        if counters["attempt"] and (question := self._goals.next_question()) is not None:
            self._open = question, counters["attempt"]

    def close(self) -> None:
        """Stop asking, within two seconds even where a request hangs (its daemon thread stays, its answer is lost)."""
        self._stop.set()
        for asked in self._services():
            asked.close()
        if self._thread:
            self._thread.join(CLOSE_BUDGET_S)
