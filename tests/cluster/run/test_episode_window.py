"""Episodes count in the order in which they began: which ones, when, and what is known of them."""

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest

from actors.rollout import EpisodeStatistics, Rollout
from cluster.run import run_metrics as episode_window
from cluster.run.run_metrics import EpisodeWindow

LIMIT, NUM_ENVS, NUM_STEPS = 200, 16, 8


class Simulated:
    """A worker whose episodes have lengths of our choice; each episode's return is its length, and each step earns
    1."""

    def __init__(self, draw: Callable[[], int], worker_id: str = "0.1", num_envs: int = NUM_ENVS) -> None:
        self._draw, self._worker_id, self._num_envs = draw, worker_id, num_envs
        self._left = [draw() for _ in range(num_envs)]
        self._ages = [0] * num_envs
        self.began: list[int] = []
        """Lengths of all episodes in the order in which they began."""
        self.began += self._left
        self._number = 0

    def collect(self, lost: tuple[int, ...] = ()) -> tuple[Rollout, np.ndarray]:
        """A rollout with what its steps earned; environments in `lost` raise in its first step."""
        terminated, truncated = np.zeros((2, NUM_STEPS, self._num_envs), bool)
        episodes, ends = [], []
        for t, i in itertools.product(range(NUM_STEPS), range(self._num_envs)):
            self._ages[i] += 1
            self._left[i] -= 1
            raises = t == 0 and i in lost
            if self._left[i] and not raises:
                continue
            if raises:
                truncated[t, i] = True
            else:
                terminated[t, i] = True
                age = self._ages[i]
                episodes.append(
                    EpisodeStatistics(
                        episode_return=float(age), length=age, terminated=True, info={"kills": float(age)}
                    )
                )
                ends.append((t, i))
            self._left[i], self._ages[i] = self._draw(), 0
            self.began.append(self._left[i])
        zeros = np.zeros((NUM_STEPS, self._num_envs))
        self._number += 1
        fields = ("actions", "behaviour_logits", "behaviour_values", "final_values", "extrinsic_rewards")
        rollout = Rollout(
            **dict.fromkeys((*fields, "caption_ids", "caption_counts"), zeros),
            obs={},
            terminated=terminated,
            truncated=truncated,
            core_state={},
            policy_version=(1, 0),
            worker_id=self._worker_id,
            sequence_number=self._number - 1,
            episodes=tuple(episodes),
            episode_ends=tuple(ends),
            timings={},
            lost=lost,
        )
        return rollout, np.ones_like(zeros)


def lengths(window: EpisodeWindow) -> list[int]:
    return [episode.length for episode in window.episodes]


def half_short(seed: int) -> Callable[[], int]:
    """Half of the episodes take 10 steps, the others run into the limit: 105 steps on average."""
    rng = np.random.default_rng(seed)
    return lambda: 10 if rng.random() < 0.5 else LIMIT


