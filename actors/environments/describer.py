"""Finds the function that describes an environment's states in words (`env.describer`): a built-in one, or the user's.

Invariant: a name that is not known, or is of another kind of environment, is refused in one line.
"""

from actors.environments.captioner import Captioner, function_of
from configs.errors import did_you_mean

NETHACK = "nethack"
"""Describes the screens of all games at once (`actors.environments.nethack.states`)."""
BUILT_IN = {"minigrid": "actors.minigrid_states:describe"}
NAMES = (NETHACK, *BUILT_IN)


def make_describer(describer: str, env_id: str) -> Captioner | None:
    """The function of (obs, info) that describes a state of the environment `env_id`, as captions are read; None
    without a describer. Raises ValueError for an unknown name, and where the function cannot be called."""
    if not describer:
        return None
    if ":" in describer:
        return function_of(describer, "describer", env_id)
    if describer in BUILT_IN:
        return function_of(BUILT_IN[describer], "describer", env_id)
    if describer == NETHACK:
        what = f"got 'nethack', but {env_id!r} is not played as NetHack or MiniHack"
        raise ValueError(f"env.describer: {what}; give a module:function called with (obs, info)")
    names = ", ".join(NAMES)
    wanted = f"wanted {names} or module:function called with (obs, info)"
    raise ValueError(f"env.describer: got {describer!r}{did_you_mean(describer, NAMES)}, {wanted}")
