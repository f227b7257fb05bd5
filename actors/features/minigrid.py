"""Features of MiniGrid and BabyAI (`env.features=[minigrid]`), read from the whole grid: a program may know more than
the policy sees.

    carrying, carrying_key, carrying_ball, carrying_box     1 or 0
    doors_open, doors_locked                                how many there are
    direction                                               0 right, 1 down, 2 left, 3 up
    distance_to_key, _ball, _box, _door, _goal, _lava       to the nearest one, in moves without turns and obstacles; 0
                                                            for what is carried, MISSING_DISTANCE for what is not there

Invariant: the same names in every environment of the kind.
"""

from typing import Any

from actors.features.objects import MISSING_DISTANCE

CARRIED = ("key", "ball", "box")
KINDS = (*CARRIED, "door", "goal", "lava")
NAMES = (
    "carrying",
    *(f"carrying_{kind}" for kind in CARRIED),
    *("doors_open", "doors_locked", "direction"),
    *(f"distance_to_{kind}" for kind in KINDS),
)
READ = ("grid", "agent_pos", "agent_dir", "carrying")
"""What an environment of the kind has."""


def is_minigrid(game: Any) -> bool:
    """Whether an unwrapped environment is of the kind."""
    return all(hasattr(game, name) for name in READ) and hasattr(game.grid, "grid")


def features_of(game: Any) -> list[float]:
    """The features of an unwrapped environment's state, in the order of NAMES."""
    column, row = map(int, game.agent_pos)
    width, nearest = game.grid.width, dict.fromkeys(KINDS, MISSING_DISTANCE)
    num_open = num_locked = 0
    told = [(at, thing) for at, thing in enumerate(game.grid.grid) if thing is not None and thing.type in nearest]
    for place, thing in told:
        kind = thing.type
        distance = abs(place % width - column) + abs(place // width - row)
        if distance < nearest[kind]:
            nearest[kind] = float(distance)
        if kind == "door":
            num_open += thing.is_open
            num_locked += thing.is_locked
    carried = getattr(game.carrying, "type", None)
    if carried in nearest:
        nearest[carried] = 0.0
    held = [float(carried is not None), *(float(carried == kind) for kind in CARRIED)]
    return [*held, float(num_open), float(num_locked), float(game.agent_dir), *nearest.values()]
