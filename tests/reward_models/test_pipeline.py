"""Trainer and pipeline: versions only go up, tables hold what was judged, failures never reach the learner."""

import logging
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest

from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import CaptionBook, CaptionState
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.annotator.pairs import PointwisePairs
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable
from llm_server.rubrics.loading import load_rubric
from llm_server.service.child import ServiceProcess
from reward_models.building import build_reward_model
from reward_models.interface import Asks
from reward_models.pipeline import SLICE, AnnotationPipeline, FairLock
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer
from tests.llm_server.fake_clients import FakeService

TEXTS = {1: "you kill the newt", 2: "a wall", 3: "odd", 4: "you kill the rat"}
COUNTS = {1: 5, 2: 50, 3: 4, 4: 6}


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def make(service, tmp_path):
    made = []

    def build(name="retrieval", run_epoch=1, max_captions=1000):
        book = CaptionBook(max_captions, 1000, CaptionArchive(tmp_path / "captions.sqlite"))
        settings = RewardModelConfig(name=name, publish_interval_s=0.01)
        model = build_reward_model(settings)
        config = AnnotatorConfig(batch_size=2, max_backoff_s=0.01, request_timeout_s=0.05)
        annotator = (
            Annotator(service.connect, CaptionQuestions(book), config) if model.asks is not Asks.NOTHING else None
        )
        trainer = RewardTrainer(model, RewardShaping(settings, 0), book, run_epoch)
        made.append(AnnotationPipeline(book, trainer, annotator=annotator, config=settings))
        return made[-1]

    yield build
    service.gate.set()
    for pipeline in made:
        pipeline.close()


def rewards(table, *ids):
    values, known = table.look_up(np.array(ids, np.uint64))
    return [value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)]


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_turn_brings_at_most_k_judgements_into_the_next_table(make):
    pipeline = make()
    assert pipeline.latest_table().reward_version == (1, 0)
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    assert rewards(pipeline.turn(2), 1, 2, 3, 4) == [None, 0, None, 1]
    assert rewards(pipeline.turn(2), 1, 2, 3, 4) == [1, 0, None, 1]
    assert pipeline.latest_table().reward_version == (1, 2)


def test_a_table_that_would_equal_the_last_is_not_published(make):
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    table = pipeline.turn(10)
    pipeline.report({9: "odd again"}, {9: 1, 1: 5}, "0.0", 1, 0)
    assert pipeline.turn(10) is table


def test_a_judge_keeps_the_threshold_it_came_with_and_another_brings_its_own(make, service):
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.turn(10)
    service.threshold = 0.1
    service.fail_next = [ServiceUnavailable("restarting")]
    pipeline.report({5: "kill"}, {5: 1}, "0.0", 1, 0)
    assert rewards(pipeline.turn(10), 1, 2, 4, 5) == [1, 0, 1, 1]
    service.model = "another"
    service.fail_next = [ServiceUnavailable("restarting")]
    pipeline.report({6: "a hall"}, {6: 1}, "0.0", 2, 0)
    assert rewards(pipeline.turn(1), 1, 2, 4, 5, 6) == [None] * 4 + [1], "nothing that the former said is left"
    assert rewards(pipeline.turn(10), 1, 2, 4, 5, 6) == [1] * 5
    assert pipeline.metrics()["annotations_dropped"] == 4


@pytest.mark.parametrize("name", ["retrieval", "classification"])
def test_the_background_threads_leave_nothing_of_a_former_judge(make, service, name):
    pipeline = make(name)
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.start()
    wait_until(lambda: pipeline.metrics()["annotations_total"] == 4)
    service.model = "another"
    pipeline.report({6: "a hall"}, {6: 1}, "0.0", 1, 0)
    wait_until(lambda: pipeline.metrics()["annotations_total"] == 9 and pipeline.metrics()["annotations_pending"] == 0)
    assert pipeline.metrics()["annotations_dropped"] == 3
    assert pipeline.state_dict()["annotator"]["judge"]["fingerprint"] == "another"


def test_what_lies_within_the_noise_above_theta_is_not_paid(make, service):
    service.threshold, service.noise = 0.899, 0.02  # kills are given 0.9
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    assert rewards(pipeline.turn(10), 1, 2, 4) == [0, 0, 0]
    assert pipeline.metrics()["annotations_undecided"] == 2


def test_the_background_threads_do_what_turns_do(make):
    pipeline = make()
    pipeline.start()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    wait_until(lambda: rewards(pipeline.latest_table(), 1, 2, 3, 4) == [1, 0, None, 1])
    metrics = pipeline.metrics()
    assert (metrics["annotations_total"], metrics["annotator_up"], metrics["captions_distinct"]) == (4, 1, 4)
    assert metrics["reward_model_accuracy"] is None


