"""Features of NetHack's and MiniHack's screens (`env.features`), of all games at once: `blstats`, the numbers that the
engine shows in its bottom lines, and functions of the user's.

Invariant: the names of `blstats` are in the order of NLE's array; their values are its values.
"""

from collections.abc import Mapping

import numpy as np

from actors.environments.nethack.states import observations
from actors.features.layout import columns_of
from actors.features.sources import Source, make_function_source, take_notices
from configs.features import BLSTATS, INFO, MINIGRID, OBS, check_sources
from configs.schema import EnvConfig

NAMES = (
    *("x", "y", "strength", "strength_percentage"),
    *("dexterity", "constitution", "intelligence", "wisdom", "charisma"),
    *("score", "hp", "max_hp", "depth", "gold", "energy", "max_energy", "armor_class"),
    *("monster_level", "experience_level", "experience_points"),
    *("turns", "hunger", "encumbrance", "dungeon_number", "level_number", "condition", "alignment"),
)
"""Of the 27 entries of `blstats`. `armor_class` is better the lower it is; `hunger` is 0 satiated, 1 not hungry, 2
hungry, 3 weak, 4 fainting; `encumbrance` 0 unburdened to 5 overloaded; `condition` a sum of NLE's BL_MASK bits;
`alignment` -1 chaotic, 0 neutral, 1 lawful."""


class ScreenFeatures:
    """The features of N screens, [N, F] f32."""

    def __init__(self, config: EnvConfig, env_id: str) -> None:
        """Raises ValueError, in one line, for sources that are unknown or do not fit NetHack."""
        check_sources(config.features, config.feature_names)
        self._settings = config.features
        self._functions: dict[str, Source] = {}
        for setting in config.features:
            if setting in (MINIGRID, OBS) or setting.startswith(f"{INFO}:"):
                wanted = f"wanted {BLSTATS}, module:function or objects:module:function"
                raise ValueError(f"env.features: got {setting!r} for {env_id!r}, {wanted}")
            if setting != BLSTATS:
                self._functions[setting] = make_function_source(setting, env_id)
        self._columns: list[slice] = []
        self.names: tuple[str, ...] = ()

    @property
    def needs_state(self) -> bool:
        """Whether names depend on the state in which an episode begins."""
        return bool(self._functions)

    def fix(self, screens: Mapping[str, np.ndarray]) -> None:
        """Fix the names by the first of these screens, which a game began with; ValueError for those that do not go
        together."""
        if self._functions:
            obs = next(observations(screens))
            for source in self._functions.values():
                source.fix(obs, {})
        named = [
            (setting, NAMES if setting == BLSTATS else self._functions[setting].names) for setting in self._settings
        ]
        self.names, self._columns = columns_of(named)

    def __call__(self, screens: Mapping[str, np.ndarray]) -> np.ndarray:
        """The features of rows of the arrays of `make_screens`, a new array. Raises EnvironmentFailure."""
        blstats = screens["blstats"]
        if not self._functions:
            return blstats.astype(np.float32)
        features = np.empty((len(blstats), len(self.names)), np.float32)
        each = [*observations(screens)]
        for setting, columns in zip(self._settings, self._columns, strict=True):
            if setting == BLSTATS:
                features[:, columns] = blstats
            else:
                read = self._functions[setting].read
                features[:, columns] = [read(None, obs, {}) for obs in each]
        return features

    def take_notices(self) -> list[str]:
        """New notices for the user since the last call."""
        return take_notices([*self._functions.values()])
