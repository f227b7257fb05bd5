"""Judgements, vectors, writings and descriptions to protobuf and back.

Invariant: messages hold the same fields as the types of `llm_server/annotation.py`; a message that breaks the contract
raises `ValueError` instead of becoming a judgement.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from llm_server import annotation_pb2 as pb
from llm_server.annotation import Judgement, PairJudgement, ServiceDescription, Status, Writing
from llm_server.writing.answer_text import parsed_answer
from llm_server.writing.brief import Brief

MAX_MESSAGE_BYTES = 64 << 20
"""Limit of one message, both ways: far above the largest legal request, so that the service can refuse one."""

LOADING = "the model is being loaded"
STARTING = "the annotation service is starting"
"""How the details of UNAVAILABLE begin where a service is alive and its judge is not loaded yet."""

_TO_WIRE = {status: getattr(pb.Judgement, status.name) for status in Status}
_FROM_WIRE = {wire: status for status, wire in _TO_WIRE.items()}


def item_hash(item: bytes, about: bytes = b"") -> int:
    """The hash by which an answer names its item, and what that was judged about."""
    return xxh3_64_intdigest(asked_bytes(item, about))


def pair_bytes(first: bytes, second: bytes) -> bytes:
    """The pair as one distinct byte string, order included."""
    return b"%d:%b%b" % (len(first), first, second)


def asked_bytes(item: bytes, about: bytes = b"") -> bytes:
    """The item, with what it is judged about if anything, as one distinct byte string."""
    return pair_bytes(about, item) if about else item


def pair_hash(pair: tuple[bytes, bytes]) -> int:
    """The hash by which an answer names its pair, order included."""
    return xxh3_64_intdigest(pair_bytes(*pair))


def annotate_response(
    judgements: Iterable[Judgement],
    items: Sequence[bytes],
    *,
    abouts: Sequence[bytes] = (),
    rubric_hash: str = "",
    fingerprint: str = "",
) -> pb.AnnotateResponse:
    """The response that carries the `judgements` of `items` in their order, each about one of `abouts` if any."""
    messages = [
        pb.Judgement(
            status=_TO_WIRE[judgement.status],
            probability=judgement.probability,
            answer_mass=judgement.answer_mass,
            cached=judgement.cached,
            item_hash=each,
        )
        for judgement, each in zip(judgements, _item_hashes(items, abouts), strict=True)
    ]
    return pb.AnnotateResponse(judgements=messages, rubric_hash=rubric_hash, fingerprint=fingerprint)


def judgements_of(
    response: pb.AnnotateResponse, items: Sequence[bytes], rubric_hash: str = "", abouts: Sequence[bytes] = ()
) -> list[Judgement]:
    """The judgements of `items`, each about one of `abouts` if any; ValueError unless there is one valid one each, in
    order, by this rubric."""
    if len(response.judgements) != len(items):
        raise ValueError(f"{len(items)} items were asked and {len(response.judgements)} judgements came back")
    _check_rubric(response.rubric_hash, rubric_hash)
    _check_hashes([wire.item_hash for wire in response.judgements], _item_hashes(items, abouts))
    return [_judgement(position, wire) for position, wire in enumerate(response.judgements)]


def _item_hashes(items: Sequence[bytes], abouts: Sequence[bytes]) -> list[int]:
    return [*map(item_hash, items, abouts)] if abouts else [*map(item_hash, items)]


def _judgement(position: int, wire: pb.Judgement) -> Judgement:
    status, probability = _status(position, wire.status), math.nan
    _check_share(position, "answer mass", wire.answer_mass)
    if status is Status.OK:
        probability = wire.probability
        _check_share(position, "probability", probability)
    return Judgement(status=status, probability=probability, answer_mass=wire.answer_mass, cached=wire.cached)


def pairs_response(
    judgements: Iterable[PairJudgement],
    pairs: Sequence[tuple[bytes, bytes]],
    *,
    pairs_hash: str = "",
    fingerprint: str = "",
) -> pb.AnnotatePairsResponse:
    """The response that carries the `judgements` of `pairs` in their order."""
    hashes = map(pair_hash, pairs)
    messages = [pb.PairJudgement(**_fields(j), pair_hash=each) for j, each in zip(judgements, hashes, strict=True)]
    return pb.AnnotatePairsResponse(judgements=messages, pairs_hash=pairs_hash, fingerprint=fingerprint)


def _fields(judgement: Judgement | PairJudgement) -> dict[str, Any]:
    """The fields of a judgement's message, which has those of the judgement itself."""
    names = [name for name in judgement.__slots__ if name != "singles"]  # known to the annotator alone
    return {name: getattr(judgement, name) for name in names} | {"status": _TO_WIRE[judgement.status]}


def pair_judgements_of(
    response: pb.AnnotatePairsResponse, pairs: Sequence[tuple[bytes, bytes]], rubric_hash: str = ""
) -> list[PairJudgement]:
    """The judgements of `pairs`; ValueError unless there is one valid one each, in order, by this rubric."""
    if len(response.judgements) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs were asked and {len(response.judgements)} judgements came back")
    _check_rubric(response.pairs_hash, rubric_hash)
    _check_hashes([wire.pair_hash for wire in response.judgements], map(pair_hash, pairs))
    return [_pair_judgement(position, wire) for position, wire in enumerate(response.judgements)]