def test_a_service_that_is_down_leaves_the_last_table_and_delays_no_report(make, service):
    pipeline = make()
    pipeline.start()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    wait_until(lambda: rewards(pipeline.latest_table(), 1, 2, 4) == [1, 0, 1])
    service.is_down = True
    pipeline.report({5: "kill"}, {5: 1}, "0.0", 1, 0)
    wait_until(lambda: pipeline.metrics()["annotator_up"] == 0)
    assert rewards(pipeline.latest_table(), 1, 5) == [1, None]
    service.is_down = False
    wait_until(lambda: rewards(pipeline.latest_table(), 5) == [1])


@pytest.mark.parametrize(("name", "reward"), [("counts", 1), ("none", 0)])
def test_baselines_ask_nobody_and_know_every_caption_at_once(make, service, name, reward):
    pipeline = make(name)
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    assert rewards(pipeline.turn(64), 1, 2, 3, 4, 0) == [reward] * 4 + [0]
    pipeline.start()
    pipeline.report({5: "five"}, {5: 1}, "0.0", 1, 0)
    wait_until(lambda: rewards(pipeline.latest_table(), 5) == [reward])
    assert service.connections == 0
    metrics = pipeline.metrics()
    assert metrics.get("annotator_up") is None
    assert metrics["annotations_pending"] is None


def test_a_run_resumes_with_the_same_rewards_in_a_new_epoch(make, tmp_path):
    first = make()
    first.report(TEXTS, COUNTS, "0.0", 0, 0)
    first.turn(2)
    state = load_checkpoint(save_checkpoint(tmp_path / "checkpoints", 1, {"annotation": first.state_dict()}, keep=1))[
        "annotation"
    ]
    first.close()
    second = make(run_epoch=2)
    second.load_state_dict(state)
    assert rewards(second.latest_table(), 1, 2, 3, 4) == [None, 0, None, 1]
    assert second.latest_table().reward_version == (2, 1)
    second.turn(10)
    assert rewards(second.latest_table(), 1, 2, 3, 4) == [1, 0, None, 1]
    assert second.latest_table().reward_version == (2, 2)
    assert second.metrics()["annotations_total"] == 4


def test_a_resumed_run_goes_on_like_one_that_was_not_interrupted(make, tmp_path):
    """Turn by turn, table by table."""
    reports = [
        ({10 * n + i: f"{n} kill {i}" for i in range(1, 8)}, {10 * n + i: i for i in range(1, 8)}) for n in range(1, 7)
    ]
    whole, first, second = make(), make(), make(run_epoch=2)
    for number, (texts, counts) in enumerate(reports[:3]):
        for pipeline in (whole, first):
            pipeline.report(texts, counts, "0.0", number, number * 100)
            pipeline.turn(3)
    second.load_state_dict(first.state_dict())
    for number, (texts, counts) in enumerate(reports[3:], 3):
        tables = []
        for pipeline in (whole, second):
            pipeline.report(texts, counts, "0.0", number, number * 100)
            tables.append(pipeline.turn(3))
        np.testing.assert_array_equal(tables[0].ids, tables[1].ids)
        np.testing.assert_array_equal(tables[0].rewards, tables[1].rewards)


def test_evicted_captions_leave_table_and_model(make):
    pipeline = make(max_captions=4)
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.turn(10)
    pipeline.report({8: "kill", 9: "nine"}, {8: 1, 9: 1, 2: 1, 1: 1}, "0.0", 1, 100)
    pipeline.turn(10)
    assert rewards(pipeline.latest_table(), 1, 2, 4, 8, 9) == [1, 0, None, 1, 0]
    assert len(pipeline.state_dict()["trainer"]["model"]["ids"]) == 4


def test_the_most_rewarded_are_by_reward_then_count_and_seen_often_enough(make):
    pipeline = make()
    pipeline.report(TEXTS, COUNTS | {1: 6}, "0.0", 0, 0)
    pipeline.report({5: "kill once"}, {5: 1}, "0.0", 1, 0)
    pipeline.turn(10)
    top = pipeline.top_rewarded(10, 3)
    assert [(caption.text, caption.reward, caption.probability, caption.count) for caption in top] == [
        ("you kill the newt", 1.0, 0.9, 6),
        ("you kill the rat", 1.0, 0.9, 6),
    ]
    assert len(pipeline.top_rewarded(1, 1)) == 1
    assert make("counts").top_rewarded(5, 1) == []


def test_an_error_in_training_is_logged_with_its_traceback_and_outlived(make, caplog, monkeypatch):
    pipeline = make()
    errors = iter([ValueError("bad label"), ValueError("bad label")])
    learn = pipeline._trainer.learn

    def learn_at_the_third_attempt(judged):
        if judged:
            for error in errors:
                raise error
        learn(judged)

    monkeypatch.setattr(pipeline._trainer, "learn", learn_at_the_third_attempt)
    with caplog.at_level(logging.ERROR):
        pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
        pipeline.start()
        wait_until(lambda: rewards(pipeline.latest_table(), 1, 2, 4) == [1, 0, 1])  # nothing that was judged is lost
    assert "bad label" in caplog.text
    assert "Traceback" in caplog.text
    assert pipeline.problem is None


