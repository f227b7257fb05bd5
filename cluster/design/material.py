"""What the writer of a program is told: the fields of its brief.

Invariant: the language is described from where it is defined; a feature's numbers are measured, never claimed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from cluster.design.runs import NUM_POINTS, Outcome
from cluster.programs.random_play import random_steps
from configs.checks import ConfigError
from configs.schema import RunConfig
from learner.episodes import Episodes
from reward_models.gates import Verdict
from reward_models.programs import language

LOOK_STEPS = 1000
"""Of random play, by which features are measured before there are episodes of training."""
MAX_FIGURES = 8


def language_text(form: str) -> str:
    """The functions and limits of the language, for programs of one form."""
    calls = [language.USES.get(name, f"{name}(x)") for name, (most, _) in language.FUNCTIONS.items() if most != 2]
    pairs = [name for name, (least, _) in language.FUNCTIONS.items() if least == 2]
    given = language.FORMS[form]
    moments = [name for name in given if name != language.ACTION]
    lines = [
        f"def {form}({', '.join(given)}): numbers, assignments to local names, if/elif/else around them, one return",
        f"{', '.join(f'{moment}.FEATURE' for moment in moments)} are numbers",
        *(["action == NAME, or the action's number"] if language.ACTION in given else []),
        "+ - * / // % **, comparisons, and/or/not, a if c else b; comparisons give 1 or 0",
        f"{', '.join(calls)}; {' and '.join(f'{name}(a, b, ...)' for name in pairs)}; nothing else is called",
        f"no loops, imports, lists, texts or attributes; at most {language.MAX_NODES} operations and"
        f" {language.MAX_NAMES} names",
        f'return one number, or {{"name": number, ...}}: the sum of at most {language.MAX_COMPONENTS} components',
    ]
    return "\n".join(lines)


def look(config: RunConfig) -> np.ndarray:
    """[N, F] f32: the features of the states of random play, with the run's seed. Raises ConfigError where the
    environment fails."""
    env = make_environment(
        config.env, num_envs=1, run_seed=config.seed, worker_index=0, stream="look", policy=config.policy
    )
    try:
        env.reset()
        steps = random_steps(env, LOOK_STEPS, config.seed)
        return np.concatenate([step.features for step in steps if step.features is not None])
    except EnvironmentFailure as error:
        raise ConfigError(str(error)) from error
    finally:
        env.close()


def measured(names: Sequence[str], features: np.ndarray | None) -> dict[str, list[float]]:
    """Name -> minimum, quartiles and maximum of each feature that was ever a number in `features` [N, F]."""
    if features is None:
        return {}
    found = {}
    for name, column in zip(names, features.T, strict=True):
        known = column[np.isfinite(column)]
        if known.size:
            found[name] = [float(f"{value:.4g}") for value in np.quantile(known, [0, 0.25, 0.5, 0.75, 1])]
    return found


def features_of(episodes: Episodes | None) -> np.ndarray | None:
    """[N, F] f32: the features of the states of episodes; None where there are none."""
    states = [each.features for each in episodes.episodes if each.features is not None] if episodes else []
    return np.concatenate(states) if states else None


def episodes_text(episodes: Episodes | None) -> str:
    """The course of a failure and of a success, if there are any: the features that vary in it, at ten points."""
    lines = []
    for what, is_success in (("a failed episode", False), ("a successful episode", True)):
        of_kind = (each for each in (episodes.episodes if episodes else ()) if each.success is is_success)
        one = next((each for each in of_kind if each.features is not None), None)
        if one is None or one.features is None or episodes is None:
            continue
        lines.append(f"{what} of {one.length} steps:")
        rows = one.features[np.linspace(0, len(one.features) - 1, NUM_POINTS).astype(int)]  # [10, F]
        for name, column in zip(episodes.features, rows.T, strict=True):
            if column.min() != column.max():
                lines.append(f"{name}: {' '.join(f'{value:.3g}' for value in column)}")
    return "\n".join(lines)


def features_text(names: Sequence[str], ranges: Mapping[str, Sequence[float]]) -> str:
    """One line per feature, with its measured range and quartiles."""
    lines = []
    for name in names:
        low, *quartiles, high = ranges.get(name, [0.0, 0.0])
        told = f"{low:g} to {high:g}, quartiles {' '.join(f'{value:g}' for value in quartiles)}"
        told = told if low < high else f"always {low:g} so far"
        lines.append(f"{name}: {told}" if name in ranges else name)
    return "\n".join(lines)


def figures_text(outcome: Outcome) -> str:
    """What the agent of a run does in held-out episodes, a line per metric."""
    return "\n".join(f"{name}: {value:.4g}" for name, value in [*outcome.figures.items()][:MAX_FIGURES])


def reflection_text(outcome: Outcome | None, verdicts: Sequence[Verdict], remarks: Sequence[str]) -> str:
    """What came of a program: each of its components, success, return and length over training, what the gates said,
    and further remarks."""
    lines = []
    if outcome is not None:
        lines += [
            f"{name} during training: {' '.join(f'{v:g}' for v in curve)}" for name, curve in outcome.curves.items()
        ]
        lines += [f"after training, {line}" for line in figures_text(outcome).split("\n") if line]
    lines += [f"gate {verdict.gate}: {verdict.message}" for verdict in verdicts if verdict.passed is not None]
    return "\n".join([*lines, *remarks])
