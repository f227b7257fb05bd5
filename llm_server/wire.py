"""Judgements and descriptions to protobuf and back.

Invariant: what `llm_server/annotation.py` says and what travels are the same; a message that breaks the contract raises
`ValueError` instead of becoming a judgement.
"""

import math
from collections.abc import Iterable, Sequence

from llm_server.annotation import Judgement, ServiceDescription, Status
from llm_server.annotation_pb2 import AnnotateRequest, AnnotateResponse, DescribeResponse
from llm_server.annotation_pb2 import Judgement as WireJudgement

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
    status = _FROM_WIRE.get(wire.status)
    if status is None:
        raise ValueError(f"judgement {position} has the unknown status {wire.status}")
    if status is not Status.OK:
        return Judgement(status=status, probability=math.nan, answer_mass=wire.answer_mass, cached=wire.cached)
    for name, value in (("probability", wire.probability), ("answer mass", wire.answer_mass)):
        if not 0.0 <= value <= 1.0:  # NaN fails too
            raise ValueError(f"judgement {position} is OK but its {name} is {value}, outside 0 to 1")
    return Judgement(status=status, probability=wire.probability, answer_mass=wire.answer_mass, cached=wire.cached)


def describe_response(description: ServiceDescription) -> DescribeResponse:
    """`description` as a message: both have the same fields."""
    return DescribeResponse(**{name: getattr(description, name) for name in description.__slots__})


def description_of(response: DescribeResponse) -> ServiceDescription:
    """A service's description of itself."""
    return ServiceDescription(**{field.name: getattr(response, field.name) for field in response.DESCRIPTOR.fields})
