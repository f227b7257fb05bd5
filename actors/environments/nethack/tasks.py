"""ONI's NetHack tasks: 28 actions, prompts that they can answer, and goals worth 50.

Invariant: a step ends when the game waits for a command, or for an answer that the next action gives. All other prompts
are answered here, so no action is lost to a prompt.
"""

import functools
import importlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from nle import nethack
from nle.env.tasks import TASK_ACTIONS, NetHackScore, NetHackStaircase

NAMESPACE = "Delphi"
"""Namespace of the tasks' ids; NLE's own tasks have the same names with other actions and rewards."""
EXTENDED_ACTIONS = (
    *TASK_ACTIONS,
    *(nethack.Command.CAST, nethack.Command.QUAFF, nethack.Command.PRAY, nethack.Command.PICKUP, nethack.Command.PAY),
)
"""NLE's 23 (more, 8 moves, 8 runs, up, down, wait, kick, eat, search), then cast, quaff, pray, pick up, pay."""
GOAL_REWARD = 50.0
ASKING, READING_LINE, WAITING_FOR_SPACE = 1, 2, 3  # indices into internal
GAME_OVER = 0  # index into program_state
ESCAPE, SPACE, FIRST_ENTRY, YES = 27, ord(" "), ord("a"), ord("y")
LEFT_TO_THE_AGENT = (b"eat", b"attack", b"direction?", b"pray", b"drink")
"""The agent answers questions with one of these words; all others are declined."""
DESCENDED, MAY_ENHANCE = b"You descend the stairs.", b"You feel more confident"
TELLING = (DESCENDED, MAY_ENHANCE)
"""Lines that the tasks act on, whether or not a prompt is open."""
_OFFERED = re.compile(rb"\[([^\]]*)\][^\]]*$")
_ITEM = re.compile(rb"[A-Za-z$#]")


class ScoreExtended(NetHackScore):
    """NLE's score task with 28 actions (ONI's NetHackScoreExtendedActions): score difference, -0.01 if game time stood
    still.

    As ONI's wrappers do: at a prompt for something to eat or drink the `y` move selects the first item offered and any
    other action escapes; casting selects the first spell; a skill is enhanced as soon as the game says that it may be;
    text prompts are escaped; questions are declined unless they are about eating, attacking, a direction, praying or
    drinking; "You descend the stairs." is shown again if a `--More--` removed it from the screen.

    Unlike ONI, so that no action is lost: prompts that remain after a declined question are passed as well, and an
    action that does not answer a question open to the agent escapes from it (NetHack would keep waiting). As in ONI,
    none of several objects in one place can be picked up, and no bill can be paid: that needs menus, or questions that
    are declined.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of NLE's tasks; raises ValueError for `actions`, which are fixed."""
        if "actions" in kwargs:
            raise ValueError(f"the actions of {type(self).__name__} are fixed; remove env.options.actions")
        super().__init__(*args, actions=EXTENDED_ACTIONS, **kwargs)
        # The agent's actions, then the keys of answers: NLE's step looks a key up by its index.
        self.actions: Sequence[int] = (*map(int, EXTENDED_ACTIONS), *range(128))
        self.descended = False  # whether the agent has arrived on a level by stairs in this step
        self._may_enhance = self._in_menu_of_choice = False

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action of the agent, or its answer to the question at which the last step ended."""
        key = self.actions[action]
        if self.last_observation[self._internal_index][ASKING]:
            key = answer_key(self._message(self.last_observation), key)
        self.begin_step(key)
        return super().step(self.actions.index(key))

    def begin_step(self, key: int) -> None:
        """Reset the state of the last step; `key` is the first key of this one."""
        self.descended = False
        self._may_enhance = True  # once a step: the line that says so may stay on the screen
        self._in_menu_of_choice = key == nethack.Command.CAST

    def reset(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start the next game."""
        self.descended = self._may_enhance = self._in_menu_of_choice = False
        return super().reset(*args, **kwargs)

    def _perform_known_steps(self, observation: Any, done: bool, exceptions: bool = True) -> tuple[Any, bool]:
        """Continue until the game waits for the agent; NLE's leaves prompts after a declined question."""
        confident = False
        while not done:
            message = self._message(observation)
            self.descended |= DESCENDED in message
            confident |= MAY_ENHANCE in message
            internal = observation[self._internal_index]
            if internal[WAITING_FOR_SPACE]:
                # A prompt ignores unknown keys, so nothing is lost if this is not the menu yet.
                key, self._in_menu_of_choice = (FIRST_ENTRY if self._in_menu_of_choice else SPACE), False
            elif internal[READING_LINE]:
                key = ESCAPE
            elif internal[ASKING]:
                is_left = self._allow_all_yn_questions or any(word in message.lower() for word in LEFT_TO_THE_AGENT)
                if exceptions and is_left:
                    break
                key = ESCAPE
            elif confident and self._may_enhance and not observation[self._program_state_index][GAME_OVER]:
                key, self._may_enhance, self._in_menu_of_choice = int(nethack.Command.ENHANCE), False, True
            else:
                break
            observation, done = self.nethack.step(key)
        if self.descended and not done and DESCENDED not in self._message(observation):
            shown = observation[self._message_index]
            shown[:] = 0
            shown[: len(DESCENDED)] = np.frombuffer(DESCENDED, np.uint8)
        return observation, done

    def _message(self, observation: Any) -> bytes:
        return observation[self._message_index].tobytes().partition(b"\0")[0]