def test_training_that_keeps_failing_stops_says_so_and_leaves_the_table(make, caplog, monkeypatch):
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.turn(2)
    table = pipeline.latest_table()

    def fail(judged):
        raise ValueError("always")

    monkeypatch.setattr(pipeline._trainer, "learn", fail)
    pipeline.start()
    wait_until(lambda: pipeline.problem is not None)
    assert "always" in pipeline.problem
    assert pipeline.metrics()["annotator_up"] == 0
    assert pipeline.latest_table() is table
    assert pipeline.report({}, {1: 1}, "0.0", 1, 0)[1] == 1


def test_a_refusal_is_the_pipelines_problem(make, service):
    pipeline = make()
    service.fail_next = [AnnotationRefused("the rubric differs")]
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.turn(2)
    assert pipeline.problem == "the rubric differs"


def test_a_checkpoint_falls_never_between_taking_and_learning(make):
    """Every label is either in the saved model or pending in the saved book."""
    pipeline = make()
    pipeline.start()
    stop = threading.Event()

    def report_on():
        for number in range(400):
            if stop.is_set():
                return
            pipeline.report({number + 1: f"kill {number}"}, {number + 1: 1}, "0.0", number, number)

    reporter = threading.Thread(target=report_on)
    reporter.start()
    try:
        for _ in range(20):
            state = pipeline.state_dict()
            labelled = set(state["trainer"]["model"]["ids"].tolist())
            columns = state["book"]["columns"]
            for number, book_state in zip(columns["id"].tolist(), columns["state"].tolist(), strict=True):
                assert (number in labelled) == (book_state == CaptionState.OK)
    finally:
        stop.set()
        reporter.join()


def test_a_checkpoint_waits_for_a_slice_of_the_captions_not_for_all(make, monkeypatch):
    pipeline = make("classification")
    numbers = range(1, 3 * SLICE)
    pipeline.report({n: f"caption {n}" for n in numbers}, dict.fromkeys(numbers, 1), "0.0", 0, 0)
    trainer, prepared, published, saved = pipeline._trainer, [], [], []

    def prepare(captions):
        prepared.append(len(captions))
        if len(prepared) == 2:
            threads.append(threading.Thread(target=pipeline.state_dict))
            threads[0].start()
            wait_until(pipeline._lock._door.locked)  # it waits for the lock

    def state_dict():  # called while the lock is held
        saved.append((len(prepared), len(published)))
        return state_of_trainer()

    threads, state_of_trainer = [], trainer.state_dict
    monkeypatch.setattr(trainer, "state_dict", state_dict)
    monkeypatch.setattr(trainer, "prepare", prepare)
    monkeypatch.setattr(trainer, "publish", lambda: published.append(True))
    pipeline._publish()
    threads[0].join()
    assert sum(prepared) == len(numbers)
    assert max(prepared) <= SLICE
    assert saved == [(2, 0)]
    assert published == [True]


def test_a_table_made_in_slices_is_that_made_at_once(make):
    one, other = make("classification"), make("classification")
    for pipeline in (one, other):
        pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
        pipeline.turn(10)
        while not pipeline._trainer._model._networks.members[0].has_best:
            pipeline._trainer.train()
        pipeline.report({n: f"kill {n}" for n in range(10, 700)}, dict.fromkeys(range(10, 700), 1), "0.0", 1, 0)
    one._publish()
    other._trainer.publish()
    assert len(one.latest_table()) == 695
    np.testing.assert_array_equal(one.latest_table().ids, other.latest_table().ids)
    np.testing.assert_allclose(one.latest_table().rewards, other.latest_table().rewards, atol=1e-6)


class CountingService:
    """As much of a `ServiceProcess` as the pipeline needs."""

    def __init__(self):
        self.num_served = 0

    def ensure_running(self):
        pass

    def close(self):
        pass

    def served(self):
        self.num_served += 1


