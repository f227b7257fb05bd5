"""The annotator loses nothing, asks nothing twice, and survives a service that is down, hung or hostile."""

import json
import logging
import time
from collections import Counter

import numpy as np
import pytest

from configs.annotation_schema import AnnotatorConfig
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.wire import LOADING
from tests.llm_server.fake_clients import FakeService
from tests.llm_server.waiting import wait_until


@pytest.fixture
def service():
    service = FakeService()
    yield service
    service.gate.set()


@pytest.fixture
def book():
    return CaptionBook(10_000, 1000)


@pytest.fixture
def make(service, book):
    made = []

    def build(connect=service.connect, **config):
        settings = {"batch_size": 4, "max_in_flight": 2, "max_backoff_s": 0.01, "request_timeout_s": 5.0} | config
        made.append(Annotator(connect, CaptionQuestions(book), AnnotatorConfig(**settings)))
        return made[-1]

    yield build
    service.gate.set()
    for annotator in made:
        annotator.close()


def fill(book, *texts, number=0):
    """Earlier texts are more frequent, so of higher priority."""
    book.take_report(
        dict(enumerate(texts, 1)), {i: 2 ** (len(texts) - i) for i in range(1, len(texts) + 1)}, "0.0", number, 0
    )


def take_until(annotator, enough):
    taken, deadline = [], time.monotonic() + 120
    while not enough(taken):
        assert time.monotonic() < deadline, f"got {taken}, metrics {annotator.metrics()}"
        annotator.wait(0.5)
        taken += annotator.take()
    return taken


def texts_of(judged):
    return [item.caption.text for item in judged]


def test_a_turn_asks_the_most_urgent_first_in_batches_and_stops_at_its_limit(make, service, book):
    fill(book, *"abcdefghij")
    annotator = make()
    assert texts_of(annotator.turn(6)) == list("abcdef")
    assert service.requests == [list("abcd"), list("ef")]
    assert texts_of(annotator.turn(100)) == list("ghij")
    assert annotator.turn(100) == []
    assert annotator.metrics()["annotator_up"] == 1


def test_cached_and_fresh_answers_come_in_the_same_order_and_are_counted_apart(make, book):
    fill(book, "old kill", "new", "odd", "bad", "old odd")
    annotator = make()
    assert texts_of(annotator.turn(10)) == ["old kill", "new"]
    metrics = annotator.metrics()
    assert metrics["annotations_total"] == 5
    assert metrics["annotations_cached"] == 2
    assert metrics["annotations_unparsed"] == 3
    assert metrics["forward_passes"] == 2


def test_unparsed_and_rejected_answers_are_no_labels_and_not_asked_again(make, service, book):
    fill(book, "odd", "bad")
    annotator = make()
    assert annotator.turn(10) == []
    fill(book, "odd", "bad", number=1)
    assert annotator.turn(10) == []
    assert len(service.requests) == 1


def test_a_turn_waits_for_a_service_that_restarts_and_asks_the_same_batch(make, service, book):
    fill(book, *"abcdef")
    service.fail_next = [ServiceUnavailable("gone"), ConnectionError("odd failure")]
    annotator = make()
    assert texts_of(annotator.turn(6)) == list("abcdef")
    assert service.requests == [list("abcd")] * 3 + [list("ef")]
    assert annotator.metrics()["annotation_requests_failed"] == 2
    assert service.connections == 3


def test_a_turn_gives_up_after_the_deadline_and_then_tries_once_until_the_service_is_back(make, service, book):
    fill(book, *"ab")
    service.is_down = True
    annotator = make(request_timeout_s=0.05)
    assert annotator.turn(2) == []
    before = service.connections
    assert before > 1
    assert annotator.turn(2) == []
    assert service.connections == before + 1
    assert annotator.metrics()["annotator_up"] == 0
    service.is_down = False
    assert texts_of(annotator.turn(2)) == list("ab")
    service.fail_next = [ServiceUnavailable("gone")]
    fill(book, *"abc", number=1)
    assert texts_of(annotator.turn(2)) == ["c"]  # it waits again


def test_an_interrupt_ends_a_turns_waiting(make, service, book):
    fill(book, "a")
    service.is_down = True
    annotator = make(request_timeout_s=3600.0, max_backoff_s=3600.0)
    annotator.interrupt()
    assert annotator.turn(1) == []
    assert book.metrics()["annotations_pending"] == 1


def test_every_caption_is_answered_once_through_failures_of_all_kinds(make, service, book):
    names = [f"caption {i}" for i in range(100)]
    book.take_report(dict(enumerate(names, 1)), dict.fromkeys(range(1, 101), 1), "0.0", 0, 0)
    service.fail_next = [ServiceUnavailable("a"), RuntimeError("b"), ServiceUnavailable("c")]
    annotator = make()
    annotator.start()
    taken = take_until(annotator, lambda taken: len(taken) == 100)
    assert Counter(texts_of(taken)) == Counter(names)
    assert Counter(service.answered) == Counter(names)
    metrics = annotator.metrics()
    assert (metrics["annotations_total"], metrics["annotation_requests_failed"], metrics["annotator_up"]) == (100, 3, 1)


