"""`delphi audit --trajectories` on a real run: a corridor whose treasure is found, with a scripted judge."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.run.directory import find_run
from cluster.verbs.audit import main
from configs.loading import from_dict
from configs.terms import resolved_terms
from learner.checkpoint import load_latest
from learner.episodes import EPISODES_FILE, read_episodes
from tests.cluster.report.small_run import trained
from tests.refusals import assert_refused

CELLS = 6
PROGRAM = "def progress(state):\n    return state.cell / 5"
SETTINGS = (
    "archive.keep=true",
    "archive.max_episodes=30",
    f"env.features=[{__name__}:cell]",
    "reward.count_exponent=0.5",
    "terms.near.reads=features",
    f"terms.near.program={json.dumps(PROGRAM)}",
    "terms.near.pays=potential",
)


def cell(obs: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, float]:
    """The feature: where the agent is."""
    return {"cell": float(np.argmax(obs["position"]))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("archived") / "run", *SETTINGS)


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]):
    def audit(*flags: object) -> tuple[int, str, str]:
        code = main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return audit


def verdicts(out: str) -> dict[str, dict[str, bool | None]]:
    report = json.loads(out)
    return {name: {one["gate"]: one["passed"] for one in found} for name, found in report["rewards"].items()}


def program(folder: Path, text: str) -> Path:
    path = folder / "candidate.py"
    path.write_text(text, "utf-8")
    return path


def test_the_episodes_of_a_run_are_those_that_were_played(run: Path) -> None:
    archive = read_episodes(run)
    assert (archive.features, len(archive.actions)) == (("cell",), 0)
    assert sum(archive.seen) > len(archive.episodes) == 60
    for episode in archive.episodes:
        assert episode.features is not None
        assert episode.length == episode.num_kept <= 30
        assert episode.extrinsic_return == episode.steps["extrinsic_rewards"].sum() == float(episode.success)
        assert episode.success == episode.terminated == (episode.features[-1, 0] == CELLS - 1)
        moved = np.diff(episode.features[:, 0])
        stays = (moved == 0) | (moved == np.where(episode.steps["actions"] == 1, 1, -1))
        assert stays.all()
        assert episode.features[0, 0] == 0 == episode.start
    saved = load_latest(run / "checkpoints")
    assert saved is not None
    assert saved["learner"]["archive"]["seen"] == list(archive.seen)


def test_the_runs_own_terms_are_judged_and_so_is_their_sum(run: Path, audit) -> None:
    code, out, _ = audit("--trajectories", run, "--json")
    found = verdicts(out)
    config = from_dict(find_run(str(run))[1])
    assert [*found] == [*resolved_terms(config), "all terms"]
    assert found["near"] == {"run": True, "preference": True, "distance": True, "farming": True}
    assert found["main"]["run"] is not None  # the judge's table was found
    assert found["main"]["distance"] is True
    assert found["all terms"]["distance"] is None
    assert code == any(passed is False for gates in found.values() for passed in gates.values())
    _, shown, _ = audit("--trajectories", run)
    report = json.loads(out)
    assert f"30 of {report['successes_seen']:,} successes and 30 of {report['failures_seen']:,} failures" in shown
    assert "abstains" in shown


def test_a_program_is_held_to_the_episodes_and_to_the_runs_terms(run: Path, audit, tmp_path: Path) -> None:
    flags = ("--trajectories", run, "--json", "--program")
    code, out, _ = audit(*flags, good := program(tmp_path, "after.cell - before.cell"))
    assert code == 1
    gates = verdicts(out)[str(good)]
    assert gates == {"static": True, "run": True, "preference": True, "distance": False, "farming": True}  # is `near`
    for text, failed in (
        ("before.cell - after.cell", {"preference"}),
        ("1 + 0.01 * after.cell", {"preference"}),
        ("after.cell - before.cell - 0.3", set()),
        ("open('x')", {"static"}),
    ):
        code, out, _ = audit(*flags, bad := program(tmp_path, text))
        assert {gate for gate, passed in verdicts(out)[str(bad)].items() if passed is False} == failed, text
        assert code == bool(failed)


def test_the_runs_own_program_is_not_compared_with_itself(run: Path, audit, tmp_path: Path) -> None:
    own = program(tmp_path, f"\ufeff# with the byte order mark of an editor\n{PROGRAM}\n")
    _, out, _ = audit("--trajectories", run, "--json", "--program", own)
    assert verdicts(out)[str(own)]["distance"] is True  # from the judge's term
    assert "from each of 1" in out


def test_another_run_is_judged_by_these_episodes(run: Path, audit, tmp_path: Path) -> None:
    other = trained(tmp_path / "other", *SETTINGS[3:6], f"env.features=[{__name__}:cell]", steps=128)
    code, out, _ = audit("--trajectories", run, "--run", other, "--json")
    found = verdicts(out)
    assert code == 1
    assert found["near"]["distance"] is True  # paid as an event: not what the run has trained on
    assert found["near"]["preference"] is False  # whoever stays near the treasure is paid again and again


def test_what_cannot_be_judged_is_refused_in_one_line(run: Path, audit, tmp_path: Path) -> None:
    text = program(tmp_path, PROGRAM)
    for flags, words in (
        (("--trajectories", tmp_path), ("no run at",)),
        (("--trajectories", run, "--program", tmp_path / "none.py"), ("--program: got", "none.py")),
        (("--trajectories", run, "--program", text, "--run", run), ("--program: got it with --run",)),
        (("--trajectories", run, "labelled.jsonl"), ("LABELLED judges captions",)),
        (("--trajectories", run, "--min-auc", "0.5"), ("--min-auc judges captions",)),
        (("--trajectories", run, "--goals"), ("--goals judges captions",)),
        (("--program", text), ("--program: got it without --trajectories",)),
        ((), ("LABELLED: got none",)),
    ):
        code, _, error = audit(*flags)
        assert_refused(code, error, *words)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / EPISODES_FILE).unlink()
    code, _, error = audit("--trajectories", bare)
    assert_refused(code, error, "archive.keep=true")
    settings = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**settings, "terms": {}, "reward_model": {"name": "none"}}))
    code, _, error = audit("--trajectories", run, "--run", bare)
    assert_refused(code, error, "no term of the reward that can be judged", "--program FILE")
    (bare / "config.json").write_text(json.dumps({**settings, "terms": {"far": {"reads": "state"}}}))
    code, _, error = audit("--trajectories", run, "--run", bare)
    assert_refused(code, error, "term far of", "the episodes hold caption, and the term reads state")
