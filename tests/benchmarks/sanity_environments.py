"""Environments of `sanity` that need a wrapper: MiniGrid and MiniHack one-hot, Atari games with the customary
preprocessing.

Invariant: registered on import without importing the games; making one whose package is missing says which to install.
"""

import importlib
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

OBJECTS, COLOURS, STATES, DIRECTIONS = 11, 6, 3, 4
"""Values of MiniGrid's three image planes, and of the direction."""
SYMBOLS = b" .-|@><#"
"""What a MiniHack room shows; one more class is everything else."""
MOST_NOOPS, FRAME_SKIP, STACK = 30, 4, 4


def require(package: str, module: str) -> Any:
    """The module; ValueError with what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this environment needs the package {package}, which cannot be imported ({error}): pip install {package}"
        ) from None


class OneHotGrid(gymnasium.ObservationWrapper):
    """MiniGrid's view and direction as one vector of zeros and ones; the mission is left out (it is always the
    same)."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        rows, columns, _ = env.observation_space["image"].shape
        width = rows * columns * (OBJECTS + COLOURS + STATES) + DIRECTIONS
        self.observation_space = spaces.Box(0.0, 1.0, (width,), np.float32)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        """[width] f32."""
        image = observation["image"]
        planes = [
            np.eye(size, dtype=np.float32)[image[..., i]].ravel() for i, size in enumerate((OBJECTS, COLOURS, STATES))
        ]
        return np.concatenate([*planes, np.eye(DIRECTIONS, dtype=np.float32)[observation["direction"]]])


def make_door_key(size: int = 5, render_mode: str | None = None) -> gymnasium.Env:
    """MiniGrid's DoorKey of `size` x `size`."""
    require("minigrid", "minigrid")
    return OneHotGrid(gymnasium.make(f"MiniGrid-DoorKey-{size}x{size}-v0", disable_env_checker=True))


class OneHotSymbols(gymnasium.Wrapper):
    """The characters round the hero of a MiniHack task as zeros and ones; seeds are set before each reset, which NLE
    otherwise ignores."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        rows, columns = env.observation_space["chars_crop"].shape
        self._classes = np.full(256, len(SYMBOLS), np.int64)
        for index, symbol in enumerate(SYMBOLS):
            self._classes[symbol] = index
        self._one_hot = np.eye(len(SYMBOLS) + 1, dtype=np.float32)
        self.observation_space = spaces.Box(0.0, 1.0, (rows * columns * (len(SYMBOLS) + 1),), np.float32)
        self._rng = np.random.default_rng(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The next game; with `seed` the first of a series that it fixes."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        core, display = self._rng.integers(2**31, size=2).tolist()
        self.env.unwrapped.seed(core, display, reseed=False)
        obs, info = self.env.reset()
        return self._encode(obs), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action of the hero."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._encode(obs), float(reward), terminated, truncated, info

    def _encode(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return self._one_hot[self._classes[obs["chars_crop"]]].ravel()


def make_room(render_mode: str | None = None) -> gymnasium.Env:
    """MiniHack's room of 5 x 5 with stairs and hero anywhere; without a step limit, which NLE would report as a
    termination."""
    room = require("minihack", "minihack.envs.room")
    return OneHotSymbols(
        room.MiniHackRoom5x5Random(observation_keys=("chars_crop", "blstats"), max_episode_steps=10**6)
    )


class AtariGame(gymnasium.Env):
    """An Atari game as DQN and PPO are taught it (Mnih et al. 2015): up to 30 idle frames first, each action for 4
    frames, the brighter of the last two, grey, scaled down, the last 4 stacked; while training, rewards are signs and
    each life is an episode.
    """

    def __init__(
        self, game: str = "breakout", size: int = 84, whole_games: bool = False, render_mode: str | None = None
    ) -> None:
        """`whole_games`: all lives and the game's own score, for evaluation."""
        atari = require("ale-py", "ale_py")
        self._opencv = require("opencv-python-headless", "cv2")
        atari.ALEInterface.setLoggerMode(atari.LoggerMode.Error)
        self._game = atari.ALEInterface()
        self._game.setInt("random_seed", 0)  # chance comes from the idle frames alone
        self._game.setFloat("repeat_action_probability", 0.0)
        self._game.loadROM(atari.roms.get_rom_path(game))
        self._actions = self._game.getMinimalActionSet()
        self._waits_for_fire = any(action.name == "FIRE" for action in self._actions)
        self._size, self._whole_games = size, whole_games
        self.observation_space = spaces.Box(0, 255, (STACK, size, size), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))
        self._pictures: deque[np.ndarray] = deque(maxlen=STACK)
        self._lives, self._is_over = 0, True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game after the last one's end, else the next life."""
        super().reset(seed=seed)
        if self._is_over or self._whole_games:
            self._game.reset_game()
            for _ in range(int(self.np_random.integers(1, MOST_NOOPS + 1))):
                self._game.act(0)
            self._is_over = False
        self._begin_life()
        self._pictures.extend([self._picture(self._game.getScreenGrayscale())] * STACK)
        return np.stack(self._pictures), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Four frames, fewer where the game ends."""
        reward = 0.0
        screens: deque[np.ndarray] = deque(maxlen=2)
        for frame in range(FRAME_SKIP):
            reward += self._game.act(self._actions[action])
            self._is_over = self._game.game_over()
            if frame >= FRAME_SKIP - 2 or self._is_over:
                screens.append(self._game.getScreenGrayscale())
            if self._is_over:
                break
        self._pictures.append(self._picture(np.maximum(screens[0], screens[-1])))
        lost_life = self._game.lives() < self._lives
        if not self._whole_games:
            return np.stack(self._pictures), float(np.sign(reward)), self._is_over or lost_life, False, {}
        if lost_life and not self._is_over:
            self._begin_life()
        return np.stack(self._pictures), reward, self._is_over, False, {}

    def _begin_life(self) -> None:
        if self._waits_for_fire:
            self._game.act(1)
        self._lives = self._game.lives()

    def _picture(self, screen: np.ndarray) -> np.ndarray:
        return self._opencv.resize(screen, (self._size, self._size), interpolation=self._opencv.INTER_AREA)


gymnasium.register("OneHotDoorKey-v0", entry_point=f"{__name__}:make_door_key")
gymnasium.register("OneHotRoom-v0", entry_point=f"{__name__}:make_room")
gymnasium.register("Atari-v0", entry_point=f"{__name__}:AtariGame")
