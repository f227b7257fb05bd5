"""Steps B games of NetHack through their engines alone: all engines take a key, then the batch is examined as a whole.

Invariant: results are bit-identical to those of `GymnasiumStepping`. Vectorised checks find the games in which
something beyond the move may have happened (a prompt, a line, a goal, an end), and there the task's own methods decide.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from actors.environments.nethack.engine_calls import make_calls
from actors.environments.nethack.episode_stats import TIME
from actors.environments.nethack.game import ABORTED, DEATH, Game, GymnasiumStepping
from actors.environments.nethack.lean_rewards import PENALTY_MODES, REWARDS, implementation
from actors.environments.nethack.tasks import ASKING, GAME_OVER, TELLING, answer_key, oracle_glyph
from actors.environments.wrappers import wrapper_names

logger = logging.getLogger(__name__)

ON_STAIRS_DOWN = 4  # index into internal
TASKS = "actors.environments.nethack.tasks"
ONI_STEP, ONI_END = f"{TASKS}.ScoreExtended.step", f"{TASKS}.Goal._is_episode_end"
USUAL_STEPS = "nle.env.base.NLE._perform_known_steps"
IMPATIENT = "nle.env.tasks.NetHackChallenge._check_abort"


class LeanStepping:
    """The games of one environment together; `make_stepping` checks what is supported."""

    def __init__(self, games: list[Game], screens: dict[str, np.ndarray]) -> None:
        """`screens` are the arrays [B, ...] whose rows the engines write."""
        env = games[0].env
        self._games, self._envs, self._logs = games, [game.env for game in games], [game.log for game in games]
        self._keys = np.array([int(key) for key in env.actions])
        self.glyphs, self.internal = screens["glyphs"], screens["internal"]
        self._game_over, self._message = screens["program_state"][:, GAME_OVER], screens["message"]
        self._lines = self._message.view(f"S{self._message.shape[1]}")[:, 0]  # the engine pads with zeros
        self._skips_prompts = not env._allow_all_modes
        self._is_oni = implementation(env, "step") == ONI_STEP
        self._telling = TELLING if self._is_oni else ()
        self._places = PLACES[_deciding(env)]
        self._rewards = REWARDS[implementation(env, "_reward_fn")](env, screens)
        self._progress = (
            Progress(games, screens["blstats"]) if implementation(env, "_check_abort") == IMPATIENT else None
        )
        is_usual = implementation(env, "_perform_known_steps") == USUAL_STEPS and self._progress is None
        self._calls = make_calls(games, screens, is_usual and self._skips_prompts)

    def start(self, i: int, core: int, disp: int) -> bytes:
        """Start game `i` with these seeds; returns its first raw caption."""
        self._calls.before_start(i)
        caption = self._games[i].reset(core, disp)
        self._calls = self._calls.after_start(i)
        self._rewards.start(i)
        self._note(i)
        if self._progress is not None:
            self._progress.start(i)
        return caption

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
        """One action [B] i64 in each game: rewards [B] f32, end statuses [B] i64 (0: goes on), raw captions."""
        keys = self._keys[actions]
        if self._is_oni:
            for i in np.flatnonzero(self.internal[:, ASKING]).tolist():
                keys[i] = answer_key(self._lines[i], int(keys[i]))
        self._rewards.begin()
        calls = self._calls
        calls.step(keys)
        if self._progress is not None:
            self._progress.check()
        captions, attended = self._look(keys, calls.busy)
        aborted = None if self._progress is None else self._progress.check()
        statuses, goals = self._find_ends(attended, calls.done, aborted)
        return self._rewards.pay(statuses, calls.playing, goals).astype(np.float32), statuses, captions

    def _look(self, keys: np.ndarray, busy: np.ndarray) -> tuple[list[bytes], list[int]]:
        """The captions of the step, after every prompt that the agent does not see has been passed, and the games
        handled individually: those `busy` [B] bool, and others."""
        captions = [b""] * len(keys)
        quiet = ((self._message[:, 0] != 0) & ~busy).nonzero()[0]
        attended = busy.nonzero()[0].tolist()
        for i, line in zip(quiet.tolist(), self._lines[quiet].tolist(), strict=True):
            if self._telling and any(words in line for words in self._telling):
                attended.append(i)
            else:
                captions[i] = self._logs[i].caption_of(line)
        for i in ((self._calls.num_earlier != 0) & ~busy).nonzero()[0].tolist():
            captions[i] = self._join(i)
        for i in attended:
            captions[i] = self._attend(i, int(keys[i]))
        return captions, attended

    def _join(self, i: int) -> bytes:
        """The caption of game `i`, all of whose prompts have been passed in the call."""
        log = self._logs[i]
        log.start_step()
        for line in (*self._calls.earlier(i), self._lines[i]):
            log.add(line, False)
        return log.caption()

    def _attend(self, i: int, key: int) -> bytes:
        """Let the task pass the prompts of game `i`, in which `key` was pressed; returns the caption of its step."""
        game = self._games[i]
        game.log.start_step()
        for line in self._calls.earlier(i):
            game.log.add(line, False)
        game.watch()
        if self._is_oni:
            game.env.begin_step(key)
        if self._skips_prompts or self._game_over[i] == 1:
            _, done = game.env._perform_known_steps(game.screen, bool(self._calls.done[i]), exceptions=True)
            self._calls.note(i, done)
        self._note(i)
        return game.log.caption()

    def _note(self, i: int) -> None:
        """Handle game `i` in the next step too if a text prompt is open, or it is over but has not ended."""
        game = self._games[i]
        self._calls.attended[i] = game.log.prompt is not None or game.last_screen is not None

    def _find_ends(
        self, attended: list[int], dones: np.ndarray, aborted: np.ndarray | None
    ) -> tuple[np.ndarray, list[int]]:
        """End statuses [B], and the games in which one of ONI's goals is rewarded."""
        statuses = np.zeros(len(dones), np.int64)
        goals = []
        for i in self._places(self, attended):
            env = self._envs[i]
            statuses[i] = env._is_episode_end(self._games[i].screen)
            if getattr(env, "pays", False):
                goals.append(i)
        if aborted is not None:
            statuses[aborted] = ABORTED
        statuses[dones] = DEATH
        return statuses, goals

    def on_stairs(self, attended: list[int]) -> np.ndarray:
        """The games with the agent on stairs down."""
        return np.flatnonzero(self.internal[:, ON_STAIRS_DOWN])

    def seeing_the_oracle(self, attended: list[int]) -> np.ndarray:
        """The games with the Oracle's glyph anywhere on the map: few, and found faster than those next to her."""
        return np.flatnonzero((self.glyphs == oracle_glyph()).any(axis=1))

    def descended(self, attended: list[int]) -> list[int]:
        """Those of the handled games with "You descend the stairs."; that line always causes a game to be handled."""
        return [i for i in attended if self._envs[i].descended]


