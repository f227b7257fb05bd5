"""A run with several terms: their tables are in the checkpoint, a resume continues exactly, and one term alone is as if
there were no others."""

import json
from pathlib import Path

import pytest

from cluster.launch import launch
from cluster.run.directory import find_run
from configs.loading import load_config
from learner.checkpoint import load_latest
from tests.end_to_end.test_resume import STEPS, TIMES_AND_EPOCHS, differences, train

TERMS = (
    "terms.fight.rubric=nethack_combat",
    "terms.fight.coefficient=0.2",
    "terms.fight.model={name: classification, steps_per_turn: 5, batch_size: 8}",
    "terms.new.model={name: counts}",
    "terms.new.coefficient=0.05",
    "terms.new.trust=outcome",
    "terms.new.anneal_env_steps=5000",
    "env.features=['tests.toy_environments:place']",
    "terms.far={reads: features, pays: improvement, program: state.place}",
    "terms.tour={reads: features, pays: visits, program: state.place, coefficient: 0.1}",
    "terms.step={reads: features, program: after.place - before.place + 0.1 * (action == 1)}",
)


def test_training_2n_equals_training_n_stopping_and_training_n_with_every_terms_state(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 2 * STEPS, *TERMS)
    train(tmp_path / "halves", STEPS, *TERMS)
    halves = train(tmp_path / "halves", 2 * STEPS, *TERMS)
    found = [
        line for line in differences(whole, halves) if not any(word in line.split(":")[0] for word in TIMES_AND_EPOCHS)
    ]
    assert not [line for line in found if "version" not in line.split(":")[0]], found[:20]
    tables = {name: term["trainer"]["rewards"] for name, term in halves["annotation"]["terms"].items()}
    assert tables.keys() == {"fight", "new"}
    assert all(len(table) > 3 for table in tables.values())
    run_dir = tmp_path / "halves"
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["terms"].keys() == {"main", "fight", "new", "far", "tour", "step"}
    assert line["terms"]["step"]["component_reward"] == pytest.approx(line["terms"]["step"]["mean"])
    assert min(line["terms"][name]["mean"] for name in ("far", "tour")) > 0
    assert line["reward_trust_min"] is not None
    assert sum(term["mean"] for term in line["terms"].values()) == pytest.approx(line["intrinsic_reward_mean"])
    assert {path.name for path in run_dir.glob("captions*.sqlite")} == {
        "captions.sqlite",
        "captions-fight.sqlite",
        "captions-new.sqlite",
    }
    top = json.loads(find_run(str(run_dir))[0].summary.read_text())["top_rewarded"]
    assert {caption["term"] for caption in top} >= {"main", "new"}


def test_terms_of_no_weight_change_nothing_for_the_main_one(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", STEPS)
    beside = train(tmp_path / "beside", STEPS, "terms.x.coefficient=0", "terms.x.rubric=nethack_gold")
    assert not differences(alone["learner"]["weights"], beside["learner"]["weights"])
    for part in ("book", "trainer"):
        found = differences(alone["annotation"][part], beside["annotation"][part])
        assert not [line for line in found if not any(word in line.split(":")[0] for word in TIMES_AND_EPOCHS)]
    assert "terms" not in alone["annotation"]


def test_other_terms_train_where_the_main_one_pays_nothing(tmp_path: Path) -> None:
    state = train(tmp_path / "run", STEPS, "reward_model.name=none", "terms.go.model={name: retrieval}")
    assert len(state["annotation"]["terms"]["go"]["trainer"]["rewards"]) > 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["judge_problem"] is None
    assert summary["terms"]["go"]["labels"] > 0
    assert summary["intrinsic_unknown_fraction"] is None


def test_a_terms_rubric_may_move_but_not_change_between_two_starts(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: nethack_gold\nid: mine\nversion: '1'\n")
    train(tmp_path / "run", STEPS, f"terms.gold.rubric={mine}")
    moved = mine.rename(tmp_path / "moved.yaml")
    train(tmp_path / "run", STEPS, f"terms.gold.rubric={moved}")
    moved.write_text("extends: nethack_combat\nid: mine\nversion: '1'\n")
    with pytest.raises(ValueError, match=r"terms\.gold\.rubric: the labels of .* were made by a rubric of hash"):
        train(tmp_path / "run", STEPS, f"terms.gold.rubric={moved}")


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("nethack_goals", ["actors.envs_per_worker=4", "service.script='.*=0.9'"]),
        ("minigrid_doorkey_terms", ["actors.envs_per_worker=8", "service.script='door|key=0.9'"]),
    ],
)
def test_presets_with_several_terms_run_and_resume(preset: str, settings: list[str], tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    run_dir = tmp_path / "run"
    settings = [
        *settings,
        f"run_dir={run_dir}",
        "cluster.mode=inline",
        "service.engine=scripted",
        "service.store=memory",
        "evaluation.at_end=false",
        "policy.hidden_size=16",
        "policy.core_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        "logging.console=quiet",
        "logging.tensorboard=false",
    ]
    for steps in (500, 1000):
        config = load_config(preset=preset, overrides=[*settings, f"total_env_steps={steps}"])
        assert launch(config) == 0
    state = load_latest(run_dir / "checkpoints")
    assert state is not None
    assert state["annotation"]["terms"].keys() == config.terms.keys()
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["terms"].keys() == {"main", *config.terms}
    assert all(term["captions"] > 0 and term["problem"] is None for term in line["terms"].values()), line["terms"]
    assert all(term["unknown"] < 0.5 for term in line["terms"].values()), line["terms"]
