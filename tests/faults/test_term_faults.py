"""Faults of annotation with three terms: they share one service, and none of them stops training or another term."""

import json
import os
import signal

import pytest

from tests.faults.annotating import captions, expected
from tests.faults.toy_runs import toy_run
from tests.run_processes import LIMIT_S, actors_of, lines, service_of, wait_until

pytestmark = pytest.mark.faults
TERMS = ("env.describer=minigrid", "terms.fight.rubric=nethack_combat", "terms.place.reads=state")
CAPTIONS, STATES = captions(60), captions(40, 1000)


def wait_for_all(run):
    """Until every item of every term has its reward."""
    for term, texts in (("main", CAPTIONS), ("fight", CAPTIONS), ("place", STATES)):
        run.wait_for_rewards(texts, term=term)
        assert run.rewarded(texts, term) == expected(texts)


def test_a_service_killed_with_three_terms_is_started_once_and_no_item_of_any_is_lost(annotate, record_recovery):
    run = annotate(*TERMS, "service.script_delay_s=0.005")
    run.report(CAPTIONS, STATES)
    run.wait_until(lambda: run.figure("annotations_total") >= 16)
    os.kill(run.pid, signal.SIGKILL)
    recovery_s = run.wait_until(lambda: run.figure("service_restarts") == 1)
    wait_for_all(run)
    assert run.figure("service_restarts") == 1, "one service, restarted once"
    labels = {name: term["labels"] for name, term in run.pipeline.metrics()["terms"].items()}
    assert labels == {"main": len(CAPTIONS), "fight": len(CAPTIONS), "place": len(STATES)}
    assert run.pipeline.problem is None
    record_recovery(
        "kill -9 of the annotation service that three terms share",
        "it is started again, once; every item of every term gets its label",
        recovery_s,
    )


def test_a_rubric_file_that_breaks_after_the_start_disturbs_nothing_until_the_service_must_start_again(
    annotate, tmp_path, record_recovery
):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: nethack_combat\nid: mine\nversion: '1'\n")
    run = annotate(*TERMS, f"terms.fight.rubric={mine}")
    run.report(CAPTIONS[:4])
    run.wait_for_rewards(CAPTIONS[:4], term="fight")  # the service has read it
    mine.write_text("id: [")
    run.report(CAPTIONS, STATES)
    wait_for_all(run)
    os.kill(run.pid, signal.SIGKILL)
    run.report([*CAPTIONS, "you kill the last newt"], STATES)
    recovery_s = run.wait_until(lambda: run.pipeline.problem)
    assert "mine" in run.pipeline.problem, "the cause is named"
    for term, texts in (("main", CAPTIONS), ("fight", CAPTIONS), ("place", STATES)):
        assert run.rewarded(texts, term) == expected(texts), "the last tables stay in use"
    record_recovery(
        "the rubric file of one term breaks, and then the service dies",
        "training goes on with the last tables, and the problem names the file",
        recovery_s,
    )


@pytest.mark.slow
def test_an_annotator_killed_with_three_terms_is_replaced_and_training_goes_on(tmp_path):
    settings = [
        "env.id=tests.toy_environments:Corridor-v0",
        "service.script='advance=0.9'",
        "reward_model.name=retrieval",
        "terms.fight.rubric=nethack_combat",
        "terms.new.model={name: counts}",
        "total_env_steps=1000000000",
        "checkpoint.interval_env_steps=2000",
    ]
    with toy_run(tmp_path, *settings) as run:

        def labels(line):
            return [(line.get("terms") or {}).get(name, {}).get("labels") or 0 for name in ("main", "fight")]

        def last():
            return lines(run.run_dir)[-1:] or [{}]

        wait_until(lambda: min(labels(last()[0])) > 0, run.process, run.log, LIMIT_S)
        assert service_of(run.run_dir) is not None
        before = last()[0]
        actors_of(run.run_dir, "AnnotatorActor")[0].kill()
        wait_until(lambda: last()[0]["annotator_up"] == 0, run.process, run.log, LIMIT_S)
        again = wait_until(
            lambda: [x for x in last() if x["annotator_up"] == 1 and min(labels(x)) > 0], run.process, run.log, LIMIT_S
        )[0]
        assert again["env_steps"] > before["env_steps"], "training went on"
        assert all(
            again["terms"][name]["version"] >= before["terms"][name]["version"] for name in ("main", "fight", "new")
        )
        run.assert_steps_are_exact()
        assert run.stop() == 0, run.output()
        assert json.loads((run.run_dir / "summary.json").read_text())["terms"].keys() == {"main", "fight", "new"}
