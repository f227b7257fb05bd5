"""A small run of the corridor with a scripted judge, as tests of reports need one: trained in a second or two."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from actors.captions import caption_id
from cluster.launch import launch
from cluster.replay.recording import Moment, Recording
from configs.loading import load_config
from llm_server.annotation import signed_id

HOSTILE = (
    "</script><script>window.taken = 1</script>",
    '"><img src=x onerror="window.taken = 2">',
    "reversed \u202eopposite",
    "a bell \x07 and a line\nbreak",
    "<!-- ${title} $title & ' \"",
)


def trained(run_dir: Path, *overrides: str, steps: int = 8 * 16 * 24) -> Path:
    """The directory of a finished run of so many steps, with a metric line per four updates and two checkpoints."""
    settings = [
        f"run_dir={run_dir}",
        f"total_env_steps={steps}",
        "env.id=tests.toy_environments:Corridor-v0",
        "env.options={length: 6, slip: 0.2}",
        "env.max_episode_steps=30",
        "service.script='advance=0.9|treasure=0.95'",
        "policy.core_size=16",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=2",
        "logging.interval_env_steps=256",
        "logging.episode_window=10",
        "logging.console=quiet",
        "logging.tensorboard=false",
        "checkpoint.interval_env_steps=1024",
        *overrides,
    ]
    assert launch(load_config(preset="debug", overrides=settings)) == 0
    return run_dir


def add_captions(run_dir: Path, texts: tuple[str, ...]) -> None:
    """Write further captions into the run's archive."""
    rows = [(signed_id(caption_id(text)), text, 1, 7, 7, 0.25, 0.5, "OK") for text in texts]
    with closing(sqlite3.connect(run_dir / "captions.sqlite")) as connection, connection:
        connection.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def data_of(page: Path) -> Any:
    """The data in a report."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def nethack_recording(steps: int = 12) -> Recording:
    """A recording made by stepping NetHack."""
    import nle  # noqa: F401  # registers the environment

    env = gymnasium.make("NetHackScore-v0", observation_keys=("tty_chars", "tty_colors", "message"))
    env.unwrapped.seed(1, 1)
    moments = [_moment(0, None, env.reset()[0])]
    for step in range(1, steps + 1):
        obs, reward, *_ = env.step(step % env.action_space.n)
        moments.append(_moment(step, f"action {step}", obs, float(reward)))
    env.close()
    return _recording("NetHackScore-v0", moments)


def minigrid_recording(steps: int = 6) -> Recording:
    """A recording made by stepping MiniGrid, with pictures."""
    import minigrid  # noqa: F401  # registers the environments

    env = gymnasium.make("MiniGrid-Empty-5x5-v0", render_mode="rgb_array")
    env.reset(seed=1)
    moments = [_moment(0, None, {}, picture=env.render())]
    for step in range(1, steps + 1):
        env.step(step % 3)
        moments.append(_moment(step, "turn", {}, picture=env.render()))
    env.close()
    return _recording("MiniGrid-Empty-5x5-v0", moments)


def _recording(environment: str, moments: list[Moment]) -> Recording:
    metrics = {"return": 1.5, "length": float(len(moments) - 1)}
    return Recording(environment=environment, player="policy", game=(0, 3, 1), metrics=metrics, moments=tuple(moments))


def _moment(step: int, action: str | None, obs: dict[str, Any], reward: float = 0.0, picture: Any = None) -> Moment:
    chars = obs.get("tty_chars")
    return Moment(
        step=step,
        action=action,
        reward=reward,
        caption=f"caption {step}" if step else "",
        intrinsic=0.25 * step,
        probability=None if step == 0 else 0.75,
        value=0.5,
        screen=None if chars is None else tuple(bytes(row).decode("latin-1") for row in chars),
        colours=None if chars is None else np.array(obs["tty_colors"], np.uint8),
        picture=picture,
    )
