"""ONI's tasks on real NetHack, driven to their goals with the keys of its debug mode."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from nle import nethack

from actors.environments.factory import make_environment
from actors.environments.lookup import find_environment
from actors.environments.nethack.tasks import (
    EXTENDED_ACTIONS,
    Oracle,
    Staircase,
    answer_key,
    is_beside,
    is_hallucinating,
    oracle_glyph,
)
from actors.environments.nethack.vector import NetHackEnvironment
from actors.environments.vector import VectorStep
from configs.schema import EnvConfig

TASKS = [
    "ScoreExtended",
    "Oracle",
    "OracleSober",
    "Staircase",
    "StaircaseLvl3",
    "StaircaseLvl4",
    "StaircaseLvl3Continual",
]
MONK = [*nethack.NETHACKOPTIONS, "role:Monk", "race:human", "gender:male", "align:neutral"]
MAGE = [*nethack.NETHACKOPTIONS, "role:Wizard", "race:human", "gender:male", "align:neutral"]
ASKING, READING_LINE, WAITING_FOR_SPACE = 1, 2, 3
LEVEL_TELEPORT, TELEPORT, MAP, CREATE_MONSTER = 22, 20, 6, 7  # Control-V, -T, -F, -G in debug mode
PRAY = int(nethack.Command.PRAY)
WEST, EAST, NORTH, SOUTH = b"hlkj"


class Player:
    """One seeded game, played with the keys of its 28 actions, or (in debug mode) with any key at all."""

    def __init__(self, task: str, stepping: str = "lean", **options: object) -> None:
        config = EnvConfig(id=f"Delphi/NetHack{task}-v0", options=options, stepping=stepping)
        env = make_environment(config, num_envs=1, run_seed=0, worker_index=0)
        assert isinstance(env, NetHackEnvironment)
        self.env = env
        self.env.reset()
        self.game = env._games[0]
        self.internal = env._screens["internal"][0]

    def act(self, key: int | bytes) -> VectorStep:
        """The action that presses `key`."""
        index = [int(action) for action in EXTENDED_ACTIONS].index(key if isinstance(key, int) else ord(key))
        return self.env.step(np.array([index]))

    def press(self, *keys: int | bytes) -> None:
        """Send keys directly to the engine."""
        for key in b"".join(bytes([key]) if isinstance(key, int) else key for key in keys):
            self.game.env.nethack.step(key)

    def blstats(self) -> np.ndarray:
        return self.env._blstats[0]

    def teleport(self, x: int, y: int) -> None:
        """Teleport within the level, by moving debug mode's cursor."""
        dx, dy = x - int(self.blstats()[0]), y - int(self.blstats()[1])
        moves = (b"l" if dx > 0 else b"h") * abs(dx) + (b"j" if dy > 0 else b"k") * abs(dy)
        self.press(TELEPORT, moves, b".")
        assert self.blstats()[:2].tolist() == [x, y]

    def stand_on_stairs_of(self, level: int) -> None:
        self.press(LEVEL_TELEPORT, b"%d\r" % level, MAP, TELEPORT, b">.")
        assert self.blstats()[nethack.NLE_BL_DLEVEL] == level

    def walk_up_to_the_oracle(self) -> list[VectorStep]:
        """From outside her room through its eastern door: two steps."""
        self.press(LEVEL_TELEPORT, b"?\rc")
        self.teleport(42, 10)
        return [self.act(WEST), self.act(WEST)]


@contextmanager
def play(task: str, **options: object) -> Iterator[Player]:
    player = Player(task, **options)
    try:
        yield player
    finally:
        player.env.close()


@contextmanager
def debug(task: str, character: list[str] = MONK, **options: object) -> Iterator[Player]:
    with play(task, wizard=True, options=character, **options) as player:
        yield player


def outcome(step: VectorStep) -> tuple[float, bool, bool]:
    return step.rewards.item(), step.terminated.item(), step.truncated.item()


