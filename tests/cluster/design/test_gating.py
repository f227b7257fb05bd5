"""The gates of a campaign: without episodes the static one alone, with them all; earlier programs by name."""

from pathlib import Path

import numpy as np

from cluster.design.gating import ArchiveGates
from cluster.design.material import features_of
from learner.episodes import EPISODES_FILE, Episodes, encode_episodes
from reward_models.programs.compiling import compile_program
from tests.cluster.design.scripted_campaign import make_episode

NAMES = ("height", "waited")


def write_archive(folder: Path) -> Path:
    """Ten episodes that climb to the end, and ten that wait until the limit."""

    made = []
    for number in range(20):
        is_success = number % 2 == 0
        rows = np.random.default_rng(number).normal(scale=0.01, size=(31, 2))
        rows[:, 0] += np.arange(31) if is_success else 0
        made.append(make_episode(rows, is_success))
    folder.mkdir()
    (folder / EPISODES_FILE).write_bytes(encode_episodes(Episodes(episodes=made, seen=(10, 10), features=NAMES)))
    return folder


def verdicts(text: str, before: str = "", archive: Path | None = None) -> dict[str, bool | None]:
    gates = ArchiveGates(NAMES, ())
    earlier = {"1.1": compile_program(before, NAMES)} if before else {}
    return {each.gate: each.passed for each in gates.verdicts(compile_program(text, NAMES), earlier, archive)}


def test_without_episodes_all_gates_but_the_static_one_abstain(tmp_path: Path) -> None:
    abstain = {"run": None, "preference": None, "distance": None, "farming": None}
    assert verdicts("after.height - before.height") == {"static": True, **abstain}
    assert verdicts("action == 1") == {"static": False, **abstain}
    assert verdicts("after.height", archive=tmp_path) == {"static": True, **abstain}  # a run that kept none
    assert ArchiveGates(NAMES, ()).episodes(tmp_path) is None


def test_episodes_tell_sound_programs_from_others(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "run")
    climbs, falls, waits = "after.height - before.height", "before.height - after.height", "after.height < 5"
    assert verdicts(climbs, archive=archive)["preference"] is True
    assert verdicts(falls, archive=archive)["preference"] is False
    assert verdicts(waits, archive=archive)["farming"] is False
    assert verdicts(climbs, climbs, archive)["distance"] is False
    assert verdicts(climbs, waits, archive)["distance"] is True
    features = features_of(ArchiveGates(NAMES, ()).episodes(archive))
    assert features is not None
    assert features.shape == (20 * 31, 2)
