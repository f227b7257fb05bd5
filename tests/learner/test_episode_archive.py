"""The episode archive: against a slow assembly from the same rollouts, as a sample, in a resume, and its file."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import learner.episode_archive
from actors.rollout import EpisodeStatistics, Rollout
from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from configs.schema import ArchiveConfig, LearnerConfig
from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.checkpoint_format import CheckpointError
from learner.episode_archive import EpisodeArchive
from learner.episodes import EPISODES_FILE, STEPS, Episode, Episodes, encode_episodes, read_episodes
from learner.update import Learner
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.reward.slow_rewards import FEATURES, played_rollouts
from tests.learner.toy_rollouts import RECALL_SPEC, SMALL_POLICY, random_rollout

OF_STEPS = ("actions", "extrinsic_rewards", "caption", "caption_counts", "state", "state_before", "change")


class SlowArchive:
    """All finished episodes, put together step by step."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.running: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.tainted: set[tuple[str, int]] = set()
        self.finished: dict[bool, list[dict[str, Any]]] = {False: [], True: []}

    def observe(self, rollout: Rollout) -> None:
        signals = {"caption": rollout.caption_ids, "caption_counts": rollout.caption_counts, **rollout.signals}
        signals |= {"actions": rollout.actions, "extrinsic_rewards": rollout.extrinsic_rewards}
        for t in range(len(rollout.actions)):
            for env in range(rollout.actions.shape[1]):
                key = rollout.worker_id.partition(".")[0], env
                steps = self.running.setdefault(key, [])
                steps.append({name: np.copy(array[t, env]) for name, array in signals.items()})
                if env in rollout.lost:
                    self.tainted.add(key)
                if rollout.terminated[t, env] or rollout.truncated[t, env]:
                    if (t, env) in rollout.episode_ends and key not in self.tainted:
                        self._finish(rollout.episodes[rollout.episode_ends.index((t, env))], steps)
                    del self.running[key]
                    self.tainted.discard(key)

    def _finish(self, statistics: EpisodeStatistics, steps: list[dict[str, Any]]) -> None:
        success = statistics.info.get("success", statistics.episode_return) > 0
        self.finished[success].append({"statistics": statistics, "steps": steps[-self.max_steps :]})


def assert_equal(episode: Episode, slow: dict[str, Any]) -> None:
    steps, statistics = slow["steps"], slow["statistics"]
    for name in OF_STEPS:
        np.testing.assert_array_equal(episode.steps[name], [step[name] for step in steps])
    assert episode.features is not None
    np.testing.assert_array_equal(episode.features[:-1], [step["features_before"] for step in steps])
    np.testing.assert_array_equal(episode.features[1:], [step["features"] for step in steps])
    np.testing.assert_array_equal(episode.start, steps[-1]["features_start"])
    assert episode.extrinsic_return == statistics.episode_return
    assert (episode.length, episode.terminated) == (statistics.length, statistics.terminated)


def archive(max_episodes: int = 10_000, seed: int = 1) -> EpisodeArchive:
    return EpisodeArchive(ArchiveConfig(keep=True, max_episodes=max_episodes), FEATURES, (), seed)


def overwritten(rollout: Rollout) -> None:
    """What happens to a rollout's memory once it is consumed."""
    for array in (rollout.actions, rollout.extrinsic_rewards, rollout.caption_ids, *rollout.signals.values()):
        array[...] = 7


@pytest.mark.parametrize(("num_steps", "max_steps"), [(12, 3), (2, 4), (2, 512), (5, 512)])
def test_episodes_are_those_of_a_slow_assembly_over_ends_losses_and_workers(
    num_steps: int, max_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner.episode_archive, "MAX_STEPS", max_steps)
    fast, slow = archive(), SlowArchive(max_steps)
    workers = [played_rollouts(f"{index}.0", 20, seed=index, num_steps=num_steps) for index in range(2)]
    assert any(rollout.lost for rollouts in workers for rollout in rollouts)
    for one, two in zip(*workers, strict=True):
        for rollout in (one, two):
            slow.observe(rollout)
            fast.observe(rollout)
            overwritten(rollout)
    found = fast.episodes
    assert found.seen == (len(slow.finished[False]), len(slow.finished[True]))
    wanted = [*slow.finished[False], *slow.finished[True]]
    for episode, of_slow in zip(found.episodes, wanted, strict=True):
        assert_equal(episode, of_slow)
    successes = [False] * found.seen[0] + [True] * found.seen[1]
    assert found.outcomes("success").tolist() == successes
    kept = [episode.num_kept for episode in found.episodes]
    assert max(kept) > 2 * num_steps if max_steps == 512 and num_steps == 2 else max(kept) >= min(max_steps, 5)


