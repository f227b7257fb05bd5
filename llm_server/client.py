"""Clients of a judge: over gRPC, or in this process; both with the same methods and errors.

Invariant: a batch of judgements is returned only if it has exactly one valid one per item, and writings only if all
that were asked for came and are valid; every call has a deadline.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
import numpy as np

from llm_server import annotation_pb2 as pb
from llm_server import annotation_pb2_grpc, wire
from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Writing
from llm_server.channel import advice, call_metadata, open_channel
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge
from llm_server.writing.brief import Brief

RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}
DESCRIBE_TIMEOUT_S = 10.0
"""Upper limit of a `Describe` call's deadline: it waits for no model."""

T = TypeVar("T")


class AnnotationError(RuntimeError):
    """The request brought no judgements."""


class ServiceUnavailable(AnnotationError):
    """The service is down, slow, or gave an invalid answer; a retry may succeed."""


def is_loading(error: Exception) -> bool:
    """Whether the service is starting or loading its model, which is no failure."""
    return isinstance(error, ServiceUnavailable) and any(words in str(error) for words in (wire.LOADING, wire.STARTING))


class BrokenAnswer(ServiceUnavailable):
    """The service gave an answer that breaks the contract and is discarded."""


class AnnotationRefused(AnnotationError):
    """The service refused the request; the same request will be refused again."""


