import dataclasses
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run.directory import RunDirectory, find_run, open_run, record_provenance, write_atomically
from configs.checks import ConfigError
from configs.loading import load_config, with_values
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(preset="debug", overrides=[f"run_dir={tmp_path / 'run'}"])


def pretend_checkpoint(directory: Path) -> None:
    (directory / "step_1").mkdir(parents=True)


def test_every_start_is_a_new_epoch(config: RunConfig) -> None:
    for expected in (1, 2, 3):
        run, run_epoch = open_run(config)
        run.release()
        assert run_epoch == expected


def test_a_second_process_is_refused_and_told_who_holds_the_run(config: RunConfig) -> None:
    run, _ = open_run(config)
    code = (
        "import sys; from configs.loading import load_config; from cluster.run.directory import open_run\n"
        "open_run(load_config(preset='debug', overrides=['run_dir=' + sys.argv[1]]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, config.run_dir], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    run.release()
    assert result.returncode != 0
    assert "in use by process" in result.stderr
    assert (run.path / "run_epoch").read_text() == "1\n"


def test_another_experiment_is_refused_with_a_diff_and_nothing_is_changed(config: RunConfig) -> None:
    run, _ = open_run(config)
    run.release()
    pretend_checkpoint(run.checkpoints)
    before = (Path(config.run_dir) / "config.json").read_text()
    changed = dataclasses.replace(
        config, learner=dataclasses.replace(config.learner, learning_rate=0.5), total_env_steps=99
    )
    with pytest.raises(ConfigError, match=r"learner.learning_rate: 0.0005 -> 0.5"):
        open_run(changed)
    assert (Path(config.run_dir) / "config.json").read_text() == before
    longer = dataclasses.replace(config, total_env_steps=99)
    open_run(longer)[0].release()


def test_before_the_first_checkpoint_any_settings_will_do_and_captions_met_with_others_are_put_aside(
    config: RunConfig,
) -> None:
    run, epoch = open_run(config, "abc")
    record_provenance(run, epoch, "abc")
    run.release()
    run.captions.write_bytes(b"first")
    run.trackers.write_text("{}")
    Path(f"{run.captions}-wal").write_bytes(b"log")
    (run.checkpoints / ".saving-step_9").mkdir(parents=True)
    open_run(config, "xyz")[0].release()
    assert run.captions.read_bytes() == b"first", "the same settings: the same captions"
    assert run.trackers.exists(), "and the same tracked run"
    changed = dataclasses.replace(config, learner=dataclasses.replace(config.learner, gamma=0.5), seed=7)
    for content in (b"second", b"third"):
        open_run(changed)[0].release()
        assert not list(run.path.glob("captions.sqlite*"))
        assert not run.trackers.exists()
        run.captions.write_bytes(content)
        changed = dataclasses.replace(changed, seed=changed.seed + 1)
    assert [(path.name, path.read_bytes()) for path in run.path.glob("captions.superseded*")] == [
        ("captions.superseded.sqlite", b"second")
    ]


def test_a_reward_model_trained_before_the_policy_stays_with_what_decides_it(config: RunConfig) -> None:
    run, _ = open_run(config)
    run.release()
    pretend_checkpoint(run.reward_model)
    open_run(dataclasses.replace(config, learner=dataclasses.replace(config.learner, gamma=0.5)))[0].release()
    with pytest.raises(ConfigError, match=r"another configuration: reward_model\.batch_size: 64 -> 9\."):
        open_run(dataclasses.replace(config, reward_model=dataclasses.replace(config.reward_model, batch_size=9)))


def test_lines_beyond_the_checkpoint_are_moved_not_lost(config: RunConfig) -> None:
    run, _ = open_run(config)
    lines = [json.dumps({"env_steps": n}) for n in (10, 20, 30)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"env_st')
    assert run.supersede_metrics(20) == 2
    assert (run.path / "metrics.jsonl").read_text().splitlines() == lines[:2]
    assert (run.path / "metrics.superseded.jsonl").read_text().splitlines() == [lines[2], '{"env_st']
    run.release()


def test_a_missing_run_is_explained_with_what_is_nearby(config: RunConfig) -> None:
    open_run(config)[0].release()
    with pytest.raises(ConfigError, match=r"there are: .*run"):
        find_run(str(Path(config.run_dir).parent / "rum"))
    assert find_run(config.run_dir)[1]["env"]["id"] == config.env.id


def test_a_directory_that_cannot_be_made_is_explained(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        open_run(dataclasses.replace(config, run_dir=str(tmp_path / "file" / "run")))


def test_a_rubric_edited_between_two_starts_is_refused_and_the_same_one_is_not(config: RunConfig) -> None:
    run, epoch = open_run(config, "abc")
    record_provenance(run, epoch, None)
    record_provenance(run, epoch, "abc")
    run.release()
    pretend_checkpoint(run.checkpoints)
    with pytest.raises(
        ConfigError, match=r"made by a rubric of hash abc, this one has xyz: .* Undo the edit to continue"
    ):
        open_run(config, "xyz")
    for rubric_hash in ("abc", None):
        again, number = open_run(config, rubric_hash)
        again.release()
    assert number == epoch + 2, "a refused start is none"


def test_the_same_rubric_may_lie_elsewhere_and_another_one_may_not(config: RunConfig) -> None:
    run, epoch = open_run(config, "abc")
    record_provenance(run, epoch, "abc")
    run.release()
    pretend_checkpoint(run.checkpoints)
    moved = dataclasses.replace(config, annotator=dataclasses.replace(config.annotator, rubric="/scratch/mine.yaml"))
    for rubric_hash in ("xyz", None):
        with pytest.raises(ConfigError, match=r'annotator\.rubric: ".*" -> "/scratch/mine\.yaml"'):
            open_run(moved, rubric_hash)
    open_run(moved, "abc")[0].release()
    assert find_run(config.run_dir)[1]["annotator"]["rubric"] == "/scratch/mine.yaml"
    with pytest.raises(ConfigError, match=r"another configuration: seed: 1 -> 2\."):
        open_run(dataclasses.replace(config, seed=2), "abc")


def test_each_terms_rubric_is_held_to_its_own_hash(config: RunConfig) -> None:
    fight = with_values(config, {"terms": {"fight": {"rubric": "mine.yaml"}}})
    run, epoch = open_run(fight, "abc/d fight=efg")
    record_provenance(run, epoch, "abc/d fight=efg")
    run.release()
    pretend_checkpoint(run.checkpoints)
    moved = with_values(fight, {"terms": {"fight": {"rubric": "/scratch/mine.yaml"}}})
    for hashes, said in (
        ("abc/d fight=xyz", r'terms\.fight\.rubric: "mine\.yaml" -> "/scratch/mine\.yaml"'),
        ("xyz fight=efg", r"annotator\.rubric: the labels .* hash abc/d, this one has xyz"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_run(moved, hashes)
    with pytest.raises(ConfigError, match=r"terms\.fight\.rubric: the labels .* hash efg, this one has xyz"):
        open_run(fight, "abc/d fight=xyz")
    open_run(moved, "abc/d fight=efg")[0].release()


def test_items_of_every_term_are_moved_aside_for_another_experiment(config: RunConfig) -> None:
    run, _ = open_run(config)
    run.release()
    names = [run.captions_of(name).name for name in (MAIN_TERM, "fight")]
    for content in ("old", "new"):
        for name in names:
            (run.path / name).write_text(content)
        open_run(dataclasses.replace(config, seed=7 if content == "old" else 8))[0].release()
        kept = {path.name: path.read_text() for path in run.path.glob("captions*")}
        assert kept == {"captions.superseded.sqlite": content, "captions-fight.superseded.sqlite": content}


def test_a_run_that_was_copied_without_its_epoch_goes_on_after_that_of_its_checkpoints(config: RunConfig) -> None:
    run, _ = open_run(config)
    run.release()
    for step, content in ((1, '{"run_epoch": 4}'), (2, '{"run_epoch": 7}'), (3, "{"), (4, "[7]")):
        (run.checkpoints / f"step_{step}").mkdir(parents=True)
        (run.checkpoints / f"step_{step}" / "learner.json").write_text(content)
    (run.path / "run_epoch").unlink()
    for expected in (8, 9):
        run, epoch = open_run(config)
        run.release()
        assert epoch == expected


def test_provenance_grows_by_one_entry_per_start(config: RunConfig) -> None:
    run, epoch = open_run(config)
    record_provenance(run, epoch, "abc")
    record_provenance(run, epoch + 1, "abc")
    starts = json.loads((run.path / "provenance.json").read_text())
    run.release()
    assert [start["run_epoch"] for start in starts] == [1, 2]
    assert starts[0]["packages"]["torch"]
    assert starts[0]["rubric_hash"] == "abc"


def test_another_file_system_is_noticed_by_its_missing_word(config: RunConfig, tmp_path: Path) -> None:
    run, _ = open_run(config)
    nonce = run.write_nonce()
    run.check_nonce(nonce)
    run.release()
    elsewhere = RunDirectory(tmp_path)
    with pytest.raises(RuntimeError, match="all nodes share"):
        elsewhere.check_nonce(nonce)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff", "[" * 100_000, '{"env": 3'])
def test_a_damaged_configuration_is_one_line_that_says_what_to_do(config: RunConfig, content: str) -> None:
    run, _ = open_run(config)
    run.release()
    pretend_checkpoint(run.checkpoints)
    file = run.path / "config.json"
    file.write_bytes(content.encode("latin-1"))
    for enter in (lambda: open_run(config), lambda: find_run(config.run_dir)):
        with pytest.raises(ConfigError, match=r"config\.json is damaged") as caught:
            enter()
        assert "put a copy back" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    file.unlink()
    run, epoch = open_run(config)
    run.release()
    assert epoch == 2, "a refused start is none"


@pytest.mark.parametrize("content", ["", "two", "-1", "\xff", "1\n2"])
def test_a_damaged_epoch_is_one_line_and_never_begins_again(config: RunConfig, content: str) -> None:
    open_run(config)[0].release()
    before = (Path(config.run_dir) / "config.json").read_bytes()
    (Path(config.run_dir) / "run_epoch").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="run_epoch is damaged") as caught:
        open_run(dataclasses.replace(config, total_env_steps=7))
    assert "provenance.json" in str(caught.value)
    assert (Path(config.run_dir) / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1", "\xff"])
def test_a_damaged_provenance_is_kept_aside_and_the_run_starts(config: RunConfig, content: str) -> None:
    run, epoch = open_run(config)
    (run.path / "provenance.json").write_bytes(content.encode("latin-1"))
    record_provenance(run, epoch, None)
    run.release()
    assert len(json.loads((run.path / "provenance.json").read_text())) == 1
    assert (run.path / "provenance.damaged.json").read_bytes() == content.encode("latin-1")


def test_metric_lines_that_are_none_are_moved_too(config: RunConfig) -> None:
    run, _ = open_run(config)
    good = json.dumps({"env_steps": 10})
    (run.path / "metrics.jsonl").write_bytes(f'{good}\n[3]\n{{"env_steps": "many"}}\n'.encode() + b"\xff\x00\n")
    assert run.supersede_metrics(20) == 3
    assert (run.path / "metrics.jsonl").read_text() == f"{good}\n"
    run.release()


def test_what_could_not_be_replaced_stays_and_no_part_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_atomically(file, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