def test_a_resume_in_the_middle_of_episodes_changes_nothing(tmp_path: Path) -> None:
    whole, first = archive(max_episodes=5), archive(max_episodes=5)
    rollouts = played_rollouts("0.0", 40, seed=3, num_steps=3)
    for rollout in rollouts:
        whole.observe(rollout)
    for rollout in rollouts[:20]:
        first.observe(rollout)
    path = save_checkpoint(tmp_path, 1, {"archive": first.state_dict()}, keep=1)
    resumed = archive(max_episodes=5, seed=2)
    resumed.load_state_dict(load_checkpoint(path)["archive"])
    for rollout in rollouts[20:]:
        resumed.observe(rollout)
    assert encode_episodes(resumed.episodes) == encode_episodes(whole.episodes)
    assert sum(whole.episodes.seen) > 3 * len(whole.episodes.episodes)


def test_episodes_whose_beginning_was_not_seen_are_left_out() -> None:
    rollouts = played_rollouts("0.0", 12, seed=5, num_steps=3)
    late, slow = archive(), SlowArchive(512)
    for rollout in rollouts[4:]:
        late.observe(rollout)
    for number, rollout in enumerate(rollouts):
        if number == 4:
            slow.finished = {False: [], True: []}
            slow.tainted |= {("0", env) for env in range(4)}  # one that begins right here looks no different
        slow.observe(rollout)
    assert late.episodes.seen == (len(slow.finished[False]), len(slow.finished[True]))
    assert sum(late.episodes.seen) > 10


def test_a_replaced_workers_running_episodes_are_forgotten() -> None:
    one = archive()
    first = random_rollout(4, 1, terminated=np.zeros((4, 1), bool), truncated=np.zeros((4, 1), bool))
    one.observe(first)
    ended = np.array([[False], [True]])
    done = EpisodeStatistics(episode_return=1.0, length=2, terminated=True, info={})
    second = random_rollout(
        2, 1, terminated=ended, truncated=ended & False, episodes=(done,), episode_ends=((1, 0),), worker_id="0.1"
    )
    one.observe(second)
    (episode,) = one.episodes.episodes
    np.testing.assert_array_equal(episode.steps["actions"], second.actions[:, 0])
    assert episode.features is None


def test_every_episode_has_the_same_chance_to_be_kept() -> None:
    shape, max_episodes, repetitions = (50, 4), 6, 300
    ends = tuple((t, env) for t in range(shape[0]) for env in range(shape[1]))
    chosen = np.zeros(len(ends))
    done = [
        EpisodeStatistics(episode_return=float(number), length=1, terminated=True, info={"success": 1.0})
        for number in range(len(ends))
    ]
    always, never = np.ones(shape, bool), np.zeros(shape, bool)
    rollout = random_rollout(*shape, terminated=always, truncated=never, episodes=tuple(done), episode_ends=ends)
    for seed in range(repetitions):
        one = archive(max_episodes, seed)
        one.observe(rollout)
        numbers = one.episodes.outcomes("extrinsic_return").astype(int)
        assert len(set(numbers.tolist())) == max_episodes
        chosen[numbers] += 1
    quarters = chosen.reshape(4, -1).sum(1)
    expected = repetitions * max_episodes / 4
    assert (np.abs(quarters - expected) < 4 * math.sqrt(expected)).all(), quarters


def test_the_learner_archives_what_it_consumes_and_what_it_drops() -> None:
    config = ArchiveConfig(keep=True, max_episodes=3)
    reward = PublishedReward.of(RewardTable.empty())

    def make(run_epoch: int, config: ArchiveConfig | None) -> Learner:
        schedule = LearnerConfig(epochs=1, minibatches=1)
        return Learner(RECALL_SPEC, SMALL_POLICY, schedule, RewardConfig(), run_epoch=run_epoch, seed=1, archive=config)

    one, alone = make(1, config), EpisodeArchive(config, (), (), seed=1)
    for number, rollout in enumerate(played_rollouts("0.0", 6, seed=1)):
        alone.observe(rollout)
        if number % 3 == 1:
            one.pass_over(rollout, reward)
        else:
            one.step([rollout], reward)
    assert one.archive is not None
    assert encode_episodes(one.archive.episodes) == encode_episodes(alone.episodes)
    resumed = make(2, config)
    resumed.load_state_dict(one.state_dict())
    assert resumed.archive is not None
    assert encode_episodes(resumed.archive.episodes) == encode_episodes(alone.episodes)
    for nothing in (None, ArchiveConfig()):
        assert make(1, nothing).archive is None
        assert "archive" not in make(1, nothing).state_dict()


def make_learner(names: tuple[str, ...], actions: tuple[str, ...] = (), *, run_epoch: int = 1, **kept: Any) -> Learner:
    spec = dataclasses.replace(RECALL_SPEC, features=names, action_names=actions)
    return Learner(spec, SMALL_POLICY, LearnerConfig(), RewardConfig(), run_epoch=run_epoch, seed=1, **kept)