class Goal(ScoreExtended):
    """A task with reward 50 when its goal is reached, and no other reward or penalty."""

    StepStatus = NetHackStaircase.StepStatus

    def __init__(self, *args: Any, continual: bool = False, **kwargs: Any) -> None:
        """`continual`: the goal is rewarded once, and only death (or the step limit) ends the episode."""
        super().__init__(*args, **kwargs)
        self._continual = continual
        self.succeeded = False  # whether the goal has been reached in this episode
        self.pays = False  # whether it has been reached for the first time in this step

    def reset(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start the next game."""
        self.succeeded = False
        return super().reset(*args, **kwargs)

    def _is_episode_end(self, observation: Any) -> int:
        self.pays = not self.succeeded and self._reached(observation)
        self.succeeded |= self.pays
        return self.StepStatus.TASK_SUCCESSFUL if self.pays and not self._continual else self.StepStatus.RUNNING

    def _reward_fn(self, last_observation: Any, action: int, observation: Any, end_status: int) -> float:
        return GOAL_REWARD if self.pays and end_status != self.StepStatus.DEATH else 0.0

    def _reached(self, observation: Any) -> bool:
        raise NotImplementedError


class Oracle(Goal):
    """Reach the Oracle: her glyph is on the agent's cell or next to it. Hallucination can show her in a wrong place."""

    def __init__(self, *args: Any, sober: bool = False, **kwargs: Any) -> None:
        """`sober`: glyphs seen while hallucinating do not count."""
        super().__init__(*args, **kwargs)
        self._sober, self._glyph = sober, oracle_glyph()

    def _reached(self, observation: Any) -> bool:
        blstats = observation[self._blstats_index]
        if self._sober and is_hallucinating(blstats):
            return False
        return is_beside(observation[self._glyph_index], blstats, self._glyph)


class Staircase(Goal):
    """Arrive on a level by ordinary stairs down; holes, trapdoors, ladders and being thrown down do not count."""

    def __init__(self, *args: Any, level: int = 2, count_levels_by: str = "branch", **kwargs: Any) -> None:
        """`level` is the level to arrive on, counted by `branch` (ONI: within its branch of the dungeon, so the Gnomish
        Mines begin at 1 again, and Mines level 3 counts as level 3 although it is deeper) or by `depth`."""
        indices = {"branch": nethack.NLE_BL_DLEVEL, "depth": nethack.NLE_BL_DEPTH}
        if count_levels_by not in indices:
            raise ValueError(f"env.options.count_levels_by: got {count_levels_by!r}, wanted branch or depth")
        super().__init__(*args, **kwargs)
        self._level, self._level_index = level, indices[count_levels_by]

    def _reached(self, observation: Any) -> bool:
        return self.descended and observation[self._blstats_index][self._level_index] == self._level


def register_environments(package: str) -> None:
    """Register this module's tasks as `Delphi/NetHack...-v0`, and the environments of `nle` (its own: by importing this
    module) or `minihack`; ImportError if the package is missing. May be called again."""
    stairs = {"": 2, "Lvl3": 3, "Lvl4": 4}
    tasks: dict[str, tuple[type[ScoreExtended], dict[str, Any]]] = {
        "ScoreExtended": (ScoreExtended, {}),
        "Oracle": (Oracle, {}),
        "OracleSober": (Oracle, {"sober": True}),
    }
    for suffix, level in stairs.items():
        tasks[f"Staircase{suffix}"] = Staircase, {"level": level}
        tasks[f"Staircase{suffix}Continual"] = Staircase, {"level": level, "continual": True}
    for name, (task, kwargs) in tasks.items():
        env_id = f"{NAMESPACE}/NetHack{name}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=task, kwargs=kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minihack imports setuptools' pkg_resources, which warns that it is deprecated
        importlib.import_module(package)


def answer_key(question: bytes, key: int) -> int:
    """The key that answers an open question when the agent presses `key`: at a choice of items `y` selects the first
    one offered; a key that is not offered escapes. A question without a list of answers (a direction) takes any key."""
    offered = _OFFERED.search(question)
    if offered is None:
        return key
    answers = offered.group(1)
    if b"*" not in answers:
        return key if key < 128 and bytes([key]) in answers else ESCAPE
    item = _ITEM.search(answers.removesuffix(b" or ?*"))
    return item.group()[0] if key == YES and item else ESCAPE


def is_beside(glyphs: np.ndarray, blstats: np.ndarray, glyph: int) -> bool:
    """Whether `glyph` is on the agent's cell or one of its eight neighbours; `glyphs` [21, 79], `blstats` [27]."""
    x, y = blstats[nethack.NLE_BL_X], blstats[nethack.NLE_BL_Y]
    return bool((glyphs[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] == glyph).any())


def is_hallucinating(blstats: np.ndarray) -> bool:
    """Whether the agent hallucinates: one bit of its condition (ONI compares the whole condition with it)."""
    return bool(blstats[nethack.NLE_BL_CONDITION] & nethack.BL_MASK_HALLU)


@functools.cache
def oracle_glyph() -> int:
    """The glyph of the Oracle as a monster."""
    glyphs = range(nethack.GLYPH_MON_OFF, nethack.GLYPH_PET_OFF)
    return next(glyph for glyph in glyphs if nethack.permonst(nethack.glyph_to_mon(glyph)).mname == "Oracle")
