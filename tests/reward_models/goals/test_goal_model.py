"""Which goals an item achieves, against a slow look at every item and goal."""

import numpy as np
import pytest

from actors.goals.sheet import goals_in
from configs.annotation_schema import RewardModelConfig
from configs.goal_schema import GoalsConfig
from llm_server.annotation import Caption, Judgement, MatchedCaption, Status
from llm_server.annotator.caption_book import CaptionBook
from reward_models.goals.book import Goal, GoalBook
from reward_models.goals.model import GoalModel
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer

SIZE, THETA, SIMILARITY = 6, 0.6, 0.3


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """A model with a book, and what it was told, kept for the reference."""

    def __init__(self, rule: str, seed: int = 0) -> None:
        self.rule, self.rng, self.book = rule, np.random.default_rng(seed), GoalBook(merge_similarity=1.1)
        self.unsettled: set[int] = set()
        self.accomplished: list[str] = []
        self.items: dict[int, MatchedCaption] = {}
        self.model = self.make()

    def make(self) -> GoalModel:
        config = GoalsConfig(achieved_by=self.rule, similarity=SIMILARITY)
        model = GoalModel(RewardModelConfig(name="goals"), goals=config, book=self.book)
        model.on_unsettled, model.on_accomplished = self.unsettled.update, self.accomplished.extend
        model.calibrate(THETA)
        return model

    def add_goals(self, num: int) -> None:
        for vector in unit(self.rng.normal(size=(num, SIZE))):
            self.book.add(Goal(text=f"goal {len(self.book)}", source="config"), vector)

    def answer(self, ids: list[int]) -> None:
        vectors = unit(self.rng.normal(size=(len(ids), SIZE))).astype(np.float16).astype(np.float32)
        vectors = np.stack([self.items[n].vector if n in self.items else v for n, v in zip(ids, vectors, strict=True)])
        num_goals, nearest = self.book.nearest(vectors, 4)
        items = [
            MatchedCaption(
                caption=Caption(id=number, text=f"caption {number}"),
                judgement=Judgement(status=Status.OK, probability=self.rng.random(), answer_mass=1.0),
                vector=vector,
                achieves={goal: hash_probability(number, goal) for goal in goals} if self.rule == "judged" else {},
                num_goals=num_goals,
            )
            for number, vector, goals in zip(ids, vectors, nearest, strict=True)
        ]
        self.items |= {item.caption.id: item for item in items}
        self.model.learn(items)

    @property
    def captions(self) -> list[Caption]:
        return [item.caption for item in self.items.values()]

    def achieved(self) -> list[set[int]]:
        """What the model says."""
        scores = self.model.score(self.captions, np.ones(len(self.items), np.int64))
        found = [set(np.flatnonzero(row).tolist()) for row in goals_in(self.model.goals(self.captions))]
        assert scores.tolist() == [float(bool(goals)) for goals in found]
        return found

    def wanted(self) -> list[set[int]]:
        """The rule, item by item and goal by goal."""
        found = []
        active = [index for index, goal in enumerate(self.book.goals) if goal.is_active]
        for item in self.items.values():
            cosines = {goal: float(item.vector @ self.book.vectors[goal]) for goal in active}
            nearest = sorted(active, key=lambda goal: -cosines[goal])
            if self.rule == "judged":
                asked = [goal for goal in nearest[:4] if goal in item.achieves]
                found.append({goal for goal in asked if item.achieves[goal] > THETA})
                continue
            is_near = bool(nearest) and cosines[nearest[0]] > SIMILARITY
            is_one = self.rule == "similarity" or item.judgement.probability > THETA
            least = max(SIMILARITY, cosines[nearest[0]] - 0.03) if nearest else 0.0
            alike = {goal for goal in nearest[:4] if cosines[goal] > SIMILARITY and cosines[goal] >= least}
            found.append(alike if is_near and is_one else set())
        return found


def hash_probability(item: int, goal: int) -> float:
    return float(np.random.default_rng((item, goal)).random())


@pytest.mark.parametrize("rule", ["both", "similarity", "judged"])
def test_masks_are_those_of_the_rule_whatever_comes_first(rule: str) -> None:
    world = World(rule)
    world.answer([*range(1, 9)])
    assert world.achieved() == [set()] * 8, "there are no goals yet"
    world.add_goals(3)
    for _ in range(4):
        world.answer([*range(len(world.items) + 1, len(world.items) + 21)])
        world.add_goals(2)
        world.achieved()
        if rule == "judged":
            world.answer(sorted(world.unsettled))
        assert world.achieved() == world.wanted()
    assert any(world.achieved())


