"""Lean stepping against NLE's own step: the same seeds and actions give bit-identical results."""

import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest
from nle import nethack
from nle.env.tasks import NetHackChallenge, NetHackScore

from actors.environments.factory import make_environment
from actors.environments.nethack.engine_calls import EngineCalls
from actors.environments.nethack.game import Game, GymnasiumStepping
from actors.environments.nethack.lean_stepping import LeanStepping, find_obstacle
from actors.environments.nethack.vector import NetHackEnvironment
from actors.environments.vector import EpisodeEnd, VectorStep
from configs.schema import EnvConfig, PolicyConfig

NUM_ENVS = 32
DEPTH, TURNS = 12, 20  # indices into blstats
ASKING, READING_LINE, WAITING_FOR_SPACE, ON_STAIRS_DOWN = 1, 2, 3, 4  # indices into internal
WEAK = {"character": "arc-dwa-law-fem"}
MONK = {"options": [*nethack.NETHACKOPTIONS, "role:Monk", "race:human", "gender:male", "align:neutral"]}
"""In debug mode the name of the character does not choose the role."""
FULL = {"actions": nethack.ACTIONS}
DEBUG = {"actions": list(range(1, 128)), "wizard": True, **MONK}
LEVEL_TELEPORT, TELEPORT, MAP = b"\x16", b"\x14", b"\x06"  # Control-V, -T, -F in debug mode
USUAL = {"questions", "skipped", "deaths", "truncations"}
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "NLE": ("NetHack-v0", {}, USUAL | {"paid", "levels"}),
    "Score": ("NetHackScore-v0", {}, USUAL | {"paid", "levels"}),
    "Staircase": ("NetHackStaircase-v0", {}, USUAL | {"goals"}),
    "StaircasePet": ("NetHackStaircasePet-v0", {}, USUAL | {"goals"}),
    "Oracle": ("NetHackOracle-v0", {}, USUAL | {"levels"}),
    "Gold": ("NetHackGold-v0", {"penalty_time": 0.003}, USUAL | {"paid", "levels"}),
    "Eat": ("NetHackEat-v0", {**WEAK, "penalty_time": 0.003}, USUAL | {"paid"}),
    "Scout": ("NetHackScout-v0", {}, USUAL | {"paid", "levels"}),
    "Challenge": (
        "NetHackChallenge-v0",
        {"no_progress_timeout": 60},
        {"questions", "menus", "texts", "deaths", "aborts", "truncations"},
    ),
    "ONI score": ("Delphi/NetHackScoreExtended-v0", {"character": "wiz-elf-cha-mal"}, USUAL | {"paid"}),
    "ONI oracle": ("Delphi/NetHackOracle-v0", {}, USUAL | {"levels"}),
    "ONI oracle, sober": ("Delphi/NetHackOracleSober-v0", WEAK, USUAL),
    "ONI stairs": ("Delphi/NetHackStaircase-v0", {}, USUAL | {"levels"}),
    "ONI stairs to 3": ("Delphi/NetHackStaircaseLvl3-v0", WEAK, USUAL),
    "ONI stairs to 4": ("Delphi/NetHackStaircaseLvl4-v0", {}, USUAL),
    "ONI stairs, on and on": ("Delphi/NetHackStaircaseContinual-v0", {}, USUAL),
    "ONI stairs to 3, on and on": ("Delphi/NetHackStaircaseLvl3Continual-v0", {}, USUAL),
    "ONI stairs to 4, on and on": ("Delphi/NetHackStaircaseLvl4Continual-v0", {}, USUAL),
    "MiniHack": ("MiniHack-Room-Ultimate-15x15-v0", {"reward_lose": -1}, {"goals", "deaths", "truncations", "paid"}),
    "all questions": (
        "NetHackScore-v0",
        {**FULL, "allow_all_yn_questions": True, "penalty_mode": "square", "penalty_time": 0.003},
        USUAL | {"paid"},
    ),
    "all modes": (
        "NetHackScore-v0",
        {**FULL, "allow_all_modes": True, "penalty_mode": "linear"},
        {"menus", "texts", "questions"},
    ),
    "all modes of ONI": (
        "Delphi/NetHackScoreExtended-v0",
        {"allow_all_modes": True, "penalty_mode": "always"},
        {"menus", "questions"},
    ),
    "debug mode": ("NetHackScore-v0", DEBUG, {"skipped", "levels", "questions", "paid"}),
    "debug mode, all modes": ("NetHackScore-v0", {**DEBUG, "allow_all_modes": True}, {"menus", "texts", "questions"}),
}
"""Id, options, and what must happen in random play."""
VARIANTS = {
    "NLE",
    "StaircasePet",
    "Scout",
    "ONI oracle",
    "ONI stairs, on and on",
    "ONI oracle, sober",
    "ONI stairs to 3",
    "ONI stairs to 4",
    "ONI stairs to 3, on and on",
    "ONI stairs to 4, on and on",
}
"""Cases that differ from another in a number only, or in events that are rare in random play."""


