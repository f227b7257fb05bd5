"""Describes screens of NetHack and MiniHack in words (`env.describer=nethack`), many at once.

Said are the agent's health and hunger, how deep it is, and what the map of the level shows: doors, stairs and other
fixtures, monsters by name, its pet, items by class, traps and remains; at most `MAX_THINGS` of these, without positions
and numbers.

Random play, 100,000 steps: 2,600 distinct states in NetHackScore, 22 in MiniHack-LockedDoor, 14 in MiniHack-KeyRoom-S5.
About MICROS microsecond a screen in a batch of 64.

Invariant: equal descriptions for equal sets of glyphs and equal conditions, whatever the layout, and whatever the other
screens show.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from nle import nethack

from actors.environments.captioner import Captioner
from actors.environments.nethack.crop import LAYERS, MAP_CELLS, MAP_HEIGHT, MAP_WIDTH, OUTSIDE_GLYPH
from actors.environments.nethack.episode_stats import DEPTH, X, Y
from actors.environments.nethack.lean_stepping import ON_STAIRS_DOWN
from actors.environments.nethack.native import address, library

ScreenDescriber = Callable[[Mapping[str, np.ndarray]], list[bytes]]
"""Rows of the arrays of `make_screens` -> what they show in words, UTF-8."""
MAX_THINGS = 8
MAX_TEXTS = 16_384
"""Descriptions that are remembered, by what they are made from."""
HP, MAX_HP, HUNGER = 10, 11, 21  # of blstats
HEALTH = ("Healthy.", "Hurt.", "Near death.")
"""With more than two thirds of the hit points, more than one third, and fewer."""
HUNGERS = ("Satiated.", "", "Hungry.", "Weak with hunger.")
"""By NetHack's own number for it; higher ones are the last."""
DEPTHS = {
    1: "On the first level.",
    2: "On an upper level.",
    5: "Deep in the dungeon.",
    11: "Very deep in the dungeon.",
}
"""By the level from which on they hold."""
STAIRS = ("", "On a staircase down.")
NUM_CONDITIONS = 4
"""Health, hunger, depth and stairs."""
_DEEPER = np.array([*DEPTHS][1:])
FIXTURES = frozenset(
    {
        *("closed door", "open door", "raised drawbridge", "lowered drawbridge"),
        *("staircase down", "staircase up", "ladder down", "ladder up"),
        *("fountain", "sink", "altar", "opulent throne", "grave"),
        *("tree", "iron bars", "water", "molten lava"),
    }
)
"""What of a level is told, as NetHack's table of symbols calls it."""
CLASSES = {
    "COIN": "gold",
    "WEAPON": "a weapon",
    "ARMOR": "armor",
    "TOOL": "a tool",
    "FOOD": "food",
    "POTION": "a potion",
    "SCROLL": "a scroll",
    "WAND": "a wand",
    "RING": "a ring",
    "AMULET": "an amulet",
    "SPBOOK": "a spellbook",
    "GEM": "a gem",
    "ROCK": "a boulder",
    "BALL": "an iron ball",
    "CHAIN": "an iron chain",
}
"""NetHack's classes of objects, in words."""
NUM_WALLS, FLOORS = 13, range(19, 23)
"""NetHack's first symbols are stone, walls and doorways; these are floor and corridors."""
WITHOUT_ARTICLE = frozenset({"iron bars", "water", "molten lava"})
UNIQUE = 0x1000
"""NetHack's flag of monsters of which there is one (G_UNIQ)."""


class DescribedScreens:
    """What each of N screens shows: `Healthy. On the first level. A closed door. A jackal. Your pet. Gold.` Needs
    `glyphs` [N, MAP_CELLS + 1] (C-contiguous), `blstats` and `internal`. Where N is the number of games, nothing is
    looked up for a screen that shows what the one in its place showed in the last such call."""

    def __init__(self, num_games: int) -> None:
        self._keys = np.zeros((num_games, _key_size()), np.uint8)
        self._texts = [_text(self._keys[0].tobytes())] * num_games  # of the keys

    def __call__(self, screens: Mapping[str, np.ndarray]) -> list[bytes]:
        """See `ScreenDescriber`."""
        keys = np.zeros((len(screens["blstats"]), _key_size()), np.uint8)
        _write_conditions(screens, keys)
        _write_kinds(screens, keys[:, NUM_CONDITIONS:])
        if len(keys) != len(self._keys):
            return [_text(key.tobytes()) for key in keys]
        is_new = (keys.view(np.uint64) != self._keys.view(np.uint64)).any(axis=1)
        for i in is_new.nonzero()[0].tolist():
            self._texts[i] = _text(keys[i].tobytes())
        self._keys = keys
        return self._texts[:]


def describe_by(function: Captioner) -> ScreenDescriber:
    """Describes by a function of (obs, info), screen by screen; obs has NLE's observations `glyphs` [21, 79],
    `blstats` [27] and `message` [256], and what else the policy sees of them; info is empty."""

    def describe(screens: Mapping[str, np.ndarray]) -> list[bytes]:
        return [function(obs, {}) for obs in observations(screens)]

    return describe


