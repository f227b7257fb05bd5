"""A run with goals: book, masks and statistics are in the checkpoint, and a resume continues exactly."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_resume import STEPS, TIMES_AND_EPOCHS, differences, train

WRITINGS = {
    "suggest_goals": {"0": "go on; fly", "[1-9]": "go back; do nothing"},
    "relabel_goals": {".": "slip on the floor; reach the treasure"},
    "compose_goals": {".": "go on; reach the treasure"},
    "vary_goals": {"fly": "bump into a wall", ".": "advance to cell 4"},
}
"""By brief, from what its fields match to what is written."""
GOALS = (
    "env.describer=tests.toy_environments:describe",
    "goals.sources=[config, suggest, relabel, compose, vary]",
    "goals.texts=[reach the treasure, advance to cell 3]",
    "goals.task=walk to the treasure",
    "goals.relevance=learned",
    "goals.sampling=difficulty",
)


@pytest.mark.parametrize(
    "settings", [(), ("policy.reads_goal=true", "goals.scope=current", "goals.achieved_by=similarity")]
)
def test_training_2n_equals_training_n_stopping_and_training_n_with_goals(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    script = tmp_path / "writings.jsonl"
    script.write_text(
        "\n".join(
            json.dumps({"brief": brief, "matches": matches, "texts": [text]})
            for brief, texts in WRITINGS.items()
            for matches, text in texts.items()
        )
    )
    given = (*GOALS, *settings, f"service.script_writings={script}")
    whole = train(tmp_path / "whole", 2 * STEPS, *given)
    train(tmp_path / "halves", STEPS, *given)
    halves = train(tmp_path / "halves", 2 * STEPS, *given)
    found = [
        line for line in differences(whole, halves) if not any(word in line.split(":")[0] for word in TIMES_AND_EPOCHS)
    ]
    assert not [line for line in found if "version" not in line.split(":")[0]], found[:20]
    goals = halves["annotation"]["goals"]["goals"]
    sources = {goal[1] for goal in goals["book"]["goals"]}
    assert sources >= {"config", "suggest", "relabel"}
    assert goals["statistics"]["totals"]["successes"] > 0
    assert np.asarray(halves["annotation"]["terms"]["goals"]["trainer"]["goals"]).any()
    line = json.loads((tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["writings_total"] > 0 == line["writings_unparsed"]
    assert line["goals_active"] >= len(sources)
    assert line["goals_achieved_per_episode"] > 0
