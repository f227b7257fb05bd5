import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from actors.rollout import EpisodeStatistics, Rollout
from cluster.metrics import CATALOGUE, NAMES, OF_TERMS
from cluster.run import metric_writer
from cluster.run.metric_writer import MetricWriter
from cluster.run.run_metrics import RunMetrics, with_annotation

CORE_NAMES = [
    "env_steps",
    "env_steps_per_s",
    "learner_updates",
    "policy_lag_mean",
    "policy_lag_max",
    "rollouts_dropped_stale",
    "episode_return_extrinsic_mean",
    "episode_length_mean",
    "intrinsic_reward_mean",
    "intrinsic_unknown_fraction",
    "captions_distinct",
    "annotations_total",
    "annotations_per_s",
    "annotations_pending",
    "annotation_age_s",
    "annotations_unparsed",
    "reward_version",
    "reward_model_accuracy",
    "annotator_up",
    "annotations_cached",
    "forward_passes",
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "rho_clipped_fraction",
    "explained_variance",
    "grad_norm",
    "episode_return_intrinsic_mean",
    "episodes_total",
]


def rollout(
    *,
    number: int,
    done: list[list[bool]],
    lengths: dict[tuple[int, int], int] | None = None,
    worker_id: str = "0.1",
    info: dict[str, float] | None = None,
    rewards: float = 0.0,
    lost: tuple[int, ...] = (),
) -> Rollout:
    """Of T steps, all episodes terminated where `done`; their `lengths` by (step, environment), or else each began in
    this rollout."""
    terminated = np.array(done)
    zeros = np.zeros(terminated.shape)
    ends = [(t, i) for t, i in np.argwhere(terminated).tolist() if i not in lost]
    episodes = [
        EpisodeStatistics(episode_return=2.0, length=(lengths or {}).get(end, 1), terminated=True, info=info or {})
        for end in ends
    ]
    fields = dict.fromkeys(("actions", "behaviour_logits", "behaviour_values", "final_values"), zeros)
    fields |= {"caption_ids": zeros, "caption_counts": zeros, "extrinsic_rewards": zeros + rewards}
    return Rollout(
        **fields,
        obs={},
        terminated=terminated,
        truncated=np.zeros_like(terminated),
        core_state={},
        policy_version=(1, 0),
        worker_id=worker_id,
        sequence_number=number,
        episodes=tuple(episodes),
        episode_ends=tuple(ends),
        timings={"env": 0.0, "inference": 0.0, "other": 0.0},
        lost=lost,
    )


def test_the_catalogue_has_every_agreed_name_once() -> None:
    assert len(NAMES) == len(CATALOGUE)
    assert not set(CORE_NAMES) - NAMES


def test_a_line_holds_every_name_and_null_for_what_is_not_defined(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, tensorboard=True, run_name="x")
    writer.write({"env_steps": 5, "entropy": math.nan})
    with pytest.raises(KeyError, match="entrpy"):
        writer.write({"env_steps": 5, "entrpy": 1.0})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert set(values) == NAMES
    assert values["env_steps"] == 5
    assert values["entropy"] is None
    assert list((tmp_path / "tensorboard").iterdir())


def test_intrinsic_returns_run_over_rollout_borders_and_end_with_the_episode() -> None:
    metrics = RunMetrics(episode_window=10)
    first = rollout(number=0, done=[[False, False], [False, True]], lengths={(1, 1): 2})
    metrics.add_rollout(first, np.array([[1.0, 10.0], [2.0, 20.0]]))
    metrics.add_rollout(
        rollout(number=1, done=[[False, False], [True, False]], lengths={(1, 0): 4}),
        np.array([[4.0, 40.0], [0.0, 0.0]]),
    )
    line = metrics.take_line()
    assert line["episode_return_intrinsic_mean"] == np.mean([30.0, 7.0])
    assert (line["episodes_total"], line["episode_return_extrinsic_mean"], line["episode_length_mean"]) == (2, 2.0, 3.0)


