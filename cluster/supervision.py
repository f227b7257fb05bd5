"""Supervision: when a failed component is restarted, when the run gives up, what the user is told, and what the latest
updates say about the run (its policy ignores its observations, or nothing can be learnt).

Invariant: pure policy over a given clock; no Ray, no processes. A component that makes progress between its failures
may fail any number of times; one that does not is restarted after growing pauses, and ends the run after a bounded
number of failures. Updates are judged over many in a row since this start, so that an occasional bad batch raises no
alarm.
"""

import logging
import math
import re
from collections import deque

from actors.rollout import Rollout
from cluster.metrics import LOOKING_ABOVE
from configs.backoff import backoff_s
from configs.errors import one_line
from learner.update import StepResult

LOG = logging.getLogger(__name__)
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
MAX_NOTICES = 20
"""Kinds of failures that the user is told; further kinds are only counted."""
ENVIRONMENT_WINDOW, ENVIRONMENT_MINIMUM = 32, 4
"""Rollouts over which the share of lost environments is taken, and the fewest that are evaluated."""
BLIND_UPDATES = 200
"""Updates in a row whose policy ignored its observations, after which the user is told."""
SKIPPED_WINDOW = 32
"""Updates over which the share of skipped gradient steps is taken."""
CAUSES = "likely causes are rewards that are too large, or a learner.learning_rate that is too high"


class GiveUp(RuntimeError):
    """The run has to end, and a restart would not help; the message is for the user."""


def restart_pause_s(failures: int, what: str, limit: int, setting: str) -> float:
    """Seconds to wait before a component's restart, after `failures` in a row without progress in between: none after
    the first, then twice as long each time. Raises GiveUp after more than `limit`, the value of the key `setting`.

    Failures in a row are counted, because a rate would either end a run of many workers with rare crashes or let a
    single worker crash for ever."""
    if failures > limit:
        again = f"{failures} times in a row without progress" if failures > 1 else "and may not be started again"
        raise GiveUp(f"{what} ({again}; {setting} = {limit})")
    return backoff_s(failures - 1, FIRST_PAUSE_S, LONGEST_PAUSE_S)


class Notices:
    """Messages for the user: the first failure of each kind, in full; later ones are counted."""

    def __init__(self) -> None:
        self.told: list[str] = []
        """One line each, oldest first."""
        self._counts: dict[str, int] = {}

    def note(self, kind: str, text: str) -> int:
        """How often this kind has occurred, apart from numbers in it; the first time `text` is added to `told`."""
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", kind)
        if key not in self._counts and len(self._counts) >= MAX_NOTICES:
            key = ""
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] == 1 and len(self.told) < MAX_NOTICES:
            self.told.append(one_line(text))
        return self._counts[key]


class EnvironmentBudget:
    """Bounds the share of the environments' samples that are lost to failures of environments."""

    def __init__(self, max_share: float, notices: Notices) -> None:
        self._max_share, self._notices = max_share, notices
        self._lost: deque[float] = deque(maxlen=ENVIRONMENT_WINDOW)
        self.errors = 0
        """Failures so far."""

    def note(self, rollout: Rollout) -> None:
        """Count a worker's next rollout; raises GiveUp where too many environments of the latest rollouts are lost."""
        for notice in rollout.environment_notices:
            if self._notices.note(notice, notice) == 1:
                LOG.warning("%s", notice)
        self.errors += rollout.environment_errors
        self._lost.append(1.0 - float(rollout.kept.mean()))
        if not rollout.environment_errors:
            return
        cause = last_line(rollout.environment_error)
        text = f"an environment of worker {rollout.worker_id} failed and is rebuilt, its sample dropped: {cause}"
        if self._notices.note(cause, text) == 1:
            message = "an environment of worker %s failed and is rebuilt:\n%s"
            LOG.error(message, rollout.worker_id, rollout.environment_error)
        share = sum(self._lost) / len(self._lost)
        if len(self._lost) >= ENVIRONMENT_MINIMUM and share > self._max_share:
            raise GiveUp(
                f"the environment fails too often: {share:.0%} of the environments' last {len(self._lost)} rollouts are"
                f" lost (cluster.max_environment_loss = {self._max_share:g}): {cause}"
            )


def last_line(text: str) -> str:
    """The last line that is not empty: of a traceback, the exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


class UpdateWatch:
    """Watches the results of updates; `problems` and `failure` are about the newest ones."""

    def __init__(self) -> None:
        self._blind = 0  # updates since the policy last used its observations
        self._skipped: deque[float] = deque(maxlen=SKIPPED_WINDOW)

    def note(self, result: StepResult) -> None:
        """Count one more update."""
        self._blind = self._blind + 1 if result.metrics.get("policy_state_information", math.inf) < LOOKING_ABOVE else 0
        self._skipped.append(result.skipped_fraction)

    @property
    def problems(self) -> list[str]:
        """Messages for the user, a line each."""
        problems = []
        if self._blind >= BLIND_UPDATES:
            problems.append(
                f"the policy hardly uses its observations: policy_state_information has been below {LOOKING_ABOVE} nats"
                f" for {BLIND_UPDATES} updates; unless the task needs none, a blind player (`delphi eval`) does as well"
            )
        if sum(self._skipped) >= SKIPPED_WINDOW / 2:  # also in a run of fewer updates so far
            problems.append(
                f"at least half of the last {SKIPPED_WINDOW} updates were skipped, because loss or gradient were not"
                f" finite (updates_skipped_nonfinite counts them); {CAUSES}"
            )
        return problems

    @property
    def failure(self) -> str | None:
        """Why the run must end; None while something is learnt."""
        if len(self._skipped) < SKIPPED_WINDOW or min(self._skipped) < 1.0:
            return None
        return (
            f"nothing is learnt: all of the last {SKIPPED_WINDOW} updates were skipped, because loss or gradient were"
            f" not finite; {CAUSES}"
        )
