"""CALM's protocol with the packaged model: a rubric of its own for each subgoal, held to what the game says; and the
rubric for states, held to labelled ones."""

from pathlib import Path

import numpy as np
import pytest

from llm_server.offline.audit import shown_by, without_examples
from llm_server.offline.audit_metrics import auc
from llm_server.offline.caption_file import captions_about, read_labelled
from llm_server.rubrics.loading import load_rubric

DATA = Path(__file__).parents[1] / "data"
RUBRICS = Path(__file__).parents[3] / "docs" / "results" / "terms"
MAX_PER_CLASS = 10
"""A few captions per subgoal keep this fast."""


@pytest.mark.parametrize("about", [pytest.param("pick up the key", marks=pytest.mark.slow), "open the door"])
def test_a_subgoal_that_was_reached_is_told_from_what_looks_like_it(about, smollm2):
    rubric = load_rubric(str(RUBRICS / f"{about.replace(' ', '_')}.yaml"))
    captions = captions_about(read_labelled(str(DATA / "minihack_transitions.jsonl")), about, keep_about=False)
    assert without_examples(captions, shown_by(rubric)) == captions, "no transition is an example"
    kept = [
        caption
        for is_positive in (True, False)
        for caption in [caption for caption in captions if caption.is_positive == is_positive][:MAX_PER_CLASS]
    ]
    scores = smollm2.under(rubric).score([rubric.item_text(caption.text.encode()) for caption in kept])
    measured = auc(np.array([s.probability for s in scores]), np.array([c.is_positive for c in kept]))
    assert measured >= 0.85


@pytest.mark.parametrize(
    ("file", "least"),
    [pytest.param("minihack_prospects", 0.95, marks=pytest.mark.slow), ("minihack_prospects_held_out", 0.8)],
)
def test_a_state_with_the_way_open_is_told_from_one_without(file, least, smollm2):
    rubric, states = load_rubric("minihack_prospects"), read_labelled(str(DATA / f"{file}.jsonl"))
    parts = [*dict.fromkeys(part for state in states for part in rubric.parts(state.text.encode()))]
    scores = smollm2.under(rubric).score([rubric.item_text(part) for part in parts])
    good = dict(zip(parts, (score.probability for score in scores), strict=True))
    values = np.array([max(good[part] for part in rubric.parts(state.text.encode())) for state in states])
    assert auc(values, np.array([state.is_positive for state in states])) >= least