def test_means_are_of_the_right_size_from_the_first_that_is_defined() -> None:
    """Averaging what has ended says 10 until the limit, 20 times too little; staggered first limits would say so for
    longer."""
    means: dict[int, list[float]] = {}
    for seed in range(40):
        worker, window = Simulated(half_short(seed)), EpisodeWindow(50)
        for rollout in range(3 * LIMIT // NUM_STEPS):
            window.add_rollout(*worker.collect())
            if window.episodes:
                means.setdefault(rollout, []).append(float(np.mean(lengths(window))))
    assert min(means) == LIMIT // NUM_STEPS - 1, "nothing before the first episodes have all ended"
    assert all(np.mean(values) == pytest.approx(105, rel=0.1) for values in means.values())


def test_episodes_count_in_the_order_in_which_they_began_and_each_once() -> None:
    rng = np.random.default_rng(0)
    worker, window = Simulated(lambda: int(rng.integers(1, 40))), EpisodeWindow(10**6)
    for _ in range(50):
        window.add_rollout(*worker.collect())
    counted = lengths(window)
    assert len(counted) > 200
    # Those that began in the same step come in any order.
    assert sum(counted) <= sum(worker.began)
    assert sorted(counted) == sorted(worker.began[: len(counted)])
    assert {episode.intrinsic for episode in window.episodes} == {float(length) for length in counted}
    assert all(episode.extrinsic == episode.length == episode.info["kills"] for episode in window.episodes)


def test_an_environment_that_raises_adds_no_episode_and_holds_none_up() -> None:
    lengths_in_turn = iter([4, 1000, *[4] * 100])
    worker, window = Simulated(lambda: next(lengths_in_turn), num_envs=2), EpisodeWindow(100)
    window.add_rollout(*worker.collect())
    assert lengths(window) == [], "the second environment's first episode runs"
    window.add_rollout(*worker.collect(lost=(1,)))
    assert 1000 not in lengths(window)
    assert 9 not in lengths(window), "what it had played when it raised"
    assert len(lengths(window)) >= 3
    assert {episode.intrinsic for episode in window.episodes} == {4.0}


def test_what_a_replaced_worker_left_running_neither_counts_nor_holds_up_what_had_ended() -> None:
    lengths_in_turn = iter([3, 1000, 1000, 1000])
    window = EpisodeWindow(10)
    window.add_rollout(*Simulated(lambda: next(lengths_in_turn), num_envs=2).collect())
    assert lengths(window) == []
    successor = Simulated(lambda: 8, worker_id="0.2", num_envs=2)
    window.add_rollout(*successor.collect())
    window.add_rollout(*successor.collect())
    assert lengths(window)[0] == 3
    assert lengths(window)[1:] == [8, 8, 8, 8]
    assert {episode.intrinsic for episode in window.episodes} == {3.0, 8.0}


def test_workers_do_not_wait_for_one_another() -> None:
    window = EpisodeWindow(100)
    window.add_rollout(*Simulated(lambda: 1000).collect())
    window.add_rollout(*Simulated(lambda: 8, worker_id="1.1", num_envs=1).collect())
    assert lengths(window) == [8]


def test_an_episode_of_which_a_rollout_was_dropped_has_no_intrinsic_return() -> None:
    worker, window = Simulated(lambda: 12, num_envs=1), EpisodeWindow(100)
    window.add_rollout(*worker.collect())
    worker.collect()  # dropped
    for _ in range(3):
        window.add_rollout(*worker.collect())
    assert [episode.intrinsic is None for episode in window.episodes] == [True, False]
    assert lengths(window) == [12, 12]
    assert window.episodes[1].intrinsic == 12.0


def test_an_episode_that_never_ends_holds_up_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_window, "MAX_WAITING", 5)
    lengths_in_turn = itertools.chain([10**9], itertools.repeat(2))
    worker, window = Simulated(lambda: next(lengths_in_turn), num_envs=2), EpisodeWindow(1000)
    for _ in range(10):
        window.add_rollout(*worker.collect())
    assert lengths(window) == [2] * (40 - 5)


def test_a_resumed_window_goes_on_as_if_nothing_had_happened() -> None:
    worker, window = Simulated(half_short(1)), EpisodeWindow(50)
    for n in range(60):
        if n == 10 or n == 40:  # before the first episodes count, and after
            state = window.state_dict()
            arrays = {
                index: {name: saved.pop(name) for name in ("intrinsic", "begun_at")}
                for index, saved in state["workers"].items()
            }
            state = json.loads(json.dumps(state))
            for index, saved in state["workers"].items():
                saved.update(arrays[index])
            resumed = EpisodeWindow(50)
            resumed.load_state_dict(state)
        rollout, intrinsic = worker.collect()
        window.add_rollout(rollout, intrinsic)
        if n >= 10:
            resumed.add_rollout(rollout, intrinsic)
            assert list(resumed.episodes) == list(window.episodes)
    assert len(window.episodes) == 50
