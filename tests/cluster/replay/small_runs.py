"""Runs for replays: a configuration and a checkpoint with an untrained policy, without the training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.captions import caption_id
from actors.environments.factory import make_environment
from actors.policy import PolicyNet, snapshot
from configs.loading import load_config, to_dict
from learner.checkpoint import save_checkpoint
from llm_server.annotator.caption_archive import CaptionArchive

NETHACK = ("env.id=NetHackScore-v0", "env.max_episode_steps=30")
CORRIDOR = ("env.id=tests.toy_environments:Corridor-v0", "env.options={length: 5}", "env.max_episode_steps=12")
SMALL = ("policy.core=none", "policy.hidden_size=16", "policy.head_gain=1.0", "logging.console=quiet")


def make_run(path: Path, *settings: str, rewards: dict[str, float] | None = None, env_steps: int = 10) -> str:
    """A run directory; `rewards`: caption -> R in its reward table, which is also the judge's probability."""
    config = load_config(preset="debug", overrides=[f"run_dir={path}", *SMALL, *settings])
    torch.manual_seed(0)
    env = make_environment(config.env, num_envs=1, run_seed=0, worker_index=0, policy=config.policy)
    weights = snapshot(PolicyNet(env.spec, config.policy), (1, 0)).weights
    env.close()
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(to_dict(config)))
    annotation: dict[str, Any] = {}
    if rewards is not None:
        ids = np.array([caption_id(text) for text in rewards], np.uint64)
        values = np.array([*rewards.values()], np.float32)
        annotation = {"trainer": {"ids": ids, "rewards": values, "goals": None}}
        archive = CaptionArchive(path / "captions.sqlite")
        archive.write((caption_id(text), text, 1, 0, 0, value, 1.0, "OK") for text, value in rewards.items())
        archive.close()
    state = {"learner": {"weights": weights}, "loop": {"env_steps": env_steps}, "annotation": annotation}
    save_checkpoint(path / "checkpoints", env_steps, state, keep=1)
    return str(path)