class AnnotationClient:
    """Asks the service at `address` (host:port) under one rubric; thread-safe, blocking. Raises as `open_channel`.

    `about` is what every item is judged about, for a rubric with an `about_label`.
    """

    def __init__(
        self,
        address: str,
        rubric: Rubric,
        timeout_s: float,
        credentials: ClientCredentials = NO_CREDENTIALS,
        about: str = "",
    ) -> None:
        self._address, self._rubric, self._timeout_s, self._credentials = address, rubric, timeout_s, credentials
        self._about = about.encode()
        self._channel = open_channel(address, credentials)
        self._stub = annotation_pb2_grpc.AnnotationStub(self._channel)
        self._metadata = call_metadata(credentials)
        self._named_rubric = {"rubric_id": rubric.id, "rubric_version": rubric.version}
        self._fingerprint: str | None = None  # of the judge that described itself
        self._rejected = 0

    def annotate(
        self, items: Sequence[bytes], *, bypass_store: bool = False, abouts: Sequence[bytes] = ()
    ) -> list[Judgement]:
        """One judgement per item, in order; `abouts`, one per item, replace the client's own `about`. Raises
        ServiceUnavailable or AnnotationRefused."""
        abouts = _abouts(items, abouts, self._about)
        request = pb.AnnotateRequest(**self._named_rubric, items=items, bypass_store=bypass_store, abouts=abouts)
        read = partial(wire.judgements_of, items=items, rubric_hash=self._rubric.content_hash, abouts=abouts)
        return self._asked(self._stub.Annotate, request, read, len(items))

    def annotate_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], *, bypass_store: bool = False
    ) -> list[PairJudgement]:
        """One judgement per pair, in order, each asked in both orders. Raises as `annotate`."""
        wire_pairs = [pb.Pair(first=first, second=second) for first, second in pairs]
        request = pb.AnnotatePairsRequest(**self._named_rubric, pairs=wire_pairs, bypass_store=bypass_store)
        read = partial(wire.pair_judgements_of, pairs=pairs, rubric_hash=self._rubric.pairs_hash)
        return self._asked(self._stub.AnnotatePairs, request, read, len(pairs))

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, in order, NaN for an item that is no text. Raises as `annotate`."""
        request = pb.EmbedRequest(items=items)
        return self._asked(self._stub.Embed, request, partial(wire.vectors_of, items=items), len(items))

    def write(
        self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int, *, bypass_store: bool = False
    ) -> list[Writing]:
        """See `WriterClient`; a service writes in the style of its first rubric, whatever this client's. Raises as
        `annotate`."""
        request = pb.WriteRequest(
            brief_id=brief.id, brief_version=brief.version, fields=fields, num=num, seed=seed, bypass_store=bypass_store
        )
        response = self._call(self._stub.Write, request, self._timeout_s)
        return self._read(response, partial(wire.writings_of, brief=brief, num=num), num)

    def describe(self) -> ServiceDescription:
        """The service's description of itself, under this client's rubric. Raises as `annotate`, and for another
        rubric."""
        rubric, timeout_s = self._rubric, min(self._timeout_s, DESCRIBE_TIMEOUT_S)
        response = self._call(self._stub.Describe, pb.DescribeRequest(**self._named_rubric), timeout_s)
        description = wire.description_of(response)
        theirs = f"{description.rubric_hash}/{description.pairs_hash}"
        ours = f"{rubric.content_hash}/{rubric.pairs_hash}"
        if theirs != ours:
            others = f" and {len(response.rubrics) - 1} others" if len(response.rubrics) > 1 else ""
            raise AnnotationRefused(
                f"the annotation service at {self._address} judges by rubric {description.rubric_id!r} version"
                f" {description.rubric_version!r} ({theirs}){others}, this run by {rubric.id!r} version"
                f" {rubric.version!r} ({ours}); start it with the same --rubric"
            )
        self._fingerprint = description.fingerprint
        return description

    def take_rejected(self) -> int:
        """Items whose answers broke the contract since the last call."""
        number, self._rejected = self._rejected, 0
        return number

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._channel.close()

    def _asked(self, method: grpc.UnaryUnaryMultiCallable, request: Any, read: Callable[[Any], T], num_items: int) -> T:
        response = self._call(method, request, self._timeout_s)
        answers = self._read(response, read, num_items)
        if self._fingerprint not in (None, response.fingerprint):
            raise ServiceUnavailable(
                f"the annotation service at {self._address} now has another judge ({response.fingerprint}, before"
                f" {self._fingerprint}): the client connects again and reads its description"
            )
        return answers

    def _read(self, response: Any, read: Callable[[Any], T], num_items: int) -> T:
        try:
            return read(response)
        except ValueError as error:
            self._rejected += num_items
            raise BrokenAnswer(f"the annotation service at {self._address} gave an invalid answer: {error}") from None

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            details = error.details() or ""
            is_too_large = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
            if is_too_large:
                limits = f"got a message of {request.ByteSize()} bytes, wanted at most {wire.MAX_MESSAGE_BYTES}"
                details = f"{limits}: send fewer or shorter items ({details})"
            kind = ServiceUnavailable if error.code() in RETRYABLE and not is_too_large else AnnotationRefused
            if what_to_do := advice(details, self._credentials):
                details = f"{what_to_do} ({details})"
            raise kind(f"annotation service at {self._address}: {error.code().name}: {details}") from None
        except ValueError as error:  # the channel was closed by another thread
            raise ServiceUnavailable(f"annotation service at {self._address}: {error}") from None


class InProcessClient:
    """The same methods on a judge in this process, under one of its rubrics; `close` leaves the judge open."""

    def __init__(self, judge: Judge, rubric: Rubric, about: str = "") -> None:
        self._judge, self._rubric, self._about = judge, rubric, about.encode()

    def annotate(
        self, items: Sequence[bytes], *, bypass_store: bool = False, abouts: Sequence[bytes] = ()
    ) -> list[Judgement]:
        """One judgement per item, in order; `abouts` as in `AnnotationClient`."""
        abouts = _abouts(items, abouts, self._about)
        return _judged(self._judge.annotate, items, bypass_store, rubric=self._rubric, abouts=abouts)

    def annotate_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], *, bypass_store: bool = False
    ) -> list[PairJudgement]:
        """One judgement per pair, in order."""
        return _judged(self._judge.annotate_pairs, pairs, bypass_store, rubric=self._rubric)

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32, in order."""
        return _judged(self._judge.embed, items)

    def write(
        self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int, *, bypass_store: bool = False
    ) -> list[Writing]:
        """As `AnnotationClient.write`."""
        return _judged(self._judge.desk.write, brief, fields, num, seed, bypass_store=bypass_store)

    def describe(self) -> ServiceDescription:
        """The judge's description under this client's rubric."""
        return _judged(self._judge.describe, self._rubric)

    def take_rejected(self) -> int:
        """Always 0: nothing is sent over a network."""
        return 0

    def close(self) -> None:
        """Nothing to release."""


def _abouts(items: Sequence[bytes], abouts: Sequence[bytes], about: bytes) -> Sequence[bytes]:
    """What each item is judged about, empty for nothing."""
    return abouts or [about] * (len(items) if about else 0)


def _judged(method: Callable[..., T], *arguments: Any, **settings: Any) -> T:
    try:
        return method(*arguments, **settings)
    except ValueError as error:
        raise AnnotationRefused(str(error)) from error
    except RuntimeError as error:
        raise ServiceUnavailable(str(error)) from error
