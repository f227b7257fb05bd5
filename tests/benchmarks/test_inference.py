import json

import pytest

from tests.benchmarks import inference


def test_the_inference_benchmark_in_small(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference.shutil, "which", lambda name: None)
    assert (
        inference.main(
            ["--json", "--batches", "4", "8", "--repetitions", "2", "--rollout-steps", "4", "--skipped-steps", "3"]
        )
        == 0
    )
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    ways = (inference.FLOAT32, inference.BF16, inference.REUSE)
    assert result["medians"].keys() == {f"{way}, batch {batch}" for way in ways for batch in (4, 8)}
    assert result["ratio_of"] == ["bf16, repeats encoded once, batch 8", "bf16, batch 8"]
    assert result["ratio"] == result["medians"][result["ratio_of"][0]] / result["medians"][result["ratio_of"][1]]
    assert all(0 < fraction < 1 for fraction in result["distinct_fraction"].values())
    assert printed.err.count("compiled way is left out") == 1


def test_an_impossible_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.main(["--batches", "0"])
    assert "--batches: got 0, wanted at least 1" in capsys.readouterr().err