def test_success_is_counted_only_over_episodes_of_a_task_that_has_a_goal() -> None:
    metrics = RunMetrics(episode_window=3)
    metrics.add_rollout(rollout(number=0, done=[[True]]), np.zeros((1, 1)))
    assert "episode_success_mean" not in metrics.take_line()
    for number, success in enumerate([1.0, 1.0, 0.0, 0.0], start=1):
        metrics.add_rollout(rollout(number=number, done=[[True]], info={"success": success}), np.zeros((1, 1)))
    assert metrics.take_line()["episode_success_mean"] == pytest.approx(1 / 3)


def test_metrics_of_an_episodes_end_are_averaged_where_the_catalogue_knows_them() -> None:
    metrics = RunMetrics(episode_window=2)
    for number, (kills, length) in enumerate([(9.0, 1), (2.0, 1), (3.0, 4)]):
        done = [[False], [False], [False], [True]]
        lengths = {(3, 0): length}
        info = {"kills": kills, "gold": 10.0, "wind": 1.0}
        metrics.add_rollout(rollout(number=number, done=done, lengths=lengths, info=info), np.zeros((4, 1)))
    line = metrics.take_line()
    assert (line["episode_kills_mean"], line["episode_gold_mean"]) == (2.5, 10.0)
    assert line["kills_per_1000_steps"] == 1000 * (2 + 3) / (1 + 4), "each step weighs alike, not each episode"
    assert not [name for name in line if name not in NAMES]


def test_rewards_per_1000_steps_are_of_all_steps_of_the_interval_but_lost_ones() -> None:
    metrics = RunMetrics(episode_window=2)
    running = [[False, False], [False, False]]
    metrics.add_rollout(rollout(number=0, done=running, rewards=0.5), np.full((2, 2), 0.25))
    metrics.add_rollout(rollout(number=1, done=running, rewards=1.5, lost=(1,)), np.array([[0.5, 99.0], [0.5, 99.0]]))
    saved = json.loads(json.dumps(metrics.state_dict() | {"window": RunMetrics(2).state_dict()["window"]}))
    line = metrics.take_line()
    assert line["reward_extrinsic_per_1000_steps"] == 1000 * (4 * 0.5 + 2 * 1.5) / 6
    assert line["reward_intrinsic_per_1000_steps"] == 1000 * (4 * 0.25 + 2 * 0.5) / 6
    assert "episode_return_extrinsic_mean" not in line, "no episode has ended"
    metrics.add_rollout(rollout(number=2, done=running, rewards=3.0), np.zeros((2, 2)))
    assert metrics.take_line()["reward_extrinsic_per_1000_steps"] == 3000, "a new interval"
    restored = RunMetrics(episode_window=2)
    restored.load_state_dict(saved)
    assert restored.take_line() == line


