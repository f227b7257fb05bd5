"""`ReplicatedClient`: several annotation services asked as one. `partial(ReplicatedClient, Replicas(addresses, connect))` is a
`connect` for `Annotator`.

Invariant: an item goes to the same replica as long as that one answers, so each replica's store is a shard; what a replica answered is
never asked again, even where the rest of its batch failed; answers come in the order asked.

    item ──rendezvous order──▶ first replica that is up ──fails──▶ the next ──none is left──▶ ServiceUnavailable, answers that came are kept
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llm_server.annotation import Judgement, PairJudgement, ServiceDescription
from llm_server.annotator.feedback import JudgeClient, check_number
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.replicas import Replicas, rendezvous_order


class ReplicatedClient:
    """The methods of `llm_server.client.AnnotationClient`, asked of all replicas of a `Replicas`; for one thread, closed by any."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        replicas.attach()
        self._lock = threading.Lock()
        self._connections: dict[str, tuple[str, JudgeClient]] = {}
        self._is_closed = False
        self._rejected = 0

    def annotate(self, items: Sequence[bytes]) -> list[Judgement]:
        """One judgement per item, in order. Raises ServiceUnavailable or AnnotationRefused, and then keeps the answers that came."""
        return self._ask("item", items, items, lambda client, part: client.annotate(part))

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[PairJudgement]:
        """One judgement per pair, in order; the same errors."""
        routes = [b"".join(sorted(pair)) for pair in pairs]  # both ways round to the same replica
        return self._ask("pair", pairs, routes, lambda client, part: client.annotate_pairs(part))

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, in order, NaN for an item that is no text; the same errors."""
        rows: list[np.ndarray] = self._ask("vector", items, items, lambda client, part: list(client.embed(part)))
        sizes = {len(row) for row in rows}
        if len(sizes) > 1:
            raise AnnotationRefused(
                f"annotation replicas embed into {sorted(sizes)} dimensions: start all with the same --encoder"
            )
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def describe(self) -> ServiceDescription:
        """What the replicas that are up say of themselves, limits and counts joined; they must all judge alike. Where none is up, all are
        asked once more: whoever connects anew has waited long enough."""
        up = self._replicas.up() or self._replicas.all()
        said = self._at_once({name: self._describing(name, up[name]) for name in up}, up)
        descriptions = [answer for answer in said.values() if isinstance(answer, ServiceDescription)]
        refusals = [answer for answer in said.values() if isinstance(answer, AnnotationRefused)]
        if refusals and not self._replicas.has_answered:
            raise refusals[0]  # better said at the start than served by half; later, the others go on
        if not descriptions:
            raise self._replicas.error()
        return replace(
            descriptions[0],
            max_items_per_request=min(each.max_items_per_request for each in descriptions),
            max_item_bytes=min(each.max_item_bytes for each in descriptions),
            forward_passes=sum(each.forward_passes for each in descriptions),
        )

    def take_rejected(self) -> int:
        """Items whose answers broke the contract, of any replica, since the last call."""
        with self._lock:
            number, self._rejected = self._rejected, 0
        return number

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            clients = [client for _, client in self._connections.values()]
        for client in clients:
            client.close()
        self._replicas.release()

    def _ask(
        self,
        kind: str,
        items: Sequence[Any],
        routes: Sequence[bytes],
        send: Callable[[JudgeClient, list[Any]], Sequence[Any]],
    ) -> list[Any]:
        answers = {
            n: answer for n, item in enumerate(items) if (answer := self._replicas.recall((kind, item))) is not None
        }
        tried: set[str] = set()
        while missing := [n for n in range(len(items)) if n not in answers]:
            up = self._replicas.up()
            names = [name for name in up if name not in tried]
            if not names or self._is_closed:
                self._replicas.remember({(kind, items[n]): answer for n, answer in answers.items()})
                raise self._replicas.error()
            parts: dict[str, list[int]] = {}
            for n in missing:
                parts.setdefault(rendezvous_order(names, routes[n])[0], []).append(n)
            calls = {name: _sending(send, [items[n] for n in part]) for name, part in parts.items()}
            for name, result in self._at_once(calls, up).items():
                if isinstance(result, Exception):
                    tried.add(name)
                else:
                    answers |= zip(parts[name], result, strict=True)
                    self._replicas.answered(name)
        return [answers[n] for n in range(len(items))]

    def _at_once(
        self, calls: Mapping[str, Callable[[JudgeClient], Any]], addresses: Mapping[str, str]
    ) -> dict[str, Any]:
        """What each replica's call returned, or its exception, after which the replica is left out; one thread per call."""
        results: dict[str, Any] = {}

        def call(name: str) -> None:
            try:
                results[name] = calls[name](self._connected(name, addresses[name]))
            except Exception as error:
                results[name] = error
                self._drop(name)
                if not self._is_closed:
                    self._replicas.failed(name, addresses[name], error)

        # Daemons: every call has a deadline, but the process need not wait for it at its end.
        threads = [
            threading.Thread(target=call, args=(name,), name=f"replica-{name}", daemon=True) for name in list(calls)[1:]
        ]
        for thread in threads:
            thread.start()
        for name in list(calls)[:1]:
            call(name)
        for thread in threads:
            thread.join()
        return results

    def _connected(self, name: str, address: str) -> JudgeClient:
        """The connection to a replica; a new one is first asked whether it judges as the others do."""
        with self._lock:
            known = self._connections.get(name)
        if known is not None and known[0] == address:
            return known[1]
        self._drop(name)
        client = self._replicas.connect(address)
        try:
            self._describing(name, address)(client)
        except BaseException:
            client.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._connections[name] = address, client
                return client
        client.close()
        raise ServiceUnavailable("the client of the annotation replicas is closed")

    def _describing(self, name: str, address: str) -> Callable[[JudgeClient], ServiceDescription]:
        def call(client: JudgeClient) -> ServiceDescription:
            said = self._replicas.agree(name, client.describe())
            self._replicas.is_well(name, address)
            return said

        return call

    def _drop(self, name: str) -> None:
        with self._lock:
            known = self._connections.pop(name, None)
            self._rejected += known[1].take_rejected() if known is not None else 0
        if known is not None:
            known[1].close()


def _sending(
    send: Callable[[JudgeClient, list[Any]], Sequence[Any]], part: list[Any]
) -> Callable[[JudgeClient], Sequence[Any]]:
    def call(client: JudgeClient) -> Sequence[Any]:
        answers = send(client, part)
        check_number(len(answers), len(part))
        return answers

    return call
