"""Where numbers that describe a state come from (`env.features`): the sources as they are written, and the rules for
the names of features.

Invariant: whatever can be refused without the environment is refused here, in one line.
"""

import keyword
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from configs.errors import did_you_mean
from configs.schema import EnvConfig

BLSTATS, MINIGRID, OBS = "blstats", "minigrid", "obs"
INFO, OBJECTS = "info", "objects"
BUILT_IN = (BLSTATS, MINIGRID, OBS)
EXAMPLES = (*BUILT_IN, "info:KEY", "module:function", "objects:module:function")
SOURCES = f"{', '.join(EXAMPLES[:-1])} or {EXAMPLES[-1]}"
MAX_FEATURES = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
NAME_RULE = "an identifier: letters, digits and _, at most 64 of them, and no keyword of Python"


def check_sources(features: Sequence[str], feature_names: Sequence[str]) -> None:
    """ValueError, in one line, for the first of `env.features` that is no source, and for `env.feature_names` that name
    nothing or are no names."""
    for source in features:
        kind, colon, rest = source.partition(":")
        wanted = f"wanted {SOURCES}"
        if not colon and kind not in BUILT_IN:
            raise ValueError(f"env.features: got {source!r}{did_you_mean(source, EXAMPLES)}, {wanted}")
        if colon and kind in BUILT_IN:
            raise ValueError(f"env.features: got {source!r}, {wanted}: {kind} takes no argument")
        if kind == INFO:
            check_names([rest], f"env.features: {source!r}")
        elif colon:
            module, between, function = (rest if kind == OBJECTS else source).partition(":")
            if not (module and between and function) or ":" in function:
                raise ValueError(f"env.features: got {source!r}, {wanted}")
        if features.count(source) > 1:
            raise ValueError(f"env.features: got {source!r} twice, wanted each source once")
    if feature_names and OBS not in features:
        got = f"got {len(feature_names)} names with env.features={[*features]}"
        raise ValueError(f"env.feature_names: {got}, wanted none: they name the entries of `obs`")
    check_names(feature_names, "env.feature_names")


def without_features(env: EnvConfig) -> EnvConfig:
    """The environment for those who read no features, which are then not computed."""
    return replace(env, features=[], feature_names=[])


def check_names(names: Iterable[str], where: str) -> None:
    """ValueError for the first name that is no identifier or occurs twice; `where` begins the message."""
    seen: set[str] = set()
    for name in names:
        if not NAME.fullmatch(name) or keyword.iskeyword(name):
            raise ValueError(f"{where}: got the name {name!r}, wanted {NAME_RULE}")
        if name in seen:
            raise ValueError(f"{where}: got the name {name!r} twice, wanted different names")
        seen.add(name)
