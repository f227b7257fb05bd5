"""The service over real gRPC: statuses say what to do, health is right, nothing is left behind."""

import dataclasses
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Status
from llm_server.annotation_pb2 import AnnotateRequest
from llm_server.annotation_pb2_grpc import AnnotationStub
from llm_server.client import AnnotationClient, AnnotationRefused, InProcessClient, ServiceUnavailable
from llm_server.rubrics.rubric import PairRubric
from llm_server.service.judge import Judge
from llm_server.service.service import SERVICE_NAME
from tests.llm_server.gated_engine import GatedEngine
from tests.llm_server.running_service import RunningService

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
WAIT_S = 20.0


@pytest.fixture
def start(rubric):
    """Starts services; `load` is set when the model may be ready."""
    running = []

    def start(engine=None, rubric=rubric, **settings):
        limits = {"max_items_per_request": 8, "max_item_bytes": 64}
        running.append(RunningService(rubric, engine or GatedEngine(), **limits | settings))
        return running[-1]

    yield start
    for service in running:
        service.engine.gate.set()
        service.close()


@pytest.fixture
def connect(rubric):
    clients = []

    def connect(service, rubric=rubric, timeout_s=WAIT_S):
        clients.append(AnnotationClient(service.address, rubric, timeout_s))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def channel():
    channels = []

    def channel(service):
        channels.append(grpc.insecure_channel(service.address, options=[("grpc.max_send_message_length", -1)]))
        return channels[-1]

    yield channel
    for each in channels:
        each.close()


def health_of(channel, name=""):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status


def test_one_judgement_per_item_in_the_order_asked(start, connect):
    judgements = connect(start()).annotate([b"good", b"bad", b"\xff", b"", b"good"])
    assert [judgement.status for judgement in judgements] == [
        Status.OK,
        Status.OK,
        Status.REJECTED,
        Status.REJECTED,
        Status.OK,
    ]
    assert [judgement.probability for judgement in judgements if judgement.status is Status.OK] == [0.9, 0.1, 0.9]


def test_pairs_are_compared_over_the_wire(start, rubric):
    comparing = dataclasses.replace(rubric, pairs=PairRubric(instructions="", first=" 1", second=" 2"))
    service = start(rubric=comparing)
    with closing(AnnotationClient(service.address, comparing, WAIT_S)) as client:
        better, alike, rejected = client.annotate_pairs([(b"good", b"bad"), (b"bad", b"bad"), (b"bad", b"\xff")])
        assert better.preference == pytest.approx(1 / (1 + math.sqrt(0.3 / 0.7 / 4)))
        assert better.position_bias == pytest.approx((math.log(4) + math.log(3 / 7)) / 2)
        assert (alike.preference, rejected.status) == (0.5, Status.REJECTED)
        assert client.describe().pairs_hash == comparing.pairs_hash
        with pytest.raises(AnnotationRefused, match="65 bytes"):
            client.annotate_pairs([(b"good", b"x" * 65)])


def test_a_rubric_without_pairs_compares_none(start, rubric):
    alone = dataclasses.replace(rubric, pairs=None)
    with (
        closing(AnnotationClient(start(rubric=alone).address, alone, WAIT_S)) as client,
        pytest.raises(AnnotationRefused, match="no `pairs`"),
    ):
        client.annotate_pairs([(b"good", b"bad")])


def test_vectors_travel_whole(start, connect):
    client = connect(start(device="cpu"), timeout_s=120.0)  # the first request loads the encoder
    vectors = client.embed([b"Find a key.", b"\xff"])
    assert vectors.shape == (2, 384)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
    assert np.isnan(vectors[1]).all()
    with pytest.raises(AnnotationRefused, match="no items"):
        client.embed([])


def test_describe_says_what_is_served(start, connect, rubric):
    service = start()
    client = connect(service)
    client.annotate([b"one", b"two"])
    said = client.describe()
    assert (said.model, said.engine, said.rubric_id, said.rubric_version) == (
        "gated",
        "gated",
        rubric.id,
        rubric.version,
    )
    assert (said.rubric_hash, said.threshold, said.max_items_per_request, said.forward_passes) == (
        rubric.content_hash,
        0.5,
        8,
        2,
    )