class Pair:
    """One vector environment with lean stepping, and the same one stepped through NLE's own class (with few games also
    with engines that share no code)."""

    def __init__(
        self, env_id: str, options: dict[str, Any], *, num_envs: int = 1, limit: int = 0, network: str = "auto"
    ) -> None:
        self.envs: list[NetHackEnvironment] = []
        for stepping, kind in (("lean", LeanStepping), ("gymnasium", GymnasiumStepping)):
            sharing = stepping == "lean" or num_envs == NUM_ENVS
            config = EnvConfig(
                id=env_id,
                stepping=stepping,
                options=options,
                max_episode_steps=limit,
                share_engine_code=sharing,
                describer="nethack",
                features=["blstats"],
            )
            env = make_environment(
                config, num_envs=num_envs, run_seed=0, worker_index=0, policy=PolicyConfig(network=network)
            )
            assert isinstance(env, NetHackEnvironment)
            assert isinstance(env._stepping, kind)
            self.envs.append(env)
        self.events: Counter[str] = Counter()
        (lean, lean_captions), (own, captions) = (env.reset() for env in self.envs)
        assert_same_arrays(lean, own)
        assert lean_captions == captions
        self._depth = own["blstats"][:, DEPTH]
        self._limit, self._lengths = limit, np.zeros(num_envs, np.int64)

    def step(self, actions: np.ndarray) -> VectorStep:
        """One step of both, compared."""
        internal = self.envs[1]._screens["internal"]
        self.events["questions"] += int((internal[:, ASKING] > 0).sum())
        self.events["texts"] += int((internal[:, READING_LINE] > 0).sum())
        self.events["menus"] += int((internal[:, WAITING_FOR_SPACE] > 0).sum())
        lean, own = (env.step(actions) for env in self.envs)
        assert_same_arrays(lean.obs, own.obs)
        for name in ("rewards", "terminated", "truncated"):
            ours, theirs = getattr(lean, name), getattr(own, name)
            assert (ours.tobytes(), ours.dtype) == (theirs.tobytes(), theirs.dtype), name
        assert lean.captions == own.captions
        assert lean.states == own.states is not None
        assert self.envs[0].states == self.envs[1].states
        assert lean.features is not None
        np.testing.assert_array_equal(lean.features, own.features)
        np.testing.assert_array_equal(*(env.features for env in self.envs))
        for one, other in zip(lean.ends, own.ends, strict=True):
            assert_same_ends(one, other)
        for game, other_game in zip(*(env._games for env in self.envs), strict=True):  # what later steps depend on
            assert (game.log.prompt, game.log._typed) == (other_game.log.prompt, other_game.log._typed)
            assert (game.last_screen is None) == (other_game.last_screen is None)
        self._count(own)
        return own

    def act(self, key: bytes) -> VectorStep:
        """The action that presses `key`, in every game."""
        actions = [int(action) for action in self.envs[0]._games[0].env.actions]
        return self.step(np.full(self.envs[0].num_envs, actions.index(ord(key))))

    def press(self, keys: bytes) -> None:
        """Send keys directly to the engines."""
        for env in self.envs:
            for game in env._games:
                for key in keys:
                    game.env.nethack.step(key)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _count(self, step: VectorStep) -> None:
        goals = [end.index for end in step.ends if end.info.get("success")]
        self._lengths += 1
        deaths = step.terminated.copy()
        deaths[goals] = False
        depth = step.obs["blstats"][:, DEPTH]
        going_on = ~(step.terminated | step.truncated)
        shown = step.obs["message"].view("S256")[:, 0]
        hidden = [going_on[i] and len(caption) > len(shown[i]) for i, caption in enumerate(step.captions)]
        self.events += Counter(
            steps=len(depth),
            deaths=int(deaths.sum()),
            goals=len(goals),
            truncations=int(sum(end.final_obs["blstats"][TURNS] > 0 for end in step.ends if step.truncated[end.index])),
            aborts=int((step.truncated & (self._lengths < self._limit)).sum()),
            levels=int((going_on & (depth != self._depth)).sum()),
            skipped=int(sum(hidden)),
            paid=int((step.rewards > 0).sum()),
        )
        self._depth = depth
        self._lengths[step.terminated | step.truncated] = 0


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.tobytes(), array.dtype) == (other[name].tobytes(), other[name].dtype), name