def message(step: VectorStep) -> bytes:
    """The policy's observation, on an episode's last screen if it ended."""
    shown = step.ends[0].final_obs["message"] if step.ends else step.obs["message"][0]
    return shown.tobytes().partition(b"\0")[0]


def test_the_28_actions_are_nles_23_then_cast_quaff_pray_pick_up_pay() -> None:
    keys = b"\r" + b"kljhunby" + b"KLJHUNBY" + b"<>." + b"\x04" + b"es" + b"Zq" + bytes([PRAY]) + b",p"
    assert bytes(map(int, EXTENDED_ACTIONS)) == keys
    for task in TASKS:
        with play(task) as player:
            assert player.env.spec.num_actions == 28


@pytest.mark.parametrize("task", TASKS)
def test_random_play_never_gets_stuck_in_a_prompt(task: str) -> None:
    with play(task) as player:
        rng = np.random.default_rng(0)
        turns, last_turn, standing = 0.0, 0.0, 0
        for action in rng.integers(28, size=5000):
            step = player.env.step(np.array([action]))
            internal = player.internal
            assert not internal[READING_LINE]
            assert not internal[WAITING_FOR_SPACE]
            if internal[ASKING]:
                assert any(
                    word in message(step).lower() for word in (b"eat", b"attack", b"direction?", b"pray", b"drink")
                )
            turn = step.obs["blstats"][0, nethack.NLE_BL_TIME]
            standing = standing + 1 if turn == last_turn else 0
            assert standing < 60, "some keys take no time, but no game stands still that long"
            turns, last_turn = turns + max(turn - last_turn, 0), turn
        assert turns > 2000


@pytest.mark.parametrize(("task", "level"), [("Staircase", 2), ("StaircaseLvl3", 3), ("StaircaseLvl4", 4)])
def test_arriving_by_stairs_on_the_level_pays_50_and_ends_on_an_intact_screen(task: str, level: int) -> None:
    with debug(task) as player:
        player.stand_on_stairs_of(level - 1)
        step = player.act(b">")
        assert outcome(step) == (50.0, True, False)
        (end,) = step.ends
        assert end.info["success"] == 1
        assert end.info["depth"] == end.final_obs["blstats"][nethack.NLE_BL_DLEVEL] == level
        assert message(step) == b"You descend the stairs."
        assert step.captions[0].startswith(b"You descend the stairs.")


def test_other_levels_and_other_ways_down_do_not_count() -> None:
    with debug("StaircaseLvl4") as player:
        player.stand_on_stairs_of(2)
        assert outcome(player.act(b">")) == (0.0, False, False)
        player.press(LEVEL_TELEPORT, b"4\r")
        assert outcome(player.act(b"s")) == (0.0, False, False)
        player.stand_on_stairs_of(4)
        assert outcome(player.act(b">")) == (0.0, False, False)


def test_a_line_that_a_prompt_took_off_the_screen_is_shown_to_the_policy() -> None:
    with debug("StaircaseLvl4") as player:
        player.stand_on_stairs_of(2)
        player.press(b">")
        assert player.internal[WAITING_FOR_SPACE], "a --More-- follows, and NLE's stepping would leave an empty line"
        player.press(b" ")
        assert not player.env._screens["message"][0, 0]
        player.act(b"<")
        assert message(player.act(b">")) == b"You descend the stairs."


def test_no_step_costs_time_where_there_is_a_goal_and_standing_still_costs_a_hundredth_where_there_is_none() -> None:
    with debug("StaircaseLvl3") as goal, debug("ScoreExtended") as score:
        for player, reward in ((goal, 0.0), (score, -0.01)):
            assert player.act(b",").rewards == np.float32(reward)
            assert player.act(b"s").rewards == 0


def test_the_score_task_pays_the_difference_of_the_score() -> None:
    with debug("ScoreExtended") as player:
        player.stand_on_stairs_of(1)
        step = player.act(b">")
        assert outcome(step) == (50.0, False, False)  # NetHack's own 50 points for each new level
        assert step.obs["blstats"][0, nethack.NLE_BL_DEPTH] == 2


