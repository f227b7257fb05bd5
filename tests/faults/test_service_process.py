"""The annotation service that a run started is killed, stopped, or hangs: no caption is lost, and it is there again
without the run's doing."""

import os
import signal
import time

import psutil
import pytest

from tests.faults.annotating import captions, expected

pytestmark = pytest.mark.faults
TEXTS = captions(400)


def test_a_service_killed_in_the_midst_of_requests_is_started_again_and_no_caption_is_lost(annotate, record_recovery):
    run = annotate("service.script_delay_s=0.005")
    run.report(TEXTS)
    run.wait_until(lambda: run.figure("annotations_total") >= 40)
    killed, before = run.pid, run.figure("annotations_total")
    os.kill(killed, signal.SIGKILL)
    recovery_s = run.wait_until(
        lambda: run.figure("annotations_total") > before + 16
    )  # what was under way may have arrived
    run.wait_for_rewards(TEXTS)
    assert run.rewarded(TEXTS) == expected(TEXTS)
    assert run.figure("annotations_total") == len(TEXTS), "every caption answered once"
    assert run.figure("service_restarts") == 1
    assert run.pid != killed
    assert run.pipeline.problem is None
    record_recovery(
        "kill -9 of the annotation service in the midst of requests",
        "it is started again; every caption gets its label, none twice",
        recovery_s,
    )


def test_a_stopped_service_is_noticed_killed_and_replaced_while_the_backlog_stays_bounded(annotate, record_recovery):
    run = annotate("service.hang_timeout_s=2", "annotator.request_timeout_s=4", "annotator.max_captions=600")
    run.report(TEXTS[:100])
    run.wait_for_rewards(TEXTS[:100])
    stopped = run.pid
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    for first in range(1000, 3000, 100):
        run.report([*captions(100, first), *TEXTS[:100]])
        assert run.figure("captions_distinct") <= 600
        assert run.figure("annotations_pending") <= 600
    assert run.rewarded(TEXTS[:100]) == expected(TEXTS[:100]), "rewards go on with what was known"
    run.report(TEXTS)
    run.wait_for_rewards(TEXTS)
    recovery_s = time.monotonic() - began
    assert run.rewarded(TEXTS) == expected(TEXTS)
    assert run.figure("service_restarts") == 1
    assert not psutil.pid_exists(stopped)
    record_recovery(
        "SIGSTOP of the annotation service (deadline for a sign of life 2 s here, 60 s by default)",
        "it is killed and started again without a restart of the run; caption book and backlog stay bounded; no"
        " label is lost",
        recovery_s,
    )


def test_a_service_stopped_for_a_moment_is_left_alone(annotate, record_recovery):
    run = annotate("service.hang_timeout_s=4", "service.script_delay_s=0.01")
    run.report(TEXTS[:100])
    run.wait_until(lambda: run.figure("annotations_total") >= 8)
    pid = run.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)
    before = run.figure("annotations_total")
    os.kill(pid, signal.SIGCONT)
    recovery_s = run.wait_until(lambda: run.figure("annotations_total") > before + 16)
    run.wait_for_rewards(TEXTS[:100])
    time.sleep(3.0)  # the canaries that were under way have been counted
    assert (run.pid, run.figure("service_restarts")) == (pid, 0)
    assert run.figure("annotation_requests_failed") == 0
    record_recovery(
        "SIGSTOP of the annotation service, SIGCONT after 2 s",
        "it is neither restarted nor asked anything twice",
        recovery_s,
    )


def test_an_engine_that_hangs_in_a_batch_is_replaced_although_the_service_answers(annotate, record_recovery, caplog):
    # Ten times the patience is the deadline of one batch.
    run = annotate(
        "service.hang_timeout_s=1",
        "service.script_delay_s=3600",
        "annotator.batch_size=1",
        "annotator.request_timeout_s=60",
    )
    run.report(["a hang"])
    recovery_s = run.wait_until(lambda: run.figure("service_restarts") == 1)
    assert recovery_s > 10
    assert "the annotation service has been at one batch for 1" in caplog.text
    record_recovery(
        "the judge's engine hangs in a batch (deadline 10 s here, 600 s by default)",
        "the service is killed and started again",
        recovery_s,
    )


def test_a_slow_service_that_answers_is_never_taken_to_hang(annotate, record_recovery):
    run = annotate(
        "service.hang_timeout_s=1", "service.script_delay_s=0.5", "annotator.batch_size=8"
    )  # a batch takes four times the patience
    run.report(TEXTS[:16])
    run.wait_for_rewards(TEXTS[:16])
    assert run.figure("service_restarts") == 0
    record_recovery("a batch that takes four times the deadline for a sign of life", "the service is left alone", None)


def test_labels_that_come_a_hundred_times_slower_leave_book_and_backlog_bounded(annotate, record_recovery):
    run = annotate("service.script_delay_s=0.2", "annotator.max_captions=500", "annotator.max_in_flight=2")
    began = time.monotonic()
    for first in range(0, 20_000, 500):
        run.report(captions(500, first))
        assert run.figure("captions_distinct") <= 500
        assert run.figure("annotations_pending") <= 500
        assert run.figure("annotation_results_waiting") <= 4 * 2 * 8
    reporting_s = time.monotonic() - began
    assert reporting_s < 20, "reports wait for no label"
    before = run.figure("annotations_total")
    run.wait_until(lambda: run.figure("annotations_total") >= before + 16)
    assert run.figure("annotations_total") < 1000, "the labels were slow indeed"
    assert run.figure("annotation_requests_failed") == 0
    record_recovery(
        "labels 100 times slower than captions come",
        "reports are taken at once; caption book, backlog and answers that wait stay below their bounds; labels"
        " go on coming",
        None,
    )