def assert_same_ends(one: EpisodeEnd, other: EpisodeEnd) -> None:
    assert (one.index, one.info, one.reset_caption) == (other.index, other.info, other.reset_caption)
    assert_same_arrays(one.final_obs, other.final_obs)


def play_at_random(case: str, num_steps: int, *, limit: int) -> None:
    """A third of the games prefer to go down; the expected events occurred."""
    env_id, options, expected = CASES[case]
    pair = Pair(env_id, options, num_envs=NUM_ENVS, limit=limit)
    num_actions = pair.envs[0].spec.num_actions
    keys = [int(key) for key in pair.envs[0]._games[0].env.actions[:num_actions]]
    down = keys.index(ord(">")) if ord(">") in keys else 0
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        actions = rng.integers(num_actions, size=NUM_ENVS)
        actions[(rng.random(NUM_ENVS) < 0.2) & (np.arange(NUM_ENVS) % 3 == 0)] = down
        pair.step(actions)
    pair.close()
    print(case, dict(pair.events))  # shown by pytest -rA
    assert not expected - set(+pair.events), "the comparison would prove less than it says"


@pytest.fixture
def seeded_challenge(monkeypatch: pytest.MonkeyPatch) -> None:
    """NetHackChallenge refuses seeds, its engine does not."""

    def seed(env: NetHackChallenge, core: int, disp: int, reseed: bool) -> None:
        env.nethack._pynethack.set_initial_seeds(core, disp, reseed, None)

    monkeypatch.setattr(NetHackChallenge, "seed", seed)


@pytest.mark.usefixtures("seeded_challenge")
@pytest.mark.parametrize("case", [case for case in CASES if case not in VARIANTS])
def test_random_play_is_the_same_to_the_last_bit(case: str) -> None:
    play_at_random(case, 320, limit=300)


@pytest.mark.slow
@pytest.mark.usefixtures("seeded_challenge")
@pytest.mark.parametrize("case", CASES)
def test_20_000_steps_are_the_same_to_the_last_bit(case: str) -> None:
    play_at_random(case, 640, limit=600)


@pytest.mark.slow
def test_100_000_steps_of_the_score_task_are_the_same_to_the_last_bit() -> None:
    play_at_random("Score", 3200, limit=2500)


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("continual", ["", "Continual"])
def test_stairs_that_are_the_goal_pay_alike(level: int, continual: str) -> None:
    number = "" if level == 2 else f"Lvl{level}"
    pair = Pair(f"Delphi/NetHackStaircase{number}{continual}-v0", {"wizard": True, **MONK}, num_envs=3, limit=12)
    pair.press(LEVEL_TELEPORT + b"%d\r" % (level - 1) + MAP + TELEPORT + b">.")
    for key in (b">", b"<", b">", b"s"):
        pair.act(key)
    paid = pair.events["paid"]
    assert paid >= 2, "one game's stairs lead into the Mines"
    for _ in range(10):
        pair.act(b"e")
    assert pair.events["goals"] == paid
    pair.close()


@pytest.mark.parametrize("env_id", ["NetHackOracle-v0", "Delphi/NetHackOracle-v0", "Delphi/NetHackOracleSober-v0"])
def test_the_oracle_pays_alike(env_id: str) -> None:
    pair = Pair(env_id, {"wizard": True, **MONK})
    pair.press(LEVEL_TELEPORT + b"?\rc")
    x, y = pair.envs[0]._blstats[0, :2].tolist()
    pair.press(TELEPORT + (b"l" if x < 42 else b"h") * abs(x - 42) + (b"j" if y < 10 else b"k") * abs(y - 10) + b".")
    pair.act(b"h")
    assert not pair.events["goals"]
    pair.act(b"h")
    assert pair.events["goals"] == 1
    pair.close()