@pytest.mark.parametrize("rule", ["both", "similarity"])
def test_a_goal_that_is_no_longer_active_leaves_its_place_to_the_next(rule: str) -> None:
    world = World(rule)
    world.add_goals(6)
    world.answer([*range(1, 61)])
    taken = set().union(*world.achieved())
    world.book.retire(min(taken))
    assert world.model.is_outdated
    assert world.achieved() == world.wanted()
    assert min(taken) not in set().union(*world.achieved())


def test_only_items_that_have_a_new_goal_among_their_nearest_are_asked_about_again() -> None:
    world = World("judged")
    world.add_goals(8)
    world.answer([*range(1, 41)])
    world.achieved()
    assert not world.unsettled
    world.add_goals(1)
    world.achieved()
    new = {number for number, item in world.items.items() if 8 in world.book.nearest(item.vector[None], 4)[1][0]}
    assert world.unsettled == new
    assert 0 < len(new) < 40
    world.unsettled.clear()
    world.answer(sorted(new))
    world.achieved()
    assert not world.unsettled
    assert world.achieved() == world.wanted()


def test_accomplishments_are_told_once_they_are_judged() -> None:
    world = World("both")
    world.answer([1, 2, 3, 4, 5, 6])
    wanted = [item.caption.text for item in world.items.values() if item.judgement.probability > THETA]
    assert world.accomplished == wanted != []
    world.model.learn([*world.items.values()])
    assert world.accomplished == wanted, "each once"
    by_likeness = World("similarity")
    by_likeness.answer([1, 2, 3])
    assert len(by_likeness.accomplished) == 3, "nothing says what is one"


@pytest.mark.parametrize("rule", ["both", "similarity", "judged"])
def test_a_resumed_model_has_the_same_masks_also_of_goals_that_came_after_it_was_saved(rule: str) -> None:
    world = World(rule)
    world.add_goals(5)
    world.answer([*range(1, 31)])
    world.achieved()
    state = world.model.state_dict()
    world.add_goals(2)
    before, world.unsettled = world.achieved(), set()
    world.model = world.make()
    world.model.load_state_dict(state)
    assert world.achieved() == before


def test_vectors_take_two_bytes_a_number_and_leave_with_their_items() -> None:
    world = World("both")
    world.answer([*range(1, 101)])
    world.model.retain({3, 4})
    state = world.model.state_dict()
    assert (state["vector"].dtype, state["vector"].shape) == (np.float16, (2, SIZE))
    assert state["ids"].tolist() == [3, 4]
    world.add_goals(2)
    world.items = {number: world.items[number] for number in (3, 4)}
    assert world.achieved() == world.wanted()


def test_a_new_goal_makes_a_new_table_without_a_new_answer() -> None:
    world = World("similarity")
    captions = CaptionBook(100, 100)
    captions.take_report({number: f"caption {number}" for number in range(1, 31)}, {}, "0", 0, 1)
    trainer = RewardTrainer(world.model, RewardShaping(RewardModelConfig(), 0), captions, 1)
    world.answer([*range(1, 31)])
    trainer.learn([*world.items.values()])
    first = trainer.publish()
    assert first is not None
    assert not first.rewards.any()
    assert trainer.publish() is None
    world.add_goals(3)
    second = trainer.publish()
    assert second is not None
    by_id = dict(zip(second.ids.tolist(), goals_in(second.goals), strict=True))
    assert [set(np.flatnonzero(by_id[number]).tolist()) for number in world.items] == world.wanted()


@pytest.mark.parametrize("rule", ["both", "similarity", "judged"])
def test_what_lies_in_memory_behind_the_answers_achieves_nothing(rule: str) -> None:
    world = World(rule)
    world.add_goals(3)
    world.answer([*range(1, 6)])
    wanted = world.achieved()
    for name, garbage in {"cosine": 1.0, "nearest": 9999, "probability": 1.0, "about": 9999, "achieves": 1.0}.items():
        column = world.model._columns[name]
        assert len(column) > 5
        column[5:] = garbage
    unknown = [Caption(id=99, text="unanswered")]
    assert np.isnan(world.model.score(unknown, np.ones(1, np.int64))).all()
    assert not world.model.goals(unknown).any()
    assert np.isnan(world.model.margins(unknown)).all()
    assert world.achieved() == wanted
