"""Looking up the rewards of a rollout's captions in a table of up to a million: Delphi's index against one binary
search per id.

Cold means that the processor's caches were filled with other data just before, as a learner does between two look-ups.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from cluster.verbs.bench import print_report, report
from reward_models.table import RewardTable

FLUSH_BYTES = 256 << 20
"""More than the last-level cache of any processor this is likely to run on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="delphi bench reward_lookup", description=__doc__)
    parser.add_argument("--captions", type=int, default=1_000_000, help="captions in the table (default: %(default)s)")
    parser.add_argument("--ids", type=int, default=2048, help="ids looked up at once (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=50, help="look-ups of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if min(arguments.captions, arguments.ids, arguments.repetitions) < 1:
        raise ValueError("--captions, --ids and --repetitions must be at least 1")
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(1, 2**64, arguments.captions, dtype=np.uint64))
    table = RewardTable.build(ids, rng.random(len(ids), dtype=np.float32), (1, 1))
    flush = np.zeros(FLUSH_BYTES // 8)
    measured: dict[str, list[float]] = {"index_cold": [], "index_warm": [], "search_cold": [], "search_warm": []}
    for repetition in range(arguments.repetitions):
        wanted = rng.choice(ids, arguments.ids)
        queries = np.where(
            rng.random(arguments.ids) < 0.1, rng.integers(1, 2**64, arguments.ids, dtype=np.uint64), wanted
        )
        for name, look_up in (("index", table.look_up), ("search", lambda ids: _search(table, ids))):
            flush += 1.0
            for temperature in ("cold", "warm"):
                started = time.perf_counter()
                rewards, _ = look_up(queries)
                measured[f"{name}_{temperature}"].append((time.perf_counter() - started) * 1e3)
            if not np.array_equal(rewards, _search(table, queries)[0]):
                raise RuntimeError(f"{name} found other rewards than a binary search")
        if not arguments.json and repetition % 10 == 9:
            print(f"{repetition + 1} of {arguments.repetitions}", file=sys.stderr)
    result = report(
        "reward_lookup",
        measured=measured,
        unit="ms",
        ratio_of=("search_cold", "index_cold"),
        settings={"captions": len(table), "ids": arguments.ids, "unknown_fraction": 0.1, "flushed_bytes": FLUSH_BYTES},
        microseconds_per_id=statistics.median(measured["index_cold"]) * 1e3 / arguments.ids,
    )
    print_report(result, arguments.json)
    return 0


def _search(table: RewardTable, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the table would do without an index."""
    positions = np.minimum(np.searchsorted(table.ids, ids), len(table) - 1)
    known = table.ids[positions] == ids
    return np.where(known, table.rewards[positions], np.float32(0)), known


if __name__ == "__main__":
    sys.exit(main())