@pytest.mark.parametrize("all_modes", [False, True])
def test_a_death_that_is_declined_and_an_end_that_takes_two_steps_are_alike(all_modes: bool) -> None:
    pair = Pair("NetHackScore-v0", {**DEBUG, "allow_all_modes": all_modes}, limit=100)
    pair.press(LEVEL_TELEPORT + b"-5\r")
    captions = b"".join(pair.act(b" ").captions[0] for _ in range(8))
    assert b"You plummet a few thousand feet to your death." in captions
    assert b"OK, so you don't die." in captions
    assert pair.events["deaths"] == 1, "back on the surface the dungeon is left"
    pair.close()


def test_a_skill_is_enhanced_alike_where_no_prompt_follows_the_line() -> None:
    pair = Pair("Delphi/NetHackScoreExtended-v0", {"wizard": True, **MONK}, limit=100)
    for env in pair.envs:
        (game,) = env._games
        game.engine = SayingMore(game)
        if isinstance(env._stepping, LeanStepping):
            env._stepping._calls = EngineCalls(env._games, env._screens)
    (caption,) = pair.act(b"s").captions
    assert caption.startswith(b"You feel more confident in your martial arts skills.")
    assert len(caption) > 60, "the menu of skills says something, too"
    assert pair.envs[0]._games[0].engine.keys == pair.envs[1]._games[0].engine.keys
    assert int(nethack.Command.ENHANCE) in pair.envs[0]._games[0].engine.keys
    pair.close()


class SayingMore:
    """An engine whose first step shows that a skill may be enhanced."""

    def __init__(self, game: Game) -> None:
        self._engine, self._message, self.keys = game.engine, game._message, []
        self.done, self.in_normal_game = game.engine.done, game.engine.in_normal_game

    def step(self, key: int) -> None:
        self._engine.step(key)
        self.keys.append(key)
        if len(self.keys) == 1:
            line = b"You feel more confident in your martial arts skills."
            self._message[:] = np.frombuffer(line.ljust(len(self._message), b"\0"), np.uint8)


@pytest.mark.parametrize("done", [False, True])
def test_who_dies_at_the_goal_has_died(done: bool) -> None:
    pair = Pair("NetHackStaircase-v0", {})
    (game,) = pair.envs[0]._games
    pair.envs[0]._screens["internal"][0, ON_STAIRS_DOWN] = 1
    statuses, _ = pair.envs[0]._stepping._find_ends([], np.array([done]), False)
    assert statuses.tolist() == [int(game.env._get_end_status(game.screen, done))] == [1 if done else 2]
    pair.close()


@pytest.mark.parametrize("network", ["rendered_crop", "nethack_full"])
def test_what_other_networks_see_is_the_same_to_the_last_screen(network: str) -> None:
    pair = Pair("NetHackScore-v0", WEAK, num_envs=4, limit=30, network=network)
    rng = np.random.default_rng(0)
    for _ in range(70):
        pair.step(rng.integers(23, size=4))
    assert pair.events["truncations"] == 8
    pair.close()


class Hoarder(NetHackScore):
    """A custom task."""

    def _reward_fn(self, last_observation: Any, action: int, observation: Any, end_status: int) -> float:
        return 7.0


class Impatient(NetHackScore):
    """Passes prompts differently."""

    def step(self, action: int) -> Any:
        return super().step(action)


@pytest.mark.parametrize(
    ("task", "options", "obstacle"),
    [
        (NetHackScore, {}, None),
        (NetHackScore, {"penalty_mode": "exp"}, "penalty_mode 'exp'"),
        (Hoarder, {}, "tests.actors.test_nethack_lean.Hoarder._reward_fn"),
        (Impatient, {}, "tests.actors.test_nethack_lean.Impatient.step"),
    ],
)
def test_what_is_not_known_is_named(task: type[NetHackScore], options: dict[str, Any], obstacle: str | None) -> None:
    env = task(**options)
    found = find_obstacle(env)
    env.close()
    assert (found is None) == (obstacle is None)
    assert found is None or obstacle.split(".")[-1] in found


@pytest.mark.parametrize(
    ("env_id", "options"), [("MiniHack-KeyRoom-S5-v0", {}), ("NetHackScore-v0", {"penalty_mode": "exp"})]
)
def test_what_is_not_known_is_stepped_through_its_own_class_and_said_so(
    env_id: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "actors.environments.nethack.lean_stepping"):
        env = make_environment(EnvConfig(id=env_id, options=options), num_envs=2, run_seed=0, worker_index=0)
    assert isinstance(env._stepping, GymnasiumStepping)
    (record,) = caplog.records
    assert record.message.startswith(f"{env_id} is stepped through its own class")
    env.close()
