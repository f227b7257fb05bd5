"""What counts as a hang. The service here is a bare gRPC server with scripted answers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.credentials import NO_CREDENTIALS
from llm_server.service.child import LivenessProbe
from llm_server.wire import LOADING
from tests.llm_server.waiting import wait_until

HANG_TIMEOUT_S = 0.3
WAIT_S = 20.0


class Played(annotation_pb2_grpc.AnnotationServicer):
    def __init__(self):
        self.num_asked, self.busy_s, self.refusal = 0, 0.0, None
        self.answers = threading.Event()
        self.answers.set()
        self._server = grpc.server(ThreadPoolExecutor(16))
        annotation_pb2_grpc.add_AnnotationServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Describe(self, request, context):
        self.num_asked += 1
        assert self.answers.wait(WAIT_S)
        if self.refusal:
            context.abort(*self.refusal)
        return annotation_pb2.DescribeResponse(engine_busy_s=self.busy_s)

    def close(self):
        self.answers.set()
        self._server.stop(0).wait()


@pytest.fixture
def service():
    made = Played()
    yield made
    made.close()


@pytest.fixture
def watch(service):
    made = []

    def watch(watches_engine=True, **settings):
        made.append(LivenessProbe(service.address, NO_CREDENTIALS, HANG_TIMEOUT_S, watches_engine, **settings))
        return made[-1]

    yield watch
    for probe in made:
        probe.close()
        probe._thread.join(WAIT_S)
        assert not probe._thread.is_alive()


def asked(service, number):
    wait_until(lambda: service.num_asked >= number)


def test_a_service_that_answers_is_well(service, watch):
    probe = watch()
    asked(service, 12)
    assert probe.problem is None


def test_silence_is_a_hang_once_it_has_judged(service, watch):
    probe = watch()
    asked(service, 2)
    service.answers.clear()
    began = time.monotonic()
    wait_until(lambda: probe.problem)
    assert time.monotonic() - began >= HANG_TIMEOUT_S * 0.9
    assert "has answered no liveness probe for" in probe.problem


def test_silence_shorter_than_the_time_limit_is_no_hang(service, watch):
    probe = watch()
    asked(service, 2)
    for _ in range(5):
        service.answers.clear()
        time.sleep(HANG_TIMEOUT_S * 0.7)
        service.answers.set()
        before = service.num_asked
        asked(service, before + 2)
    assert probe.problem is None


def test_a_service_that_is_still_loading_has_fifteen_times_as_long(service, watch):
    service.answers.clear()
    probe = watch()
    time.sleep(HANG_TIMEOUT_S * 5)
    assert probe.problem is None
    service.answers.set()
    service.refusal = grpc.StatusCode.UNAVAILABLE, f"{LOADING}; ask again"
    before = service.num_asked
    asked(service, before + 8)
    assert probe.problem is None


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
def test_any_status_of_its_own_is_an_answer(service, watch, code):
    probe = watch()
    asked(service, 2)
    service.refusal = code, "not now"
    before = service.num_asked
    asked(service, before + 12)
    assert probe.problem is None


def test_a_port_on_which_nobody_listens_any_more_is_a_hang_of_a_process_that_lives(service, watch):
    probe = watch()
    asked(service, 2)
    service._server.stop(0).wait()
    wait_until(lambda: probe.problem)


def test_a_batch_of_ten_times_the_limit_is_a_hang_of_its_own_engine_only(service, watch):
    service.busy_s = HANG_TIMEOUT_S * 10 - 0.1
    probe, other = watch(), watch(watches_engine=False)
    asked(service, 6)
    assert probe.problem is None
    service.busy_s = HANG_TIMEOUT_S * 10 + 0.1
    wait_until(lambda: probe.problem == "has been at one batch for 3 s")
    before = service.num_asked
    asked(service, before + 4)
    assert other.problem is None


def test_time_in_which_the_watcher_itself_was_stopped_does_not_count(service, watch):
    now = [0.0]
    probe = watch(clock=lambda: now[0])
    asked(service, 2)
    now[0] += 3600.0
    before = service.num_asked
    asked(service, before + 4)
    assert probe.problem is None
