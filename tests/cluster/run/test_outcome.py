"""What is said of a run that has ended, and which exit code it gets."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import plan_run
from cluster.run import outcome
from cluster.run.outcome import conclude, judge_problem, scores_as_text
from cluster.run.session import RunSession
from configs.loading import load_config
from configs.schema import RunConfig
from tests.run_sessions import session_in

SUMMARY: dict[str, Any] = {
    "env_steps": 1000,
    "time_s": 20.0,
    "finished": True,
    "captions_distinct": 7,
    "annotations_total": 5,
    "annotations_unparsed": 1,
    "top_rewarded": [],
}


def configuration(*settings: str) -> RunConfig:
    return load_config(preset="debug", overrides=["logging.console=plain", "run_dir=runs/x", *settings])


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def report(difference: float, **players: dict[str, dict[str, float]]) -> dict[str, Any]:
    names = players["policy"]
    return {
        "episodes": 64,
        **players,
        "differences": {"policy - blind": {name: interval(difference, 2) for name in names}},
    }


@pytest.mark.parametrize(
    ("played", "words"),
    [
        (
            report(
                24,
                policy={"return": interval(1, 1), "in_game_score": interval(74, 8)},
                blind={"return": interval(1, 1), "in_game_score": interval(50, 6)},
                random={"return": interval(1, 1), "in_game_score": interval(34, 5)},
            ),
            "in-game score 74 [66, 82], blind 50 [44, 56], random 34 [29, 39]; policy - blind, game by game: +24 [+22,"
            " +26]",
        ),
        (
            report(
                0.5,
                **{
                    name: {"return": interval(7, 1), "success": interval(0.5, 0.25)}
                    for name in ("policy", "blind", "random")
                },
            ),
            "success 0.50 [0.25, 0.75], blind 0.50 [0.25, 0.75], random 0.50 [0.25, 0.75];"
            " policy - blind, game by game: +0.50 [-1.50, +2.50]",
        ),
        (
            report(-3, **{name: {"return": interval(-7, 1)} for name in ("policy", "blind", "random")}),
            "episode return -7.0 [-8.0, -6.0], blind -7.0 [-8.0, -6.0], random -7.0 [-8.0, -6.0];"
            " policy - blind, game by game: -3.0 [-5.0, -1.0]",
        ),
    ],
)
def test_a_report_is_summed_up_by_its_main_metric(played: dict[str, Any], words: str) -> None:
    assert scores_as_text(played) == words


@pytest.mark.parametrize(
    ("metrics", "settings", "problem"),
    [
        ({}, [], None),
        ({"annotations_total": 0}, [], "the judge never answered, so that no caption was ever rewarded"),
        ({"annotations_total": None}, [], "the judge never answered"),
        ({"annotations_total": 0, "annotation_problem": "key\n refused"}, [], "rewarded: key refused"),
        ({"annotations_total": 5, "annotations_unparsed": 5}, [], "all 5 answers of the judge were unusable"),
        ({"annotations_total": 0, "captions_distinct": 0}, [], None),
        ({"annotations_total": None, "captions_distinct": None}, [], "never answered"),
        ({"annotations_total": None}, ["reward_model.name=counts"], None),
        ({"annotations_total": None}, ["reward_model.name=none"], None),
        ({"annotations_total": None}, ["reward_model.judgements=file.sqlite"], None),
        ({"annotations_total": 0}, ["reward_model.name=ranking"], "never answered"),
        ({"annotations_total": 0}, ["reward_model.name=embedding"], "never answered"),
    ],
)
def test_a_judge_that_never_answered_is_found(
    metrics: dict[str, Any], settings: list[str], problem: str | None
) -> None:
    found = judge_problem(plan_run(configuration(*settings)), {**SUMMARY, **metrics})
    assert (found is None) == (problem is None)
    assert found is None or (problem is not None and problem in found and "\n" not in found)


@pytest.fixture
def ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Exit code, summary file and output of a run that ended with these metrics."""

    def end(config: RunConfig, stop_requested: bool = False, **metrics: Any) -> tuple[int, dict[str, Any], str]:
        session = session_in(tmp_path, config)
        session.stop.requested = stop_requested
        code = conclude(session, {**SUMMARY, **metrics})
        said = capsys.readouterr()
        return code, json.loads(session.run.summary.read_text()), said.out + said.err

    return end