def test_a_client_that_knows_only_reflection_and_health_finds_it_serving(start, channel):
    link = channel(start())
    stub = reflection_pb2_grpc.ServerReflectionStub(link)

    def ask(**what):
        return next(
            iter(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**what)]), timeout=WAIT_S))
        )

    names = [service.name for service in ask(list_services="").list_services_response.service]
    assert SERVICE_NAME == "delphi.annotation.v1.Annotation"
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= set(names)
    (serialized,) = ask(file_containing_symbol=SERVICE_NAME).file_descriptor_response.file_descriptor_proto
    methods = FileDescriptorProto.FromString(serialized).service[0].method
    assert [method.name for method in methods] == ["Annotate", "AnnotatePairs", "Embed", "Write", "Describe"]
    assert health_of(link) == health_of(link, SERVICE_NAME) == SERVING


def test_it_listens_before_the_model_is_loaded_and_says_so(start, connect, channel):
    load = threading.Event()
    service = start(load=load)
    assert health_of(channel(service)) == NOT_SERVING
    with pytest.raises(ServiceUnavailable, match="the model is being loaded"):
        connect(service).annotate([b"good"])
    load.set()
    assert service.served.wait(WAIT_S)
    assert health_of(channel(service)) == SERVING
    assert connect(service).annotate([b"good"])


def test_a_model_that_cannot_be_loaded_ends_the_service_with_its_reason(start):
    def build():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        start(build=build).ended.result(WAIT_S)


def test_a_stop_does_not_wait_for_a_model_that_is_still_loading(start):
    load = threading.Event()
    service = start(load=load)
    service.loop.call_soon_threadsafe(service.stop.set)
    service.ended.result(WAIT_S / 2)
    load.set()


def test_a_taken_port_is_a_clear_error(start):
    port = int(start().address.rpartition(":")[2])
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port} .* 0 for a free one"):
        start(port=port)


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([], "INVALID_ARGUMENT: the request has no items"),
        ([b"x"] * 9, "at most 8 are taken: split it"),
        ([b"x" * 65], "at most 64 are taken: shorten"),
    ],
)
def test_a_bad_request_is_refused_with_advice_and_the_next_is_served(start, connect, items, complaint):
    client = connect(start())
    with pytest.raises(AnnotationRefused, match=complaint):
        client.annotate(items)
    assert client.annotate([b"good"])


def test_another_rubric_is_refused_naming_both(start, channel, rubric):
    stub = AnnotationStub(channel(start()))
    for rubric_id, version in (("mine", rubric.version), (rubric.id, "0")):
        with pytest.raises(grpc.RpcError) as error:
            stub.Annotate(AnnotateRequest(rubric_id=rubric_id, rubric_version=version, items=[b"x"]), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert all(repr(name) in error.value.details() for name in (rubric_id, version, rubric.id, rubric.version))


def test_a_message_beyond_every_limit_is_refused_and_the_next_is_served(start, channel, connect, rubric):
    service = start()
    request = AnnotateRequest(rubric_id=rubric.id, rubric_version=rubric.version, items=[b"x" * (65 << 20)])
    with pytest.raises(grpc.RpcError) as error:
        AnnotationStub(channel(service)).Annotate(request, timeout=WAIT_S)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(AnnotationRefused):
        connect(service).annotate([b"x" * (65 << 20)])
    assert connect(service).annotate([b"good"])


def test_garbage_bytes_are_answered_with_a_status(start, channel, connect):
    service = start()
    call = channel(service).unary_unary(f"/{SERVICE_NAME}/Annotate")
    with pytest.raises(grpc.RpcError) as error:
        call(b"\xff\xff\xff garbage", timeout=WAIT_S)
    assert error.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT)
    assert connect(service).annotate([b"good"])


