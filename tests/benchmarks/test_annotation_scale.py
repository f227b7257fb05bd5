import json

import psutil
import pytest

from llm_server.rubrics.loading import load_rubric
from tests.benchmarks import annotation_scale
from tests.benchmarks.label_costs import part_costs
from tests.benchmarks.label_path import SCRIPT, captions, measure
from tests.llm_server.running_service import RunningService


@pytest.mark.slow
def test_the_benchmark_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--parts", "path", "costs", "--labels", "600", "--batches", "32"]
    assert annotation_scale.main(["--json", *sizes]) == 0
    result = json.loads(capsys.readouterr().out)
    ways = {f"batch 32, store {store}" for store in annotation_scale.STORES}
    assert ways < result["medians"].keys()
    assert all(rate > 0 for rate in result["medians"].values())
    assert result["cpu_us_per_label"].keys() == {f"{way}, {side}" for way in ways for side in ("client", "service")}
    assert "tokenisation, 32 texts at a time" in result["costs_us"]


def test_every_caption_goes_the_whole_way_to_one_service_and_to_two() -> None:
    rubric = load_rubric("nethack_progress")
    running = [RunningService(rubric, script=SCRIPT) for _ in range(2)]
    try:
        for number, texts in ((1, captions(500)), (2, captions(500, start=500))):
            addresses = [service.address for service in running[:number]]
            rate = measure(texts, addresses, [psutil.Process()], rubric, batch=32)
            assert 0 < rate.client_us == pytest.approx(rate.service_us, rel=0.5), "of one process here"
        assert all(service.judge.describe().forward_passes > 200 for service in running)
    finally:
        for service in running:
            service.close()


def test_every_part_is_measured() -> None:
    costs = part_costs(captions(2000), load_rubric("nethack_progress"), batch=32)
    assert [part.partition(":")[0] for part in costs].count("store") == 3
    assert all(0 <= cost < 10_000 for cost in costs.values())
    assert costs["service: queue and scripted engine"] > costs["client: request to bytes"]


def test_every_message_of_every_caption_is_another_one() -> None:
    messages = [message for caption in captions(2000) for message in caption.split("  ")]
    assert len(set(messages)) == len(messages)


def test_a_batch_that_no_service_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="--batches: got \\[2000\\], wanted numbers from 1 to 1024"):
        annotation_scale.main(["--batches", "2000"])
