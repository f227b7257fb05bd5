"""`ReplicatedClient`: several annotation services asked as one.

For `Annotator`, `connect=partial(ReplicatedClient, Replicas(addresses, connect))`.

Invariant: an item goes to the same replica as long as that one answers, so each replica's store is a shard; what a
replica answered is never asked again, even where the rest of its batch failed; answers come in the order asked.

    item ──rendezvous order──▶ first replica that is up ──fails──▶ next ──none left──▶ ServiceUnavailable, answers kept
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Writing
from llm_server.annotator.feedback import JudgeClient, check_number
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.replicas import Replicas, rendezvous_order
from llm_server.wire import asked_bytes
from llm_server.writing.brief import Brief

Send: TypeAlias = Callable[[JudgeClient, list[Any]], Sequence[Any]]


class ReplicatedClient:
    """`llm_server.client.AnnotationClient`'s methods on all of `replicas`; used by one thread, closed by any."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        replicas.attach()
        self._lock = threading.Lock()
        self._connections: dict[str, tuple[str, JudgeClient]] = {}
        self._is_closed = False
        self._rejected = 0

    def annotate(self, items: Sequence[bytes], *, abouts: Sequence[bytes] = ()) -> list[Judgement]:
        """One judgement per item, in order, about one of `abouts` each if any. ServiceUnavailable or AnnotationRefused,
        with received answers kept."""
        if not abouts:
            return self._ask("item", items, items, lambda client, part: client.annotate(part))
        routes, both = [*map(asked_bytes, items, abouts)], [*zip(items, abouts, strict=True)]
        return self._ask("item", both, routes, _annotate_about)

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[PairJudgement]:
        """One judgement per pair, in order; the same errors."""
        routes = [b"".join(sorted(pair)) for pair in pairs]  # both orders go to the same replica
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

    def write(self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int) -> list[Writing]:
        """See `WriterClient`; the same fields go to the same replica."""
        asked = brief.content_hash, tuple(sorted(fields.items())), num, seed
        route = brief.id.encode() + b"".join(value for _, value in asked[1])
        (writings,) = self._ask("writing", [asked], [route], lambda client, _: [client.write(brief, fields, num, seed)])
        return writings

    def describe(self) -> ServiceDescription:
        """The common description of the replicas that are up, with the smallest limits and summed counts; they must
        have the same judge. Where none is up, all are tried: a client that connects again has already waited."""
        up = self._replicas.up() or self._replicas.all()
        said = self._at_once({name: partial(self._describe, name, up[name]) for name in up}, up)
        descriptions = [answer for answer in said.values() if isinstance(answer, ServiceDescription)]
        refusals = [answer for answer in said.values() if isinstance(answer, AnnotationRefused)]
        if refusals and not self._replicas.has_answered:
            raise refusals[0]  # at the start a refusal is an error; later, the other replicas go on
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

    def _ask(self, kind: str, items: Sequence[Any], routes: Sequence[bytes], send: Send) -> list[Any]:
        recalled = ((n, self._replicas.recall((kind, item))) for n, item in enumerate(items))
        answers = {n: answer for n, answer in recalled if answer is not None}
        tried: set[str] = set()
        while missing := [n for n in range(len(items)) if n not in answers]:
            up = self._replicas.up()
            names = [name for name in up if name not in tried]
            if not names or self._is_closed:
                self._replicas.remember({(kind, items[n]): answer for n, answer in answers.items()})
                raise self._replicas.error()
            shards: dict[str, list[int]] = {}
            for n in missing:
                shards.setdefault(rendezvous_order(names, routes[n])[0], []).append(n)
            calls = {name: partial(_send, send, [items[n] for n in shard]) for name, shard in shards.items()}
            for name, result in self._at_once(calls, up).items():
                if isinstance(result, Exception):
                    tried.add(name)
                else:
                    answers |= zip(shards[name], result, strict=True)
                    self._replicas.answered(name)
        return [answers[n] for n in range(len(items))]

    def _at_once(
        self, calls: Mapping[str, Callable[[JudgeClient], Any]], addresses: Mapping[str, str]
    ) -> dict[str, Any]:
        """Each replica's result, or its exception, after which the replica is left out; one thread per call."""
        results: dict[str, Any] = {}

        def call(name: str) -> None:
            try:
                results[name] = calls[name](self._connected(name, addresses[name]))
            except Exception as error:
                results[name] = error
                self._drop(name)
                if not self._is_closed:
                    self._replicas.failed(name, addresses[name], error)

        # Daemon threads: every call has a deadline, but the process need not wait for it at exit.
        names = list(calls)
        threads = [threading.Thread(target=call, args=(n,), name=f"replica-{n}", daemon=True) for n in names[1:]]
        for thread in threads:
            thread.start()
        for name in names[:1]:
            call(name)
        for thread in threads:
            thread.join()
        return results

    def _connected(self, name: str, address: str) -> JudgeClient:
        """The connection to a replica; a new one is first checked to have the same judge as the others."""
        with self._lock:
            known = self._connections.get(name)
        if known is not None and known[0] == address:
            return known[1]
        self._drop(name)
        client = self._replicas.connect(address)
        try:
            self._describe(name, address, client)
        except BaseException:
            client.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._connections[name] = address, client
                return client
        client.close()
        raise ServiceUnavailable("the client of the annotation replicas is closed")

    def _describe(self, name: str, address: str, client: JudgeClient) -> ServiceDescription:
        said = self._replicas.agree(name, client.describe())
        self._replicas.is_well(name, address)
        return said

    def _drop(self, name: str) -> None:
        with self._lock:
            _, client = self._connections.pop(name, (None, None))
            self._rejected += client.take_rejected() if client is not None else 0
        if client is not None:
            client.close()


def _annotate_about(client: JudgeClient, part: list[tuple[bytes, bytes]]) -> list[Judgement]:
    return client.annotate([item for item, _ in part], abouts=[about for _, about in part])


def _send(send: Send, shard: list[Any], client: JudgeClient) -> Sequence[Any]:
    answers = send(client, shard)
    check_number(len(answers), len(shard))
    return answers
