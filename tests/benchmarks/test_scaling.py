"""Points of the scaling benchmark are runs that can be started, shared ones once; its tables and figure come from its
report."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.checks import ConfigError
from tests.benchmarks import scaling
from tests.benchmarks.caption_costs import caption_costs
from tests.benchmarks.scaling import PARTS, main, points, run, summarise
from tests.benchmarks.scaling_figures import draw, markdown
from tests.benchmarks.sleeping_environment import EPISODE_STEPS, Sleeping
from tests.benchmarks.whole_run import Window, configuration


def window(settings: Any, **options: Any) -> Window:
    """Twice the workers, twice the frames."""
    rate = 500.0 * configuration(settings).actors.num_workers
    return Window(
        frames_per_s=rate, seconds=20.0, cpu_us_per_frame={"worker": 40.0, "learner": 30.0, "ray": 2.0}, last_line={}
    )


def test_only_what_a_part_is_about_differs_from_the_working_point() -> None:
    for point in points([part for part in PARTS if part != "workers"], 2.0, []):
        config = configuration(point.settings)
        got = {
            "environments": config.actors.envs_per_worker,
            "rollout steps": config.actors.rollout_steps,
            "rollouts per batch": config.learner.rollouts_per_batch,
        }
        assert got == {"environments": 64, "rollout steps": 32, "rollouts per batch": 2} | {point.part: point.value}


def test_every_worker_gives_one_rollout_to_each_batch() -> None:
    for point in points(["workers"], 3.0, ["seed=7"]):
        config = configuration(point.settings)
        assert config.actors.num_workers == config.learner.rollouts_per_batch == point.value
        assert (config.env.options, config.seed) == ({"step_s": 0.003}, 7)
    with pytest.raises(ConfigError, match="sead"):
        points(["workers"], 3.0, ["sead=7"])


def test_points_that_parts_share_are_run_once_per_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(scaling, "measure", lambda settings, **options: runs.append(settings) or window(settings))
    wanted = points(list(PARTS), 2.0, [])
    windows = run(wanted, seconds=1.0, warmup_s=1.0, repetitions=2)
    shared = 2  # 64 environments, 32 steps and 2 rollouts per batch are the same run
    assert len(runs) == 2 * (sum(map(len, PARTS.values())) - shared)
    assert runs[: len(windows)] == runs[: len(windows) - 1 : -1], "the second time in reversed order"


def test_tables_and_figure_show_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = points(["workers", "environments"], 2.0, [])
    windows = {point.settings: [window(point.settings)] * 2 for point in wanted}
    tables = [
        {"captions": n, "look_up_us": 300.0, "relabel_us_per_frame": 0.1, "build_ms": 1.5} for n in (1000, 1_000_000)
    ]
    result = summarise(wanted, windows, tables, {})
    assert (result["ratio"], result["ratio_of"]) == (16.0, ["workers 16", "workers 1"])
    text = markdown(result)
    assert "| 16 | 8,192 | 8,000 | 40.0 | 30.0 | 0.0 | 2.0 |" in text
    result["points"][0]["frames_per_s_spread"] = [400.0, 600.0]
    assert "| 1 | 512 | 500 (400 to 600) |" in markdown(result)
    assert "| 1,000,000 | 300 | 0.100 | 1.5 |" in text
    draw(result, tmp_path / "all.png")
    draw(summarise(wanted[:2], windows, [], {}), tmp_path / "runs.svg")
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_captions_alone_need_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "CAPTIONS", (100, 2000))
    monkeypatch.setattr(scaling, "CAPTION_REPETITIONS", 2)
    assert main(["--parts", "captions", "--figure", str(tmp_path / "captions.png")]) == 0
    assert "| 2,000 |" in capsys.readouterr().out
    assert (tmp_path / "captions.png").exists()


def test_costs_of_captions_are_of_tables_of_that_size() -> None:
    small, large = caption_costs([10, 300_000], 3)
    assert (small["captions"], large["captions"]) == (10, 300_000)
    assert large["build_ms"] > 10 * small["build_ms"]
    assert all(len(values) == 3 for values in large["repetitions"].values())


def test_the_sleeping_environment_sleeps_and_its_episodes_end() -> None:
    env = Sleeping(step_s=0.01)
    env.reset(seed=0)
    started = time.perf_counter()
    obs, reward, *_ = env.step(1)
    assert time.perf_counter() - started >= 0.01
    assert (reward, obs.dtype) == (1.0, np.float32)
    env.step_s = 0.0
    assert [env.step(0)[2] for _ in range(EPISODE_STEPS - 1)] == [False] * (EPISODE_STEPS - 2) + [True]
