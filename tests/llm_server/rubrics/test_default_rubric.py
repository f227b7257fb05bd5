"""The default rubric with the default model distinguishes progress, on captions that are not its examples.

`data/nethack_labelled.jsonl` is the development set: captions written for it or seen in random play, labelled by hand
(`helpful`: the player just made progress); the rubric's examples and calibration were chosen on it, and on nothing
else. The labelled captions that lie beside a checkout of the project, where they do, were not used for that.
"""

import json
from pathlib import Path

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.service.judge import Judge

ROOT = Path(__file__).resolve().parents[3]
SETS = [
    Path(__file__).parents[1] / "data" / "nethack_labelled.jsonl",
    ROOT.parent / "shared" / "data" / "nethack_captions_dev.jsonl",
]
FREQUENT_NOTHINGS = [
    "It's a wall.",
    "It's solid stone.",
    "You swap places with your kitten.  It's a wall.",
    "The kitten picks up a dart.  It's a wall.",
    "You hear someone counting money.  It's a wall.",
    "The grid bug is killed!  It's a wall.",
    "You can't move there.",
    "You can't move diagonally out of an intact doorway.",
    "You can't go down here.",
    "You can't go up here.",
    "You cannot escape from the lichen!",
    "What do you want to eat? [a or ?*]",
    "What do you want to eat? [fghi or ?*]",
    "What do you want to throw? [$ab or ?*]",
    "You have nothing to read.",
    "Never mind.",
    "You don't have anything to eat.",
    "There is nothing here to pick up.",
    "In what direction?",
    "You stop.  Your kitten is in the way!",
    "You swap places with your little dog.",
    "You see here a rock.",
]
PROGRESS = [
    "You kill the newt!",
    "You kill the jackal!",
    "You destroy the gnome zombie!",
    "Welcome to experience level 2.",
    "Welcome to experience level 4.",
    "The door opens.",
    "You descend the stairs.",
    "$ - 12 gold pieces.",
    "You find a hidden passage.",
]


@pytest.fixture(scope="module")
def judge(smollm2, rubric):
    judge = Judge(smollm2, [rubric], None, ServiceConfig())
    yield judge
    judge.close()


def probabilities(judge, captions):
    return [judgement.probability for judgement in judge.annotate([caption.encode() for caption in captions])]


@pytest.mark.parametrize(
    ("path", "every"),
    [(SETS[0], 3), *(pytest.param(path, 1, marks=pytest.mark.slow) for path in SETS)],
    ids=lambda value: getattr(value, "stem", str(value)),
)
def test_it_ranks_and_divides_labelled_captions(path, every, judge, rubric):
    if not path.exists():
        pytest.skip("lies beside the project, not in it")
    shown = {example.item for example in rubric.examples}
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["caption"] not in shown][::every]
    given = probabilities(judge, [row["caption"] for row in rows])
    yes = [p for p, row in zip(given, rows, strict=True) if row["helpful"]]
    no = [p for p, row in zip(given, rows, strict=True) if not row["helpful"]]
    auc = sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))
    theta = judge.describe().pays_above
    balanced_accuracy = (sum(p > theta for p in yes) / len(yes) + sum(p <= theta for p in no) / len(no)) / 2
    assert auc >= 0.85, (
        f"AUC {auc:.3f}, balanced accuracy {balanced_accuracy:.3f} at theta {theta:.3f}, {len(rows)} captions"
    )
    assert balanced_accuracy >= 0.75, (
        f"AUC {auc:.3f}, balanced accuracy {balanced_accuracy:.3f} at theta {theta:.3f}, {len(rows)} captions"
    )


def test_walls_questions_and_refusals_earn_nothing(judge):
    theta = judge.describe().pays_above
    given = dict(zip(FREQUENT_NOTHINGS, probabilities(judge, FREQUENT_NOTHINGS), strict=True))
    assert not {caption: p for caption, p in given.items() if p > theta}


def test_what_players_strive_for_earns(judge):
    theta = judge.describe().pays_above
    given = dict(zip(PROGRESS, probabilities(judge, PROGRESS), strict=True))
    assert not {caption: p for caption, p in given.items() if p <= theta}


def test_the_model_answers_in_the_allowed_words(smollm2, rubric):
    masses = [
        score.answer_mass
        for score in smollm2.score(
            [
                rubric.item_text(part)
                for caption in FREQUENT_NOTHINGS + PROGRESS
                for part in rubric.parts(caption.encode())
            ]
        )
    ]
    assert min(masses) > rubric.min_answer_mass
