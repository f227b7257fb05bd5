import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.minihack_figures import captions_shown, collect, markdown, summarise
from tests.benchmarks.minihack_rewards import ARMS, main

ORDER = ["none", "retrieval", "retrieval_borderline", "permuted_1", "permuted_2"]


def write_run(out: Path, arm: str, seed: int, *, success: float, paid: dict[str, float]) -> None:
    folder = out / "runs" / f"{arm}-{seed}"
    folder.mkdir(parents=True)
    rewarded = [{"text": text, "reward": reward, "probability": 0.5, "count": 7} for text, reward in paid.items()]
    summary = {"env_steps": 200, "episodes_total": 4, "time_s": 1.0, "captions_distinct": 3, "top_rewarded": rewarded}
    (folder / "summary.json").write_text(json.dumps(summary))
    players = {
        name: {"success": {"mean": value}, "length": {"mean": 40.0}}
        for name, value in (("policy", success), ("blind", 0.1), ("random", 0.0))
    }
    (folder / "evaluation.json").write_text(json.dumps({**players, "episodes": 10}))
    curve = [
        {
            "env_steps": steps,
            "episode_success_mean": value,
            "intrinsic_reward_mean": reward,
            "policy_state_information": 0.3,
        }
        for steps, value, reward in ((100, None, 1.0), (180, 0.0, None), (200, success, 0.002))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    with sqlite3.connect(folder / "captions.sqlite") as connection:
        connection.execute("CREATE TABLE captions (text TEXT, probability REAL, count INTEGER)")
        connection.execute("INSERT INTO captions VALUES ('The door opens.', 0.7, 3)")
    connection.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for seed in (1, 2, 10):
        write_run(tmp_path, "retrieval", seed, success=0.9, paid={"The door opens.": 1.0})
        write_run(tmp_path, "retrieval_borderline", seed, success=0.2, paid={"The door opens.": 1.0, "Hm.": 1.0})
        write_run(tmp_path, "permuted_1", seed, success=0.0, paid={"Ouch!": 1.0, "The door opens.": 0.0})
        write_run(tmp_path, "permuted_2", seed, success=1.0, paid={"Wham!": 1.0})
    (tmp_path / "runs" / "none-1").mkdir()  # not finished: no evaluation
    return tmp_path


@pytest.fixture
def results(out: Path) -> dict[str, Any]:
    return summarise(collect(out, ORDER))


def test_only_finished_runs_count_by_arm_and_seed(out: Path, results: dict[str, Any]) -> None:
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [(arm, n) for arm in ORDER[1:] for n in (1, 2, 10)]
    assert captions_shown(out) == {"The door opens.": 36}


def test_a_run_has_its_rates_per_step_and_its_other_players(results: dict[str, Any]) -> None:
    run = results["runs"][0]
    assert run["late_success"] == pytest.approx((0.0 + 0.9) / 2)  # of the lines after step 160
    assert run["goals_per_1000_steps"] == pytest.approx(1000 * 0.9 / 40)
    assert run["intrinsic_per_1000_steps"] == pytest.approx(1.0)
    assert (run["blind_success"], run["random_success"], run["solved_at"]) == (0.1, 0.0, 200)
    assert run["paid"] == {"The door opens.": 7}
    assert results["arms"]["permuted_1"]["solved_at"] == [None, None, None]


def test_permutations_are_strata_of_one_row_and_one_comparison(results: dict[str, Any]) -> None:
    row = results["arms"]["permuted, all"]
    assert row["success"]["values"] == [0.0] * 3 + [1.0] * 3
    assert (row["success"]["value"], row["success"]["low"], row["success"]["high"]) == (0.5, 0.5, 0.5)
    assert set(results["comparisons"]["retrieval"]) == {"retrieval_borderline", "permuted, all"}
    assert results["comparisons"]["retrieval"]["permuted, all"]["improvement"]["value"] == 0.5


def test_p_values_are_corrected_for_one_another(results: dict[str, Any]) -> None:
    versus = results["comparisons"]["retrieval"]
    assert versus["retrieval_borderline"]["p_one_sided"] == pytest.approx(1 / 20)
    assert versus["retrieval_borderline"]["p_holm"] == pytest.approx(2 / 20)


def test_the_table_has_a_line_per_arm_and_per_comparison(results: dict[str, Any]) -> None:
    table = markdown(results)
    assert "| permuted_1 | 0.00 [0.00, 0.00] | 0.00 0.00 0.00 | 0 of 3 |" in table
    assert "| retrieval_borderline | 1.00 [1.00, 1.00] | 0.0500 | 0.1000 |" in table


def test_a_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "retrieval", 1, success=0.9, paid={})
    (tmp_path / "captions.json").write_text(
        json.dumps({"threshold": 0.4, "captions": [["The door opens.", 9, 0.7], ["Hm.", 8, 0.39]]})
    )
    assert main(["--out", str(tmp_path), "--arms", "retrieval", "--seeds", "1", "--jobs", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["arms"]["retrieval"]["seeds"] == [1]
    assert set(results["paid"]) == set(ARMS)
    assert "door" in results["paid"]["retrieval"]
    assert "Hm" not in results["paid"]["retrieval"]
    assert results["judged_later"] == []
    assert (tmp_path / "minihack.png").stat().st_size > 5000
    assert "retrieval" in capsys.readouterr().out
