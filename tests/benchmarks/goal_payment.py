"""What the payment of goals costs the learner: 256 goals and a table of 100,000 items, by the share of items that
achieve a goal, against the payment of events.

In processor time, so that other work on the machine counts little. Half of the goals are a plan, each after the one
before it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from actors.rollout import Rollout
from cluster.verbs.bench import print_report, report
from configs.goal_schema import GOAL_TERM, MAX_GOALS, GoalsConfig
from configs.reward_schema import TermConfig
from learner.reward.goals import Goals
from learner.reward.payments import Event, Payment
from reward_models.goals.masks import masks_of
from reward_models.goals.published import PublishedGoals
from reward_models.table import RewardTable
from tests.learner.toy_rollouts import random_rollout

SHARES = (0.02, 0.3, 1.0)
"""Of items that achieve a goal."""
PAYMENTS = {
    "any": GoalsConfig(),
    "suggested": GoalsConfig(scope="suggested"),
    "current": GoalsConfig(scope="current"),
    "neutralised": GoalsConfig(neutralise=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="delphi bench goal_payment", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000, help="items in the table (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="steps of a rollout (default: %(default)s)")
    parser.add_argument("--environments", type=int, default=64, help="environments (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=50, help="rollouts of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if min(arguments.items, arguments.steps, arguments.environments, arguments.repetitions) < 1:
        raise ValueError("--items, --steps, --environments and --repetitions must be at least 1")
    rng, shape = np.random.default_rng(0), (arguments.steps, arguments.environments)
    ids = np.unique(rng.integers(1, 2**64, arguments.items, dtype=np.uint64))
    goals = published(rng, ids[:: max(1, len(ids) // 5000)])
    measured: dict[str, list[float]] = {}
    for share in SHARES:
        achieved = np.where(rng.random(len(ids)) < share, rng.integers(0, MAX_GOALS, len(ids)), -1)
        table = RewardTable.build(ids, np.ones(len(ids)), (0, 1), masks_of(achieved))
        payments: dict[str, Payment] = {
            name: Goals(TermConfig(pays=GOAL_TERM, gamma=0.99), config) for name, config in PAYMENTS.items()
        }
        payments["event"] = Event(TermConfig(count_exponent=3.0))
        for number in range(arguments.repetitions):
            rollout = played(rng, ids, goals.suggested_ids, shape, number)
            for name, payment in payments.items():
                started = time.thread_time()
                payment.pay(rollout, table, goals)
                taken = (time.thread_time() - started) * 1e6 / rollout.actions.size
                measured.setdefault(f"{name} {share:g}", []).append(taken)
        if not arguments.json:
            print(f"{share:.0%} of items", file=sys.stderr)
    result = report(
        "goal_payment",
        measured=measured,
        unit="us per frame",
        ratio_of=(f"any {SHARES[0]:g}", f"event {SHARES[0]:g}"),
        settings={"items": len(table), "goals": MAX_GOALS, "steps": shape[0], "environments": shape[1]},
        most_us_per_frame=max(map(statistics.median, measured.values())),
    )
    print_report(result, arguments.json)
    return 0


def published(rng: np.random.Generator, states: np.ndarray) -> PublishedGoals:
    """All goals, half of them a plan, and of each state a random half suggested."""
    before = np.full(MAX_GOALS, -1, np.int16)
    before[1 : MAX_GOALS // 2] = np.arange(MAX_GOALS // 2 - 1)
    return PublishedGoals(
        version=(0, 1),
        texts=(),
        vectors=np.zeros((0, 384), np.float32),
        weights=np.ones(MAX_GOALS, np.float32),
        sampling=np.ones(MAX_GOALS, np.float32),
        before=before,
        suggested_ids=states,
        suggested=rng.integers(0, 2**64, (len(states), 4), np.uint64),
    )


def played(
    rng: np.random.Generator, items: np.ndarray, states: np.ndarray, shape: tuple[int, int], number: int
) -> Rollout:
    """Random items, states and given goals; 1 step of 200 ends an episode."""
    ends = rng.random(shape) < 0.005
    return random_rollout(
        *shape,
        caption_ids=rng.choice(items, shape),
        terminated=ends,
        truncated=np.zeros_like(ends),
        signals={"state_before": rng.choice(states, shape)},
        obs={"goal": rng.integers(0, MAX_GOALS + 1, (shape[0] + 1, shape[1])).astype(np.int16)},
        sequence_number=number,
    )


if __name__ == "__main__":
    sys.exit(main())
