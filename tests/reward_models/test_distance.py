"""Distances between rewards: 0 for what means the same, 1 for the opposite, and bounds of what optimising the wrong one
costs."""

import itertools
import logging

import numpy as np
import pytest

from reward_models.distance import SPAN, TableDistances, levelled, starc_distance, table_distance
from reward_models.table import RewardTable

STATES, ACTIONS, GAMMA = 4, 2, 0.9
UNIFORM = np.full((STATES, ACTIONS), 1 / ACTIONS)


def random_mdp(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transitions [S, A, S'], initial distribution [S], reward [S, A, S']."""
    transitions = rng.dirichlet(np.full(STATES, 0.5), (STATES, ACTIONS))
    return transitions, rng.dirichlet(np.ones(STATES)), rng.normal(size=(STATES, ACTIONS, STATES))


def shaped(reward: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    potential = rng.normal(size=STATES)
    return reward + GAMMA * potential[None, None, :] - potential[:, None, None]


def redistributed(reward: np.ndarray, transitions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another reward with the same expectation over s'."""
    noise = rng.normal(size=reward.shape)
    return reward + noise - (transitions * noise).sum(axis=2, keepdims=True)


def occupancies(transitions: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """[policies, S, A] of all deterministic policies: sum over t of gamma^t P(s_t = s, a_t = a)."""
    found = []
    for actions in itertools.product(range(ACTIONS), repeat=STATES):
        policy = np.eye(ACTIONS)[list(actions)]
        step = np.einsum("sa,sat->st", policy, transitions)
        visits = np.linalg.solve(np.eye(STATES) - GAMMA * step.T, initial)
        found.append(visits[:, None] * policy)
    return np.array(found)


def worst_regret(first: np.ndarray, second: np.ndarray) -> float:
    """The most that is lost of the `first` returns [policies] by a change of policy that the `second` do not mind."""
    no_worse = second[None, :] >= second[:, None] - 1e-12
    return float(np.where(no_worse, first[:, None] - first[None, :], 0.0).max())


def test_rewards_that_differ_by_potential_scale_and_successor_have_distance_zero_and_opposite_ones_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        transitions, _, reward = random_mdp(rng)
        same = 3.7 * redistributed(shaped(reward, rng), transitions, rng)
        assert starc_distance(reward, same, transitions, UNIFORM, GAMMA) == pytest.approx(0.0, abs=1e-7)
        assert starc_distance(reward, -same, transitions, UNIFORM, GAMMA) == pytest.approx(1.0, abs=1e-7)
        other = rng.normal(size=reward.shape)
        distance = starc_distance(reward, other, transitions, UNIFORM, GAMMA)
        assert 0 < distance < 1
        assert starc_distance(other, same, transitions, UNIFORM, GAMMA) == pytest.approx(distance, abs=1e-7)


def test_a_reward_that_says_nothing_is_half_way_to_everything_and_at_one_with_its_like() -> None:
    rng = np.random.default_rng(2)
    transitions, _, reward = random_mdp(rng)
    potential, nothing = shaped(np.zeros_like(reward), rng), np.zeros_like(reward)
    assert starc_distance(potential, nothing, transitions, UNIFORM, GAMMA) == 0.0
    assert starc_distance(reward, potential, transitions, UNIFORM, GAMMA) == pytest.approx(0.5)


def test_the_distance_bounds_the_worst_regret_and_the_worst_regret_grows_with_it_on_200_random_mdps() -> None:
    """Skalse et al. 2024, theorem 1 (soundness), with the constant that Cauchy and Schwarz give: with d the distance, C
    the levelled first reward and D the occupancies, J1(pi) - J1(pi') = <C, D - D'> <= 2 d |C| |D - D'| for every pi'
    that the second reward does not rank below pi."""
    rng = np.random.default_rng(3)
    distances, regrets = [], []
    for number in range(200):
        transitions, initial, first = random_mdp(rng)
        share = number / 199
        second = shaped((1 - share) * first + share * rng.normal(size=first.shape), rng)
        second = -second if number % 4 == 3 else second
        distance = starc_distance(first, second, transitions, UNIFORM, GAMMA)
        visits = occupancies(transitions, initial).reshape(2**STATES, -1)
        returns = [visits @ (transitions * reward).sum(axis=2).ravel() for reward in (first, second)]
        regret = worst_regret(*returns)
        apart = max(np.linalg.norm(one - other) for one, other in itertools.combinations(visits, 2))
        size = np.linalg.norm(levelled(first, transitions, UNIFORM, GAMMA))
        assert regret <= 2 * distance * size * apart + 1e-9
        distances.append(distance)
        regrets.append(regret / (returns[0].max() - returns[0].min()))
    by_distance = np.array(regrets)[np.argsort(distances)].reshape(5, -1).mean(axis=1)
    assert (np.diff(by_distance) > 0).all()
    assert by_distance[0] < 0.3
    assert by_distance[-1] > 0.95


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"first": np.zeros((2, 2, 2))}, r"must be \(4, 2, 4\)"),
        ({"transitions": np.zeros((4, 2, 4))}, "transitions must be probabilities"),
        ({"policy": np.full((4, 2), 0.7)}, "policy must be probabilities"),
        ({"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_is_no_mdp_is_refused(changed: dict, said: str) -> None:
    transitions, _, reward = random_mdp(np.random.default_rng(0))
    given = {"first": reward, "second": reward, "transitions": transitions, "policy": UNIFORM, "gamma": GAMMA}
    with pytest.raises(ValueError, match=said):
        starc_distance(**{**given, **changed})


# -- tables

IDS = np.arange(1, 9, dtype=np.uint64)
REWARDS = np.array([1, 0, 0, 1, 0.5, 0, 0, 0.25], np.float32)
COUNTS = np.array([3, 90, 7, 1, 2, 40, 0, 5])


def table(rewards: np.ndarray, number: int = 1, ids: np.ndarray = IDS) -> RewardTable:
    return RewardTable.build(ids, rewards, (1, number))


def test_the_distance_of_tables_is_half_way_between_correlation_and_its_opposite() -> None:
    other = np.random.default_rng(0).random(8).astype(np.float32)
    rho = np.corrcoef(np.repeat(REWARDS, COUNTS), np.repeat(other, COUNTS))[0, 1]
    wanted = np.sqrt((1 - rho) / 2)
    assert table_distance(table(REWARDS), table(other), IDS, COUNTS) == pytest.approx(wanted, rel=1e-6)
    order = np.random.default_rng(1).permutation(8)
    assert table_distance(table(REWARDS), table(other), IDS[order], COUNTS[order]) == pytest.approx(wanted, rel=1e-6)


def test_scale_and_constant_do_not_matter_and_opposite_tables_are_furthest_apart() -> None:
    assert table_distance(table(REWARDS), table(3 * REWARDS + 2), IDS, COUNTS) == pytest.approx(0.0, abs=1e-6)
    assert table_distance(table(REWARDS), table(-REWARDS), IDS, COUNTS) == pytest.approx(1.0)
    constant = table(np.full(8, 0.3, np.float32))
    assert table_distance(constant, table(np.full(8, 0.7, np.float32)), IDS, COUNTS) == 0.0
    assert table_distance(table(REWARDS), constant, IDS, COUNTS) == pytest.approx(0.5)


def test_only_captions_that_both_tables_know_and_that_occurred_count() -> None:
    changed = REWARDS.copy()
    changed[6] = 100.0  # never occurred
    longer = table(np.append(changed, np.float32(-50)), ids=np.append(IDS, np.uint64(99)))
    ids, counts = np.append(IDS, np.uint64(99)), np.append(COUNTS, 1000)
    assert table_distance(table(REWARDS), longer, ids, counts) == pytest.approx(0.0, abs=1e-7)
    assert table_distance(table(REWARDS), table(-REWARDS), IDS, 0 * COUNTS) == 0.0


def test_an_alarm_is_given_once_per_crossing_and_one_table_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    distances, newest = TableDistances(alarm=0.3), RewardTable.empty(1)

    def run_to(number: int, rewards: np.ndarray) -> None:
        nonlocal newest
        while newest.reward_version[1] < number:
            new = table(rewards, newest.reward_version[1] + 1)
            distances.note(newest, new, IDS, COUNTS)
            newest = new

    with caplog.at_level(logging.WARNING):
        run_to(1, REWARDS)
        assert distances.metrics() == {"reward_distance": None, "reward_distance_100": None}
        run_to(SPAN, REWARDS)
        assert distances.metrics() == {"reward_distance": 0.0, "reward_distance_100": None}
        run_to(SPAN + 1, -REWARDS)
        assert distances.metrics() == pytest.approx({"reward_distance": 1.0, "reward_distance_100": 1.0})
        assert len(caplog.records) == 1
        run_to(2 * SPAN + 1, REWARDS)  # above as before
        assert len(caplog.records) == 1
        run_to(3 * SPAN + 1, REWARDS)
        assert distances.metrics() == {"reward_distance": 0.0, "reward_distance_100": 0.0}
        run_to(4 * SPAN + 1, -REWARDS)
    assert len(caplog.records) == 2
    said = caplog.records[1].getMessage()
    assert "table 401 is 1.00 from table 301, above robust.distance_alarm=0.3" in said
    assert "\n" not in said
