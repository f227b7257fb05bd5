"""Transitions of MiniHack KeyRoom-S5 with what the game says of two subgoals: was the key just picked up, was the door
just opened? For the protocol of CALM (arXiv 2409.12798), which holds a judge's labels against the game.

    python -m tests.benchmarks.subgoal_transitions            # writes tests/llm_server/data/minihack_transitions.jsonl

Half of the games are played at random; in the others most actions lead to the key, then to the door. A pet, as in
NetHack itself, causes events that are no deed of the agent. Texts are those of the channel `change`.

Invariant: a label comes from the game before and after the step (tools in the pack, doors on the map), never from the
text; a text stands in the file once for each subgoal, and only if the game says the same of all steps that show it.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nle import nethack

from actors.captions import normalize
from actors.channels import change_text, differences
from actors.environments.factory import make_environment
from actors.environments.nethack.crop import MAP_WIDTH
from actors.environments.nethack.vector import NetHackEnvironment
from configs.schema import EnvConfig, PolicyConfig

FILE = Path(__file__).parents[1] / "llm_server" / "data" / "minihack_transitions.jsonl"
SUBGOALS = ("pick up the key", "open the door")
NUM_TRANSITIONS = 150
NUM_GAMES, NUM_STEPS, SEED = 16, 1_000, 17
HELPFUL_SHARE = 0.7
"""The share of actions that lead on, in the games that are not played at random."""
ENV = EnvConfig(
    id="MiniHack-KeyRoom-S5-v0",
    max_episode_steps=200,
    options={"penalty_step": 0.0, "pet": True},
    describer="nethack",
)
MOVES = {(0, -1): 0, (1, 0): 1, (0, 1): 2, (-1, 0): 3, (1, -1): 4, (1, 1): 5, (-1, 1): 6, (-1, -1): 7}
"""The task's actions by their direction (x, y)."""
PICK_UP, APPLY = 8, 9
X, Y = 0, 1  # of blstats


class Games:
    """Games of KeyRoom, and which of `SUBGOALS` each step reaches."""

    def __init__(self, seed: int) -> None:
        policy = PolicyConfig(network="nethack_full")  # which sees the pack
        env = make_environment(ENV, num_envs=NUM_GAMES, run_seed=seed, worker_index=0, policy=policy)
        assert isinstance(env, NetHackEnvironment)
        self._env, self._rng = env, np.random.default_rng(seed)
        self._obs, _ = env.reset()
        self._num_tools = np.zeros(NUM_GAMES, int)
        self._has_key, self._is_open = np.zeros(NUM_GAMES, bool), np.zeros(NUM_GAMES, bool)
        self._doors = np.zeros(env._glyphs.shape, bool)  # cells in which a closed door was seen
        self._begin([*range(NUM_GAMES)])

    def step(self) -> Iterator[tuple[str, tuple[bool, bool]]]:
        """The change in each game that goes on, and whether each subgoal was reached by it."""
        step = self._env.step(np.array([self._action(game) for game in range(NUM_GAMES)]))
        self._obs = step.obs
        has_key = self._tools() > self._num_tools
        is_open = self._is_open | (self._doors & np.isin(self._env._glyphs, OPEN)).any(1)
        over = [end.index for end in step.ends]
        for game in set(range(NUM_GAMES)) - {*over}:
            told = differences(self._states[game], (step.states or [])[game])
            reached = bool(has_key[game] > self._has_key[game]), bool(is_open[game] > self._is_open[game])
            yield change_text(told, normalize(step.captions[game])), reached
        self._has_key[:], self._is_open[:] = has_key, is_open
        self._begin(over)

    def _begin(self, games: list[int]) -> None:
        self._states = self._env.states or []
        self._num_tools[games] = self._tools()[games]
        self._has_key[games] = self._is_open[games] = self._doors[games] = False
        self._doors |= np.isin(self._env._glyphs, CLOSED)

    def _action(self, game: int) -> int:
        if game < NUM_GAMES // 2 or self._rng.random() > HELPFUL_SHARE:
            return int(self._rng.integers(self._env.spec.num_actions))
        x, y = self._obs["blstats"][game, [X, Y]].astype(int)
        wanted = CLOSED if self._has_key[game] else TOOLS
        cells = np.isin(self._env._glyphs[game], wanted).nonzero()[0]
        if not len(cells):  # the agent stands on the key, or sees nothing to go to
            return PICK_UP if not self._has_key[game] else int(self._rng.integers(self._env.spec.num_actions))
        dx, dy = int(cells[0]) % MAP_WIDTH - x, int(cells[0]) // MAP_WIDTH - y
        if self._has_key[game] and abs(dx) + abs(dy) == 1:
            return APPLY
        return MOVES[int(np.sign(dx)), int(np.sign(dy))]

    def _tools(self) -> np.ndarray:
        return np.asarray((self._obs["inv_oclasses"] == nethack.TOOL_CLASS).sum(1))


def _glyphs(name: str) -> list[int]:
    return [
        nethack.GLYPH_CMAP_OFF + n for n in range(nethack.MAXPCHARS) if nethack.symdef.from_idx(n).explanation == name
    ]


CLOSED, OPEN = _glyphs("closed door"), _glyphs("open door") + _glyphs("doorway")
TOOLS = [
    glyph
    for glyph in range(nethack.GLYPH_OBJ_OFF, nethack.GLYPH_OBJ_OFF + nethack.NUM_OBJECTS)
    if ord(nethack.objclass(nethack.glyph_to_obj(glyph)).oc_class) == nethack.TOOL_CLASS
]


def transitions(num_steps: int) -> dict[str, tuple[bool, bool]]:
    """What steps change, with which of `SUBGOALS` they reach: all that reach one, and the most frequent others,
    `NUM_TRANSITIONS` in all."""
    games = Games(SEED)
    found: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    for _ in range(num_steps):
        for text, reached in games.step():
            found[text][reached] += 1
    agreed = {text: next(iter(counts)) for text, counts in found.items() if text and len(counts) == 1}
    ranked = sorted(agreed, key=lambda text: (not any(agreed[text]), -found[text].total(), text))
    return {text: agreed[text] for text in ranked[:NUM_TRANSITIONS]}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N", help=f"of {NUM_GAMES} games each")
    arguments = parser.parse_args()
    rows = [
        {"about": about, "caption": text, "helpful": int(reached)}
        for text, verdicts in transitions(arguments.steps).items()
        for about, reached in zip(SUBGOALS, verdicts, strict=True)
    ]
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print({about: sum(row["helpful"] for row in rows if row["about"] == about) for about in SUBGOALS}, len(rows))


if __name__ == "__main__":
    main()