def observations(screens: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Copies of each screen's arrays, maps as [21, 79], as functions of the user's get them."""
    maps = {
        name: array[:, :MAP_CELLS].reshape(-1, MAP_HEIGHT, MAP_WIDTH) if name in LAYERS else array
        for name, array in screens.items()
    }
    for i in range(len(screens["blstats"])):
        yield {name: array[i].copy() for name, array in maps.items()}


def _write_kinds(screens: Mapping[str, np.ndarray], sets: np.ndarray) -> None:
    """Write which kinds of things each map shows into `sets` [N, ...] u8, all 0 so far, a bit for each."""
    (kind_of, words), functions = _kinds(), library()
    glyphs, blstats = screens["glyphs"], screens["blstats"]
    num_screens, width = glyphs.shape
    if functions is not None:
        places = *(address(blstats[:, place]) for place in (X, Y)), blstats.strides[0] // blstats.itemsize
        passed_over = nethack.GLYPH_CMAP_OFF, NUM_WALLS, FLOORS.start, len(FLOORS)
        functions.note_kinds(
            num_screens, address(glyphs), *places, *passed_over, address(kind_of), address(sets), sets.strides[0]
        )
        return
    # Most cells are stone, walls, floor or corridors: two comparisons are faster than a look-up of all cells.
    symbols = (glyphs - nethack.GLYPH_CMAP_OFF).view(np.uint16)
    told = (symbols >= NUM_WALLS) & (symbols - FLOORS.start >= len(FLOORS))
    # The agent's own cell shows what it looks like itself. Between two levels its position may be -1.
    told[np.arange(num_screens), np.maximum(blstats[:, Y], 0) * MAP_WIDTH + np.maximum(blstats[:, X], 0)] = False
    cells = np.flatnonzero(told)
    seen = np.zeros((num_screens, len(words)), bool)
    seen[cells // width, kind_of[glyphs.reshape(-1)[cells]]] = True
    seen[:, 0] = False
    packed = np.packbits(seen, axis=1)
    sets[:, : packed.shape[1]] = packed


def _write_conditions(screens: Mapping[str, np.ndarray], keys: np.ndarray) -> None:
    """Write indices into HEALTH, HUNGERS, DEPTHS and STAIRS into the first columns of `keys` [N, ...] u8."""
    blstats = screens["blstats"]
    tripled, most = 3 * blstats[:, HP], blstats[:, MAX_HP]
    keys[:, 0] = tripled <= 2 * most
    keys[:, 0] += tripled <= most
    keys[:, 1] = np.minimum(blstats[:, HUNGER], len(HUNGERS) - 1)
    keys[:, 2] = _DEEPER.searchsorted(blstats[:, DEPTH], "right")
    keys[:, 3] = screens["internal"][:, ON_STAIRS_DOWN] != 0


@functools.cache
def _key_size() -> int:
    """Bytes of what a text is made from, conditions and kinds; a multiple of 8."""
    return -(-(8 * NUM_CONDITIONS + len(_kinds()[1])) // 64) * 8


@functools.lru_cache(MAX_TEXTS)
def _text(key: bytes) -> bytes:
    words = _kinds()[1]
    health, hunger, depth, stairs = key[:NUM_CONDITIONS]
    kinds = np.unpackbits(np.frombuffer(key, np.uint8, offset=NUM_CONDITIONS), count=len(words)).nonzero()[0].tolist()
    things = [words[kind] for kind in kinds[:MAX_THINGS]]
    told = [HEALTH[health], HUNGERS[hunger], [*DEPTHS.values()][depth], STAIRS[stairs]]
    told += [f"{thing[0].upper()}{thing[1:]}." for thing in things]
    return " ".join(filter(None, told)).encode()


@functools.cache
def _kinds() -> tuple[np.ndarray, tuple[str, ...]]:
    """The kind of each glyph, [OUTSIDE_GLYPH + 1] u16, and the kinds in words, in the order in which they are told; 0
    is nothing."""
    things = [_thing(glyph) for glyph in range(OUTSIDE_GLYPH)] + [None]
    words = ("", *dict.fromkeys(thing[1] for thing in sorted(filter(None, things), key=lambda thing: thing[0])))
    numbers = {word: number for number, word in enumerate(words)}
    return np.array([0 if thing is None else numbers[thing[1]] for thing in things], np.uint16), words


def _thing(glyph: int) -> tuple[int, str] | None:
    """What a glyph stands for: a number, by which it is told sooner or later, and words; None for what is not told."""
    if nethack.glyph_is_pet(glyph):
        return 2, "your pet"
    if nethack.glyph_is_invisible(glyph):
        return 1, "an unseen monster"
    if nethack.glyph_is_statue(glyph):
        return 5, "a statue"
    if nethack.glyph_is_body(glyph):
        return 4, "a corpse"
    if nethack.glyph_is_monster(glyph):
        monster = nethack.permonst(nethack.glyph_to_mon(glyph))
        return 1, monster.mname if monster.geno & UNIQUE else _with_article(monster.mname)
    if nethack.glyph_is_object(glyph):
        words = _words_of_classes().get(nethack.objclass(nethack.glyph_to_obj(glyph)).oc_class)
        return None if words is None else (3, words)
    if nethack.glyph_is_trap(glyph):
        return 4, "a trap"
    if nethack.glyph_is_cmap(glyph):
        name = nethack.symdef.from_idx(nethack.glyph_to_cmap(glyph)).explanation
        return (0, _with_article(name)) if name in FIXTURES else None
    return None


@functools.cache
def _words_of_classes() -> Mapping[str, str]:
    return {chr(getattr(nethack, f"{name}_CLASS")): words for name, words in CLASSES.items()}


def _with_article(name: str) -> str:
    if name in WITHOUT_ARTICLE:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
