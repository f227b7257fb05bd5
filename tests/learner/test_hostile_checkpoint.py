"""A checkpoint that somebody else wrote is read as far as it is one, or refused: nothing outside it is opened, nothing
hangs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from learner.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint


def state_of(step: int) -> dict[str, Any]:
    return {"learner": {"weights": torch.full((100,), float(step)), "step": step}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The second of two, in `checkpoints`."""
    save_checkpoint(tmp_path / "checkpoints", 1, state_of(1), keep=3)
    return save_checkpoint(tmp_path / "checkpoints", 2, state_of(2), keep=3)


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def update_manifest(**entries: Any) -> Callable[[Path], None]:
    return lambda path: edit_manifest(path, lambda manifest: manifest.update(entries))


def replace(path: Path, name: str, data: bytes) -> None:
    """A file with other content that its manifest vouches for."""
    (path / name).write_bytes(data)
    entry = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))


def name_a_file(name: str) -> Callable[[Path], None]:
    def attack(path: Path) -> None:
        secret = b'"what lies elsewhere"'
        (path.parent.parent / "secret.json").write_bytes(secret)
        entry = {"bytes": len(secret), "xxh3_128": xxhash.xxh3_128_hexdigest(secret)}
        edit_manifest(
            path, lambda manifest: manifest["files"].update({name.replace("{root}", str(path.parent.parent)): entry})
        )

    return attack


def link_a_file(path: Path) -> None:
    elsewhere = path.parent.parent / "learner.json"
    (path / "learner.json").rename(elsewhere)
    (path / "learner.json").symlink_to(elsewhere)


def link_itself(path: Path) -> None:
    elsewhere = path.parent.parent / "step_2"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def put_a_pipe(path: Path) -> None:
    (path / "learner.json").unlink()
    os.mkfifo(path / "learner.json")
    edit_manifest(path, lambda manifest: manifest["files"]["learner.json"].update(bytes=0))


def pipe_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")


def grow(name: str, size: int) -> Callable[[Path], None]:
    def attack(path: Path) -> None:
        os.truncate(path / name, size)  # a hole: it takes no room
        if name != "manifest.json":
            edit_manifest(path, lambda manifest: manifest["files"][name].update(bytes=size))

    return attack


def say_size(size: Any) -> Callable[[Path], None]:
    return lambda path: edit_manifest(path, lambda manifest: manifest["files"]["learner.json"].update(bytes=size))


def write_tree(data: bytes) -> Callable[[Path], None]:
    return lambda path: replace(path, "learner.json", data)


def write_tensor(dtype: str, shape: list[int], offsets: list[int], data: bytes = b"1234") -> Callable[[Path], None]:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return lambda path: replace(path, "learner.safetensors", len(header).to_bytes(8, "little") + header + data)


