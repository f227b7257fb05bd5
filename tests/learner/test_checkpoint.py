"""Checkpoints: exact round trips, and what happens when a save or a file goes wrong."""

import contextlib
import errno
import json
import logging
import math
import os
import random
import resource
import shutil
import signal

import numpy as np
import pytest
import torch

from learner.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint

TENSORS = [
    torch.randn(3, 4),
    torch.randn(3, 4).to(torch.bfloat16),
    torch.tensor([True, False]),
    torch.tensor(7, dtype=torch.int64),
    torch.zeros(0, 5),
    torch.tensor([float("nan"), float("-inf"), -0.0]),
    torch.arange(12).reshape(3, 4).t(),
    torch.get_rng_state(),
]
ARRAYS = [
    np.array([0, 2**64 - 1], np.uint64),
    np.array([[1, -2], [3, 4]], np.int8)[:, ::-1],
    np.array(1.5, np.float32),
    np.array([True, False]),
    np.array([], np.float64),
    np.array([np.nan, np.inf, 1e-310]),
    np.arange(6, dtype=np.uint16).reshape(2, 3).T,
]
JSON_VALUES = [
    None,
    True,
    0,
    -(2**200),
    0.1,
    float("inf"),
    "caption: 'ä \u2028 \ud7ff\"",
    [1, [2.5, None]],
    (0.9, 0.999),
    {},
    {"$tensor": "not a tensor"},
    {0: "a", 1: {"b": [1]}},
    {"a.b": 1, "a": {"b": 2}},
]


def assert_same(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        assert torch.equal(got.contiguous().view(-1).view(torch.uint8), wanted.contiguous().view(-1).view(torch.uint8))
    elif isinstance(wanted, np.ndarray):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        assert got.tobytes() == wanted.tobytes()
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert got == wanted or (math.isnan(got) and math.isnan(wanted))


@pytest.mark.parametrize(
    "leaf", [*TENSORS, *ARRAYS, *JSON_VALUES], ids=lambda leaf: f"{type(leaf).__name__}-{getattr(leaf, 'dtype', '')}"
)
def test_every_kind_of_leaf_comes_back_equal_in_type_dtype_shape_and_value(tmp_path, leaf):
    state = {"learner": {"nested": {"leaf": leaf, "list": [leaf, "x"]}}, "loop": leaf}
    path = save_checkpoint(tmp_path, 5, state, keep=1)
    assert_same(load_checkpoint(path), state)


def test_loaded_arrays_can_be_written_to(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, {"part": {"a": np.zeros(3), "t": torch.zeros(3)}}, keep=1))
    loaded["part"]["a"][0] = loaded["part"]["t"][0] = 1


def test_an_optimiser_continues_exactly_from_a_checkpoint(tmp_path):
    def network_and_adam():
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        return net, torch.optim.Adam(net.parameters(), lr=0.1)

    def step(net, adam):
        adam.zero_grad()
        net(torch.ones(1, 4)).square().sum().backward()
        adam.step()

    net, adam = network_and_adam()
    step(net, adam)
    state = {"net": net.state_dict(), "adam": adam.state_dict(), "rng": {"python": random.getstate()}}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, state, keep=1))
    expected = random.random()
    step(net, adam)
    other_net, other_adam = network_and_adam()
    other_net.load_state_dict(loaded["net"])
    other_adam.load_state_dict(loaded["adam"])
    random.setstate(loaded["rng"]["python"])
    step(other_net, other_adam)
    assert torch.equal(net.weight, other_net.weight)
    assert random.random() == expected


def test_tensors_that_share_memory_are_kept_each_by_itself(tmp_path):
    tensor = torch.arange(4.0)
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, {"net": {"a": tensor, "b": tensor, "c": tensor[1:]}}, keep=1))
    assert_same(loaded, {"net": {"a": tensor, "b": tensor, "c": tensor[1:]}})


@pytest.mark.parametrize(
    ("leaf", "named"), [({"x": {1, 2}}, "part.x"), ({"y": np.float32(1)}, "part.y"), ({"z": np.array(["a"])}, "part.z")]
)
def test_a_value_that_no_checkpoint_can_hold_is_refused_by_name(tmp_path, leaf, named):
    with pytest.raises(TypeError, match=named):
        save_checkpoint(tmp_path, 1, {"part": leaf}, keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["manifest", "../up", "", 3])
