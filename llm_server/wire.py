"""Judgements, vectors and descriptions to protobuf and back.

Invariant: what `llm_server/annotation.py` says and what travels are the same; a message that breaks the contract raises
`ValueError` instead of becoming a judgement.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Status
from llm_server.annotation_pb2 import (
    AnnotatePairsRequest,
    AnnotatePairsResponse,
    AnnotateRequest,
    AnnotateResponse,
    DescribeResponse,
    EmbedResponse,
    Pair,
)
from llm_server.annotation_pb2 import Judgement as WireJudgement
from llm_server.annotation_pb2 import PairJudgement as WirePairJudgement

MAX_MESSAGE_BYTES = 64 << 20
"""Limit of one message, both ways: far above the largest legal request, so that one too large is refused with a reason."""

_TO_WIRE = {Status.OK: WireJudgement.OK, Status.UNPARSED: WireJudgement.UNPARSED, Status.REJECTED: WireJudgement.REJECTED}
_FROM_WIRE = {wire: status for status, wire in _TO_WIRE.items()}


def annotate_request(rubric_id: str, rubric_version: str, items: Sequence[bytes], bypass_store: bool) -> AnnotateRequest:
    """The request that asks for one judgement per item."""
    return AnnotateRequest(rubric_id=rubric_id, rubric_version=rubric_version, items=items, bypass_store=bypass_store)


def annotate_response(judgements: Iterable[Judgement]) -> AnnotateResponse:
    """The response that carries `judgements` in their order."""
    return AnnotateResponse(
        judgements=[
            WireJudgement(status=_TO_WIRE[j.status], probability=j.probability, answer_mass=j.answer_mass, cached=j.cached)
            for j in judgements
        ]
    )


def judgements_of(response: AnnotateResponse, num_items: int) -> list[Judgement]:
    """The judgements of a response to `num_items` items; ValueError unless there is exactly one sound judgement for each."""
    if len(response.judgements) != num_items:
        raise ValueError(f"{num_items} items were asked and {len(response.judgements)} judgements came back")
    return [_judgement(position, wire) for position, wire in enumerate(response.judgements)]


def _judgement(position: int, wire: WireJudgement) -> Judgement:
    status = _status(position, wire.status)
    _check_share(position, "answer mass", wire.answer_mass)
    if status is not Status.OK:
        return Judgement(status=status, probability=math.nan, answer_mass=wire.answer_mass, cached=wire.cached)
    _check_share(position, "probability", wire.probability)
    return Judgement(status=status, probability=wire.probability, answer_mass=wire.answer_mass, cached=wire.cached)


def pairs_request(rubric_id: str, rubric_version: str, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool) -> AnnotatePairsRequest:
    """The request that asks for one judgement per pair."""
    wire = [Pair(first=first, second=second) for first, second in pairs]
    return AnnotatePairsRequest(rubric_id=rubric_id, rubric_version=rubric_version, pairs=wire, bypass_store=bypass_store)


def pairs_response(judgements: Iterable[PairJudgement]) -> AnnotatePairsResponse:
    """The response that carries `judgements` in their order."""
    return AnnotatePairsResponse(
        judgements=[
            WirePairJudgement(
                status=_TO_WIRE[j.status],
                preference=j.preference,
                answer_mass=j.answer_mass,
                position_bias=j.position_bias,
                cached=j.cached,
            )
            for j in judgements
        ]
    )


def pair_judgements_of(response: AnnotatePairsResponse, num_pairs: int) -> list[PairJudgement]:
    """The judgements of a response to `num_pairs` pairs; ValueError unless there is exactly one sound judgement for each."""
    if len(response.judgements) != num_pairs:
        raise ValueError(f"{num_pairs} pairs were asked and {len(response.judgements)} judgements came back")
    return [_pair_judgement(position, wire) for position, wire in enumerate(response.judgements)]


def _pair_judgement(position: int, wire: WirePairJudgement) -> PairJudgement:
    status = _status(position, wire.status)
    _check_share(position, "answer mass", wire.answer_mass)
    preference, bias = math.nan, math.nan
    if status is Status.OK:
        preference, bias = wire.preference, wire.position_bias
        _check_share(position, "preference", preference)
        if not math.isfinite(bias):
            raise ValueError(f"judgement {position} is OK but its position bias is {bias}")
    return PairJudgement(status=status, preference=preference, answer_mass=wire.answer_mass, position_bias=bias, cached=wire.cached)


def _status(position: int, wire: WireJudgement.Status) -> Status:
    status = _FROM_WIRE.get(wire)
    if status is None:
        raise ValueError(f"judgement {position} has the unknown status {wire}")
    return status


def _check_share(position: int, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise ValueError(f"judgement {position} is unsound: its {name} is {value}, outside 0 to 1")


def embed_response(vectors: np.ndarray) -> EmbedResponse:
    """`vectors` [N, D] f32 as a message."""
    return EmbedResponse(dimensions=vectors.shape[1], values=vectors.ravel().tolist())


def vectors_of(response: EmbedResponse, num_items: int) -> np.ndarray:
    """[N, D] f32; ValueError unless there is exactly one row of unit length, or of NaN, for each of `num_items` items."""
    values = np.array(response.values, np.float32)
    if response.dimensions < 1 or len(values) != num_items * response.dimensions:
        raise ValueError(f"{num_items} items were asked and {len(values)} numbers of {response.dimensions} dimensions came back")
    vectors = values.reshape(num_items, response.dimensions)
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isnan(vectors).all(1) | (np.abs(lengths - 1) < 1e-3)).all():
        raise ValueError("a vector is not of unit length")
    return vectors


def describe_response(description: ServiceDescription) -> DescribeResponse:
    """`description` as a message: both have the same fields."""
    return DescribeResponse(**{name: getattr(description, name) for name in description.__slots__})


def description_of(response: DescribeResponse) -> ServiceDescription:
    """A service's description of itself."""
    return ServiceDescription(**{field.name: getattr(response, field.name) for field in response.DESCRIPTOR.fields})
