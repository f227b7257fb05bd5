"""`Asked`: a service that is asked now and then, over restarts of it.

Invariant: no question raises; one that fails is answered by None, and after a pause that grows with failures in a row
the service is connected anew.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from configs.backoff import backoff_s
from llm_server.annotator.feedback import JudgeClient
from llm_server.client import AnnotationRefused, ServiceUnavailable, is_loading

LOG = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.25
LOADING_INTERVAL_S = 1.0
REMIND_INTERVAL_S = 60.0


T = TypeVar("T")


class Asked:
    """Used by one thread; closed by any. `connect` makes a client or raises as `Annotator`'s; `what` names it."""

    def __init__(self, connect: Callable[[], JudgeClient], max_backoff_s: float, what: str) -> None:
        self.problem: str | None = None
        """Why it is asked no more; None as long as questions may succeed."""
        self.retry_at = 0.0
        """When it may be asked again, by `time.monotonic`."""
        self._connect, self._max_backoff_s, self._what = connect, max_backoff_s, what
        self._client: JudgeClient | None = None
        self._failures, self._reminded_at = 0, -REMIND_INTERVAL_S
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Whether it may be asked now."""
        return self.problem is None and time.monotonic() >= self.retry_at

    def ask(self, question: Callable[[JudgeClient], T]) -> T | None:
        """The answer of `question`; None where it failed, or is not to be asked now."""
        if not self.is_ready:
            return None
        try:
            client = self._client = self._client or self._connect()
            if self._is_closed:  # `close` may have run before this client was known
                self.close()
                return None
            answer = question(client)
        except Exception as error:
            self._failed(error)
            return None
        self._failures = 0
        return answer

    def _failed(self, error: Exception) -> None:
        self._drop()
        if self._is_closed:
            return
        if isinstance(error, AnnotationRefused | ValueError):
            self.problem = f"{self._what}: {error}"
            LOG.error("%s; training goes on with the goals that there are", self.problem)
            return
        self._failures = 0 if is_loading(error) else self._failures + 1
        pause_s = backoff_s(self._failures, FIRST_BACKOFF_S, self._max_backoff_s) or LOADING_INTERVAL_S
        self.retry_at = time.monotonic() + pause_s * random.uniform(0.5, 1.0)
        if time.monotonic() - self._reminded_at >= REMIND_INTERVAL_S:
            self._reminded_at = time.monotonic()
            is_expected = isinstance(error, ServiceUnavailable)
            LOG.warning("%s: no answer; training goes on: %s", self._what, error, exc_info=not is_expected)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except Exception:
                LOG.debug("closing a client failed", exc_info=True)

    def close(self) -> None:
        """End the connection; a question under way fails."""
        self._is_closed = True
        self._drop()
