"""Which goal is given when, and what is counted, against a reference that goes through it step by step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from actors.environments.vector import EpisodeEnd, VectorStep
from actors.goals.counts import BY_GOAL, GoalCounts
from actors.goals.entry import GOAL
from actors.goals.keeper import GoalKeeper
from actors.goals.sheet import GoalSheet, goals_in
from actors.rollout import Acknowledgement
from configs.goal_schema import GoalsConfig
from tests.actors.goals.toy_goals import make_sheet

NUM_ENVS = 4
MISSIONS = [b"Go to the red ball.", b"open the door", b"", b"eat"]


class SlowKeeper:
    """The rules of the module's table for one environment at a time, in sets and lists."""

    def __init__(self, config: GoalsConfig, seed: int) -> None:
        self.config, self.rng = config, np.random.default_rng(seed)
        self.sheet: GoalSheet | None = None
        self.goal: list[int | None] = [None] * NUM_ENVS
        self.age, self.is_new, self.is_due = [0] * NUM_ENVS, [False] * NUM_ENVS, [False] * NUM_ENVS
        self.done: list[set[int]] = [set() for _ in range(NUM_ENVS)]
        self.mission = [""] * NUM_ENVS
        self.counts: dict[str, dict[int, int]] = {name: {} for name in BY_GOAL}
        self.ended = {True: 0, False: 0}

    def take(self, sheet: GoalSheet) -> None:
        self.sheet = sheet
        self.is_due = [due or goal is None for due, goal in zip(self.is_due, self.goal, strict=True)]

    def count(self, name: str, goal: int) -> None:
        self.counts[name][goal] = self.counts[name].get(goal, 0) + 1

    def plan(self, goal: int) -> list[int]:
        earlier = int(self.sheet.before[goal])
        return [goal] if earlier < 0 else [*self.plan(earlier), goal]

    def goals_at(self, ids: np.ndarray, masks: np.ndarray, id_: int) -> list[int]:
        for known, mask in zip(ids.tolist(), masks, strict=True):
            if known == id_:
                return goals_in(mask).nonzero()[0].tolist()
        return []

    def pick(self, i: int, weights: dict[int, float]) -> int | None:
        total = 0.0
        ends = []
        for goal, weight in weights.items():
            total += weight
            ends.append((total, goal))
        if total <= 0:
            return None
        drawn = self.rng.random() * total
        target = next(goal for end, goal in ends if drawn < end)
        return next(goal for goal in self.plan(target) if goal not in self.done[i])

    def draw(self, i: int, state: int, after: int | None = None, but: int | None = None) -> int | None:
        if self.sheet is None:
            return None
        texts = self.sheet.texts
        free = {
            goal: float(self.sheet.sampling[goal])
            for goal in range(len(texts))
            if goal not in self.done[i] and goal != but
        }
        if after is not None:
            found = self.pick(i, {goal: w for goal, w in free.items() if after in self.plan(goal)[:-1]})
            if found is not None:
                return found
        if "missions" in self.config.sources:
            for goal, text in enumerate(texts):
                same = self.mission[i] and text.lower().rstrip(".") == self.mission[i].lower().rstrip(".")
                if same and goal not in self.done[i] and goal != but:
                    return next(each for each in self.plan(goal) if each not in self.done[i])
        if self.config.scope != "any":
            suggested = self.goals_at(self.sheet.suggested_ids, self.sheet.suggested, state)
            found = self.pick(i, {goal: w for goal, w in free.items() if goal in suggested})
            if found is not None:
                return found
        return self.pick(i, free)

    def give(self, i: int, goal: int | None) -> None:
        self.goal[i], self.age[i], self.is_new[i] = goal, 0, goal is not None

    def begin(self, i: int, state: int, mission: bytes) -> None:
        self.done[i], self.is_due[i], self.mission[i] = set(), False, mission.decode()
        self.give(i, self.draw(i, state))

    def step(self, items: list[int], states: list[int]) -> None:
        for i in range(NUM_ENVS):
            self.age[i] += 1
            if self.is_new[i]:
                self.count("attempted", self.goal[i])
            self.is_new[i] = False
        if self.sheet is None:
            return
        for i in range(NUM_ENVS):
            before = set(self.done[i])
            for goal in self.goals_at(self.sheet.achieved_ids, self.sheet.achieved, items[i]):
                earlier = int(self.sheet.before[goal])
                if goal not in before and (earlier < 0 or earlier in before):
                    self.done[i].add(goal)
                    self.count("achieved", goal)
            if self.goal[i] in self.done[i]:
                self.count("given_achieved", self.goal[i])
                self.give(i, self.draw(i, states[i], after=self.goal[i]))
        for i in range(NUM_ENVS):
            if self.config.patience_steps and self.goal[i] is not None and self.age[i] >= self.config.patience_steps:
                other = self.draw(i, states[i], but=self.goal[i])
                if other in (None, self.goal[i]):
                    self.age[i] = 0
                else:
                    self.give(i, other)
        for i in range(NUM_ENVS):
            if self.is_due[i] and self.goal[i] is None:
                self.give(i, self.draw(i, states[i]))
            self.is_due[i] = False

    def end(self, i: int, success: bool) -> None:
        self.ended[success] += 1
        for goal in self.done[i]:
            self.count("achieved_in_successes" if success else "achieved_in_failures", goal)


