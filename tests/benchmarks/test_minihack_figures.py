import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.minihack_figures import collect, compare, interval, markdown, summarise
from tests.benchmarks.minihack_rewards import ARMS, main


def write_run(out: Path, arm: str, seed: int, *, success: float, paid: dict[str, float]) -> None:
    folder = out / "runs" / f"{arm}-{seed}"
    folder.mkdir(parents=True)
    rewarded = [{"text": text, "reward": reward, "probability": 0.5, "count": 7} for text, reward in paid.items()]
    summary = {"env_steps": 200, "episodes_total": 4, "time_s": 1.0, "captions_distinct": 3, "top_rewarded": rewarded}
    (folder / "summary.json").write_text(json.dumps(summary))
    figures = {"success": {"mean": success}, "length": {"mean": 9.0}}
    (folder / "evaluation.json").write_text(json.dumps({"policy": figures, "random": figures, "episodes": 10}))
    curve = [{"env_steps": steps, "episode_success_mean": value} for steps, value in ((100, None), (150, 0.0), (200, success))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    with sqlite3.connect(folder / "captions.sqlite") as connection:
        connection.execute("CREATE TABLE captions (text TEXT, probability REAL, count INTEGER)")
        connection.execute("INSERT INTO captions VALUES ('The door opens.', 0.7, 3)")
    connection.close()


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    for seed in (1, 2, 10):
        write_run(tmp_path, "retrieval", seed, success=0.9, paid={"The door opens.": 1.0})
        write_run(tmp_path, "permuted", seed, success=0.0, paid={"Ouch!": 1.0, "The door opens.": float(seed == 2)})
    (tmp_path / "runs" / "none-1").mkdir()  # not finished: no evaluation
    return summarise(collect(tmp_path, list(ARMS)))


def test_only_finished_runs_count_by_arm_and_seed(results: dict[str, Any]) -> None:
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [(arm, n) for arm in ("retrieval", "permuted") for n in (1, 2, 10)]
    assert results["arms"]["retrieval"]["solved"] == 3
    assert results["arms"]["permuted"]["solved_at"] == [None, None, None]
    assert results["runs"][0]["late_success"] == 0.9
    assert "| permuted | 0.00 [0.00, 0.00] | 0.00 0.00 0.00 | 0 of 3 |" in markdown(results)


def test_the_control_says_which_captions_kept_the_judges_reward(results: dict[str, Any]) -> None:
    assert [run["kept"] for run in results["control"]] == [[], ["The door opens."], []]


def test_five_against_five_runs_that_do_not_overlap_have_the_least_p() -> None:
    comparison = compare([0.9, 0.8, 1.0, 0.7, 0.9], [0.0, 0.1, 0.2, 0.0, 0.6])
    assert comparison["p_one_sided"] == pytest.approx(1 / 252)
    assert comparison["difference"] == pytest.approx(0.68)
    assert comparison["low"] < 0.68 < comparison["high"]
    assert compare([0.5, 0.5], [0.5, 0.5])["p_one_sided"] == 1.0


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert {key: interval([0.5] * 5)[key] for key in ("mean", "low", "high", "median")} == dict.fromkeys(
        ("mean", "low", "high", "median"), 0.5
    )


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "retrieval", 1, success=0.9, paid={})
    assert main(["--out", str(tmp_path), "--arms", "retrieval", "--seeds", "1", "--jobs", "1"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["arms"]["retrieval"]["seeds"] == [1]
    assert (tmp_path / "minihack.png").stat().st_size > 5000
    assert "retrieval" in capsys.readouterr().out
