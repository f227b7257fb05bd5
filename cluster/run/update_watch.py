"""What the latest updates say of a run as a whole: that its policy does not look, or that nothing can be learnt.

Invariant: judged over updates in a row, so that a bad batch now and then is nobody's concern; of this start of the run alone.
"""

import math
from collections import deque

from cluster.metrics import LOOKING_ABOVE
from learner.update import StepResult

BLIND_UPDATES = 200
"""Updates in a row whose policy did not look at its observations, after which the user is told."""
SKIPPED_WINDOW = 32
"""Updates that the share of skipped gradient steps is taken over."""
CAUSES = "rewards too large to add up, or a learner.learning_rate too high, are what makes them so"


class UpdateWatch:
    """Takes in every update's result; `problems` and `failure` are of the newest ones."""

    def __init__(self) -> None:
        self._blind = 0  # since the policy last looked at its observations
        self._skipped: deque[float] = deque(maxlen=SKIPPED_WINDOW)

    def note(self, result: StepResult) -> None:
        """One more update."""
        self._blind = self._blind + 1 if result.metrics.get("policy_state_information", math.inf) < LOOKING_ABOVE else 0
        self._skipped.append(result.skipped_fraction)

    @property
    def problems(self) -> list[str]:
        """What the user must be told, a line each."""
        problems = []
        if self._blind >= BLIND_UPDATES:
            problems.append(
                f"the policy hardly looks at what it sees: policy_state_information has been below {LOOKING_ABOVE} nats for {BLIND_UPDATES}"
                " updates; unless the task needs no looking, a blind player (`delphi eval`) does as well"
            )
        if sum(self._skipped) >= SKIPPED_WINDOW / 2:  # also of a run that has not come to so many updates yet
            problems.append(
                f"at least half of the last {SKIPPED_WINDOW} updates were skipped, because loss or gradient were not finite"
                f" (updates_skipped_nonfinite counts them); {CAUSES}"
            )
        return problems

    @property
    def failure(self) -> str | None:
        """Why the run must end; None as long as something is learnt."""
        if len(self._skipped) < SKIPPED_WINDOW or min(self._skipped) < 1.0:
            return None
        return (
            f"nothing is learnt: all of the last {SKIPPED_WINDOW} updates were skipped, because loss or gradient were not finite; {CAUSES}"
        )