SHEETS = [
    make_sheet(["a", "open the door"], achieved={11: [0], 12: [1]}, suggested={3: [1]}, weights=[1, 0]),
    make_sheet(  # 2 -> 3 -> 4 and 2 -> 5 are plans; 7 has no weight
        ["a", "open the door", "first", "second", "third", "branch", "go to the red ball", "out"],
        achieved={11: [0], 12: [1, 2], 13: [3, 4], 14: [4], 15: [5, 6], 16: [7]},
        suggested={1: [0, 4], 2: [5], 3: [7]},
        weights=[1, 2, 0.5, 1, 3, 1, 0.1, 0],
        before=[-1, -1, -1, 2, 3, 2],
        number=1,
    ),
]


def random_steps(seed: int, num_steps: int) -> Iterator[dict[str, Any]]:
    """Items, states that steps led to, those after resets, ends with and without a success, and losses."""
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        fate = rng.choice(["goes on", "ends", "is lost"], NUM_ENVS, p=[0.85, 0.12, 0.03]).tolist()
        infos: list[dict[str, float]] = [{}, {"success": 1.0}, {"success": 0.0}]
        yield {
            "items": np.where([f == "is lost" for f in fate], 0, rng.integers(10, 18, NUM_ENVS)).astype(np.uint64),
            "reached": rng.integers(0, 5, NUM_ENVS).astype(np.uint64),
            "states": rng.integers(0, 5, NUM_ENVS).astype(np.uint64),
            "ends": [i for i in range(NUM_ENVS) if fate[i] == "ends"],
            "losses": [i for i in range(NUM_ENVS) if fate[i] == "is lost"],
            "infos": [infos[k] for k in rng.integers(0, 3, NUM_ENVS)],
            "returns": rng.integers(-1, 2, NUM_ENVS).astype(float),
            "missions": [MISSIONS[k] for k in rng.integers(0, 4, NUM_ENVS)],
        }


def vector_step(given: dict[str, Any], *, reads: bool = True) -> VectorStep:
    flags = np.zeros(NUM_ENVS, bool)
    entry = {GOAL: np.full(NUM_ENVS, 99, np.int16)} if reads else {}
    ends = [
        EpisodeEnd(index=i, final_obs=dict.fromkeys(entry, np.int16(0)), reset_caption=b"", info=given["infos"][i])
        for i in given["ends"]
    ]
    losses = dict.fromkeys(given["losses"], b"")
    return VectorStep(
        obs=entry, rewards=flags, terminated=flags, truncated=flags, captions=[], ends=ends, losses=losses
    )


def play(keeper: GoalKeeper, given: dict[str, Any], step: VectorStep) -> None:
    items = {"caption": given["items"], "state": given["reached"]}
    keeper.step(slice(0, NUM_ENVS), step, items, given["returns"], given["states"], given["missions"])


