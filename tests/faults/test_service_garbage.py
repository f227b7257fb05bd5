"""A service that answers garbage: none of it becomes a label, all of it is counted, and what was asked is asked
again."""

import math

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation_pb2 import AnnotateResponse
from llm_server.rubrics.loading import load_rubric
from llm_server.service.judge import build_judge
from tests.faults.annotating import Annotating, captions, expected

pytestmark = pytest.mark.faults
TEXTS = captions(64)


@pytest.fixture
def run(service, tmp_path):
    made = Annotating(tmp_path, f"annotator.address={service.address}", "annotator.max_backoff_s=0.2")
    yield made
    made.close()


def one_less(response: AnnotateResponse) -> AnnotateResponse:
    del response.judgements[-1]
    return response


def one_more(response: AnnotateResponse) -> AnnotateResponse:
    response.judgements.append(response.judgements[0])
    return response


def not_a_number(response: AnnotateResponse) -> AnnotateResponse:
    response.judgements[0].probability = math.nan
    return response


def no_probability(response: AnnotateResponse) -> AnnotateResponse:
    response.judgements[0].probability = 17.0
    return response


def swapped(response: AnnotateResponse) -> AnnotateResponse:
    whole = list(response.judgements)
    del response.judgements[:]
    response.judgements.extend(reversed(whole))
    return response


def another_rubric(response: AnnotateResponse) -> AnnotateResponse:
    response.rubric_hash = "of another rubric"
    return response


def unknown_status(response: AnnotateResponse) -> AnnotateResponse:
    response.judgements[0].status = 9
    return response


@pytest.mark.parametrize(
    "spoil", [one_less, one_more, not_a_number, no_probability, swapped, another_rubric, unknown_status]
)
def test_garbage_never_becomes_a_label_and_is_counted(run, service, spoil, record_recovery):
    run.report(TEXTS[:8])
    run.wait_for_rewards(TEXTS[:8])
    service.spoil = spoil
    run.report(TEXTS)
    run.wait_until(lambda: run.figure("annotations_rejected") >= 32)
    assert run.rewarded(TEXTS[8:]) == [None] * (len(TEXTS) - 8)
    assert run.rewarded(TEXTS[:8]) == expected(TEXTS[:8])
    assert run.figure("annotations_total") == 8
    service.spoil = None
    recovery_s = run.wait_for_rewards(TEXTS)
    assert run.rewarded(TEXTS) == expected(TEXTS)
    assert run.figure("annotations_total") == len(TEXTS)
    assert run.figure("annotations_rejected") == service.num_spoilt
    assert run.pipeline.problem is None
    name = spoil.__name__.replace("_", " ")
    record_recovery(
        f"garbage judgements: {name}",
        "rejected and counted (annotations_rejected), never labels; asked again",
        recovery_s,
    )


def test_another_model_behind_the_same_address_takes_the_place_of_the_former_with_all_its_labels(
    run, service, record_recovery
):
    run.report(TEXTS[:8])
    run.wait_for_rewards(TEXTS[:8])
    before = run.figure("annotations_total")
    old = service.judge
    service.judge = build_judge(
        ServiceConfig(engine="scripted", script="wall=0.9", store="memory"), [load_rubric("nethack_progress")]
    )
    old.close()
    described = run.pipeline._main._annotator.judge.fingerprint
    run.report(TEXTS)
    recovery_s = run.wait_for_rewards(TEXTS)
    assert run.pipeline._main._annotator.judge.fingerprint not in ("", described)
    run.wait_until(lambda: run.figure("annotations_total") == before + len(TEXTS))
    run.wait_for_rewards(TEXTS)
    assert run.rewarded(TEXTS) == [1.0 - value for value in expected(TEXTS)]
    record_recovery(
        "the service is replaced by one with another model while a run uses it",
        "noticed with its first answer; the former's labels are dropped and asked anew, so that none are mixed",
        recovery_s,
    )
