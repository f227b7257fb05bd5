"""What is asked about captions that are matched with goals: vectors, judgements, and judgements about the nearest."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from configs.annotation_schema import AnnotatorConfig
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.goal_questions import GoalQuestions
from llm_server.client import ServiceUnavailable
from tests.reward_models.goals.scripted import Scripted, vector_of

TEXTS = {1: "you kill the newt", 2: "a wall", 3: "odd", 4: "you open the door"}


class Goals:
    """All goals are the nearest of everything, in their order."""

    def __init__(self, *texts: str) -> None:
        self.texts = [*texts]

    def nearest(self, vectors: np.ndarray) -> tuple[int, Sequence[Mapping[int, str]]]:
        assert vectors.shape[1] == 64
        return len(self.texts), [dict(enumerate(self.texts)) for _ in vectors]


def annotator(service: Scripted, questions: GoalQuestions) -> Annotator:
    return Annotator(service.connect, questions, AnnotatorConfig(batch_size=3, max_backoff_s=0.01, request_timeout_s=1))


@pytest.fixture
def service() -> Scripted:
    return Scripted()


@pytest.fixture
def book() -> CaptionBook:
    book = CaptionBook(100, 1000)
    book.take_report(TEXTS, {1: 9, 2: 7, 3: 5, 4: 3}, "0.a", 0, 1)
    return book


def test_both_asks_for_judgement_and_vector_of_each_caption(service: Scripted, book: CaptionBook) -> None:
    asking = annotator(service, GoalQuestions(book, "both", Goals().nearest))
    answers = asking.turn(64)
    assert [(each.caption.text, each.judgement.probability) for each in answers] == [
        ("you kill the newt", 0.9),
        ("a wall", 0.2),
        ("you open the door", 0.2),
    ]
    np.testing.assert_array_equal(answers[0].vector, vector_of("you kill the newt"))
    metrics = asking.metrics()
    assert (metrics["annotations_total"], metrics["annotations_unparsed"], metrics["forward_passes"]) == (4, 1, 4)
    assert asking.turn(64) == []


def test_similarity_asks_for_vectors_alone(service: Scripted, book: CaptionBook) -> None:
    answers = annotator(service, GoalQuestions(book, "similarity", Goals().nearest)).turn(64)
    assert sorted(each.caption.id for each in answers) == [1, 2, 3, 4], "what cannot be judged has a vector too"
    assert np.isnan([each.judgement.probability for each in answers]).all()


def test_judged_asks_about_each_of_the_nearest_goals(service: Scripted, book: CaptionBook) -> None:
    goals = Goals("open the door", "kill it")
    answers = annotator(service, GoalQuestions(book, "judged", goals.nearest)).turn(64)
    assert {each.caption.id: dict(each.achieves) for each in answers} == {
        1: {0: 0.9, 1: 0.9},  # "the"
        2: {0: 0.1, 1: 0.1},
        3: {0: 0.1, 1: 0.1},
        4: {0: 0.9, 1: 0.1},
    }
    assert [(each.num_goals, each.num_judged) for each in answers] == [(2, 2)] * 4
    assert len(service.abouts) == 8


def test_a_caption_is_asked_about_again_on_request_after_those_never_asked_about(
    service: Scripted, book: CaptionBook
) -> None:
    goals = Goals()
    questions = GoalQuestions(book, "judged", goals.nearest)
    asking = annotator(service, questions)
    first = asking.turn(3)
    assert [dict(each.achieves) for each in first] == [{}] * 3
    goals.texts = ["open the door"]
    questions.ask_again([2, 1, 2, 99])
    again = asking.turn(64)
    assert [(each.caption.id, each.num_goals) for each in again] == [(4, 1), (2, 1), (1, 1)]
    assert asking.turn(64) == []


def test_what_is_to_be_asked_again_survives_failures_and_a_resume_and_leaves_with_its_caption(
    service: Scripted, book: CaptionBook
) -> None:
    questions = GoalQuestions(book, "judged", Goals("open the door").nearest)
    asking = annotator(service, questions)
    asking.turn(64)
    questions.ask_again([1, 2, 4])
    service.fail_next = [ServiceUnavailable("restarting")]
    assert [each.caption.id for each in asking.turn(2)] == [1, 2]
    restored = GoalQuestions(book, "judged", Goals().nearest)
    restored.load_state_dict(questions.state_dict())
    assert [caption.id for caption in restored.next_batch(9)] == [4]
    assert restored.state_dict()["again"].tolist() == [4], "it is being asked"
    questions.retain({1, 2})
    assert questions.next_batch(9) == []


def test_another_judge_is_asked_about_everything_anew(service: Scripted, book: CaptionBook) -> None:
    questions = GoalQuestions(book, "both", Goals().nearest)
    annotator(service, questions).turn(64)
    questions.ask_again([1])
    questions.forget_answers()
    assert [caption.id for caption in questions.next_batch(9)] == [1, 2, 3, 4]
    assert questions.next_batch(9) == []


def test_a_caption_without_a_vector_is_no_label(service: Scripted, book: CaptionBook) -> None:
    questions = GoalQuestions(book, "similarity", Goals().nearest)
    client = service.connect()
    client.embed = lambda items: np.full((len(items), 64), np.nan, np.float32)  # type: ignore[method-assign]
    answers = questions.ask(client, questions.next_batch(2))
    assert questions.record(answers) == []
    assert questions.next_batch(9) == [*book.captions_of([3, 4]).values()], "it is not asked about again"