def test_a_part_whose_name_is_no_file_name_is_refused(tmp_path, part):
    with pytest.raises(TypeError, match="top-level key"):
        save_checkpoint(tmp_path, 1, {part: {}}, keep=1)


def state_of(step):
    return {"learner": {"weights": torch.full((100,), float(step)), "step": step}}


def test_the_newest_are_kept_and_the_latest_is_named(tmp_path):
    assert load_latest(tmp_path) is None
    for step in (10, 9, 200, 1000):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1000", "step_200"]
    assert (tmp_path / "latest").read_text() == "step_1000"
    assert load_latest(tmp_path)["learner"]["step"] == 1000


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save_checkpoint(tmp_path, 5, {"loop": "first"}, keep=2)
    save_checkpoint(tmp_path, 5, {"loop": "second"}, keep=2)
    assert load_latest(tmp_path) == {"loop": "second"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_5"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def raise_version(path):
    manifest = json.loads((path.parent / "manifest.json").read_text())
    (path.parent / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (truncate, "learner.safetensors", "bytes instead of"),
        (flip_a_bit, "learner.safetensors", "checksum"),
        (flip_a_bit, "learner.json", "checksum"),
        (truncate, "manifest.json", "damaged"),
        (lambda path: path.write_text("[]"), "manifest.json", "not a Delphi checkpoint"),
        (lambda path: path.unlink(), "learner.safetensors", "damaged"),
        (raise_version, "learner.json", "version 99, this program reads"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(tmp_path, caplog, damage, file, reason):
    save_checkpoint(tmp_path, 1, state_of(1), keep=3)
    save_checkpoint(tmp_path, 2, state_of(2), keep=3)
    damage(tmp_path / "step_2" / file)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(tmp_path / "step_2")
    with caplog.at_level(logging.WARNING):
        assert load_latest(tmp_path)["learner"]["step"] == 1
    assert "step_2" in caplog.text
    assert reason in caplog.text


def test_where_every_checkpoint_is_damaged_nothing_starts_over_silently(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=3)
    truncate(tmp_path / "step_1" / "learner.json")
    with pytest.raises(CheckpointError, match="step_1"):
        load_latest(tmp_path)


def test_a_damaged_future_does_not_outlive_the_run_that_resumed_before_it(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_9")
    save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert load_latest(tmp_path)["learner"]["step"] == 2
    assert not (tmp_path / "step_9").exists()


def test_what_a_crashed_save_left_is_ignored_and_then_swept(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=3)
    (tmp_path / ".saving-step_2").mkdir()
    (tmp_path / ".saving-step_2" / "learner.json").write_text("{")
    (tmp_path / ".saving-latest").write_text("step_2")
    assert load_latest(tmp_path)["learner"]["step"] == 1
    save_checkpoint(tmp_path, 3, state_of(3), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1", "step_3"]


def test_a_crash_while_a_step_is_replaced_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    (tmp_path / "step_1").rename(tmp_path / ".replaced-step_1")
    assert load_latest(tmp_path)["learner"]["step"] == 1
    save_checkpoint(tmp_path, 2, state_of(2), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1", "step_2"]


def test_a_crash_before_the_pointer_moved_resumes_from_what_it_names(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=3)
    save_checkpoint(tmp_path, 2, state_of(2), keep=3)
    (tmp_path / "latest").write_text("step_1")
    assert load_latest(tmp_path)["learner"]["step"] == 1
    (tmp_path / "latest").unlink()
    assert load_latest(tmp_path)["learner"]["step"] == 2


@pytest.mark.parametrize(("code", "is_written"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch, code, is_written):
    sync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if is_written else pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path, 1, {"part": 1}, keep=1)
    assert load_latest(tmp_path) == ({"part": 1} if is_written else None)


def test_a_full_disk_leaves_the_checkpoint_before_it_and_says_so(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a real refusal by the kernel in the middle of a file
    try:
        with pytest.raises(CheckpointError, match="Earlier checkpoints are intact"):
            save_checkpoint(tmp_path, 2, {"learner": torch.zeros(10_000)}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]
    assert load_latest(tmp_path)["learner"]["step"] == 1
