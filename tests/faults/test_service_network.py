"""The connection to the annotation service is cut, or carries nothing for a while: labels stop, nothing is lost, and
they come again by themselves."""

import time

import pytest

from tests.faults.annotating import Annotating, captions, expected
from tests.faults.misbehaving import Cable

pytestmark = pytest.mark.faults
TEXTS = captions(400)


@pytest.fixture
def cable(service):
    made = Cable(service.address)
    yield made
    made.close()


@pytest.fixture
def run(cable, tmp_path):
    # The back-off of the defaults, so that what is measured is what a run shows.
    made = Annotating(
        tmp_path, f"annotator.address={cable.address}", "annotator.max_backoff_s=30", "annotator.request_timeout_s=120"
    )
    yield made
    made.close()


@pytest.mark.parametrize(
    ("seconds", "is_silent"),
    [
        pytest.param(5.0, False, id="broken for 5 s"),
        pytest.param(5.0, True, id="silent for 5 s"),
        pytest.param(60.0, False, id="broken for 60 s", marks=pytest.mark.slow),
        pytest.param(60.0, True, id="silent for 60 s", marks=pytest.mark.slow),
    ],
)
def test_a_connection_that_is_cut_costs_no_label_and_comes_back(run, cable, seconds, is_silent, record_recovery):
    run.report(TEXTS[:40])
    run.wait_for_rewards(TEXTS[:40])
    if is_silent:
        cable.hold(True)
    else:
        cable.cut()
    began = time.monotonic()
    run.report(TEXTS)
    while time.monotonic() - began < seconds:
        assert run.figure("annotations_pending") <= len(TEXTS)
        time.sleep(0.1)
    assert run.rewarded(TEXTS[:40]) == expected(TEXTS[:40])
    assert None in run.rewarded(TEXTS), "the cut was one"
    if is_silent:
        cable.hold(False)
    else:
        cable.mend()
    recovery_s = run.wait_for_rewards(TEXTS)
    assert run.rewarded(TEXTS) == expected(TEXTS)
    assert run.figure("annotations_total") == len(TEXTS)
    assert run.pipeline.problem is None
    how = "carries nothing" if is_silent else "is cut"
    record_recovery(
        f"the connection to the annotation service {how} for {seconds:.0f} s",
        "training goes on with the known rewards; every caption gets its label, none twice",
        recovery_s,
    )
