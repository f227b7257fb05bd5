"""Small gymnasium environments for tests, registered on import: `tests.toy_environments:Corridor-v0`.

Invariant: seeded, all of them are deterministic, and those with `state_dict` continue bit for bit from it.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MESSAGE_BYTES = 64


def encode_message(text: str) -> np.ndarray:
    """A message as NLE gives it: uint8, padded with zeros."""
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    raw = text.encode()
    message[: len(raw)] = np.frombuffer(raw, np.uint8)
    return message


class Corridor(gymnasium.Env):
    """Walk right (action 1) to the end of a corridor; only reaching the end is rewarded, and messages tell of progress.

    Each step slips (does nothing) with probability `slip`. Messages: "You advance to cell N.", "You retreat to cell
    N.", "You bump into a wall.", "You slip.", "You reach the treasure!".
    """

    def __init__(self, length: int = 8, slip: float = 0.0, num_actions: int = 2) -> None:
        self.length, self.slip = length, slip
        self.observation_space = spaces.Dict(
            {
                "position": spaces.Box(0.0, 1.0, (length,), np.float32),
                "message": spaces.Box(0, 255, (MESSAGE_BYTES,), np.uint8),
            }
        )
        self.action_space = spaces.Discrete(num_actions)
        self._position = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Back to cell 0."""
        super().reset(seed=seed)
        self._position = 0
        text = "You enter the corridor."
        return self._observe(text), {"text": text}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Action 1 advances; any other retreats."""
        if self.np_random.random() < self.slip:
            text = "You slip."
        elif action != 1 and self._position == 0:
            text = "You bump into a wall."
        else:
            self._position += 1 if action == 1 else -1
            text = f"You {'advance' if action == 1 else 'retreat'} to cell {self._position}."
        done = self._position == self.length - 1
        if done:
            text = "You reach the treasure!"
        return self._observe(text), float(done), done, False, {"success": done, "text": text}

    def state_dict(self) -> dict[str, Any]:
        """Position and generator."""
        return {"position": self._position, "rng": self.np_random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._position = int(state["position"])
        self.np_random.bit_generator.state = state["rng"]

    def _observe(self, text: str) -> dict[str, np.ndarray]:
        position = np.zeros(self.length, np.float32)
        position[self._position] = 1.0
        return {"position": position, "message": encode_message(text)}


class ForgetfulCorridor(Corridor):
    """A corridor that cannot save its state."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattribute__(name)


class PoisonedCorridor(Corridor):
    """A corridor whose rewards are now and then no number."""

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See the class."""
        obs, reward, terminated, truncated, info = super().step(action)
        if self.np_random.random() < 0.002:
            reward = float("nan")
        return obs, reward, terminated, truncated, info


class HummingCorridor(Corridor):
    """A corridor on ice with a distraction: any step but forward slides back to the start, humming leads nowhere.

    Action 1 advances, 2 hums one of many tunes, any other slides. Novelty is in humming, progress is not.
    """

    def __init__(self, length: int = 10, num_tunes: int = 64) -> None:
        super().__init__(length, num_actions=4)
        self.num_tunes = num_tunes

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """See the class."""
        if action == 1:
            return super().step(action)
        if action == 2:
            text = f"You hum tune {self.np_random.integers(self.num_tunes)}."
        else:
            text = f"You slide back from cell {self._position}."
            self._position = 0
        return self._observe(text), 0.0, False, False, {"success": False, "text": text}


class TMaze(gymnasium.Env):
    """Remember what the first step showed until the corridor's end (Bakker 2001): the side where the reward of 1 lies.

    Actions: 0 left branch, 1 forward, 2 right branch, 3 back; only at the junction do the branches lead anywhere, and
    end the episode. Standing still costs 0.1, as does the wrong branch. Bakker's four observations: two signs, the
    corridor, the junction.
    """

    LEFT_SIGN, RIGHT_SIGN, CORRIDOR, JUNCTION = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32)

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._position, self._goal = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """To the sign, which names a side at random."""
        super().reset(seed=seed)
        self._position, self._goal = 0, 2 * int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See the class; `success` is whether the episode ended in the right branch."""
        if self._position == self.length and action in (0, 2):
            success = action == self._goal
            return self._observe(), 1.0 if success else -0.1, True, False, {"success": success}
        before, move = self._position, {1: 1, 3: -1}.get(action, 0)
        self._position = min(max(before + move, 0), self.length)
        return self._observe(), -0.1 if self._position == before else 0.0, False, False, {"success": False}

    def _observe(self) -> np.ndarray:
        if self._position == 0:
            return self.RIGHT_SIGN if self._goal else self.LEFT_SIGN
        return self.JUNCTION if self._position == self.length else self.CORRIDOR


class Painting(gymnasium.Env):
    """Image observations and nothing to win: pixels are noise, `info["text"]` says how bright they are."""

    def __init__(self, size: int = 16, num_actions: int = 3) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(num_actions, start=1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new picture."""
        super().reset(seed=seed)
        return self._paint()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Another picture, whatever the action; actions start at 1."""
        assert self.action_space.contains(action), action
        picture, info = self._paint()
        return picture, 0.0, False, False, info

    def _paint(self) -> tuple[np.ndarray, dict[str, Any]]:
        picture = self.np_random.integers(0, 256, self.observation_space.shape, np.uint8)
        return picture, {"text": "It is bright." if picture.mean() > 127.5 else "It is dark."}


class Dial(gymnasium.Env):
    """Every observation space that policies read, in one Dict, with a Text message; observations count the steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "angle": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                "notch": spaces.Discrete(5, start=-2),
                "digits": spaces.MultiDiscrete([3, 7]),
                "message": spaces.Text(32),
            }
        )
        self.action_space = spaces.Discrete(2)
        self._turns = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Back to zero turns."""
        super().reset(seed=seed)
        self._turns = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One turn further."""
        self._turns += 1
        return self._observe(), 1.0, False, self._turns == 9, {"is_success": np.bool_(True)}

    def _observe(self) -> dict[str, Any]:
        turns = self._turns
        digits = np.array([turns % 3, turns % 7])
        return {
            "angle": np.array([turns, -turns], np.float64),
            "notch": turns % 5 - 2,
            "digits": digits,
            "message": f"Turn {turns}. ½",
        }


class Throttle(Corridor):
    """A corridor with continuous actions, which policies here cannot give."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


def describe(obs: dict[str, np.ndarray], info: dict[str, Any]) -> str:
    """A captioner function: where in the corridor one is."""
    return f"cell {int(obs['position'].argmax())}"


def place(obs: Any, info: dict[str, Any]) -> dict[str, float]:
    """A feature of Corridor: how far it has been walked, in [0, 1]."""
    return {"place": float(obs["position"].argmax()) / (len(obs["position"]) - 1)}


def which_way_it_leans(obs: np.ndarray, info: dict[str, Any]) -> str:
    """A captioner function of CartPole."""
    return "It leans left." if obs[2] < 0 else "It leans right."


def say_digits(obs: np.ndarray, info: dict[str, Any]) -> str:
    """A captioner function of CartPole whose captions hardly ever repeat."""
    return f"The pole is at {obs[2]:.6f}."


def say_nothing(obs: Any, info: dict[str, Any]) -> str:
    """A captioner function of an environment without words."""
    return ""


for _kind in (Corridor, ForgetfulCorridor, PoisonedCorridor, HummingCorridor, TMaze, Painting, Dial, Throttle):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=f"{__name__}:{_kind.__name__}")