ATTACKS = {
    "a file above it": (name_a_file("../../secret.json"), "is not a checkpoint file"),
    "an absolute path": (name_a_file("{root}/secret.json"), "is not a checkpoint file"),
    "a path within": (name_a_file("./learner.json"), "is not a checkpoint file"),
    "the manifest as a part": (name_a_file("manifest.json"), "is not a checkpoint file"),
    "a linked file": (link_a_file, "damaged"),
    "a linked folder": (link_itself, "is a link"),
    "a pipe": (put_a_pipe, "not a regular file"),
    "a pipe for a manifest": (pipe_the_manifest, "not a regular file"),
    "a manifest without end": (grow("manifest.json", 1 << 40), "the limit is 1048576"),
    "a file larger than memory": (grow("learner.safetensors", 1 << 43), "larger than this machine's memory"),
    "a tree larger than a tree can be": (grow("learner.json", (1 << 28) + 1), "the limit is 268435456"),
    "a size below nothing": (say_size(-1), "is not a number of bytes"),
    "an infinite size": (say_size(float("1e999")), "Infinity is not a JSON value"),
    "a size in words": (say_size("many"), "is not a number of bytes"),
    "a deep tree": (write_tree(b"[" * 100_000 + b"]" * 100_000), "RecursionError"),
    "a deep tree of tuples": (write_tree(b'{"$tuple":[' * 50_000 + b"]}" * 50_000), "RecursionError"),
    "a number of a million digits": (write_tree(b"1" * 1_000_000), "ValueError"),
    "not a number": (write_tree(b"NaN"), "NaN is not a JSON value"),
    "a tensor that is not there": (write_tree(b'{"$tensor": "absent"}'), "KeyError"),
    "a tensor named by a list": (write_tree(b'{"$tensor": []}'), "TypeError"),
    "a dict with lists for keys": (write_tree(b'{"$dict": [[[], 1]]}'), "TypeError"),
    "a dict of no pairs": (write_tree(b'{"$dict": 7}'), "TypeError"),
    "bytes that are no text": (write_tree(b"\xff\xfe\x00"), "damaged"),
    "a tensor bomb": (write_tensor("F32", [1 << 40], [0, 1 << 42], b""), "damaged"),
    "a tensor of overflowing shape": (write_tensor("F32", [1 << 62, 1 << 62], [0, 4]), "damaged"),
    "a tensor beside its file": (write_tensor("U8", [4], [4, 8]), "damaged"),
    "another step's": (update_manifest(step=7), "of step 7"),
    "a manifest of lists": (update_manifest(files=[]), "lists no files"),
    "an entry of no kind": (update_manifest(files={"learner.json": 3}), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_checkpoint_is_refused_in_one_line_and_the_one_before_it_used(
    checkpoint: Path, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = ATTACKS[attack]
    make(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint)
    assert reason in str(caught.value)
    assert "step_2" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
    assert load_latest(checkpoint.parent)["learner"]["step"] == 1
    assert "trying the one before it" in caplog.text


def test_the_attacks_start_from_a_checkpoint_that_is_read(checkpoint: Path) -> None:
    replace(checkpoint, "learner.json", b'{"step": 3}')  # vouched for by its manifest
    assert load_checkpoint(checkpoint) == {"learner": {"step": 3}}


@pytest.mark.parametrize(
    "name", ["../elsewhere/step_9", "{root}/elsewhere/step_9", "..", "", "step_9/../../elsewhere/step_9", "x" * 1000]
)
def test_latest_names_nothing_outside_its_directory(checkpoint: Path, name: str) -> None:
    save_checkpoint(checkpoint.parent.parent / "elsewhere", 9, state_of(9), keep=1)
    (checkpoint.parent / "latest").write_text(name.replace("{root}", str(checkpoint.parent.parent)))
    assert load_latest(checkpoint.parent)["learner"]["step"] == 2


def test_latest_may_be_a_pipe_or_a_link_and_nothing_waits_for_it(checkpoint: Path) -> None:
    latest = checkpoint.parent / "latest"
    latest.unlink()
    os.mkfifo(latest)
    assert load_latest(checkpoint.parent)["learner"]["step"] == 2
    latest.unlink()
    (checkpoint.parent.parent / "elsewhere").write_text("step_1")
    latest.symlink_to(checkpoint.parent.parent / "elsewhere")
    assert load_latest(checkpoint.parent)["learner"]["step"] == 2


def test_a_checkpoint_that_lacks_a_part_is_passed_over(checkpoint: Path) -> None:
    save_checkpoint(checkpoint.parent, 3, {"other": 1}, keep=3)
    assert load_latest(checkpoint.parent, parts=("learner",))["learner"]["step"] == 2
    with pytest.raises(CheckpointError, match="lacks stream, loop"):
        load_latest(checkpoint.parent, parts=("learner", "stream", "loop"))


def test_what_another_version_wrote_is_put_aside_not_deleted_when_the_run_goes_on_before_it(checkpoint: Path) -> None:
    edit_manifest(checkpoint, lambda manifest: manifest.update(version=99))
    weights = (checkpoint / "learner.safetensors").read_bytes()
    save_checkpoint(checkpoint.parent, 1, state_of(1), keep=1)
    save_checkpoint(checkpoint.parent, 2, state_of(2), keep=1)
    assert load_latest(checkpoint.parent)["learner"]["step"] == 2
    assert (checkpoint.parent / "set-aside-step_2" / "learner.safetensors").read_bytes() == weights


def test_a_save_that_could_not_be_read_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.checkpoint_format.MAX_TREE_BYTES", 100)
    with pytest.raises(TypeError, match="use arrays"):
        save_checkpoint(tmp_path, 1, {"learner": {"text": "x" * 200}}, keep=1)


def test_the_directories_that_lead_to_the_first_checkpoint_are_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), real(number))[1]
    )
    path = save_checkpoint(tmp_path / "run" / "checkpoints", 1, state_of(1), keep=1)
    order = [synced.index(str(folder)) for folder in (tmp_path, path.parent)]
    assert order == sorted(order)
    assert str(tmp_path / "run") in synced
    latest = synced.index(str(path.parent / ".saving-latest"))
    assert str(path.parent) in synced[:latest], "the checkpoint has its name before `latest` names it"
    assert synced[-1] == str(path.parent)