def test_pairs_of_one_judgement_are_none_but_it_counts_as_an_answer_and_as_a_label(service):
    book, watched = CaptionBook(100, 1000), CountingService()
    book.take_report({1: "you kill the newt"}, {1: 1}, "0.0", 0, 0)
    settings = RewardModelConfig(name="ranking", warmup_labels=3, steps_per_turn=25)
    annotator = Annotator(service.connect, PointwisePairs(book, AnnotatorConfig(), 1), AnnotatorConfig())
    trainer = RewardTrainer(build_reward_model(settings), RewardShaping(settings, 0), book, 1)
    pipeline = AnnotationPipeline(book, trainer, annotator=annotator, service=watched, config=settings)
    pipeline.turn(10)
    assert watched.num_served == 1
    pipeline.turn(10)
    assert watched.num_served == 1, "no answer came"
    book.take_report({2: "a wall", 3: "odd"}, {2: 1, 3: 1}, "0.0", 1, 0)
    assert len(pipeline.turn(10)) == 1, "two labels of three, whatever the number of pairs"
    book.take_report({4: "a door"}, {4: 1}, "0.0", 2, 0)
    assert len(pipeline.turn(10)) == 5
    pipeline.close()


def test_captions_that_left_the_book_leave_the_questions(service):
    book = CaptionBook(8, 1000)
    settings = RewardModelConfig(name="ranking", steps_per_turn=1)
    questions = PointwisePairs(book, AnnotatorConfig(), 1)
    trainer = RewardTrainer(build_reward_model(settings), RewardShaping(settings, 0), book, 1)
    pipeline = AnnotationPipeline(
        book, trainer, annotator=Annotator(service.connect, questions, AnnotatorConfig()), config=settings
    )
    for turn in range(2):
        numbers = range(8 * turn + 1, 8 * turn + 9)
        book.take_report({n: f"caption {n}" for n in numbers}, dict.fromkeys(numbers, 1), "0.0", turn, 100 * turn)
        pipeline.turn(10)
    assert set(questions.state_dict()["pairs"].ravel().tolist()) <= {caption.id for caption in book.captions()}
    pipeline.close()


def test_the_archive_is_written_with_the_checkpoint_and_at_the_end(make, tmp_path, service):
    service.is_down = True
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    pipeline.state_dict()
    archive = sqlite3.connect(tmp_path / "captions.sqlite")
    assert archive.execute("SELECT count(*) FROM captions WHERE status = 'PENDING'").fetchone() == (4,)
    service.is_down = False
    pipeline.turn(10)
    pipeline.close()
    assert archive.execute("SELECT count(*) FROM captions WHERE status = 'OK'").fetchone() == (3,)
    archive.close()


def test_close_is_prompt_while_the_service_hangs(make, service):
    service.gate.clear()
    pipeline = make()
    pipeline.start()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    assert service.arrived.acquire(timeout=120)
    started = time.monotonic()
    pipeline.close()
    assert time.monotonic() - started < 4


def test_a_real_service_that_is_killed_comes_back_and_no_caption_is_lost(tmp_path):
    book = CaptionBook(1000, 1000)
    service = ServiceProcess(
        ServiceConfig(engine="scripted", script="kill=0.9", store="memory"),
        ["nethack_progress"],
        tmp_path / "service.log",
    )
    rubric = load_rubric("nethack_progress")
    settings = RewardModelConfig(publish_interval_s=0.05)
    connect = lambda: AnnotationClient(service.address(), rubric, 10.0)  # noqa: E731
    annotator = Annotator(connect, CaptionQuestions(book), AnnotatorConfig(max_backoff_s=0.1))
    trainer = RewardTrainer(build_reward_model(settings), RewardShaping(settings, 0), book, 1)
    pipeline = AnnotationPipeline(book, trainer, annotator=annotator, service=service, config=settings)
    try:
        pipeline.start()
        pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
        wait_until(lambda: rewards(pipeline.latest_table(), 1, 2, 4) == [1, 0, 1])
        os.kill(service.pid, signal.SIGKILL)
        pipeline.report({5: "kill"}, {5: 1}, "0.0", 1, 0)
        wait_until(lambda: pipeline.metrics()["annotator_up"] == 0)
        wait_until(lambda: rewards(pipeline.latest_table(), 5) == [1])
        metrics = pipeline.metrics()
        assert (metrics["annotator_up"], metrics["service_restarts"], metrics["annotations_total"]) == (1, 1, 5)
    finally:
        pipeline.close()
    assert service.pid is None


def test_an_outage_in_turns_costs_the_deadline_once_and_no_label(make, service):
    service.fail_next = [ServiceUnavailable("down")] * 3
    pipeline = make()
    pipeline.report(TEXTS, COUNTS, "0.0", 0, 0)
    wait_until(lambda: rewards(pipeline.turn(10), 1, 2, 4) == [1, 0, 1])


def test_who_waits_comes_before_who_takes_it_again():
    lock, order, waits = FairLock(), [], threading.Event()

    def visit():
        waits.set()
        with lock:
            order.append("visitor")

    visitor = threading.Thread(target=visit)
    with lock:
        visitor.start()
        waits.wait(60)
        while not lock._door.locked():
            assert visitor.is_alive()
    with lock:
        order.append("again")
    visitor.join()
    assert order == ["visitor", "again"]