class FakeGauge:
    """Stands in for Ray's gauge; keeps value and label `undefined` of what it was set to, by name."""

    values: ClassVar[dict[str, list[tuple]]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert tag_keys == (("run", "term", "undefined") if "_term_" in name else ("run", "undefined"))
        self._values = self.values.setdefault(name, [])
        self._values.clear()

    def set_default_tags(self, tags: dict[str, str]) -> "FakeGauge":
        assert tags == {"run": "x"}
        return self

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._values.append((value, tags["undefined"], *filter(None, [tags.get("term")])))


def test_ray_gets_every_metric_again_and_again_because_it_forgets_what_is_set_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", FakeGauge)
    monkeypatch.setattr(metric_writer, "REPEAT_S", 0.01)

    def wait_for(reached: Callable[[list[tuple[float, str]]], bool]) -> None:
        deadline = time.monotonic() + 120
        while not all(map(reached, FakeGauge.values.values())):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    gauges = metric_writer.RayGauges("x")
    of_terms = {f"delphi_{metric.name}": FakeGauge.values.pop(f"delphi_{metric.name}") for metric in OF_TERMS}
    assert FakeGauge.values.keys() == {f"delphi_{name}" for name in NAMES}
    wait_for(lambda values: len(values) > 3)
    assert {entry for values in FakeGauge.values.values() for entry in values} == {(0, "yes")}, (
        "not defined, and yet there"
    )
    assert not any(of_terms.values()), "with one term there is nothing to say of each"
    line = dict.fromkeys(NAMES, 2) | {"entropy": None}
    gauges.show(line | {"terms": {"main": {"mean": 0.5, "labels": None}, "fight": {"mean": 0.25}}})
    wait_for(lambda values: values[-3:] == [(2, "")] * 3 or values is FakeGauge.values["delphi_entropy"])
    assert set(of_terms["delphi_term_mean"]) == {(0.5, "", "main"), (0.25, "", "fight")}
    assert set(of_terms["delphi_term_labels"]) == {(0, "yes", "main"), (0, "yes", "fight")}
    gauges.close()
    counts = {name: len(values) for name, values in FakeGauge.values.items()}
    time.sleep(0.05)
    assert counts == {name: len(values) for name, values in FakeGauge.values.items()}, (
        "a closed run leaves the endpoint"
    )
    assert set(FakeGauge.values["delphi_entropy"]) == {(0, "yes")}


def test_means_cover_the_interval_and_only_updates_that_defined_them() -> None:
    metrics = RunMetrics(episode_window=10)
    metrics.add_update({"entropy": 1.0, "approx_kl": 4.0}, lags=[0, 3], terms={})
    metrics.add_update({"entropy": 3.0}, lags=[1], terms={})
    saved = metrics.state_dict()
    line = metrics.take_line()
    assert (line["entropy"], line["approx_kl"], line["policy_lag_mean"], line["policy_lag_max"]) == (2.0, 4.0, 1.25, 3)
    assert "entropy" not in metrics.take_line()
    restored = RunMetrics(episode_window=10)
    restored.load_state_dict(json.loads(json.dumps(saved)))
    assert restored.take_line() == line


def of_term(mean: float, trust: float = 1.0, version: int = 1) -> dict[str, float]:
    return {"mean": mean, "share": mean, "unknown": 0.5, "trust": trust, "coefficient": 0.1, "version": version}


def test_terms_have_means_of_what_they_paid_and_the_newest_of_what_is_a_state() -> None:
    metrics = RunMetrics(episode_window=10)
    metrics.add_update({}, lags=[0], terms={"main": of_term(0.25), "fight": of_term(0.5, trust=0.5)})
    metrics.add_update({}, lags=[0], terms={"main": of_term(0.75, version=7), "fight": of_term(1.0, trust=0.125)})
    restored = RunMetrics(episode_window=10)
    restored.load_state_dict(json.loads(json.dumps(metrics.state_dict())))
    line = metrics.take_line()
    assert line["terms"] == {"main": of_term(0.5, version=7), "fight": of_term(0.75, trust=0.125)}
    assert line["reward_trust_min"] == 0.125
    for term in line["terms"].values():
        del term["version"]  # of the run epoch, and so not saved
    assert restored.take_line() == line
    metrics.add_update({}, lags=[0], terms={"main": of_term(1.0), "fight": of_term(2.0)})
    assert metrics.take_line()["terms"] == {"main": of_term(1.0), "fight": of_term(2.0)}, "a new interval"


def test_with_one_term_a_line_is_flat() -> None:
    metrics = RunMetrics(episode_window=10)
    metrics.add_update({}, lags=[0], terms={"main": of_term(0.25)})
    assert "terms" not in metrics.take_line()


def test_what_is_known_of_a_terms_annotation_joins_what_it_paid() -> None:
    line = with_annotation({"entropy": 1.0, "terms": {"main": {"mean": 1.0}}}, {"captions_distinct": 3})
    assert line == {"entropy": 1.0, "captions_distinct": 3, "terms": {"main": {"mean": 1.0}}}
    joined = with_annotation(line, {"terms": {"main": {"labels": 2}, "fight": {"labels": 0}}})
    assert joined["terms"] == {"main": {"mean": 1.0, "labels": 2}, "fight": {"labels": 0}}


def test_a_line_of_several_terms_is_nested_and_tensorboard_has_its_numbers_by_path(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricWriter(tmp_path, tensorboard=True, run_name="x")
    terms = {"fight": {"mean": 0.5, "share": math.nan, "labels": 3, "problem": "no judge"}}
    written = writer.write({"env_steps": 5, "terms": terms})
    assert "terms" not in writer.write({"env_steps": 6})
    writer.close()
    assert written["terms"] == {"fight": {"mean": 0.5, "share": None, "labels": 3, "problem": "no judge"}}
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["terms"] == written["terms"]
    assert second.keys() == NAMES
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert [tag for tag in tags if tag.startswith("terms")] == ["terms/fight/mean", "terms/fight/labels"]
