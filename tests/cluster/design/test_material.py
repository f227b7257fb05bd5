"""What an author is told: the language as it is, and features as they were measured."""

import dataclasses
import json

import numpy as np
import pytest

from cluster.design.kind import load_kind
from cluster.design.material import episodes_text, features_text, language_text, look, measured, reflection_text
from cluster.design.runs import Outcome, TrialTrainer, curves_of, run_of
from configs.checks import ConfigError
from learner.episodes import Episodes
from reward_models.gates import Verdict
from reward_models.programs import language
from reward_models.programs.compiling import compile_program
from tests.cluster.design.scripted_campaign import BASE, make_episode


@pytest.mark.parametrize("form", language.FORMS)
def test_every_function_and_limit_of_the_language_is_told(form):
    text = language_text(form)
    for name in (*language.FUNCTIONS, form, *language.FORMS[form]):
        assert name in text
    for limit in (language.MAX_NODES, language.MAX_NAMES, language.MAX_COMPONENTS):
        assert str(limit) in text
    assert ("action ==" in text) == (form == "reward")


def test_what_is_told_of_each_function_compiles():
    (line,) = [line for line in language_text("progress").split("\n") if "is called" in line]
    calls = line.replace(" and ", ", ").replace(", ...", "").split("; nothing")[0].replace("; ", ", ")
    for call in calls.replace("), ", ")|").split("|"):
        inner = {
            "x": "state.f",
            "low": "0",
            "high": "1",
            "condition": "state.f > 0",
            "a": "state.f",
            "b": "1",
            "width": "2",
        }
        name, _, arguments = call.rstrip(")").partition("(")
        written = f"{name}({', '.join(inner[argument] for argument in arguments.split(', '))})"
        assert compile_program(written, ["f"]).form == "progress"


def test_features_are_told_with_what_was_measured():
    features = np.array([[0, 1, np.nan], [2, 1, np.nan], [4, 1, np.inf]], np.float32)
    ranges = measured(["a", "b", "c"], features)
    assert features_text(["a", "b", "c"], ranges) == "a: 0 to 4, quartiles 1 2 3\nb: always 1 so far\nc"
    assert features_text(["a"], measured(["a"], None)) == "a"


def test_an_analyst_is_told_how_a_failure_and_a_success_went():
    made = [make_episode([[0, 5]] * 3), make_episode([[step, 5] for step in range(31)], is_success=True)]
    text = episodes_text(Episodes(episodes=made, seen=(1, 1), features=("a", "b")))
    assert text == "a failed episode of 2 steps:\na successful episode of 30 steps:\na: 0 3 6 10 13 16 20 23 26 30"
    assert episodes_text(None) == ""


def test_random_play_measures_what_it_sees():
    seen = look(BASE)
    assert seen.shape == (1000, 2)
    assert -1.2 <= seen[:, 0].min() < seen[:, 0].max() <= 0.6
    assert np.array_equal(seen, look(BASE))


def test_curves_are_means_at_ten_points_of_training(tmp_path):
    lines = [
        {
            "env_steps": n,
            "episode_success_mean": None if n < 4 else n / 10,
            "terms": {"main": {"mean": 0}, "design": {"mean": 0, "component_near": n % 2, "component_two words": 1}},
        }
        for n in range(20)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = curves_of(tmp_path / "metrics.jsonl")
    assert curves["component near"] == [0.5] * 10
    assert len(curves["success"]) == 10
    assert curves["success"][-1] == 1.9
    assert set(curves) == {"success", "component near", "component two words"}
    (tmp_path / "metrics.jsonl").write_text("")
    assert curves_of(tmp_path / "metrics.jsonl") == {}
    config = dataclasses.replace(BASE, run_dir=str(tmp_path))
    assert TrialTrainer(1, 1).env_steps(config) == 0
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[5]) + "\n" + '{"env_st')
    assert TrialTrainer(1, 1).env_steps(config) == 5


def test_a_reflection_has_components_figures_and_what_gates_said():
    outcome = Outcome(run="x", env_steps=1, figures={"success": 0.25}, curves={"component near": [0.1, 0.2]})
    verdicts = [
        Verdict(gate="run", passed=True, figure=1.0, message="multiply it by 5"),
        Verdict(gate="farming", passed=None, figure=None, message="no episodes"),
    ]
    assert reflection_text(outcome, verdicts, ["note"]).split("\n") == [
        "component near during training: 0.1 0.2",
        "after training, success: 0.25",
        "gate run: multiply it by 5",
        "note",
    ]
    assert reflection_text(None, (), ()) == ""


def test_success_is_the_measure_where_there_is_one_else_the_score_else_the_return():
    figures = {"return": 1.0, "in_game_score": 2.0, "success": 3.0}
    measures = []
    while figures:
        measures.append(Outcome(run="x", env_steps=1, figures=figures).measure)
        del figures[measures[-1]]
    assert measures == ["success", "in_game_score", "return"]
    assert Outcome(run="x", env_steps=1, problem="died").measure == ""


def test_the_run_of_a_program_has_it_as_a_term_beside_the_settings_of_the_base(tmp_path):
    kind = load_kind("progress_counts")
    config = run_of(BASE, kind, "def progress(state): return state.position", steps=7, seed=3, run_dir=tmp_path / "r")
    term = config.terms["design"]
    assert (term.reads, term.pays, config.seed, config.total_env_steps) == ("features", "visits", 3, 7)
    assert config.env == BASE.env
    with pytest.raises(ConfigError):
        run_of(BASE, kind, "", steps=7, seed=3, run_dir=tmp_path / "r")