OF_PROGRAM = {"terms": {MAIN_TERM: TermConfig(), "up": TermConfig(reads="features", program="after.p - before.p")}}


@pytest.mark.parametrize("kept", [{"archive": ArchiveConfig(keep=True)}, OF_PROGRAM], ids=["archive", "program"])
def test_a_resume_with_other_names_of_features_or_actions_is_refused(kept: dict[str, Any], tmp_path: Path) -> None:
    state = make_learner(("p", "v"), ("left", "right"), **kept).state_dict()
    state = load_checkpoint(save_checkpoint(tmp_path, 1, {"learner": state}, keep=1))["learner"]
    make_learner(("p", "v"), ("left", "right"), run_epoch=2, **kept).load_state_dict(state)
    for names, actions, words in (
        (("a", "p"), ("left", "right"), "env.features gave a, p; the checkpoint has p, v: "),
        (("v", "p"), ("left", "right"), "env.features gave v, p; the checkpoint has p, v: "),
        (("p", "v"), ("left", "jump"), "the actions left, jump; the checkpoint has left, right: "),
        (("p", "v"), (), "the actions none; the checkpoint has left, right: "),
    ):
        with pytest.raises(CheckpointError, match=words) as refused:
            make_learner(names, actions, run_epoch=2, **kept).load_state_dict(state)
        assert "take a new run_dir" in str(refused.value)
        assert "\n" not in str(refused.value)
    del state["names"]  # of a checkpoint from before
    make_learner(("a", "p"), run_epoch=2, **kept).load_state_dict(state)


def test_names_are_saved_only_where_programs_or_the_archive_need_them() -> None:
    judged = {"terms": {MAIN_TERM: TermConfig(), "state": TermConfig(reads="state")}}
    for kept in ({}, {"archive": ArchiveConfig()}, judged):
        assert "names" not in make_learner(("p", "v"), **kept).state_dict()


def test_a_file_with_other_arrays_than_an_archive_writes_is_refused_in_one_line(tmp_path: Path) -> None:
    one = archive()
    for rollout in played_rollouts("0.0", 5, seed=1):
        one.observe(rollout)
    arrays = safetensors.numpy.load(encode_episodes(one.episodes))
    others: list[tuple[str, dict[str, np.ndarray]]] = []
    for name, array in arrays.items():
        if name.removeprefix("steps.") in STEPS or "steps." not in name:
            others.append((name, {each: of for each, of in arrays.items() if each != name}))
        others.append((f"{name}: got int8", {**arrays, name: np.zeros(array.shape, np.int8)}))
        others.append((f"{name}: got {array.dtype}", {**arrays, name: array[..., None]}))
    for name in ("features", "start"):
        others.append((f"{name}: got float32", {**arrays, name: arrays[name][:, :1].copy()}))
    assert len(others) > 30
    for words, changed in others:
        names = json.dumps({"version": 1, "features": FEATURES, "actions": []})
        (tmp_path / EPISODES_FILE).write_bytes(safetensors.numpy.save(changed, {"delphi-episodes": names}))
        with pytest.raises(ValueError, match="is damaged") as refused:
            read_episodes(tmp_path)
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
    (tmp_path / EPISODES_FILE).write_bytes(encode_episodes(dataclasses.replace(one.episodes, features=())))
    with pytest.raises(ValueError, match=r"features: got float32 of shape .* wanted float32 with 0 columns"):
        read_episodes(tmp_path)


def test_a_file_is_read_as_it_was_written_or_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no episodes\.safetensors: train a new run with archive\.keep=true"):
        read_episodes(tmp_path)
    one = archive()
    for rollout in played_rollouts("0.0", 5, seed=1):
        one.observe(rollout)
    written = dataclasses.replace(one.episodes, actions=("left", "right"))
    (tmp_path / EPISODES_FILE).write_bytes(data := encode_episodes(written))
    read = read_episodes(tmp_path)
    assert (read.features, read.actions, read.seen) == (FEATURES, ("left", "right"), written.seen)
    assert encode_episodes(read) == data
    (tmp_path / EPISODES_FILE).write_bytes(encode_episodes(empty := Episodes(episodes=[], seen=(0, 0))))
    assert read_episodes(tmp_path) == empty
    hostile = encode_episodes(dataclasses.replace(written, features=("height", "go\x1b[2Jld")))
    spoken = encode_episodes(dataclasses.replace(written, actions=("left", "\x1b[2J")))
    others = hostile, spoken, data.replace(b'"kept"', b'"left"'), data.replace(b'\\"height\\", ', b"            ")
    for damaged in (data[:-10], data[:4], b"", *others):
        assert damaged != data
        (tmp_path / EPISODES_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged") as refused:
            read_episodes(tmp_path)
        assert "\n" not in str(refused.value)
