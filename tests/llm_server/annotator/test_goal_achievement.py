"""Which of ten goals thirty captions achieve, by SmolLM2 and MiniLM through gRPC. Captions and goals were written
before the answers were seen, but for the words "secret door", which a goal got afterwards."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from actors.goals.sheet import goals_in
from configs.annotation_schema import AnnotatorConfig, RewardModelConfig
from configs.goal_schema import GoalsConfig, WriterConfig
from llm_server.annotation import Caption
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.goal_questions import GoalQuestions
from llm_server.client import AnnotationClient
from llm_server.engines.engine import Engine
from llm_server.rubrics.rubric import Rubric
from reward_models.goals.book import GoalBook
from reward_models.goals.model import GoalModel
from reward_models.goals.run_goals import RunGoals
from reward_models.goals.writer import GoalWriter
from tests.llm_server.running_service import RunningService

GOALS = [
    *("open the door", "kill the monster", "pick up gold", "pick up an item", "go down the stairs"),
    *("find a secret door or passage", "reach a higher experience level", "become stronger", "learn a spell"),
    "escape from the trap",
]
ACHIEVED = {
    "The door opens.": 0,
    "As you kick the door, it crashes open!": 0,
    "You succeed in unlocking the door.": 0,
    "You kill the goblin!": 1,
    "You destroy the skeleton!": 1,
    "You kill the giant rat!": 1,
    "$ - 17 gold pieces.": 2,
    "$ - 88 gold pieces (120 in total).": 2,
    "k - a scroll labeled FOOBIE BLETCH.": 3,
    "d - a silver dagger.": 3,
    "e - an uncursed apple.": 3,
    "You descend the stairs.": 4,
    "You climb down the stairs.": 4,
    "You find a hidden passage.": 5,
    "You find a secret door.": 5,
    "Welcome to experience level 3.": 6,
    "You feel strong!": 7,
    "You learn the spell of force bolt.": 8,
    "You crawl to the edge of the pit.": 9,
    "You escape from the bear trap.": 9,
}
NOTHING = [
    *("This door is locked.", "You closed the door.", "You see here 12 gold pieces.", "The goblin misses!"),
    *("You can't go down here.", "You hear some noises in the distance.", "It's a wall."),
    *("The kitten picks up a gold piece.", "You fall into a pit!", "There is a staircase down here."),
]
CAPTIONS = dict(enumerate([*ACHIEVED, *NOTHING], 1))


@pytest.fixture(scope="module")
def address(rubric: Rubric, smollm2: Engine) -> Iterator[str]:
    with closing(RunningService(rubric, smollm2, device="cpu")) as service:
        yield service.address


def paid(address: str, rubric: Rubric, achieved_by: str) -> dict[str, set[int]]:
    """The goals that each caption achieves, after one turn of everything that asks."""
    config = GoalsConfig(sources=["config"], texts=GOALS, achieved_by=achieved_by)
    connect = partial(AnnotationClient, address, rubric, 300.0)
    book, captions = GoalBook(config.merge_similarity), CaptionBook(100, 1000)
    captions.take_report(CAPTIONS, dict.fromkeys(CAPTIONS, 1), "0.a", 0, 1)
    model = GoalModel(RewardModelConfig(name="goals"), goals=config, book=book)
    questions = GoalQuestions(captions, achieved_by, partial(book.nearest, num=4))
    writer = GoalWriter(RunGoals(config, book, captions, run_epoch=1), WriterConfig(), connect=connect)
    annotator = Annotator(connect, questions, AnnotatorConfig())
    with closing(writer), closing(annotator):
        writer.turn()
        answers = annotator.turn(64)
        assert annotator.judge
        model.calibrate(annotator.judge.pays_above)
        model.learn(answers)
    items = [Caption(id=number, text=text) for number, text in CAPTIONS.items()]
    scores = model.score(items, np.ones(len(items), np.int64))
    masks = model.goals(items)
    assert masks is not None
    assert np.array_equal(scores, masks.any(1))
    return {text: set(np.flatnonzero(row)) for text, row in zip(CAPTIONS.values(), goals_in(masks), strict=True)}


def precision_and_recall(found: dict[str, set[int]]) -> tuple[float, float]:
    right = sum(goal in found[text] for text, goal in ACHIEVED.items())
    return right / sum(map(len, found.values())), right / len(ACHIEVED)


def test_accomplishment_and_likeness_together_pay_the_right_goals_and_no_negation(address: str, rubric: Rubric) -> None:
    found = paid(address, rubric, "both")
    precision, recall = precision_and_recall(found)
    assert precision >= 0.9
    assert recall >= 0.6
    assert not found["This door is locked."] | found["You closed the door."]
    by_likeness = paid(address, rubric, "similarity")
    assert by_likeness["This door is locked."] == by_likeness["You closed the door."] == {0}
    assert precision_and_recall(by_likeness)[0] < 0.8