@pytest.mark.parametrize(
    ("settings", "finished", "code"), [([], True, 1), (["annotator.must_answer=false"], True, 0), ([], False, 0)]
)
def test_a_finished_run_whose_judge_never_answered_fails_unless_told_otherwise(
    settings: list[str], finished: bool, code: int, ended: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    got, summary, said = ended(configuration(*settings), annotations_total=0, finished=finished)
    assert got == code
    assert summary["judge_problem"].startswith("the judge never answered")
    assert "delphi train: the judge never answered" in said
    assert ("annotator.must_answer=false" in said) == (code == 1)


def python(code: str) -> Callable[..., subprocess.Popen]:
    """In place of the evaluation's process: one that runs `code`."""
    popen = subprocess.Popen
    return lambda command, **options: popen([sys.executable, "-S", "-c", code], **options)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (
            "import sys; print('delphi eval: the level could not be drawn', file=sys.stderr); sys.exit(2)",
            "the level could not be drawn",
        ),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("print('[')", "Expecting value"),
        ("print('{}')", "policy"),
        ("import time; time.sleep(60)", "longer than the 0 s that it may"),
    ],
)
def test_whatever_becomes_of_the_evaluation_a_finished_run_stays_finished(
    code: str, problem: str, ended: Callable[..., tuple[int, dict[str, Any], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.run.outcome.subprocess.Popen", python(code))
    monkeypatch.setattr(outcome, "LEAST_S", 0.1)
    monkeypatch.setattr(outcome, "GRACE_S", 0.3 if "sleep" in code else 20)
    config = configuration("evaluation.at_end=true", "evaluation.time_share=0.001")
    exit_code, summary, said = ended(config)
    assert exit_code == 0
    assert problem in summary["evaluation"]["problem"]
    assert f"no evaluation: {summary['evaluation']['problem']}; `delphi eval runs/x`" in said


@pytest.mark.parametrize(
    ("settings", "metrics"),
    [
        (["evaluation.at_end=true"], {"finished": False}),
        (["evaluation.at_end=true"], {"stop_requested": True}),
        (["evaluation.at_end=false"], {}),
    ],
)
def test_a_run_stopped_by_hand_is_not_evaluated(
    settings: list[str],
    metrics: dict[str, Any],
    ended: Callable[..., tuple[int, dict[str, Any], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcome, "evaluate_in_time", lambda *arguments: pytest.fail("it was evaluated"))
    code, summary, _ = ended(configuration(*settings), **metrics)
    assert (code, summary["evaluation"]) == (0, None)


def test_a_stop_request_ends_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.run.outcome.subprocess.Popen", python("import time; time.sleep(60)"))
    session = session_in(tmp_path, configuration("evaluation.at_end=true"))
    session.stop.requested = True
    found = outcome.evaluate_in_time(session, 10.0)
    assert found == {"problem": "stopped by hand"}


def test_an_evaluation_may_take_its_share_of_the_time_and_half_a_minute_in_any_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []

    def play(session: RunSession, seconds: float) -> dict[str, Any]:
        given.append(seconds)
        return report(0, **{name: {"return": interval(1, 1)} for name in ("policy", "blind", "random")})

    monkeypatch.setattr(outcome, "_run_evaluation", play)
    config = configuration()
    config = replace(config, evaluation=replace(config.evaluation, time_share=0.2))
    for trained_s in (10.0, 600.0):
        assert "words" in outcome.evaluate_in_time(session_in(Path("x"), config), trained_s)
    assert given == [30.0, 120.0]