def test_no_more_than_max_in_flight_requests_are_under_way(make, service, book):
    fill(book, *[f"c{i}" for i in range(40)])
    service.gate.clear()
    annotator = make(max_in_flight=3)
    annotator.start()
    for _ in range(3):
        assert service.arrived.acquire(timeout=120)
    assert not service.arrived.acquire(timeout=0.05)
    service.gate.set()
    take_until(annotator, lambda taken: len(taken) == 40)
    assert service.most_under_way == 3


def test_answers_that_nobody_takes_stop_the_asking(make, service, book):
    fill(book, *[f"c{i}" for i in range(60)])
    annotator = make(max_in_flight=1, batch_size=2)
    annotator.start()
    wait_until(lambda: len(service.requests) == 5)  # 4 x 2 answers wait, one batch more is in the asking thread's hand
    assert not [service.arrived.acquire(timeout=0.05) for _ in range(6)][5]
    assert annotator.metrics()["annotation_results_waiting"] == 8
    assert len(take_until(annotator, lambda taken: len(taken) == 60)) == 60


def test_the_gauge_falls_and_rises_with_the_service_even_while_nothing_is_pending(make, service, book, monkeypatch):
    monkeypatch.setattr("llm_server.annotator.annotator.PROBE_INTERVAL_S", 0.01)
    annotator = make()
    annotator.start()
    for is_down in (False, True, False):
        service.is_down = is_down
        wait_until(lambda is_down=is_down: annotator.metrics()["annotator_up"] == int(not is_down))
    assert service.requests == []


def test_a_client_is_made_anew_after_a_failure_so_that_a_service_may_come_back_elsewhere(make, service, book):
    fill(book, "a")
    elsewhere = FakeService()
    service.is_down = True
    addresses = [service, elsewhere]
    annotator = make(connect=lambda: addresses.pop(0).connect())
    assert texts_of(annotator.turn(1)) == ["a"]
    assert elsewhere.answered == ["a"]
    assert service.closed == 1


def test_a_service_that_is_still_starting_is_no_failed_request(make, book, service):
    fill(book, "a")
    starts = iter([ServiceUnavailable("starting"), ServiceUnavailable("starting")])

    def connect():
        for error in starts:
            raise error
        return service.connect()

    annotator = make(connect=connect)
    assert texts_of(annotator.turn(1)) == ["a"]
    assert annotator.metrics()["annotation_requests_failed"] == 0


@pytest.mark.parametrize(
    "words", ["the annotation service is starting (its output: x)", f"UNAVAILABLE: {LOADING}; ask again"]
)
def test_a_service_that_loads_is_asked_again_soon_however_long_it_takes(make, book, service, monkeypatch, words):
    fill(book, "a")
    attempts: list[bool] = []
    pauses: list[float] = []
    annotator = make(connect=lambda: connect(), max_backoff_s=1000.0)

    def connect():
        attempts.append(annotator.is_loading)
        if len(attempts) <= 12:
            raise ServiceUnavailable(words)
        return service.connect()

    def pause(failures, usual=annotator._pause_s):
        pauses.append(usual(failures))
        return 0.0

    monkeypatch.setattr(annotator, "_pause_s", pause)
    assert texts_of(annotator.turn(1)) == ["a"]
    assert attempts == [False] + 12 * [True]
    assert not annotator.is_loading
    assert len(pauses) == 12
    assert max(pauses) <= 1.0


def test_a_service_that_is_gone_is_asked_ever_more_rarely(make):
    annotator = make(max_backoff_s=30.0)
    assert [
        round(annotator._pause_s(failures) / wanted, 3)
        for failures, wanted in ((1, 0.25), (4, 2.0), (20, 30.0))
        for _ in range(9)
    ] == [pytest.approx(0.75, abs=0.251) for _ in range(27)]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_refusal_ends_the_asking_is_logged_once_and_loses_nothing(make, service, book, caplog, asynchronous):
    fill(book, *"abcdefgh")
    service.fail_next = [AnnotationRefused("rubric `x` is unknown; the service has `y`")] * 9
    annotator = make()
    with caplog.at_level(logging.ERROR):
        if asynchronous:
            annotator.start()
            wait_until(lambda: not any(thread.is_alive() for thread in annotator._threads))
        else:
            assert annotator.turn(8) == []
            assert annotator.turn(8) == []
    assert len(service.requests) <= (2 if asynchronous else 1)
    assert caplog.text.count("rubric `x` is unknown") == 1
    assert annotator.problem == "rubric `x` is unknown; the service has `y`"
    assert annotator.metrics()["annotator_up"] == 0
    assert book.metrics()["annotations_pending"] == 8


def test_a_wrong_number_of_judgements_is_a_failure_not_a_shift(make, service, book, monkeypatch):
    fill(book, "a", "kill b")
    annotator = make(request_timeout_s=0.0)
    monkeypatch.setattr("tests.llm_server.fake_clients.FakeClient.annotate", lambda self, items: [])
    assert annotator.turn(2) == []
    assert book.metrics()["annotations_pending"] == 2


