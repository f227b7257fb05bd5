import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.batch import BatchBuffers, draw_minibatches
from tests.learner.toy_rollouts import random_rollout

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys, threading
import numpy as np
from learner.batch import keep_freed_memory

def allocate():
    for _ in range(2):
        arrays = [np.ones(300_000) for _ in range(10)]  # 2.4 MB each

def measure():
    allocate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def measure_both():
    measure()
    keep_freed_memory()
    measure()

if sys.argv[1] == "main":
    measure_both()
else:
    thread = threading.Thread(target=measure_both)
    thread.start()
    thread.join()
"""


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc's allocator")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_what_an_update_freed_the_next_one_gets_without_the_kernel(thread: str) -> None:
    command = [sys.executable, "-c", PROGRAM, thread]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    given_back, kept = map(int, measured.split())
    assert given_back > 1000
    assert kept < given_back / 5


def test_each_pass_takes_every_environment_once_in_equal_shares_of_its_own() -> None:
    passes = [[part.tolist() for part in draw_minibatches(10, 3, (1, epoch)) if part is not None] for epoch in range(2)]
    for parts in passes:
        assert sorted(map(len, parts)) == [3, 3, 4]
        assert sorted(column for part in parts for column in part) == list(range(10))
    assert passes[0] != passes[1]
    assert draw_minibatches(10, 1, (1, 0)) == [None]
