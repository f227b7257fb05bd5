"""`delphi eval --player`: the language model plays the games of the other players."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.verbs.evaluate import evaluate, main
from llm_server.engines.building import ScriptedEngine
from tests.cluster.replay.small_runs import CORRIDOR, make_run

STATES = "tests.cluster.verbs.test_evaluate:state"
RUBRIC = "id: corridor\nversion: '1'\nstyle: completion\ninstructions: 'Walk: {actions}'\n"
NAMED = ("env.action_names=[back, on]", f"env.describer={STATES}", "service.engine=scripted")


def state(obs: Any, info: Any) -> str:
    """The corridor's state in words."""
    return f"Cell {int(obs['position'].argmax())}."


@pytest.fixture
def rubric(tmp_path: Path) -> str:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    return str(tmp_path / "rubric.yaml")


def run_with(tmp_path: Path, script: str, *settings: str) -> str:
    return make_run(tmp_path / "run", *CORRIDOR, *NAMED, f"service.script={script}", *settings)


def report_of(run: str, rubric: str, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    flags = ("--episodes", "4", "--envs", "2", "--player", "judge", "--rubric", rubric, "--json", *flags)
    assert main([run, *flags]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--episodes", "2", "--player", "judge"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_judge_that_always_says_one_action_plays_it(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, "Action: on$=1;.*=0")
    report = report_of(run, rubric, "--player", "random", capsys=capsys)
    assert report["judge"]["success"]["mean"] == 1.0
    assert report["judge"]["length"]["mean"] == 4.0
    judge = report["judge_player"]
    assert (judge["action_shares"], judge["state_information"]) == ({"back": 0.0, "on": 1.0}, 0.0)
    assert (judge["engine"], judge["play_rubric"], judge["greedy"]) == ("scripted", "corridor", False)
    assert set(report["differences"]) == {"random - judge"}
    assert "policy" not in report


def test_it_reads_the_current_state_and_the_last_caption(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only in cell 2, reached by walking on, back is right: the judge goes to and fro until the time is over.
    run = run_with(tmp_path, "^Cell 2.*advance.*back$=1;^Cell 2.*advance.*on$=0;Action: on$=1;.*=0")
    report = report_of(run, rubric, capsys=capsys)
    assert (report["judge"]["success"]["mean"], report["judge"]["length"]["mean"]) == (0.0, 12.0)
    shares = report["judge_player"]["action_shares"]
    assert shares["back"] == pytest.approx(5 / 12), "steps 3, 5, 7, 9 and 11"
    assert report["judge_player"]["state_information"] == pytest.approx(0.6792, abs=1e-4)


def test_equal_seeds_give_equal_results_and_other_judges_other_games(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, "Action: on$=0.6;.*=0.4")
    first = report_of(run, rubric, capsys=capsys)
    assert report_of(run, rubric, capsys=capsys) == first, "kept"
    assert report_of(run, rubric, "--again", capsys=capsys) == first, "played anew"
    greedy = report_of(run, rubric, "--greedy", capsys=capsys)
    assert greedy["judge_player"]["action_shares"]["on"] == 1.0
    assert report_of(run, rubric, "--seed", "1", capsys=capsys)["judge"] != first["judge"]


def test_the_judge_stands_beside_the_others_and_leaves_their_games_as_they_were(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, "Action: on$=0.6;.*=0.4")
    sizes = {"episodes": 4, "num_envs": 2, "seed": 0}
    said: list[str] = []
    alone = evaluate(run, **sizes, say=said.append)
    assert list(alone["differences"]) == ["policy - blind", "policy - random", "blind - random"]
    players, said[:] = ("judge", "policy", "blind", "random"), []
    both = evaluate(run, **sizes, players=players, judge={"rubric": rubric}, say=said.append)
    assert all(both[name] == alone[name] for name in alone if name not in ("differences", "episodes_lost"))
    assert both["differences"].items() > alone["differences"].items()
    assert [text for text in said if text.startswith("playing")] == ["playing 4 episodes: judge"]
    assert any("forward passes so far, one for each distinct text" in text for text in said)
    flags = [name for player in players for name in ("--player", player)]
    assert main([run, "--episodes", "4", "--envs", "2", "--rubric", rubric, *flags]) == 0
    shown = capsys.readouterr().out
    assert "random - judge" in shown
    assert "judge (scripted, corridor): information between state and action 0.0000 nats; likeliest action on" in shown


def test_within_a_time_the_judge_plays_rounds_too(tmp_path: Path, rubric: str) -> None:
    run = run_with(tmp_path, "Action: on$=1;.*=0")
    report = evaluate(run, episodes=5, num_envs=2, seed=0, seconds=60, players=["judge"], judge={"rubric": rubric})
    assert report["judge"]["length"]["mean"] == 4.0
    assert report["episodes"] >= 3, "more than one round"


def test_a_service_that_fails_in_the_middle_is_one_line_and_loses_no_finished_player(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(tmp_path, "Action: on$=1;.*=0")
    score = ScriptedEngine.score

    def fails_later(self, texts):
        if any("Cell 3" in text for text in texts):
            raise RuntimeError("the endpoint is gone")
        return score(self, texts)

    command = [run, "--episodes", "4", "--envs", "2", "--rubric", rubric, "--player", "random", "--player", "judge"]
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedEngine, "score", fails_later)
        assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "delphi eval: the judge has failed: the endpoint is gone; players that have finished are kept, the same command"
        " continues"
    )
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "random: all games were played before" in said
    assert "playing 4 episodes: judge" in said


def test_without_a_describer_or_names_or_a_rubric_it_is_one_line(
    tmp_path: Path, rubric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_run(tmp_path / "bare", *CORRIDOR, "service.engine=scripted")
    assert "the run has no env.describer; give --describer" in refusal(capsys, bare)
    assert "--player judge: there is no play rubric for the describer" in refusal(capsys, bare, "--describer", STATES)
    unnamed = refusal(capsys, bare, "--describer", STATES, "--rubric", rubric)
    assert unnamed.startswith("delphi eval: env.action_names: tests.toy_environments:Corridor-v0 does not name its")
    assert "got 'nethack', but" in refusal(capsys, bare, "--describer", "nethack")
    assert "no play rubric 'nethak'" in refusal(capsys, bare, "--describer", STATES, "--rubric", "nethak")
    away = make_run(tmp_path / "away", *CORRIDOR, *NAMED, "annotator.address=127.0.0.1:1")
    assert "the run's judge is a service at 127.0.0.1:1" in refusal(capsys, away, "--rubric", rubric)


def test_flags_of_the_judge_without_the_judge_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", *CORRIDOR)
    for flag in (["--greedy"], ["--rubric", "nethack"], ["--describer", "minigrid"]):
        assert main([run, *flag]) == 2
        assert f"{flag[0]}: got it without --player judge" in capsys.readouterr().err
