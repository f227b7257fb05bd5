"""`Replicas`: which of several annotation services are up, shared by all their clients
(`llm_server/replicated_client.py`).

Invariant: a replica that fails is left out until it has answered a probe by a background thread, so it costs one
attempt, not one per batch; all replicas in use have the same judge; the number of remembered answers is bounded.

    up ──a request fails──▶ left out, probed at growing intervals ──a probe is answered──▶ up
"""

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xxhash import xxh3_64_intdigest

from configs.backoff import backoff_s
from llm_server.annotation import ServiceDescription
from llm_server.annotator.feedback import JudgeClient
from llm_server.client import AnnotationRefused, ServiceUnavailable, is_loading

LOG = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
MAX_REMEMBERED = 65_536
"""Answers kept of batches that failed in part: far more than an annotator has in flight, a few MB."""


def split_addresses(text: str) -> list[str]:
    """The addresses of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def rendezvous_order(names: Sequence[str], key: bytes) -> list[str]:
    """`names` in the order in which `key` prefers them (rendezvous hashing); a new name reorders no others."""
    return sorted(names, key=lambda name: (-xxh3_64_intdigest(key, seed=xxh3_64_intdigest(name.encode())), name))


@dataclass(eq=False, slots=True)
class _Replica:
    address: str
    failures: int = 0
    """In a row; an answered request resets them, an answered probe does not."""
    trouble: Exception | None = None
    """Why nothing is sent to it; None while it is up."""
    down_since: float = 0.0
    is_probed: bool = False


class Replicas:
    """State shared by all clients of some replicas: which are up, answers of partly failed batches; thread-safe.

    `addresses()` returns host:port of the current replicas by name; it is called for every batch, so it must not block.
    A name identifies a judgement store: a replica that returns at another address under its name gets the same items.
    `addresses` raises ServiceUnavailable while there are no replicas yet and AnnotationRefused where there will be
    none. `connect` makes a client of one address.
    """

    def __init__(
        self,
        addresses: Callable[[], Mapping[str, str]],
        connect: Callable[[str], JudgeClient],
        *,
        first_backoff_s: float = FIRST_BACKOFF_S,
        max_backoff_s: float = MAX_BACKOFF_S,
    ) -> None:
        self.connect = connect
        self._addresses, self._first_backoff_s, self._max_backoff_s = addresses, first_backoff_s, max_backoff_s
        self._changed = threading.Condition()
        self._replicas: dict[str, _Replica] = {}
        self._judge: tuple[str, ServiceDescription] | None = None  # of the first replica that described itself
        self._remembered: OrderedDict[Hashable, Any] = OrderedDict()
        self._num_clients = 0
        self.has_answered = False
        """Whether any replica has answered a batch."""

    def attach(self) -> None:
        """Register a client."""
        with self._changed:
            self._num_clients += 1
            for name, replica in self._replicas.items():
                self._begin_probing(name, replica)

    def release(self) -> None:
        """Unregister a client; without clients, no replica is probed."""
        with self._changed:
            self._num_clients -= 1
            self._changed.notify_all()

    def up(self) -> dict[str, str]:
        """Address by name of the replicas that are up."""
        return {name: replica.address for name, replica in self._current().items() if replica.trouble is None}

    def all(self) -> dict[str, str]:
        """Address by name of every replica."""
        return {name: replica.address for name, replica in self._current().items()}

    def _current(self) -> dict[str, _Replica]:
        current = self._addresses()
        with self._changed:
            known = self._replicas
            # A replica at another address is another process: it starts without failures.
            self._replicas = {
                name: known[name] if name in known and known[name].address == address else _Replica(address)
                for name, address in current.items()
            }
            return self._replicas

    def error(self) -> Exception:
        """What to raise where no replica is up: AnnotationRefused where every one of them refuses."""
        with self._changed:
            troubles = {name: replica.trouble for name, replica in self._replicas.items()}
        said = "; ".join(f"{name}: {trouble or 'answered, but not this batch'}" for name, trouble in troubles.items())
        if troubles and all(isinstance(trouble, AnnotationRefused) for trouble in troubles.values()):
            return AnnotationRefused(f"every annotation replica refuses: {said}")
        return ServiceUnavailable(f"no annotation replica answers: {said or 'there is none'}")

    def agree(self, name: str, said: ServiceDescription) -> ServiceDescription:
        """The description `said` with the first replica's theta, which applies to all labels (each replica computes
        theta itself, equal up to rounding). AnnotationRefused where its judge is not the first replica's: their
        judgements must not be mixed."""
        with self._changed:
            if self._judge is None:
                self._judge = name, said
            first, judge = self._judge
        if said.identity != judge.identity:
            raise AnnotationRefused(
                f"annotation replica {name} judges with {said.model} ({said.engine}, weights {said.fingerprint}),"
                f" wanted {judge.model} ({judge.engine}, weights {judge.fingerprint}) as {first} does: start both with"
                " the same model and rubric"
            )
        return replace(said, threshold=judge.threshold)

    def failed(self, name: str, address: str, error: Exception) -> None:
        """Leave the replica out until a probe is answered."""
        with self._changed:
            replica = self._replicas.get(name)
            if replica is None or replica.address != address or replica.trouble is not None:
                return
            replica.trouble, replica.down_since = error, time.monotonic()
            replica.failures += 1
            self._begin_probing(name, replica)
        LOG.warning("annotation replica %s is left out, the others take its captions: %s", name, error)

    def is_well(self, name: str, address: str) -> None:
        """Use the replica again: it has described itself."""
        with self._changed:
            replica = self._replicas.get(name)
            if replica is None or replica.address != address or replica.trouble is None:
                return
            replica.trouble = None
        LOG.info("annotation replica %s answers again after %.1f s", name, time.monotonic() - replica.down_since)

    def answered(self, name: str) -> None:
        """Note that the replica answered a batch, which resets its failures."""
        with self._changed:
            self.has_answered = True
            if name in self._replicas:
                self._replicas[name].failures = 0

    def remember(self, answers: Mapping[Hashable, Any]) -> None:
        """Keep answers whose batch is not complete yet; the oldest are dropped when there are too many."""
        with self._changed:
            self._remembered |= answers
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)

    def recall(self, key: Hashable) -> Any:
        """Take out the answer remembered under `key`; None where there is none."""
        with self._changed:
            return self._remembered.pop(key, None)

    def _begin_probing(self, name: str, replica: _Replica) -> None:
        if replica.trouble is not None and not replica.is_probed and self._num_clients:
            replica.is_probed = True
            probe = partial(self._probe, name, replica)
            threading.Thread(target=probe, name=f"replica-probe-{name}", daemon=True).start()

    def _probe(self, name: str, replica: _Replica) -> None:
        while True:
            pause_s = backoff_s(replica.failures, self._first_backoff_s, self._max_backoff_s) * random.uniform(0.5, 1.0)
            with self._changed:
                self._changed.wait_for(lambda: not self._num_clients, pause_s)
                if not self._num_clients or replica.trouble is None or self._replicas.get(name) is not replica:
                    replica.is_probed = False
                    return
            try:
                with closing(self.connect(replica.address)) as client:
                    self.agree(name, client.describe())
            except Exception as error:
                with self._changed:
                    replica.failures = 1 if is_loading(error) else replica.failures + 1
                    if replica.trouble is not None:
                        replica.trouble = error
            else:
                self.is_well(name, replica.address)
