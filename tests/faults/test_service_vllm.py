"""vLLM's engine process dies under the annotation service of a run: the service replaces it, and the run notices
nothing but a pause."""

import signal

import psutil
import pytest

from tests.faults.annotating import Annotating

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
TEXTS = [f"You kill newt number {n}!" for n in range(40)]
START_S = 400.0


def test_a_killed_vllm_engine_costs_no_caption_and_not_the_service(tmp_path, record_recovery):
    run = Annotating(
        tmp_path,
        "service.engine=vllm",
        "service.model=smollm2",
        "service.torch_threads=2",
        "annotator.request_timeout_s=300",
    )
    try:
        run.report(TEXTS[:8])
        run.wait_for_rewards(TEXTS[:8], START_S)
        service = run.pid
        processes = psutil.Process(service).children(recursive=True)
        core = next(process for process in processes if "EngineCore" in "".join(process.cmdline()))
        core.send_signal(signal.SIGKILL)
        run.report(TEXTS)
        recovery_s = run.wait_for_rewards(TEXTS, START_S)
        assert run.pid == service
        assert run.figure("service_restarts") == 0
        assert run.figure("annotations_total") == len(TEXTS)
        assert not psutil.pid_exists(core.pid)
    finally:
        run.close()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    record_recovery(
        "kill -9 of vLLM's engine process",
        "the annotation service stays, replaces vLLM and answers what was asked; every caption gets its label",
        recovery_s,
    )