def test_levels_are_counted_within_a_branch_or_by_depth() -> None:
    blstats = np.zeros(27, np.int64)
    blstats[[nethack.NLE_BL_DNUM, nethack.NLE_BL_DLEVEL, nethack.NLE_BL_DEPTH]] = (
        2,
        3,
        5,
    )  # the third level of the Mines
    for by, level in (("branch", 3), ("depth", 5)):
        for wanted in (3, 4, 5):
            task = Staircase(level=wanted, count_levels_by=by)
            task.descended = True
            observation = [blstats if i == task._blstats_index else np.zeros(1) for i in range(9)]
            assert task._reached(observation) == (wanted == level)
            task.close()


def test_the_continual_variant_pays_once_and_goes_on() -> None:
    with debug("StaircaseLvl3Continual") as player:
        player.env._step_limit = 5
        player.stand_on_stairs_of(2)
        assert [outcome(player.act(key)) for key in (b">", b"<", b">")] == [
            (50.0, False, False),
            (0.0, False, False),
            (0.0, False, False),
        ]
        player.act(b"s")
        step = player.act(b"s")
        assert outcome(step) == (0.0, False, True)
        assert step.ends[0].info["success"] == 1
        assert not player.game.env.succeeded, "the next episode's goal is a new one"


@pytest.mark.parametrize("task", ["Oracle", "OracleSober"])
def test_standing_next_to_the_oracle_pays_50_and_ends(task: str) -> None:
    with debug(task) as player:
        before, step = player.walk_up_to_the_oracle()
        assert (outcome(before), outcome(step)) == ((0.0, False, False), (50.0, True, False))
        (end,) = step.ends
        assert end.info["success"] == 1
        assert (end.final_obs["glyph_crop"][3:6, 3:6] == oracle_glyph()).sum() == 1


def test_what_is_seen_while_hallucinating_counts_only_for_who_need_not_be_sober() -> None:
    x, y = 40, 10
    glyphs, blstats = np.full((21, 79), 2359, np.int16), np.zeros(27, np.int64)
    glyphs[y + 1, x - 1] = oracle_glyph()
    blstats[:2] = x, y
    oracle, sober = Oracle(), Oracle(sober=True)
    screen = {oracle._glyph_index: glyphs, oracle._blstats_index: blstats}
    for condition, hallucinating in ((0, False), (0x200, True), (0x200 | 0x20, True), (0x20, False)):
        blstats[nethack.NLE_BL_CONDITION] = condition
        assert is_hallucinating(blstats) == hallucinating
        assert oracle._reached(screen)
        assert sober._reached(screen) == (not hallucinating)
    oracle.close()
    sober.close()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (78, 20), (0, 20), (30, 10)])
def test_beside_is_one_of_nine_cells_also_in_a_corner(x: int, y: int) -> None:
    blstats = np.zeros(27, np.int64)
    blstats[:2] = x, y
    for row, column in np.ndindex(21, 79):
        glyphs = np.zeros((21, 79), np.int16)
        glyphs[row, column] = 7
        assert is_beside(glyphs, blstats, 7) == (abs(row - y) <= 1 and abs(column - x) <= 1)


def test_y_eats_or_drinks_the_first_thing_offered_and_other_keys_escape() -> None:
    with debug("ScoreExtended", stepping="gymnasium") as player:
        engine, pressed = player.game.env.nethack, []
        step = engine.step
        engine.step = lambda key: (pressed.append(key), step(key))[1]
        for command, first, effect in ((b"e", b"f", b"finished|delicious"), (b"q", b"e", b"You feel better.")):
            question = message(player.act(command))
            assert question.startswith(b"What do you want to ")
            assert b"[" + first in question
            turn = player.blstats()[nethack.NLE_BL_TIME]
            assert player.act(b"l").captions == [b"Never mind."]
            assert player.blstats()[nethack.NLE_BL_TIME] == turn
            player.act(command)
            pressed.clear()
            caption = player.act(b"y").captions[0]
            assert pressed[0] == ord(first)
            assert player.blstats()[nethack.NLE_BL_TIME] > turn
            assert re.search(effect, caption), caption


