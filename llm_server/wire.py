"""Judgements, vectors and descriptions to protobuf and back.

Invariant: what `llm_server/annotation.py` says and what travels are the same; a message that breaks the contract raises
`ValueError` instead of becoming a judgement.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

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

LOADING = "the model is being loaded"
STARTING = "the annotation service is starting"
"""How the details of UNAVAILABLE begin where a service is alive and has no judge yet."""

_TO_WIRE = {
    Status.OK: WireJudgement.OK,
    Status.UNPARSED: WireJudgement.UNPARSED,
    Status.REJECTED: WireJudgement.REJECTED,
}
_FROM_WIRE = {wire: status for status, wire in _TO_WIRE.items()}


def annotate_request(
    rubric_id: str, rubric_version: str, items: Sequence[bytes], bypass_store: bool
) -> AnnotateRequest:
    """The request that asks for one judgement per item."""
    return AnnotateRequest(rubric_id=rubric_id, rubric_version=rubric_version, items=items, bypass_store=bypass_store)


def item_hash(item: bytes) -> int:
    """What an answer carries to say which item it is about."""
    return xxh3_64_intdigest(item)


def pair_hash(pair: tuple[bytes, bytes]) -> int:
    """What an answer carries to say which pair it is about, and which way round."""
    return xxh3_64_intdigest(b"%d:%b%b" % (len(pair[0]), *pair))


def annotate_response(
    judgements: Iterable[Judgement], items: Sequence[bytes], *, rubric_hash: str = "", fingerprint: str = ""
) -> AnnotateResponse:
    """The response that carries the `judgements` of `items` in their order."""
    return AnnotateResponse(
        judgements=[
            WireJudgement(
                status=_TO_WIRE[j.status],
                probability=j.probability,
                answer_mass=j.answer_mass,
                cached=j.cached,
                item_hash=item_hash(item),
            )
            for j, item in zip(judgements, items, strict=True)
        ],
        rubric_hash=rubric_hash,
        fingerprint=fingerprint,
    )


def judgements_of(response: AnnotateResponse, items: Sequence[bytes], rubric_hash: str = "") -> list[Judgement]:
    """The judgements of a response to `items`; ValueError unless there is exactly one sound judgement for each, in order, by this rubric."""
    if len(response.judgements) != len(items):
        raise ValueError(f"{len(items)} items were asked and {len(response.judgements)} judgements came back")
    _check_rubric(response.rubric_hash, rubric_hash)
    for position, (wire, item) in enumerate(zip(response.judgements, items, strict=True)):
        _check_hash(position, wire.item_hash, item_hash(item))
    return [_judgement(position, wire) for position, wire in enumerate(response.judgements)]


def _judgement(position: int, wire: WireJudgement) -> Judgement:
    status = _status(position, wire.status)
    _check_share(position, "answer mass", wire.answer_mass)
    if status is not Status.OK:
        return Judgement(status=status, probability=math.nan, answer_mass=wire.answer_mass, cached=wire.cached)
    _check_share(position, "probability", wire.probability)
    return Judgement(status=status, probability=wire.probability, answer_mass=wire.answer_mass, cached=wire.cached)


def pairs_request(
    rubric_id: str, rubric_version: str, pairs: Sequence[tuple[bytes, bytes]], bypass_store: bool
) -> AnnotatePairsRequest:
    """The request that asks for one judgement per pair."""
    wire = [Pair(first=first, second=second) for first, second in pairs]
    return AnnotatePairsRequest(
        rubric_id=rubric_id, rubric_version=rubric_version, pairs=wire, bypass_store=bypass_store
    )


def pairs_response(
    judgements: Iterable[PairJudgement],
    pairs: Sequence[tuple[bytes, bytes]],
    *,
    pairs_hash: str = "",
    fingerprint: str = "",
) -> AnnotatePairsResponse:
    """The response that carries the `judgements` of `pairs` in their order."""
    return AnnotatePairsResponse(
        judgements=[
            WirePairJudgement(
                status=_TO_WIRE[j.status],
                preference=j.preference,
                answer_mass=j.answer_mass,
                position_bias=j.position_bias,
                cached=j.cached,
                pair_hash=pair_hash(pair),
            )
            for j, pair in zip(judgements, pairs, strict=True)
        ],
        pairs_hash=pairs_hash,
        fingerprint=fingerprint,
    )


def pair_judgements_of(
    response: AnnotatePairsResponse, pairs: Sequence[tuple[bytes, bytes]], rubric_hash: str = ""
) -> list[PairJudgement]:
    """The judgements of a response to `pairs`; ValueError unless there is exactly one sound judgement for each, in order, by this rubric."""
    if len(response.judgements) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs were asked and {len(response.judgements)} judgements came back")
    _check_rubric(response.pairs_hash, rubric_hash)
    for position, (wire, pair) in enumerate(zip(response.judgements, pairs, strict=True)):
        _check_hash(position, wire.pair_hash, pair_hash(pair))
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
    return PairJudgement(
        status=status, preference=preference, answer_mass=wire.answer_mass, position_bias=bias, cached=wire.cached
    )


def _status(position: int, wire: WireJudgement.Status) -> Status:
    status = _FROM_WIRE.get(wire)
    if status is None:
        raise ValueError(f"judgement {position} has the unknown status {wire}")
    return status


def _check_share(position: int, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise ValueError(f"judgement {position} is unsound: its {name} is {value}, outside 0 to 1")


def _check_rubric(theirs: str, ours: str) -> None:
    if theirs != ours:
        older = "; the service may be older than this client: start it anew with the same version" if not theirs else ""
        raise ValueError(f"it was judged by a rubric of hash {theirs!r}, wanted {ours!r}{older}")


def _check_hash(position: int, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise ValueError(
            f"answer {position} is about another item than was asked there (hash {theirs:016x}, wanted {ours:016x})"
        )


def embed_response(vectors: np.ndarray, items: Sequence[bytes], *, fingerprint: str = "") -> EmbedResponse:
    """`vectors` [N, D] f32 of `items` as a message."""
    hashes = [item_hash(item) for item in items]
    return EmbedResponse(
        dimensions=vectors.shape[1], values=vectors.ravel().tolist(), item_hashes=hashes, fingerprint=fingerprint
    )


def vectors_of(response: EmbedResponse, items: Sequence[bytes]) -> np.ndarray:
    """[N, D] f32; ValueError unless there is exactly one row of unit length, or of NaN, for each of `items`, in order."""
    values = np.array(response.values, np.float32)
    if (
        response.dimensions < 1
        or len(values) != len(items) * response.dimensions
        or len(response.item_hashes) != len(items)
    ):
        raise ValueError(
            f"{len(items)} items were asked and {len(values)} numbers of {response.dimensions} dimensions with {len(response.item_hashes)}"
            " hashes came back"
        )
    for position, item in enumerate(items):
        _check_hash(position, response.item_hashes[position], item_hash(item))
    vectors = values.reshape(len(items), response.dimensions)
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