CONFIGS = [
    GoalsConfig(sources=["config"]),
    GoalsConfig(sources=["suggest"], scope="suggested", patience_steps=3),
    GoalsConfig(sources=["missions"], scope="current", patience_steps=5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["any", "suggested", "missions"])
def test_goals_and_counts_are_those_of_the_rules(config: GoalsConfig) -> None:
    keeper, slow = GoalKeeper(config, NUM_ENVS, seed=7), SlowKeeper(config, 7)
    first = np.array([1, 2, 3, 0], np.uint64)
    keeper.begin(first, MISSIONS)
    for i in range(NUM_ENVS):
        slow.begin(i, int(first[i]), MISSIONS[i])
    given_goals = set()
    for t, given in enumerate(random_steps(1, 600)):
        if t in (20, 60):
            sheet = SHEETS[t // 60]
            assert keeper.take_sheet(sheet)
            assert not keeper.take_sheet(sheet), "it has it"
            slow.take(sheet)
        step = vector_step(given)
        play(keeper, given, step)
        slow.step(given["items"].tolist(), given["reached"].tolist())
        for end in step.ends:
            i = end.index
            assert end.final_obs[GOAL] == (0 if slow.goal[i] is None else slow.goal[i] + 1)
            slow.end(i, bool(given["infos"][i].get("success", given["returns"][i] > 0)))
        for i in (*given["ends"], *given["losses"]):
            slow.begin(i, int(given["states"][i]), given["missions"][i])
        wanted = [0 if goal is None else goal + 1 for goal in slow.goal]
        assert step.obs[GOAL].tolist() == wanted == keeper.entries.tolist(), t
        given_goals |= set(wanted)
    assert len(given_goals) >= 7, "most goals were given, and none"
    counts, _ = keeper.report(0)
    for name in BY_GOAL:
        got = getattr(counts, name)
        assert {g: int(n) for g, n in enumerate(got) if n} == slow.counts[name], name
    assert (counts.successes, counts.failures) == (slow.ended[True], slow.ended[False])
    assert counts.given_achieved.sum() > 20
    again, _ = keeper.report(1)
    assert not again.attempted.any()
    assert (again.successes, again.failures) == (0, 0)


@pytest.mark.parametrize("config", CONFIGS, ids=["any", "suggested", "missions"])
def test_a_keeper_goes_on_exactly_from_its_state(config: GoalsConfig) -> None:
    keepers = [GoalKeeper(config, NUM_ENVS, seed=7), GoalKeeper(config, NUM_ENVS, seed=8)]
    for keeper, states in zip(keepers, ([1, 2, 3, 0], [0, 0, 0, 0]), strict=True):
        keeper.take_sheet(SHEETS[0])
        keeper.begin(np.array(states, np.uint64), MISSIONS)
    steps = [*random_steps(2, 200)]
    for given in steps[:100]:
        play(keepers[0], given, vector_step(given))
    keepers[0].take_sheet(SHEETS[1])
    keepers[0].report(0)
    keepers[1].load_state_dict(keepers[0].state_dict())
    keepers[1].take_sheet(dataclasses.replace(SHEETS[1], version=(2, 1)))  # the run's next epoch
    for given in steps[100:]:
        both = [vector_step(given), vector_step(given)]
        for keeper, step in zip(keepers, both, strict=True):
            play(keeper, given, step)
        assert both[0].obs[GOAL].tolist() == both[1].obs[GOAL].tolist()
    one, other = (keeper.report(1)[0] for keeper in keepers)
    assert one.attempted.sum() > 0
    assert one.attempted.tolist() == other.attempted.tolist()


def test_a_policy_that_reads_no_goals_has_the_same_counts() -> None:
    keepers = [GoalKeeper(CONFIGS[0], NUM_ENVS, seed=7) for _ in range(2)]
    for reads, keeper in zip((True, False), keepers, strict=True):
        keeper.take_sheet(SHEETS[1])
        keeper.begin(None, None)
        for given in random_steps(3, 100):
            step = vector_step(given, reads=reads)
            play(keeper, given, step)
            assert reads or not step.obs
    one, other = (keeper.report(0)[0] for keeper in keepers)
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in BY_GOAL)


def test_there_is_no_goal_without_a_sheet_or_without_goals() -> None:
    keeper = GoalKeeper(CONFIGS[0], NUM_ENVS, seed=7)
    keeper.begin(None, None)
    assert keeper.entries.tolist() == [0] * NUM_ENVS
    keeper.take_sheet(make_sheet([]))
    given = next(random_steps(1, 1)) | {"ends": [], "losses": []}
    play(keeper, given, vector_step(given))
    assert keeper.entries.tolist() == [0] * NUM_ENVS
    keeper.take_sheet(make_sheet(["new"], number=1))
    assert keeper.entries.tolist() == [0] * NUM_ENVS, "a rollout begins with the goals that the last one ended with"
    play(keeper, given, vector_step(given))
    assert keeper.entries.tolist() == [1] * NUM_ENVS, "they need not wait for their episodes' ends"


def test_missions_are_reported_by_episode_until_the_book_has_them() -> None:
    keeper = GoalKeeper(CONFIGS[2], NUM_ENVS, seed=7)
    keeper.begin(None, MISSIONS)
    texts, counts = keeper.report(0)[1]["mission"]
    assert sorted(texts.values()) == ["Go to the red ball.", "eat", "open the door"]
    assert sorted(counts.values()) == [1, 1, 1]
    keeper.acknowledge(Acknowledgement(book_epoch="b", sequence_number=0))
    given = next(random_steps(1, 1)) | {"ends": [0], "losses": [1], "missions": [b"eat", b"eat", b"", b""]}
    play(keeper, given, vector_step(given))
    texts, counts = keeper.report(1)[1]["mission"]
    assert (texts, [*counts.values()]) == ({}, [2])
    with pytest.raises(ValueError, match=r"goals\.sources: got missions, but the environment states none"):
        keeper.begin(None, None)


def test_counts_add_up() -> None:
    one = dataclasses.replace(GoalCounts.zeros(), successes=2)
    one.attempted[3] = 4
    both = one + one
    assert (both.attempted[3], both.successes, both.failures) == (8, 4, 0)


def test_a_plan_that_goes_in_a_circle_is_refused() -> None:
    sheet = make_sheet(["a", "b"], before=[1, 0])
    with pytest.raises(ValueError, match=r"goal 0 \('a'\) must be achieved before itself"):
        GoalKeeper(CONFIGS[0], NUM_ENVS, seed=0).take_sheet(sheet)


def test_a_sheet_survives_a_checkpoint_and_equals_itself() -> None:
    one = SHEETS[1]
    other = GoalSheet.from_state_dict(one.state_dict())
    assert other.version == one.version
    assert one.equals(other)
    assert not one.equals(dataclasses.replace(one, sampling=one.sampling * 2))
    assert not one.equals(SHEETS[0])
    assert one.achieved_by(np.array([12, 99, 0], np.uint64))[:, 0].tolist() == [0b110, 0, 0]