def test_praying_is_asked_about_and_declined_by_anything_but_yes() -> None:
    with debug("ScoreExtended") as player:
        for key, prays in ((b"n", False), (b"l", False), (PRAY, False), (b"y", True)):
            assert b"Are you sure you want to pray? [yn]" in player.act(PRAY).captions[0]
            assert (b"You begin praying" in player.act(key).captions[0]) == prays


def test_casting_takes_the_first_spell_and_leaves_the_direction_to_the_agent() -> None:
    with debug("ScoreExtended", MAGE) as player:
        energy = player.blstats()[nethack.NLE_BL_ENE]
        assert message(player.act(b"Z")) == b"In what direction? "
        player.act(b"l")
        assert player.blstats()[nethack.NLE_BL_ENE] == energy - 5  # force bolt


def test_where_there_is_no_spell_nothing_is_chosen_from_the_next_prompt() -> None:
    with debug(
        "ScoreExtended",
        [option.replace("Monk", "Samurai").replace("neutral", "lawful") for option in MONK],
        stepping="gymnasium",
    ) as player:
        assert player.act(b"Z").captions == [b"You don't know any spells right now."]
        player.stand_on_stairs_of(1)
        engine, pressed = player.game.env.nethack, []
        step = engine.step
        engine.step = lambda key: (pressed.append(key), step(key))[1]
        player.act(b">")
        assert pressed == [ord(">"), ord(" ")]


def test_a_skill_is_enhanced_as_soon_as_the_game_says_so() -> None:
    with debug("ScoreExtended") as player:
        newt = next(glyph for glyph in range(381) if nethack.permonst(glyph).mname == "newt")
        player.stand_on_stairs_of(1)
        for _ in range(400):
            x, y = player.blstats()[:2].tolist()
            around = player.env._screens["glyphs"][0][:-1].reshape(21, 79)[y - 1 : y + 2, x - 1 : x + 2]
            rows, columns = np.nonzero(around == newt)
            if not len(rows):
                player.press(CREATE_MONSTER, b"newt\r")
                continue
            direction = b"ykuh.lbjn"[3 * rows[0] + columns[0]]
            (caption,) = player.act(direction).captions
            if b"You feel more confident" in caption:
                assert b"You are now more skilled in martial arts." in caption
                return
        pytest.fail("never became more confident")


@pytest.mark.parametrize(
    ("question", "key", "answer"),
    [
        (b"What do you want to eat? [fghi or ?*] ", b"y", b"f"),
        (b"What do you want to eat? [a-cx or ?*] ", b"y", b"a"),
        (b"What do you want to eat? [$a or ?*] ", b"y", b"$"),
        (b"What do you want to drink? [- e or ?*] ", b"y", b"e"),
        (b"What do you want to eat? [fghi or ?*] ", b"h", b"\x1b"),
        (b"What do you want to eat? [*] ", b"y", b"\x1b"),
        (b"There is a newt corpse here; eat it? [ynq] (n) ", b"y", b"y"),
        (b"There is a newt corpse here; eat it? [ynq] (n) ", b"q", b"q"),
        (b"There is a newt corpse here; eat it? [ynq] (n) ", b"k", b"\x1b"),
        (b"Drink from the fountain? [yn] (n) ", b"n", b"n"),
        (b"Really attack the peaceful [mimic]? [yn] (n) ", b"m", b"\x1b"),
        (b"In what direction? ", b"k", b"k"),
    ],
)
def test_questions_are_answered_by_what_they_offer(question: bytes, key: bytes, answer: bytes) -> None:
    assert bytes([answer_key(question, ord(key))]) == answer


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("Staircase", {"count_levels_by": "floor"}, "got 'floor', wanted branch or depth"),
        ("Oracle", {"actions": [1]}, "are fixed"),
    ],
)
def test_options_that_a_task_does_not_take_are_refused(task: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Player(task, **options)


def test_a_mistyped_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*Delphi/NetHackStaircaseLvl3-v0"):
        find_environment("Delphi/NetHackStaircaseLvl5-v0")
