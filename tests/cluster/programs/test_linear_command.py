"""`delphi linear-program` on a real environment, with the scripted judge."""

import json
from pathlib import Path

import numpy as np
import pytest

from actors.environments.factory import make_environment
from cluster.programs.command import main
from cluster.programs.random_play import feature_changes
from configs.loading import load_config
from configs.schema import RunConfig
from configs.terms import resolved_terms
from learner.reward.programs import term_program
from reward_models.programs.evaluation import evaluate_reward
from tests.refusals import assert_refused

DOORKEY = ("env.id=MiniGrid-DoorKey-5x5-v0", "env.features=[minigrid]")
CONFIGURED = ("--preset", "minigrid_doorkey", *DOORKEY)
TASK = "Pick up the key, open the locked door and go to the goal."
CONTENT_FREE = "something|feature|[.]{3}=0.5;"
SCRIPT = CONTENT_FREE + "distance=0.2;carrying=0.9;direction=0.5"


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def write(*flags: str, script: str = SCRIPT, name: str = "linear.py"):
        own = ("--engine", "scripted", "--script", script)
        out = tmp_path / name
        code = main([*own, "--task", TASK, "--out", str(out), "--steps", "400", "--json", *CONFIGURED, *flags])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if code == 0 else captured.err, out

    return write


def configured(out: Path) -> RunConfig:
    terms = ("terms.linear.reads=features", f"terms.linear.program={out}", "reward_model.name=none")
    return load_config(preset="minigrid_doorkey", overrides=[*DOORKEY, *terms])


def test_the_program_that_is_written_is_paid_by_a_term_as_the_table_says(written) -> None:
    code, facts, out = written()
    assert code == 0
    weights = {feature["name"]: feature["weight"] for feature in facts["features"]}
    assert weights["carrying_key"] == pytest.approx(1.0)
    assert weights["distance_to_goal"] == pytest.approx(-0.75)
    assert weights["direction"] == 0.0
    assert "distance_to_lava" in facts["never_varied"]
    text = out.read_text()
    for part in (TASK, "scripted", facts["rubric_hash"], "theta 0.500", "p = 0.900", "distance_to_lava", "direction"):
        assert part in text
    config = configured(out)
    env = make_environment(config.env, num_envs=8, run_seed=config.seed, worker_index=0, stream="linear-program")
    names = env.spec.features
    changes = feature_changes(env, 400, config.seed)
    program = term_program(resolved_terms(config)["linear"], names, env.spec.action_names)
    env.close()
    assert changes.shape == (400, len(names))
    nothing = np.zeros_like(changes)
    components = evaluate_reward(program, nothing, changes, nothing, np.zeros(400, np.int64), names)
    per_change = {f["name"]: f["coefficient"] / f["deviation"] for f in facts["features"]}
    expected = changes @ np.array([per_change.get(name, 0.0) for name in names])
    np.testing.assert_allclose(components.sum(-1), expected, rtol=1e-3, atol=1e-4)
    assert components.sum(-1).std() == pytest.approx(1, abs=1e-3)


def test_a_permuted_control_has_the_same_weights_at_other_signs(written) -> None:
    _, facts, out = written()
    code, control, other = written("--permute", "3", name="control.py")
    assert code == 0
    pairs = [(a["weight"], b["weight"]) for a, b in zip(facts["features"], control["features"], strict=True)]
    assert all(abs(a) == abs(b) for a, b in pairs)
    assert any(a != b for a, b in pairs)
    assert "A control: signs permuted among the features, seed 3" in other.read_text()
    assert out.read_text() != other.read_text()


def test_a_judge_that_calls_nothing_good_or_bad_writes_nothing(written) -> None:
    code, error, out = written(script=".=0.9")
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert "scripted calls no feature good or bad for the task (theta 0.900): carrying" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["env.features=[]"], "env.features: got none, wanted where the numbers come from"),
        (["env.features=[blstats]"], "env.features"),
        (["--task", " "], "--task: got an empty text"),
        (["--out", "linear.txt"], "--out: got linear.txt, wanted a file FILE.py"),
        (["--steps", "0"], "--steps: got 0"),
        (["--permute", "-1"], "--permute: got -1"),
        (["--rubric", "minigrid_progress"], "'minigrid_progress' has no about_label"),
        (["--script", CONTENT_FREE + ".=0.3", "--permute", "1"], "that are all judged bad"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(written, flags: list[str], complaint: str) -> None:
    code, error, out = written(*flags)
    assert_refused(code, error, complaint)
    assert not out.exists()


def test_a_file_that_this_command_did_not_write_is_kept(written) -> None:
    _, _, out = written()
    assert written()[0] == 0  # its own is written anew
    for text in ("after.position", "", out.read_text()[1:]):
        out.write_text(text)
        code, error, _ = written()
        assert_refused(code, error, "--out: got ", "a file that this command did not write")
        assert out.read_text() == text