def _pair_judgement(position: int, wire: pb.PairJudgement) -> PairJudgement:
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


def _status(position: int, wire: pb.Judgement.Status) -> Status:
    status = _FROM_WIRE.get(wire)
    if status is None:
        raise ValueError(f"judgement {position} has the unknown status {wire}")
    return status


def _check_share(position: int, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise ValueError(f"judgement {position} is invalid: its {name} is {value}, outside 0 to 1")


def _check_rubric(theirs: str, ours: str, what: str = "rubric") -> None:
    if theirs != ours:
        older = "" if theirs else "; the service may be older than this client: restart it with the same version"
        raise ValueError(f"the answers are by a {what} of hash {theirs!r}, wanted {ours!r}{older}")


def _check_hashes(got: Iterable[int], wanted: Iterable[int]) -> None:
    for position, (theirs, ours) in enumerate(zip(got, wanted, strict=True)):
        if theirs != ours:
            raise ValueError(
                f"answer {position} is about another item than was asked there (hash {theirs:016x}, wanted {ours:016x})"
            )


def embed_response(vectors: np.ndarray, items: Sequence[bytes], *, fingerprint: str = "") -> pb.EmbedResponse:
    """`vectors` [N, D] f32 of `items` as a message."""
    hashes = [item_hash(item) for item in items]
    return pb.EmbedResponse(
        dimensions=vectors.shape[1], values=vectors.ravel().tolist(), item_hashes=hashes, fingerprint=fingerprint
    )


def vectors_of(response: pb.EmbedResponse, items: Sequence[bytes]) -> np.ndarray:
    """[N, D] f32; ValueError unless there is one row of unit length, or of NaN, for each of `items`, in order."""
    values, num_hashes = np.array(response.values, np.float32), len(response.item_hashes)
    if response.dimensions < 1 or len(values) != len(items) * response.dimensions or num_hashes != len(items):
        raise ValueError(
            f"{len(items)} items were asked and {len(values)} numbers of {response.dimensions} dimensions with"
            f" {num_hashes} hashes came back"
        )
    _check_hashes(response.item_hashes, map(item_hash, items))
    vectors = values.reshape(len(items), response.dimensions)
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isnan(vectors).all(1) | (np.abs(lengths - 1) < 1e-3)).all():
        raise ValueError("a vector is not of unit length")
    return vectors


def write_response(writings: list[Writing], brief: Brief, fingerprint: str) -> pb.WriteResponse:
    """The response that carries `writings` by `brief`."""
    messages = [
        pb.Writing(
            status=_TO_WIRE[writing.status], text=writing.text.encode(), tokens=writing.tokens, cached=writing.cached
        )
        for writing in writings
    ]
    return pb.WriteResponse(writings=messages, brief_hash=brief.content_hash, fingerprint=fingerprint)


def writings_of(response: pb.WriteResponse, brief: Brief, num: int) -> list[Writing]:
    """The writings; ValueError unless there are `num` by this brief, with an answer in canonical form exactly where one
    is OK."""
    if len(response.writings) != num:
        raise ValueError(f"{num} writings were asked for and {len(response.writings)} came back")
    _check_rubric(response.brief_hash, brief.content_hash, "brief")
    return [_writing(position, wire, brief) for position, wire in enumerate(response.writings)]


def _writing(position: int, wire: pb.Writing, brief: Brief) -> Writing:
    status, text = _status(position, wire.status), wire.text.decode("utf-8")  # its error is a ValueError
    if (parsed_answer(brief, text) if status is Status.OK else "") != text:
        raise ValueError(f"writing {position} is {status.name} but its text is no such answer: {text[:100]!r}")
    return Writing(status=status, text=text, tokens=wire.tokens, cached=wire.cached)


def describe_response(
    description: ServiceDescription, by_rubric: Iterable[ServiceDescription] = (), briefs: Iterable[Brief] = ()
) -> pb.DescribeResponse:
    """`description` as a message that has the same fields, and lists the rubrics of all descriptions `by_rubric` and
    the `briefs`."""
    rubrics = [
        pb.RubricDescription(
            id=each.rubric_id,
            version=each.rubric_version,
            hash=each.rubric_hash,
            pairs_hash=each.pairs_hash,
            threshold=each.threshold,
            noise=each.noise,
        )
        for each in by_rubric
    ]
    fields = {name: getattr(description, name) for name in description.__slots__}
    served = [pb.BriefDescription(id=each.id, version=each.version, hash=each.content_hash) for each in briefs]
    return pb.DescribeResponse(**fields, rubrics=rubrics, briefs=served)


def description_of(response: pb.DescribeResponse) -> ServiceDescription:
    """A service's description of itself, of the rubric that was asked for."""
    return ServiceDescription(**{name: getattr(response, name) for name in ServiceDescription.__slots__})