class Progress:
    """NetHackChallenge's limit on steps without game time: NLE checks it twice in every step."""

    def __init__(self, games: list[Game], blstats: np.ndarray) -> None:
        self._games, self._blstats = games, blstats
        self._turns, self._count = np.zeros(len(games), np.int64), np.zeros(len(games), np.int64)
        self._limit = games[0].env.no_progress_timeout

    def start(self, i: int) -> None:
        """Game `i` has been reset, which included a check."""
        self._turns[i], self._count[i] = self._games[i].env._turns, self._games[i].env._no_progress_count

    def check(self) -> np.ndarray:
        """Games that have reached the limit, [B] bool."""
        turns = self._blstats[:, TIME]
        self._count = np.where(turns == self._turns, self._count + 1, 0)
        np.copyto(self._turns, turns)
        return self._count >= self._limit


_SUPPORTED: Mapping[str, Collection[str]] = {
    "step": ("nle.env.base.NLE.step", "minihack.base.MiniHack.step", ONI_STEP),
    "_perform_known_steps": (USUAL_STEPS, f"{TASKS}.ScoreExtended._perform_known_steps"),
    "_get_end_status": ("nle.env.base.NLE._get_end_status",),
    "_get_information": ("nle.env.base.NLE._get_information",),
    "_check_abort": ("nle.env.base.NLE._check_abort", IMPATIENT),
    "_get_time_penalty": ("nle.env.tasks.NetHackScore._get_time_penalty",),
    "_reward_fn": REWARDS,
}
"""Methods of an environment, and the implementations that lean stepping supports."""


PLACES: Mapping[str, Callable[[LeanStepping, list[int]], np.ndarray | list[int]]] = {
    "nle.env.base.NLE._is_episode_end": lambda stepping, attended: [],
    "nle.env.tasks.NetHackStaircase._is_episode_end": LeanStepping.on_stairs,
    "nle.env.tasks.NetHackStaircasePet._is_episode_end": LeanStepping.on_stairs,
    "nle.env.tasks.NetHackOracle._is_episode_end": LeanStepping.seeing_the_oracle,
    "minihack.base.MiniHack._is_episode_end": LeanStepping.on_stairs,
    f"{TASKS}.Oracle._reached": LeanStepping.seeing_the_oracle,
    f"{TASKS}.Staircase._reached": LeanStepping.descended,
}
"""By the method that decides whether the goal is reached: a function of the stepping and the games whose prompts were
handled, to the games whose episode may have reached its goal, or a superset."""


def make_stepping(
    games: list[Game], screens: dict[str, np.ndarray], wanted: str, env_id: str
) -> LeanStepping | GymnasiumStepping:
    """Lean stepping if it is `wanted` (`lean` or `gymnasium`) and supports the environment, else NLE's own."""
    if wanted == "gymnasium":
        return GymnasiumStepping(games)
    obstacle = f"the wrappers {wrapper_names(games[0].played)}" if games[0].is_wrapped else find_obstacle(games[0].env)
    if obstacle is None:
        return LeanStepping(games, screens)
    what = "stepped through its own class, which is slower: lean stepping does not support"
    logger.info("%s is %s %s", env_id, what, obstacle)
    return GymnasiumStepping(games)


def find_obstacle(env: Any) -> str | None:
    """The method or setting of an environment that lean stepping does not support (a method other than NLE's,
    MiniHack's or ours); None if there is none."""
    for method, known in _SUPPORTED.items():
        if hasattr(env, method) and implementation(env, method) not in known:
            return implementation(env, method)
    if _deciding(env) not in PLACES:
        return _deciding(env)
    if getattr(env, "reward_manager", None) is not None:
        return "reward managers"
    if getattr(env, "penalty_mode", "constant") not in PENALTY_MODES:
        return f"penalty_mode {env.penalty_mode!r}"
    return None


def _deciding(env: Any) -> str:
    """The method that decides whether the goal is reached."""
    end = implementation(env, "_is_episode_end")
    return implementation(env, "_reached") if end == ONI_END else end
