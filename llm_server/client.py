"""Clients of a judge: over gRPC, or in this process; both with the same methods and errors.

Invariant: a batch of judgements is handed on only if there is exactly one sound judgement per item; every call has a deadline.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np

from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.annotation import Judgement, PairJudgement, ServiceDescription
from llm_server.judge import Judge
from llm_server.rubric import Rubric
from llm_server.wire import (
    MAX_MESSAGE_BYTES,
    annotate_request,
    description_of,
    judgements_of,
    pair_judgements_of,
    pairs_request,
    vectors_of,
)

RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
}
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
]


T = TypeVar("T")


class AnnotationError(RuntimeError):
    """No judgements came."""


class ServiceUnavailable(AnnotationError):
    """The service is down, slow, or gave a broken answer; asking again may help."""


class AnnotationRefused(AnnotationError):
    """The service understood and will not; asking the same again is of no use."""


class AnnotationClient:
    """Asks the service at `address` (host:port) under one rubric; thread-safe, blocking."""

    def __init__(self, address: str, rubric: Rubric, timeout_s: float) -> None:
        self._address, self._rubric, self._timeout_s = address, rubric, timeout_s
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = annotation_pb2_grpc.AnnotationStub(self._channel)

    def annotate(self, items: Sequence[bytes], *, bypass_store: bool = False) -> list[Judgement]:
        """One judgement per item, in order. Raises ServiceUnavailable or AnnotationRefused."""
        request = annotate_request(self._rubric.id, self._rubric.version, items, bypass_store)
        return self._checked(judgements_of, self._call(self._stub.Annotate, request), len(items))

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]], *, bypass_store: bool = False) -> list[PairJudgement]:
        """One judgement per pair, in order, each asked in both orders. Raises ServiceUnavailable or AnnotationRefused."""
        request = pairs_request(self._rubric.id, self._rubric.version, pairs, bypass_store)
        return self._checked(pair_judgements_of, self._call(self._stub.AnnotatePairs, request), len(pairs))

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32 of unit length, in order, NaN for an item that is no text. Raises ServiceUnavailable or AnnotationRefused."""
        response = self._call(self._stub.Embed, annotation_pb2.EmbedRequest(items=items))
        return self._checked(vectors_of, response, len(items))

    def _checked(self, read: Callable[[Any, int], T], response: Any, num_items: int) -> T:
        try:
            return read(response, num_items)
        except ValueError as error:
            raise ServiceUnavailable(f"the annotation service at {self._address} gave a broken answer: {error}") from None

    def describe(self) -> ServiceDescription:
        """What the service says of itself. Raises AnnotationRefused where it judges by another rubric than this client's."""
        description = description_of(self._call(self._stub.Describe, annotation_pb2.DescribeRequest()))
        theirs = f"{description.rubric_hash}/{description.pairs_hash}"
        ours = f"{self._rubric.content_hash}/{self._rubric.pairs_hash}"
        if theirs != ours:
            raise AnnotationRefused(
                f"the annotation service at {self._address} judges by rubric {description.rubric_id!r} version {description.rubric_version!r}"
                f" ({theirs}), this run by {self._rubric.id!r} version {self._rubric.version!r} ({ours}); start it with the same --rubric"
            )
        return description

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._channel.close()

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            is_too_large = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")
            kind = ServiceUnavailable if error.code() in RETRYABLE and not is_too_large else AnnotationRefused
            raise kind(f"annotation service at {self._address}: {error.code().name}: {error.details()}") from None
        except ValueError as error:  # the channel was closed by another thread
            raise ServiceUnavailable(f"annotation service at {self._address}: {error}") from None


class InProcessClient:
    """The same methods on a judge in this process; `close` leaves the judge open."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def annotate(self, items: Sequence[bytes], *, bypass_store: bool = False) -> list[Judgement]:
        """One judgement per item, in order."""
        return _asked(lambda: self._judge.annotate(items, bypass_store))

    def annotate_pairs(self, pairs: Sequence[tuple[bytes, bytes]], *, bypass_store: bool = False) -> list[PairJudgement]:
        """One judgement per pair, in order."""
        return _asked(lambda: self._judge.annotate_pairs(pairs, bypass_store))

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        """[N, D] f32, in order."""
        return _asked(lambda: self._judge.embed(items))

    def describe(self) -> ServiceDescription:
        """Of the judge."""
        return self._judge.describe()

    def close(self) -> None:
        """Nothing to release."""


def _asked(question: Callable[[], T]) -> T:
    try:
        return question()
    except ValueError as error:
        raise AnnotationRefused(str(error)) from error
    except RuntimeError as error:
        raise ServiceUnavailable(str(error)) from error
