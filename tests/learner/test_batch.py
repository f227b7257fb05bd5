import numpy as np
import pytest
import torch

from learner.batch import BatchBuffers
from tests.learner.toy_rollouts import random_rollout

CPU = torch.device("cpu")


def test_joining_keeps_every_step_in_its_environments_column() -> None:
    first, second = (
        random_rollout(num_envs=2, seed=1, read_only=True),
        random_rollout(num_envs=3, seed=2, read_only=True),
    )
    batch = BatchBuffers(CPU).join([first, second])  # a warning about read-only memory would be an error here
    for name in ("actions", "behaviour_logits", "behaviour_values", "terminated", "truncated"):
        joined = getattr(batch, name)
        np.testing.assert_array_equal(joined[:, :2], getattr(first, name))
        np.testing.assert_array_equal(joined[:, 2:], getattr(second, name))
        assert joined.numpy().dtype == getattr(first, name).dtype
    np.testing.assert_array_equal(batch.obs["sign"][:, 2:], second.obs["sign"])
    np.testing.assert_array_equal(batch.core_state["c"][2:], second.core_state["c"])


def test_the_core_is_reset_after_an_end_and_never_before_step_0() -> None:
    one = random_rollout()
    reset_before = BatchBuffers(CPU).join([one]).reset_before.numpy()
    assert not reset_before[0].any()
    np.testing.assert_array_equal(reset_before[1:], one.terminated | one.truncated)
    assert reset_before.any()


def test_a_batch_shares_no_memory_with_its_rollouts() -> None:
    one = random_rollout()
    batch, before = BatchBuffers(CPU).join([one]), one.behaviour_values.copy()
    batch.behaviour_values.zero_()
    np.testing.assert_array_equal(one.behaviour_values, before)


def test_rollouts_of_different_length_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="dimension"):
        BatchBuffers(CPU).join([random_rollout(4), random_rollout(5)])


def test_the_same_memory_serves_every_batch_whatever_its_width() -> None:
    buffers = BatchBuffers(CPU)
    first = buffers.join([random_rollout(num_envs=3, seed=1)]).behaviour_values.data_ptr()
    again = buffers.join([random_rollout(num_envs=3, seed=2)])
    assert again.behaviour_values.data_ptr() == first
    np.testing.assert_array_equal(again.behaviour_values, random_rollout(num_envs=3, seed=2).behaviour_values)
    wider = buffers.join([random_rollout(num_envs=3, seed=3), random_rollout(num_envs=2, seed=4)])
    np.testing.assert_array_equal(wider.behaviour_values[:, 3:], random_rollout(num_envs=2, seed=4).behaviour_values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device")
def test_on_a_gpu_a_batch_is_what_it_is_on_a_cpu_even_right_after_another() -> None:
    buffers = BatchBuffers(torch.device("cuda"))
    buffers.join([random_rollout(num_envs=4000, seed=1)])
    batch = buffers.join([random_rollout(num_envs=4000, seed=2)])
    np.testing.assert_array_equal(batch.behaviour_values.cpu(), random_rollout(num_envs=4000, seed=2).behaviour_values)
