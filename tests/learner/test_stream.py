import dataclasses
import logging

import pytest

from actors.rollout import Rollout
from configs.schema import LearnerConfig
from learner.stream import REMEMBERED_NUMBERS, RolloutStream
from tests.learner.toy_rollouts import random_rollout


def make_stream(*, rollouts_per_batch: int = 1, max_policy_lag: int = 3) -> RolloutStream:
    return RolloutStream(LearnerConfig(rollouts_per_batch=rollouts_per_batch, max_policy_lag=max_policy_lag))


def rollout(number: int, *, version: tuple[int, int] = (1, 0), worker_id: str = "0.0") -> Rollout:
    return random_rollout(seed=number, policy_version=version, sequence_number=number, worker_id=worker_id)


def numbers(batch: list[Rollout] | None) -> list[int] | None:
    return None if batch is None else [rollout.sequence_number for rollout in batch]


def test_batches_come_in_the_order_of_arrival_and_only_when_full() -> None:
    stream = make_stream(rollouts_per_batch=2)
    assert [numbers(stream.put(rollout(n), (1, 0))) for n in range(5)] == [None, [0, 1], None, [2, 3], None]


def test_a_rollout_is_stale_above_the_lag_limit_and_not_at_it() -> None:
    stream = make_stream(max_policy_lag=3)
    assert numbers(stream.put(rollout(0, version=(1, 7)), (1, 10))) == [0]
    assert stream.put(rollout(1, version=(1, 6)), (1, 10)) is None
    assert stream.metrics() == {"rollouts_dropped_stale": 1}


def test_a_rollout_that_went_stale_while_it_waited_is_dropped() -> None:
    stream = make_stream(rollouts_per_batch=2)
    stream.put(rollout(0, version=(1, 0)), (1, 0))
    assert stream.put(rollout(1, version=(1, 4)), (1, 4)) is None
    assert numbers(stream.put(rollout(2, version=(1, 4)), (1, 4))) == [1, 2]
    assert stream.metrics() == {"rollouts_dropped_stale": 1}


def test_a_rollout_of_an_older_epoch_is_dropped_whatever_its_number() -> None:
    stream = make_stream()
    assert stream.put(rollout(0, version=(0, 10)), (1, 10)) is None
    assert stream.metrics() == {"rollouts_dropped_stale": 1}


@pytest.mark.parametrize("version", [(1, 11), (2, 0)])
def test_a_rollout_from_the_future_is_a_broken_protocol(version: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="weights of another run"):
        make_stream().put(rollout(0, version=version), (1, 10))


def test_no_rollout_counts_twice_even_where_two_changed_places(caplog: pytest.LogCaptureFixture) -> None:
    stream = make_stream()
    arrivals = [0, 2, 1, 2, 1, 0, 3]
    with caplog.at_level(logging.WARNING):
        assert [numbers(stream.put(rollout(n), (1, 0))) for n in arrivals] == [[0], [2], [1], None, None, None, [3]]
    assert caplog.text.count("was received before") == 3


def test_the_same_number_of_another_worker_or_incarnation_is_another_rollout() -> None:
    stream = make_stream()
    assert all(stream.put(rollout(0, worker_id=worker_id), (1, 0)) for worker_id in ("0.0", "0.1", "1.0"))


def test_memory_of_sequence_numbers_is_bounded_and_still_refuses_what_it_forgot() -> None:
    stream, one = make_stream(), rollout(0)
    for number in range(3 * REMEMBERED_NUMBERS):
        assert stream.put(dataclasses.replace(one, sequence_number=number), (1, 0)) is not None
    assert stream.put(one, (1, 0)) is None
    assert {len(seen) for seen in stream._seen.values()} == {REMEMBERED_NUMBERS}


def test_the_count_of_dropped_rollouts_survives_a_resume() -> None:
    stream, resumed = make_stream(), make_stream()
    stream.put(rollout(0, version=(0, 0)), (1, 0))
    resumed.load_state_dict(stream.state_dict())
    assert resumed.metrics() == {"rollouts_dropped_stale": 1}
