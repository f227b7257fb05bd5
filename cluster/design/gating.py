"""What a campaign asks about a program before it trains it: the gates, by the episodes of a run.

Invariant: verdicts are a function of the program, of those trained before it and of the archive; without an archive all
gates but the static one abstain.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from learner.episodes import Episodes, read_episodes
from learner.reward.archived import judged_program, program_rewards
from reward_models.gates import DISTANCE, FARMING, PREFERENCE, RUN, Rewards, Verdict, static_gate
from reward_models.programs.program import Program

BY_EPISODES = (RUN, PREFERENCE, DISTANCE, FARMING)


class Gatekeeper(Protocol):
    """The gates, with what they know of archives of episodes."""

    def verdicts(self, program: Program, before: Mapping[str, Program], archive: Path | None) -> list[Verdict]:
        """One verdict of each gate, given the programs that no gate refused `before`, by name, and the run directory
        `archive`, if any, that keeps episodes."""

    def episodes(self, archive: Path) -> Episodes | None:
        """The episodes that a run that has ended keeps; None where it kept none."""


class ArchiveGates:
    """The gates of `reward_models.gates`, in an environment with these names of features and actions."""

    def __init__(self, features: tuple[str, ...], actions: tuple[str, ...]) -> None:
        self._names = features, actions
        self._rewards: dict[tuple[Path, str], Rewards] = {}  # of programs before

    def verdicts(self, program: Program, before: Mapping[str, Program], archive: Path | None) -> list[Verdict]:
        """See `Gatekeeper`."""
        episodes = _episodes(archive) if archive else None
        if archive is None or episodes is None:
            reason = "there are no episodes to judge by"
            missing = [Verdict(gate=gate, passed=None, figure=None, message=reason) for gate in BY_EPISODES]
            return [static_gate(program.text, *self._names), *missing]
        earlier = {f"program {name}": self._rewards_of(each, archive, episodes) for name, each in before.items()}
        return judged_program(program.text, episodes, earlier)

    def episodes(self, archive: Path) -> Episodes | None:
        """See `Gatekeeper`."""
        return _episodes(archive)

    def _rewards_of(self, program: Program, archive: Path, episodes: Episodes) -> Rewards:
        key = archive, program.program_id
        if key not in self._rewards:
            self._rewards[key] = program_rewards(program.text, episodes)
        return self._rewards[key]


@lru_cache(maxsize=2)
def _episodes(archive: Path) -> Episodes | None:
    try:
        episodes = read_episodes(archive)
    except ValueError:
        return None
    return episodes if episodes.episodes else None
