"""Which reports of each worker have been received, so that each is counted once.

Invariant: memory is two integers per worker, for the newest `MAX_WORKERS` workers.
"""

from collections import OrderedDict

MAX_WORKERS = 4096
REPORT_WINDOW = 64


class ReportWindow:
    """The newest report number and a bit mask of the last 64, by worker; not thread-safe."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def admit(self, worker_id: str, sequence_number: int) -> bool:
        """Whether this report is new; it counts as held from now on. One older than the mask counts as held before."""
        newest, held = self._newest.get(worker_id, (sequence_number - 1, 0))
        ahead = sequence_number - newest
        if ahead > 0:
            is_new, newest = True, sequence_number
            held = (held << ahead | 1) & (2**REPORT_WINDOW - 1) if ahead < REPORT_WINDOW else 1
        else:  # a later report came first: new unless its bit is set
            bit = 1 << -ahead
            is_new = -ahead < REPORT_WINDOW and not held & bit
            held |= bit if is_new else 0
        self._newest[worker_id] = newest, held
        self._newest.move_to_end(worker_id)
        if len(self._newest) > MAX_WORKERS:
            self._newest.popitem(last=False)
        return is_new

    def newest(self, worker_id: str) -> int:
        """The newest report held of this worker, which must have sent one."""
        return self._newest[worker_id][0]

    def clear(self) -> None:
        """Forget all workers."""
        self._newest.clear()

    def __len__(self) -> int:
        return len(self._newest)
