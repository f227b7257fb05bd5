import json

import pytest

from tests.benchmarks import learner


def test_the_learner_benchmark_in_small(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "KNOWN_CAPTIONS", 1000)
    sizes = [
        "--envs",
        "4",
        "--rollout-steps",
        "4",
        "--rollouts",
        "2",
        "--skipped-rollouts",
        "1",
        "--updates",
        "2",
        "--warm-up",
        "1",
    ]
    assert learner.main(["--json", *sizes]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["medians"].keys() == learner.CHANGES.keys()
    assert result["ratio"] == result["medians"]["as used"] / result["medians"]["float32, without re-use"]
    assert result["us_per_frame"]["as used"] == pytest.approx(1e6 / result["medians"]["as used"])
    assert sum(result["stage_shares"].values()) == pytest.approx(1, abs=0.1)
    assert all(0 < fraction <= 1 for fraction in result["distinct_fraction"].values())


def test_an_impossible_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        learner.main(["--envs", "0"])
    assert "--envs: got 0, wanted at least 1" in capsys.readouterr().err
