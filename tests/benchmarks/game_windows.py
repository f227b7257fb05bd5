"""One window of NetHackScore in a process of its own, pinned to one core: B games stepped in one of several ways,
random actions.

Each way writes the same into the same arrays after every step: the 9 x 9 glyphs around the hero [B, 9, 9] i16, blstats
[B, 27] f32 and message [B, 256] u8, where an ended game shows the next one's start. The ways marked `delphi` also give
captions, the last observation of an episode and its figures.

Invariant: all ways play the same games: the same seeds of the same episodes, and the same actions; they differ in speed
alone. (Only the step limit falls one step later in NLE's own class.)
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from actors.environments.factory import make_environment
from actors.environments.nethack.crop import MAP_CELLS, make_maps, view_for
from actors.environments.vector import SeedStream, VectorEnvironment
from configs.schema import EnvConfig, PolicyConfig

TASK = "NetHackScore-v0"
CROP_SIZE = 9
X, Y = 0, 1  # indices into blstats
WAYS = {
    "lean": {"stepping": "lean", "share_engine_code": True},
    "lean, private code": {"stepping": "lean", "share_engine_code": False},
    "wrapped gymnasium": {"stepping": "gymnasium", "share_engine_code": False},
    "wrapped gymnasium, shared code": {"stepping": "gymnasium", "share_engine_code": True},
}
"""Settings of `env` by the name of the way."""
GYMNASIUM = "gymnasium API"
"""What a user of NLE writes: `gymnasium.make`, and a loop over B environments."""


class Games(Protocol):
    """B games; episodes follow each other by themselves."""

    num_actions: int

    def reset(self) -> None:
        """Start all games."""
        ...

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray]) -> int:
        """One action [B] in each game, what they show then written into `out`; how many episodes ended."""
        ...

    def close(self) -> None:
        """End the engines."""
        ...


class DelphiGames:
    """A worker's environment."""

    def __init__(self, config: EnvConfig, num_envs: int, seed: int) -> None:
        self._env: VectorEnvironment = make_environment(
            config, num_envs=num_envs, run_seed=seed, worker_index=0, policy=PolicyConfig(crop_size=CROP_SIZE)
        )
        self.num_actions = self._env.spec.num_actions
        self.reset, self.close = self._env.reset, self._env.close

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray]) -> int:
        """See `Games`."""
        return len(self._env.step(actions, out).ends)


class GymnasiumGames:
    """B environments of `gymnasium.make`, stepped one after the other; their arrays are put together and cut all at
    once."""

    def __init__(self, num_envs: int, seed: int) -> None:
        import gymnasium
        import nle  # noqa: F401  registers the task

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NLE's observation spaces are not all to gymnasium's liking
            keys = ("glyphs", "blstats", "message")
            self._envs = [gymnasium.make(TASK, observation_keys=keys, fix_moon_phase=True) for _ in range(num_envs)]
        self.num_actions = int(self._envs[0].action_space.n)
        self._seeds = SeedStream(run_seed=seed, stream="train", worker_index=0)
        self._episodes = [0] * num_envs
        self._view, self._maps = view_for("glyph_crop", CROP_SIZE), make_maps(num_envs, ("glyphs",))
        self._glyphs = self._maps["glyphs"][:, :MAP_CELLS]
        self._blstats = np.zeros((num_envs, 27), np.int64)

    def reset(self) -> None:
        """See `Games`."""
        for i in range(len(self._envs)):
            self._start(i)

    def step(self, actions: np.ndarray, out: dict[str, np.ndarray]) -> int:
        """See `Games`."""
        ended = 0
        for i, (env, action) in enumerate(zip(self._envs, actions.tolist(), strict=True)):
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs = self._start(i)
                ended += 1
            self._glyphs[i] = obs["glyphs"].reshape(-1)
            self._blstats[i] = obs["blstats"]
            out["message"][i] = obs["message"]
        self._view.cut(self._maps, self._blstats[:, X], self._blstats[:, Y], out["glyph_crop"])
        out["blstats"][:] = self._blstats
        return ended

    def close(self) -> None:
        """See `Games`."""
        for env in self._envs:
            env.close()

    def _start(self, i: int) -> dict[str, np.ndarray]:
        core, disp = (self._seeds.seed(i, self._episodes[i], purpose) for purpose in ("core", "disp"))
        self._envs[i].unwrapped.seed(core, disp, reseed=False)
        self._episodes[i] += 1
        return self._envs[i].reset()[0]


def make_games(way: str, num_envs: int, seed: int) -> Games:
    """The games, stepped in that way."""
    if way == GYMNASIUM:
        return GymnasiumGames(num_envs, seed)
    return DelphiGames(EnvConfig(id=TASK, **WAYS[way]), num_envs, seed)


def make_arrays(num_envs: int) -> dict[str, np.ndarray]:
    """What `step` writes into."""
    return {
        "glyph_crop": np.zeros((num_envs, CROP_SIZE, CROP_SIZE), np.int16),
        "blstats": np.zeros((num_envs, 27), np.float32),
        "message": np.zeros((num_envs, 256), np.uint8),
    }


def measure(way: str, *, num_envs: int, window_s: float, warmup_s: float, seed: int) -> dict[str, float]:
    """Steps per second of processor time over `window_s` seconds of it, after `warmup_s` seconds, and what else the
    window showed."""
    games, out = make_games(way, num_envs, seed), make_arrays(num_envs)
    rng = np.random.default_rng(seed)

    def play(seconds: float) -> tuple[int, int, float]:
        began, spent, steps, episodes = time.process_time(), 0.0, 0, 0
        while spent < seconds:
            episodes += games.step(rng.integers(games.num_actions, size=num_envs), out)
            steps += num_envs
            spent = time.process_time() - began
        return steps, episodes, spent

    games.reset()
    play(warmup_s)
    began = time.perf_counter()
    steps, episodes, spent = play(window_s)
    elapsed = time.perf_counter() - began
    games.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "steps_per_s": steps / spent,
        "steps_per_s_elapsed": steps / elapsed,
        "episodes_per_1000_steps": 1000 * episodes / steps,
        "memory_mib": memory,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print one window's measurement as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("way", choices=[GYMNASIUM, *WAYS])
    parser.add_argument("--envs", type=int, required=True)
    parser.add_argument("--window", type=float, required=True)
    parser.add_argument("--warmup", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    arguments = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    measured = measure(
        arguments.way,
        num_envs=arguments.envs,
        window_s=arguments.window,
        warmup_s=arguments.warmup,
        seed=arguments.seed,
    )
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