def test_close_is_prompt_while_a_request_hangs_and_its_captions_are_saved_as_pending(make, service, book):
    fill(book, *"abcd")
    service.gate.clear()
    annotator = make(max_in_flight=1)
    annotator.start()
    assert service.arrived.acquire(timeout=120)
    assert book.metrics()["annotations_pending"] == 0
    started = time.monotonic()
    annotator.close()
    assert time.monotonic() - started < 2
    restored = CaptionBook(100, 1000)
    restored.load_state_dict(book.state_dict())
    assert restored.metrics()["annotations_pending"] == 4


def test_answers_not_yet_taken_are_saved_as_pending(make, service, book):
    fill(book, *"abcd")
    annotator = make()
    annotator.start()
    annotator.wait(60)
    restored = CaptionBook(100, 1000)
    restored.load_state_dict(book.state_dict())
    assert restored.metrics()["annotations_pending"] == 4
    assert annotator.state_dict()["counters"]["annotations_total"] == 0
    assert len(annotator.take()) == 4


def test_what_the_judge_is_is_known_before_its_first_judgement(make, service, book):
    fill(book, "a")
    annotator = make(request_timeout_s=0.0)
    service.is_down = True
    annotator.turn(1)
    assert annotator.judge is None
    service.is_down = False
    annotator.turn(1)
    assert annotator.judge.threshold == 0.5


def replace_judge(service, model="another"):
    service.model = model
    service.fail_next = [ServiceUnavailable("restarting")]


def test_another_judge_takes_over_with_all_labels_and_says_so(make, service, book, caplog):
    fill(book, "a", "odd", "b")
    annotator = make()
    annotator.turn(3)
    replace_judge(service)
    fill(book, "a", "odd", "b", "c", number=1)
    with caplog.at_level("WARNING"):
        assert texts_of(annotator.turn(1)) == ["c"]
    assert "2 are dropped, every caption is asked anew" in caplog.text
    assert annotator.metrics()["annotations_dropped"] == 2
    assert book.metrics()["annotations_pending"] == 3
    assert np.isnan(book.look_up(np.array([1, 3], np.uint64))[1]).all()
    assert annotator.num_judges_replaced == 1
    assert texts_of(annotator.turn(9)) == ["a", "b"]
    assert annotator.num_labels == 3


def test_labels_of_two_judges_never_leave_one_turn_together(make, service, book, monkeypatch):
    fill(book, "a", "b", "c", "d")
    annotator = make(batch_size=2)

    def fail():
        if len(service.answered) == 2 and service.model == "0":
            service.model = "another"
            raise ServiceUnavailable("restarting")

    monkeypatch.setattr(service, "fail", fail)
    assert texts_of(annotator.turn(4)) == ["c", "d"]
    assert book.metrics()["annotations_pending"] == 2


def test_answers_of_the_former_that_come_late_are_asked_again(make, service, book):
    fill(book, "a", "b")
    annotator = make()
    former = annotator._attempt(annotator._next_batch(1))
    service.model = "another"
    assert annotator._attempt([]) is None
    other = annotator._attempt(annotator._next_batch(1))
    assert texts_of(annotator._record(other, annotator._record(former, []))) == ["b"]
    assert annotator._record(former, []) == []
    assert book.metrics()["annotations_pending"] == 1


def test_a_judge_whose_labels_were_dropped_is_refused_when_it_comes_back(make, service, book):
    fill(book, "a", "b", "c")
    annotator = make()
    annotator.turn(1)
    replace_judge(service)
    annotator.turn(1)
    replace_judge(service, "0")
    annotator.turn(1)
    assert "two judges answer in turn" in annotator.problem
    assert annotator.judge.fingerprint == "another"


def test_a_resume_with_another_judge_drops_the_labels(make, service, book):
    fill(book, "a", "b")
    first, second = make(), make()
    first.turn(1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    service.model = "another"
    assert texts_of(second.turn(1)) == ["b"]
    assert second.metrics()["annotations_dropped"] == 1


def test_labels_of_a_judge_that_is_not_known_are_dropped(make, book):
    fill(book, "a", "b")
    first, second = make(), make()
    first.turn(1)
    second.load_state_dict(first.state_dict() | {"judge": {}})
    assert second.judge is None
    assert texts_of(second.turn(1)) == ["b"]
    assert second.metrics()["annotations_dropped"] == 1


def test_answers_within_the_noise_of_theta_are_counted(make, book, service):
    fill(book, "a kill", "odd", "nothing")
    service.threshold, service.noise = 0.899, 0.02  # the kill is given 0.9
    annotator = make()
    assert texts_of(annotator.turn(10)) == ["a kill", "nothing"], "labels they are all the same"
    assert annotator.metrics()["annotations_undecided"] == 1


def test_counters_go_on_after_a_resume(make, book):
    fill(book, "a", "odd")
    first, second = make(), make()
    first.turn(2)
    second.load_state_dict(first.state_dict())
    assert second.metrics()["annotations_total"] == 2
    assert second.metrics()["annotations_unparsed"] == 1
    assert second.metrics()["annotator_up"] is None
