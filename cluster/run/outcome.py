"""The result of a run that has ended: whether its judge ever answered, and how its policy compares with a blind and a
random player.

Invariant: all of a run's state is written before; a failed evaluation, which runs in its own process and within a time
limit, leaves the run finished.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.plan import RunPlan
from cluster.run.directory import write_atomically
from cluster.run.session import RunSession
from configs.errors import one_line
from configs.reward_schema import MAIN_TERM
from llm_server.child_process import own_search_path

LOG = logging.getLogger(__name__)
METRICS = {"in_game_score": "in-game score", "success": "success", "return": "episode return"}
"""The metrics that a report is summed up by: the first of these that it has."""
GAMES_AT_ONCE = 16
LEAST_S, GRACE_S = 30.0, 20.0
"""Of an evaluation: its least time limit, and the time that its process may take in addition to start and to end."""


def conclude(session: RunSession, summary: Mapping[str, Any]) -> int:
    """Sum the run up on the console and in its summary file, and evaluate it if configured; the exit code: 1 where its
    judge had to answer and did not."""
    config, run, console = session.config, session.run, session.console
    unjudged = judge_problem(session.plan, summary)
    summary = {**summary, "judge_problem": unjudged, "evaluation": None}
    _write(session, summary)
    console.summarise(summary, config.run_dir)
    if config.evaluation.at_end and summary["finished"] and not session.stop_requested():
        evaluation = evaluate_in_time(session, summary["time_s"])
        _write(session, {**summary, "evaluation": evaluation})
        if "problem" in evaluation:
            console.say(
                f"no evaluation: {evaluation['problem']}; `delphi eval {config.run_dir}` plays as long as it takes"
            )
        else:
            console.say(f"on {evaluation['episodes']} held-out games each: {evaluation['words']}")
    if unjudged is None:
        return 0
    fails = bool(summary["finished"]) and config.annotator.must_answer
    advice = "; with annotator.must_answer=false that is no failure" if fails else ""
    print(f"delphi train: {unjudged}. More in {run.log} and {run.path}/service*.log{advice}", file=sys.stderr)
    return int(fails)


def judge_problem(plan: RunPlan, summary: Mapping[str, Any]) -> str | None:
    """Why no answer of the judge was usable in the whole run; None where one was, or nothing was to be asked."""
    if not plan.asks_judge or summary.get("captions_distinct") == 0:
        return None
    answers, unparsed = (int(summary.get(f"annotations_{name}") or 0) for name in ("total", "unparsed"))
    terms = summary.get("terms") or {}
    if answers > unparsed or any(term.get("labels") for name, term in terms.items() if name != MAIN_TERM):
        return None
    what = "the judge never answered"
    if answers:
        what = f"all {answers:,} answers of the judge were unusable (annotations_unparsed)"
    why = one_line(summary.get("annotation_problem") or "")
    return f"{what}, so that no caption was ever rewarded" + (f": {why}" if why else "")


def evaluate_in_time(session: RunSession, trained_s: float) -> dict[str, Any]:
    """`delphi eval`'s report, with its main metric in `words`; or only the `problem` that occurred. Never raises."""
    seconds = max(session.config.evaluation.time_share * trained_s, LEAST_S)
    session.console.say(f"evaluating on held-out games, for {seconds:.0f} s at most (Ctrl-C leaves it out)")
    try:
        report = _run_evaluation(session, seconds)
        return {"words": scores_as_text(report), **report}
    except Exception as error:
        LOG.warning("the run is finished, but could not be evaluated", exc_info=True)
        return {"problem": one_line(error) or type(error).__name__}


def scores_as_text(report: Mapping[str, Any]) -> str:
    """`in-game score 74 [66, 83], blind 50 [44, 57], …; policy - blind, game by game: +24 [+15, +33]`."""
    name = next(name for name in METRICS if name in report["policy"])
    players = {player: report[player][name] for player in ("policy", "blind", "random") if name in report[player]}
    difference = report["differences"]["policy - blind"].get(name)
    largest = max(abs(metric[end]) for metric in players.values() for end in ("low", "high"))
    digits = 0 if largest >= 20 else 1 if largest >= 2 else 2
    scores = [f"{player} {_metric(metric, f'.{digits}f')}" for player, metric in players.items()]
    words = f"{METRICS[name]} {', '.join(scores).removeprefix('policy ')}"
    return f"{words}; policy - blind, game by game: {_metric(difference, f'+.{digits}f')}" if difference else words


def _metric(metric: Mapping[str, float], form: str) -> str:
    return f"{metric['mean']:{form}} [{metric['low']:{form}}, {metric['high']:{form}}]"


def _run_evaluation(session: RunSession, seconds: float) -> dict[str, Any]:
    """The report of `delphi eval` in its own process, so that no environment ends this one. Raises RuntimeError."""
    run, config = session.run, session.config
    command = [sys.executable, "-m", "cluster.verbs.evaluate", str(run.path), "--json", f"--seconds={seconds:g}"]
    command += [f"--episodes={config.evaluation.episodes}", f"--envs={GAMES_AT_ONCE}"]
    log = run.path / "evaluation.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=os.environ | own_search_path(),
            start_new_session=True,
        )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                report, _ = process.communicate(timeout=0.2)
                break
            if session.stop_requested():
                raise RuntimeError("stopped by hand")
            if time.monotonic() - began > seconds + GRACE_S:
                raise RuntimeError(f"it took longer than the {seconds:.0f} s that it may")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"it ended with exit code {process.returncode}: {_last_line(log)}")
    return json.loads(report.splitlines()[-1])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("delphi eval: ") if lines else "it wrote nothing"


def _write(session: RunSession, summary: Mapping[str, Any]) -> None:
    file = session.run.summary
    try:
        write_atomically(file, json.dumps(summary, indent=2) + "\n")
    except OSError as error:  # the last checkpoint holds everything
        session.console.say(f"{file} could not be written ({error.strerror}); the checkpoint was")
