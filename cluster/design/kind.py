"""Kinds of campaign as YAML files (`configs/designs/`): what is written, gated, trained and shown again.

Invariant: a kind that loads can be run; an error in one is a one-line message that begins with its name.
"""

from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any

from configs.checks import ConfigError
from configs.errors import did_you_mean
from configs.fields import complaint, number, one_of
from configs.yaml_text import read_yaml
from llm_server.rubrics.loading import read_keys
from reward_models.gates import DISTANCE, FARMING, PREFERENCE, RUN, STATIC

FOLDER = resources.files("configs").joinpath("designs")
GATES = (STATIC, RUN, PREFERENCE, DISTANCE, FARMING)
BY_MEASURE, BY_PERSON, BY_MODEL = "score", "ask", "judge"


@dataclass(frozen=True, kw_only=True)
class DesignKind:
    """The settings of a campaign."""

    id: str
    """The kind's name."""
    form: str = one_of("reward", "progress")
    """What is written: a `reward` of a step, or the `progress` of a state (docs/programs.md)."""
    pays: str = one_of("event", "potential", "improvement", "visits")
    """How a program is paid (`terms.NAME.pays`); all but `event` need the form `progress`."""
    coefficient: float = number(1.0, -1e6, 1e6)
    """Factor on what a program pays (`terms.NAME.coefficient`)."""
    rounds: int = number(1, 1, 1000)
    """Rounds of writing and training; each remark of a person adds one."""
    samples: int = number(1, 1, 1000)
    """Programs of a round."""
    attempts: int = number(3, 1, 20)
    """How often each is written, with what was wrong with the last one, until it is a program."""
    seeds: int = number(1, 1, 100)
    """Training runs of each program."""
    gates: tuple[str, ...] = (STATIC,)
    """What refuses a program before it is trained: `static` (it is no constant), and by an archive of episodes: `run`
    (it is known at nearly all steps, and varies), `preference` (successes earn more than failures), `distance` (it
    differs from all programs trained before), `farming` (failures that last do not earn more per step). All but the
    first abstain until there is an archive."""
    critic: bool = False
    """A language model reads each program; what it finds wrong is written again while there are attempts."""
    analyse: bool = False
    """A language model says of each round's best program what its agent fails at."""
    select: str = one_of(BY_MEASURE, BY_PERSON, BY_MODEL)
    """Who orders the programs of a round: their `score` (success, else the game's score, else the return of held-out
    episodes), a person (`ask`), or a language model that compares what agents do (`judge`)."""
    shows_worst: bool = False
    """The worst program of a round is shown beside the best one."""
    advice: str = ""
    """What is wanted of every program, for the brief."""

    @property
    def keeps_episodes(self) -> bool:
        """Whether a gate or the analyst reads episodes, which each run then archives."""
        return self.analyse or bool({*self.gates} - {STATIC})


def kind_names() -> list[str]:
    """The names that `--kind` accepts."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_kind(name: str, **changes: Any) -> DesignKind:
    """The kind of that name with the changes that are not None. Raises ConfigError."""
    if name not in kind_names():
        raise ConfigError(f"--kind: got {name!r}{did_you_mean(name, kind_names())}, wanted {', '.join(kind_names())}")
    try:
        kind: DesignKind = read_keys(DesignKind, read_yaml(FOLDER.joinpath(f"{name}.yaml").read_text("utf-8")), name)
        kind = replace(kind, **{key: value for key, value in changes.items() if value is not None})
        for field in fields(kind):
            if wrong := complaint(field, getattr(kind, field.name)):
                raise ValueError(f"{field.name}: {wrong}")
        if kind.form == "reward" and kind.pays != "event":
            raise ValueError(f"pays: got {kind.pays} with form: reward, wanted event, or form: progress")
        if unknown := [gate for gate in kind.gates if gate not in GATES]:
            near = did_you_mean(unknown[0], GATES)
            raise ValueError(f"gates: got {unknown[0]!r}{near}, wanted some of {', '.join(GATES)}")
    except ValueError as error:
        raise ConfigError(f"kind '{name}': {error}") from None
    return kind