def test_a_rubric_of_other_content_is_refused_by_describe(start, connect, rubric):
    import dataclasses

    with pytest.raises(AnnotationRefused, match="start it with the same --rubric"):
        connect(start(), rubric=dataclasses.replace(rubric, instructions="Something else.")).describe()


def test_two_clients_that_ask_one_thing_at_once_cost_one_forward_pass(start, connect):
    service, submit, submitted = start(), Judge.submit, threading.Semaphore(0)

    def counting_submit(*arguments, **settings):
        future = submit(service.judge, *arguments, **settings)
        submitted.release()
        return future

    service.judge.submit = counting_submit
    service.engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(connect(service).annotate, [b"good"]) for _ in range(2)]
        for _ in answers:
            assert submitted.acquire(timeout=WAIT_S)
        service.engine.gate.set()
        assert [answer.result(WAIT_S)[0].probability for answer in answers] == [0.9, 0.9]
    assert service.engine.asked == ["good"]


def test_a_request_whose_deadline_passed_leaves_no_work(start, connect):
    service = start()
    service.engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect(service).annotate, [b"in the engine"])
        assert service.engine.entered.acquire(timeout=WAIT_S)
        with pytest.raises(ServiceUnavailable, match="DEADLINE_EXCEEDED"):
            connect(service, timeout_s=0.2).annotate([b"abandoned"])
        connect(
            service
        ).describe()  # the server has seen the end of that request by now, or sees it before the next batch
        time.sleep(0.1)
        service.engine.gate.set()
        first.result(WAIT_S)
    assert connect(service).annotate([b"good"])
    assert "abandoned" not in service.engine.asked


def test_a_failing_model_is_a_retryable_error_and_the_next_is_served(start, connect):
    client = connect(start())
    with pytest.raises(ServiceUnavailable, match="INTERNAL: the model failed on this batch: ArithmeticError"):
        client.annotate([b"poison"])
    assert client.annotate([b"good"])


def test_stopping_turns_clients_away_and_ends_soon_even_with_a_hung_model(start, connect):
    service = start()
    service.engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(connect(service).annotate, [b"good"])
        assert service.engine.entered.acquire(timeout=WAIT_S)
        began = time.monotonic()
        service.loop.call_soon_threadsafe(service.stop.set)
        with pytest.raises(ServiceUnavailable):
            hanging.result(WAIT_S)
        service.engine.gate.set()
        service.ended.result(WAIT_S)
    assert time.monotonic() - began < 8
    with pytest.raises(ServiceUnavailable):
        connect(service).annotate([b"good"])


def test_nobody_listening_and_a_closed_client_are_retryable(connect):
    client = connect(SimpleNamespace(address="127.0.0.1:1"))
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:1"):
        client.describe()
    client.close()
    with pytest.raises(ServiceUnavailable):
        client.describe()


def test_the_same_judge_answers_in_process(rubric):
    config = ServiceConfig(store="memory")
    judge = Judge(GatedEngine(), [rubric], None, config)
    client = InProcessClient(judge, rubric)
    assert [judgement.probability for judgement in client.annotate([b"good", b"bad"])] == [0.9, 0.1]
    assert client.describe().rubric_id == rubric.id
    judge.close()
    with pytest.raises(ServiceUnavailable):
        client.annotate([b"good"])


def test_the_real_model_judges_over_the_wire(start, connect, smollm2, rubric):
    judgements = connect(start(engine=RealEngine(smollm2))).annotate(
        [b"You kill the jackal!", b"You can't move there.", b"\xfe"]
    )
    assert [judgement.status for judgement in judgements] == [Status.OK, Status.OK, Status.REJECTED]
    assert judgements[0].probability > judgements[1].probability
    assert all(judgement.answer_mass > rubric.min_answer_mass for judgement in judgements[:2])


class RealEngine:
    """The real engine with the fixture's gate, which it never closes."""

    def __init__(self, engine):
        self.gate = threading.Event()
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)
