import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_parts_go_where_the_plan_wants_them_on_a_cluster_that_a_gpu_node_joins_late() -> None:
    command = [sys.executable, "-m", "tests.cluster.small_cluster"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["said"][0].startswith(
        "waiting for 1 x learner (1 CPU, 1 GPU), 2 x replica (0.5 CPU, 0.5 GPU), 0 s; the cluster has 4 CPU and 0 GPU"
    )
    gpu_node, went = seen["gpu_node"], seen["went"]
    assert seen["nodes"] == 3
    assert seen["grows"] is False, "no autoscaler: nodes are started by hand here"
    assert {node for node, _ in went["learner"]} == {gpu_node}
    assert {node for node, _ in went["annotator"]} == {gpu_node}  # near the learner, where there is room
    assert {node for node, _ in went["replica"]} == {gpu_node}
    workers = [node for node, _ in went["worker"]]
    assert gpu_node not in workers
    assert sorted(Counter(workers).values()) == [1, 1]
    assert [gpus for _, gpus in went["worker"] + went["annotator"]] == [""] * 3  # given none, they see none
    assert all(gpus in ("0", "1") for _, gpus in went["learner"] + went["replica"])
    assert [node for node, _ in seen["crowd"]].count(
        gpu_node
    ) == 1  # a wish: where there is no room elsewhere, they go there all the same
