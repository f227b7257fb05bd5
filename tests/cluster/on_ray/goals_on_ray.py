"""A worker and its inference actor on a real Ray that are told of goals; prints what came back as JSON. Run by
test_goal_sheets.py: Ray reads how it is to authenticate when it is first imported, so it has a process of its own."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}

import ray

from actors.goals.entry import GOAL
from actors.rollout import CaptionReport
from cluster.on_ray.driver import start_ray
from cluster.on_ray.placement import Request
from cluster.on_ray.workers import RayWorkers
from cluster.run import temporary
from cluster.wiring import check_parts
from configs.loading import load_config
from learner.update import Learner
from tests.actors.goals.toy_goals import corridor_sheet

SETTINGS = [
    "env.id=tests.toy_environments:Corridor-v0",
    "env.options={length: 6, slip: 0.1}",
    "env.max_episode_steps=11",
    "policy.core_size=8",
    "policy.hidden_size=8",
    "policy.reads_goal=true",
    "goals.sources=[config]",
    "goals.texts=[a, b, c]",
    "reward_model.name=none",
    "cluster.mode=local",
    "actors.inference=central",
    "actors.num_workers=1",
    "actors.rollouts_in_flight=1",
]


def main(run_dir: str) -> None:
    """Rollouts without goals, and with two."""
    config = load_config(preset="debug", overrides=[*SETTINGS, f"run_dir={run_dir}"])
    spec, _, _ = check_parts(config)
    reports: list[CaptionReport] = []
    annotation: Any = SimpleNamespace(
        acknowledgement=lambda worker_id: None, report=lambda reference, *_: reports.append(ray.get(reference))
    )
    request = Request(cpus=0.4, gpus=0, count=1)
    workers = RayWorkers(config, spec, 1, request, annotation, request)
    workers.publish(Learner(spec, config.policy, config.learner, config.reward, run_epoch=1, seed=1).snapshot())

    def take_until(number: int) -> bool:
        """Whether a rollout had goals up to `number` within its time."""
        for _ in range(240):
            rollout = workers.take(1.0)
            if rollout is not None and int(rollout.obs[GOAL].max()) == number:
                return True
        return False

    told = {"without": take_until(0)}
    workers.publish_goals(corridor_sheet([1, 2]))
    told["two"] = take_until(2)
    goals = [report.goals for report in reports]
    told["counted"] = all(each is not None for each in goals) and sum(int(each.attempted.sum()) for each in goals) > 10
    workers.close()
    print(json.dumps(told))


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="dg-", dir="/tmp")  # short: Ray's sockets lie below it
    try:
        temporary.begin(sys.argv[1])
        start_ray(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, _temp_dir=f"{folder}/ray")
        Path(sys.argv[1]).mkdir(exist_ok=True)
        main(sys.argv[1])
    finally:
        ray.shutdown()
        temporary.sweep(sys.argv[1])
        shutil.rmtree(folder, ignore_errors=True)
