"""Two annotation services in processes of their own, one of which is killed: the other answers for both, and no
answered caption is asked again."""

import os
import signal
import threading
import time
from collections import Counter

import psutil
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.client import AnnotationClient
from llm_server.replicas import rendezvous_order
from llm_server.service.child import ServiceProcess
from tests.faults.annotating import Annotating, captions, expected

pytestmark = pytest.mark.faults
TEXTS = captions(600)


class Recorder:
    """What was asked of whom, and what was answered, as the run's own clients saw it."""

    def __init__(self, monkeypatch):
        self.asked, self.answered, self.lock = Counter(), [], threading.Lock()
        annotate = AnnotationClient.annotate

        def recorded(client, items):
            with self.lock:
                self.asked.update(items)
            answers = annotate(client, items)
            with self.lock:
                self.answered += [(client._address, item.decode()) for item in items]
            return answers

        monkeypatch.setattr(AnnotationClient, "annotate", recorded)

    def by(self, address):
        with self.lock:
            return [text for each, text in self.answered if each == address]


@pytest.fixture
def replicas(tmp_path):
    made = []
    for name in ("a", "b"):
        config = ServiceConfig(
            engine="scripted", script="kill=0.9", script_delay_s=0.003, store=str(tmp_path / f"{name}.sqlite")
        )
        made.append(ServiceProcess(config, ["nethack_progress"], tmp_path / f"{name}.log"))
    yield made
    for each in made:
        each.close()


def address_of(process):
    while not process.ensure_running():
        time.sleep(0.02)
    return process.address()


def test_a_killed_replica_costs_no_caption_and_takes_its_captions_again_once_it_is_back(
    replicas, tmp_path, monkeypatch, record_recovery
):
    recorder = Recorder(monkeypatch)
    first, second = (address_of(replica) for replica in replicas)
    run = Annotating(
        tmp_path, f"annotator.address={first},{second}", "annotator.batch_size=32", "annotator.max_in_flight=3"
    )
    try:
        run.report(TEXTS)
        run.wait_until(lambda: recorder.by(first) and recorder.by(second) and run.figure("annotations_total") >= 64)
        victim = psutil.Process(replicas[1].pid)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait(10)
        before = run.figure("annotations_total")
        failover_s = run.wait_until(lambda: run.figure("annotations_total") > before + 96)
        run.wait_for_rewards(TEXTS)
        assert run.rewarded(TEXTS) == expected(TEXTS)
        assert run.figure("annotations_total") == len(TEXTS)
        assert Counter(text for _, text in recorder.answered) == Counter(TEXTS), "no answered caption was asked again"
        again = {item.decode() for item, times in recorder.asked.items() if times > 1}
        assert max(recorder.asked.values()) == 2, "what was in flight was sent once more"
        assert 0 < len(again) <= 32 * 3
        assert all(rendezvous_order([first, second], text.encode())[0] == second for text in again)
        record_recovery(
            "kill -9 of one of two annotation replicas in the midst of requests",
            "the other answers for both; no answered caption is asked again, what was in flight is sent once"
            " more; every caption gets its label",
            failover_s,
        )

        replicas[1] = restarted(replicas[1], second, tmp_path)
        mine = [
            text for text in captions(4000, 10_000) if rendezvous_order([first, second], text.encode())[0] == second
        ]
        fed = iter(mine)

        def is_back():
            run.report([next(fed) for _ in range(4)])
            return any(text in mine for text in recorder.by(second))

        return_s = run.wait_until(is_back)
        asked = [text for _, text in recorder.answered]
        run.wait_for_rewards([text for text in mine if text in asked])
        assert max(recorder.asked.values()) == 2
        record_recovery(
            "a killed annotation replica comes back at its old address",
            "it is asked about its own captions again",
            return_s,
        )
    finally:
        run.close()


def restarted(process, address, tmp_path):
    """The replica once more, at the same address and with the same store."""
    process.close()
    port = int(address.rpartition(":")[2])
    config = ServiceConfig(
        engine="scripted", script="kill=0.9", script_delay_s=0.003, store=str(tmp_path / "b.sqlite"), port=port
    )
    again = ServiceProcess(config, ["nethack_progress"], tmp_path / "b.log")
    assert address_of(again) == address
    return again


def test_a_stopped_replica_costs_one_deadline_and_not_one_per_batch(replicas, tmp_path, monkeypatch, record_recovery):
    first, second = (address_of(replica) for replica in replicas)
    run = Annotating(
        tmp_path,
        f"annotator.address={first},{second}",
        "annotator.batch_size=8",
        "annotator.max_in_flight=2",
        "annotator.request_timeout_s=3",
    )
    stopped = replicas[1].pid
    try:
        run.report(TEXTS[:16])
        run.wait_for_rewards(TEXTS[:16])
        os.kill(stopped, signal.SIGSTOP)
        run.report(TEXTS)
        recovery_s = run.wait_for_rewards(TEXTS)
        assert run.rewarded(TEXTS) == expected(TEXTS)
        assert run.figure("annotations_total") == len(TEXTS)
        # Some 37 of the 73 batches would have met the deadline, two at a time.
        assert recovery_s < 3 * 3.0
        record_recovery(
            "SIGSTOP of one of two annotation replicas (deadline of a request 3 s here, 120 s by default)",
            "it costs each request under way one deadline and is left out then; the other answers for both",
            recovery_s,
        )
    finally:
        os.kill(stopped, signal.SIGCONT)
        run.close()
