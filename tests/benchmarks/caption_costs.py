"""What a reward table costs as captions grow in number: looking up a batch's ids, mixing its rewards, building the next
version.

CPU time of this process, with the processor's caches filled with other data before each measurement, as a learner's are
by its update.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from configs.reward_schema import RewardConfig
from learner.reward.mixer import mix_rewards
from reward_models.table import RewardTable
from tests.benchmarks.reward_lookup import FLUSH_BYTES

BATCH = (32, 128)
"""[T, B] of the working point: 4096 ids."""
UNKNOWN = 0.1
"""Share of ids that the table lacks; the others are drawn evenly, which is the worst for caches."""


def caption_costs(sizes: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    """One row per table size, the sizes in turns."""
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(1, 2**64, max(sizes), dtype=np.uint64))
    rng.shuffle(ids)
    rewards, flush = rng.random(len(ids), dtype=np.float32), np.zeros(FLUSH_BYTES // 8)
    config, zeros, ones = RewardConfig(), np.zeros(BATCH, np.float32), np.ones(BATCH, np.int32)
    times: dict[int, dict[str, list[float]]] = {size: {"build": [], "look_up": [], "relabel": []} for size in sizes}
    for _ in range(repetitions):
        for size in sizes:
            tables: list[RewardTable] = []
            times[size]["build"].append(
                _cpu_s(lambda tables=tables, n=size: tables.append(RewardTable.build(ids[:n], rewards[:n], (1, 1))))
            )
            (table,) = tables
            queries = rng.choice(ids[:size], BATCH)
            queries = np.where(rng.random(BATCH) < UNKNOWN, rng.integers(1, 2**64, BATCH, dtype=np.uint64), queries)
            for name, work in (
                ("look_up", lambda table=table, queries=queries: table.look_up(queries)),
                (
                    "relabel",
                    lambda table=table, queries=queries: mix_rewards(
                        extrinsic_rewards=zeros, caption_ids=queries, caption_counts=ones, table=table, config=config
                    ),
                ),
            ):
                flush += 1.0
                times[size][name].append(_cpu_s(work))
    return [
        {
            "captions": size,
            "look_up_us": 1e6 * statistics.median(taken["look_up"]),
            "relabel_us_per_frame": 1e6 * statistics.median(taken["relabel"]) / np.prod(BATCH).item(),
            "build_ms": 1e3 * statistics.median(taken["build"]),
            "repetitions": {name: [1e6 * value for value in values] for name, values in taken.items()},
        }
        for size, taken in times.items()
    ]


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
