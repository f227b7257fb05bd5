"""Gates: what a reward must pass before a policy is trained on it, by episodes that were played already.

    gate          passes where
    static        a program compiles, reads a feature, and varies over many made-up transitions
    run           the reward is known at 99 % of the steps, and not the same at all
    preference    at least 0.8 of the pairs of a better and a worse episode have the larger return in the better one
                  (trajectory preference evaluation, CARD: Sun et al. 2024, arXiv 2410.14660)
    distance      it is at least 0.05 from every reward that was trained on before
    farming       worse episodes that the step limit ended are not paid more per step than better ones

The better episodes are the successes and the worse ones the failures. Where there are not five of each, extrinsic
returns decide: which end of an episode is the better one, by itself or by the step limit, where 0.95 of the pairs of
one of each agree; else the better ones are the quarter with the highest returns, the worse ones that with the lowest.

- A return is the undiscounted sum over the steps that are kept, and nothing comes after an end. Episodes are not cut to
  one length: a penalty for every step would then be the same for all, and a reward for every step would not be found
  out. Equal returns do not count as larger.
- A step without a known number earns 0, as in training. An episode that has more than 10 % of them is no evidence.
- Lingering for at most 0 per step is no farming where success ends the episode: nothing more is worth 0, too.
- A program that pays rarely may be the same for all made-up transitions, as a constant is: the static gate abstains.
- A reward minus a constant per step is another reward if episodes have different lengths: of the distances of the
  steps' rewards and of the returns the larger counts.

Invariant: a gate that has too little to judge by abstains (`passed` is None) and says so; it never passes for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reward_models.distance import reward_distance
from reward_models.programs.compiling import compile_program
from reward_models.programs.evaluation import evaluate_progress, evaluate_reward
from reward_models.programs.refusal import ProgramError

STATIC, RUN, PREFERENCE, DISTANCE, FARMING = "static", "run", "preference", "distance", "farming"
MIN_OF_EACH = 5
"""Better and worse episodes, of each as many."""
MIN_STEPS = 100
MIN_KNOWN = 0.99
MAX_UNKNOWN = 0.1
"""Of an episode's steps."""
MIN_AGREEING = 0.95
MIN_PREFERRED = 0.8
MIN_DISTANCE = 0.05
BOUNDS = 1e-3, 10.0
"""Of the deviation of a step's reward; the upper one also of the absolute mean."""
EQUAL = 1e-6
"""Numbers that differ by less, relative to the largest, are taken for equal ones that were rounded."""
FLAT = 1e-3
"""Returns vary by no more than this, relative to what as many independent steps would vary: they say nothing."""
MADE_UP = 16_384
"""Transitions by which a program is seen to vary."""

Rewards = Sequence[np.ndarray]
"""[episode][step] f32: what one reward pays; NaN is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """gate -> audit, campaign."""

    gate: str
    passed: bool | None  # None: the gate abstains
    figure: float | None  # what was measured
    message: str  # one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How E episodes ended."""

    success: np.ndarray  # [E] bool
    extrinsic_returns: np.ndarray  # [E] f64, of whole episodes
    terminated: np.ndarray  # [E] bool; False if the step limit ended it


class _Sides(NamedTuple):
    better: np.ndarray  # [N] int: episodes
    worse: np.ndarray  # [M] int
    words: str  # what they are


def judge(rewards: Rewards, outcomes: Outcomes, earlier: Mapping[str, Rewards]) -> list[Verdict]:
    """The verdicts of all gates but the static one on what a reward pays for episodes; `earlier`: what the rewards
    trained on before pay for the same ones, by name. Raises ValueError where the numbers of episodes differ."""
    for name, other in {"outcomes": outcomes.success, **earlier}.items():
        if len(other) != len(rewards):
            raise ValueError(f"{name}: got {len(other)} episodes, wanted {len(rewards)}, as there are rewards of")
    gates = run_gate(rewards), preference_gate(rewards, outcomes), distance_gate(rewards, earlier)
    return [*gates, farming_gate(rewards, outcomes)]


def static_gate(text: str, features: Sequence[str], actions: Sequence[str] = ()) -> Verdict:
    """Of a program, for an environment with these names of features and actions. Its figure is the number of nodes."""
    try:
        program = compile_program(text, features, actions)
    except ProgramError as error:
        return Verdict(gate=STATIC, passed=False, figure=None, message=str(error))
    size = float(program.num_nodes)
    if not program.features:
        message = f"it reads none of the features {', '.join(features)}"
        return Verdict(gate=STATIC, passed=False, figure=size, message=message)
    rng = np.random.default_rng(0)
    numbers = [step.detail for step in program.steps if isinstance(step.detail, float)]
    near = np.unique(np.add.outer([0.0, *numbers, *(-n for n in numbers)], [-1.0, -0.01, 0.0, 0.01, 1.0]))
    shape = MADE_UP, len(program.features)
    before, after, start = (_made_up(rng, shape, near) for _ in range(3))
    if program.form == "progress":
        components = evaluate_progress(program, after, program.features)
    else:
        named = [step.detail for step in program.steps if isinstance(step.detail, int)]
        action = rng.choice([*range(max(len(actions), 8)), *named], MADE_UP)
        components = evaluate_reward(program, before, after, start, action, program.features)
    known = (totals := components.sum(-1))[~np.isnan(totals)]
    if not len(known):
        message = f"it gives no number for any of {MADE_UP:,} made-up transitions"
        return Verdict(gate=STATIC, passed=False, figure=size, message=message)
    if known.min() == known.max():
        message = f"{known[0]:g} for each of {MADE_UP:,} made-up transitions: it pays rarely, or is a constant"
        return Verdict(gate=STATIC, passed=None, figure=size, message=message)
    message = f"{program.num_nodes} nodes; reads {', '.join(program.features)}"
    return Verdict(gate=STATIC, passed=True, figure=size, message=message)


def _made_up(rng: np.random.Generator, shape: tuple[int, int], near: np.ndarray) -> np.ndarray:
    """[N, F] f32: numbers of all sizes, small whole ones, and ones near those that the program compares with."""
    kinds = [rng.normal(size=shape) * 10.0 ** rng.integers(-2, 4, shape), rng.integers(-2, 12, shape)]
    kinds += [rng.choice(near, shape)] * 2
    return np.choose(rng.integers(0, len(kinds), shape), kinds).astype(np.float32)


def run_gate(rewards: Rewards) -> Verdict:
    """Its figure is the fraction of steps that have a known reward. A reward of an awkward size passes; the message
    says what it should be multiplied by."""
    steps = np.concatenate([np.zeros(0, np.float32), *rewards]).astype(np.float64)
    if len(steps) < MIN_STEPS:
        return _abstains(RUN, f"there are {len(steps)} steps, and {MIN_STEPS} are needed")
    values = steps[~np.isnan(steps)]
    fraction = len(values) / len(steps)
    if fraction < MIN_KNOWN:
        message = f"known at {fraction:.1%} of {len(steps):,} steps, wanted {MIN_KNOWN:.0%}"
        return Verdict(gate=RUN, passed=False, figure=fraction, message=message)
    mean, deviation = float(values.mean()), float(values.std())
    if deviation <= EQUAL * np.abs(values).max():
        message = f"{mean:.4g} at each of {len(values):,} steps: it tells none from another"
        return Verdict(gate=RUN, passed=False, figure=fraction, message=message)
    message = f"mean {mean:.3g}, deviation {deviation:.3g}"
    if not BOUNDS[0] <= deviation <= BOUNDS[1] or abs(mean) > BOUNDS[1]:
        message += f"; multiply it by {1 / deviation:.3g}, which gives it the deviation 1"
    return Verdict(gate=RUN, passed=True, figure=fraction, message=message)


def preference_gate(rewards: Rewards, outcomes: Outcomes) -> Verdict:
    """Its figure is the fraction of pairs whose better episode has the larger return."""
    sides = _sides(rewards, outcomes)
    if isinstance(sides, str):
        return _abstains(PREFERENCE, sides)
    returns = _returns(rewards)
    better, worse = returns[sides.better], returns[sides.worse]
    gaps = better[:, None] - worse[None, :]
    rounding = EQUAL * max(float(np.nansum(np.abs(rewards[i]))) for i in [*sides.better, *sides.worse])
    share, ties = float((gaps > rounding).mean()), float((np.abs(gaps) <= rounding).mean())
    message = f"the larger return in {share:.3g} of {gaps.size:,} pairs, wanted {MIN_PREFERRED:g}"
    if ties:
        message += f", equal ones in {ties:.3g}"
    message += f" ({sides.words})"
    return Verdict(gate=PREFERENCE, passed=share >= MIN_PREFERRED, figure=share, message=message)


def distance_gate(rewards: Rewards, earlier: Mapping[str, Rewards]) -> Verdict:
    """Its figure is the distance to the nearest of the `earlier` rewards."""
    if not earlier:
        return _abstains(DISTANCE, "there is no earlier reward to compare with")
    distances = {
        name: distance for name, other in earlier.items() if (distance := _distance(rewards, other)) is not None
    }
    if len(distances) < len(earlier):
        name = next(name for name in earlier if name not in distances)
        if not distances or min(distances.values()) >= MIN_DISTANCE:
            return _abstains(DISTANCE, f"fewer than {MIN_STEPS} steps have a known reward both by it and by {name}")
    nearest = min(distances, key=lambda name: distances[name])
    distance = distances[nearest]
    message = f"{distance:.3g} from {nearest}, wanted {MIN_DISTANCE:g} from each of {len(earlier)}"
    return Verdict(gate=DISTANCE, passed=distance >= MIN_DISTANCE, figure=distance, message=message)


def farming_gate(rewards: Rewards, outcomes: Outcomes) -> Verdict:
    """Its figure is what worse episodes that the step limit ended are paid per step, minus what the better ones are.
    It abstains where that is above 0, but within two standard errors."""
    sides = _sides(rewards, outcomes)
    if isinstance(sides, str):
        return _abstains(FARMING, sides)
    lingering = sides.worse[~outcomes.terminated[sides.worse]]
    if len(lingering) < MIN_OF_EACH:
        what = f"the step limit ended {len(lingering)} of {len(sides.worse)} worse episodes"
        return _abstains(FARMING, f"{what}, and {MIN_OF_EACH} are needed")
    rates = _returns(rewards) / [len(one) for one in rewards]
    worse, better = rates[lingering], rates[sides.better]
    paid, wanted, error = float(worse.mean()), float(better.mean()), worse.var() / len(worse)
    message = f"{paid:.3g} a step where the limit ended a worse episode, {wanted:.3g} in better ones ({sides.words})"
    if wanted < 0 and outcomes.terminated[sides.better].mean() > 0.5:
        wanted = 0.0  # what comes after their end is worth that
    else:
        error += better.var() / len(better)
    excess = paid - wanted
    if excess <= EQUAL * float(np.abs(rates).max()):
        return Verdict(gate=FARMING, passed=True, figure=excess, message=message)
    if excess < 2 * np.sqrt(error):
        return Verdict(gate=FARMING, passed=None, figure=excess, message=f"within the error of few episodes: {message}")
    return Verdict(gate=FARMING, passed=False, figure=excess, message=f"paid for not getting done: {message}")


def _abstains(gate: str, reason: str) -> Verdict:
    return Verdict(gate=gate, passed=None, figure=None, message=reason)


def _sides(rewards: Rewards, outcomes: Outcomes) -> _Sides | str:
    """Better and worse episodes, or why there are none to compare."""
    usable = np.array([len(one) > 0 and np.isnan(one).mean() <= MAX_UNKNOWN for one in rewards], bool)
    without = int((~usable).sum())
    left_out = f", without {without} whose reward is not known at over {MAX_UNKNOWN:.0%} of steps" if without else ""
    better, worse = np.flatnonzero(usable & outcomes.success), np.flatnonzero(usable & ~outcomes.success)
    counts = f"{len(better)} successes and {len(worse)} failures{left_out}"
    if min(len(better), len(worse)) >= MIN_OF_EACH:
        return _Sides(better, worse, counts)
    return _sides_by_return(usable, outcomes, f"there are {counts}")


def _sides_by_return(usable: np.ndarray, outcomes: Outcomes, counts: str) -> _Sides | str:
    returns = outcomes.extrinsic_returns
    ended, limited = np.flatnonzero(usable & outcomes.terminated), np.flatnonzero(usable & ~outcomes.terminated)
    if min(len(ended), len(limited)) >= MIN_OF_EACH:
        for better, worse, what in ((ended, limited, "by themselves"), (limited, ended, "by the step limit")):
            if (returns[better][:, None] > returns[worse][None, :]).mean() >= MIN_AGREEING:
                words = (
                    f"{len(better)} that ended {what}, which have the higher extrinsic returns, and {len(worse)} others"
                )
                return _Sides(better, worse, f"{words}; {counts}")
    low, high = np.quantile(returns[usable], [0.25, 0.75]) if usable.any() else (0.0, 0.0)
    better, worse = (
        np.flatnonzero(usable & (returns >= high) & (returns > low)),
        np.flatnonzero(usable & (returns <= low)),
    )
    if min(len(better), len(worse)) >= MIN_OF_EACH:
        lowest, highest = returns[better].min(), returns[worse].max()
        words = f"{len(better)} with extrinsic returns from {lowest:.4g} and {len(worse)} up to {highest:.4g}"
        return _Sides(better, worse, f"{words}; {counts}")
    by_return = f"by extrinsic return {len(better)} better ones and {len(worse)} worse ones"
    return f"{counts}, and {by_return}; {MIN_OF_EACH} of each are needed"


def _returns(rewards: Rewards) -> np.ndarray:
    """[E] f64; unknown steps earn 0."""
    return np.array([np.nansum(one, dtype=np.float64) for one in rewards])


def _distance(one: Rewards, other: Rewards) -> float | None:
    """None where too few steps are known to both."""
    first, second = np.concatenate(one), np.concatenate(other)
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < MIN_STEPS:
        return None
    of_steps = reward_distance(first[known], second[known], np.ones(int(known.sum())))
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if len(a) and not (np.isnan(a) | np.isnan(b)).any()]
    if len(pairs) < MIN_OF_EACH:
        return of_steps
    returns, others = (_varying([pair[side] for pair in pairs]) for side in (0, 1))
    return max(of_steps, reward_distance(returns, others, np.ones(len(pairs))))


def _varying(rewards: Rewards) -> np.ndarray:
    """[E]: the returns, or zeros where they hardly vary, so that rounding is not compared."""
    returns, steps = _returns(rewards), np.concatenate(rewards)
    expected = float(steps.std(dtype=np.float64)) * np.sqrt(len(steps) / len(rewards))
    offset = EQUAL * float(np.abs(returns).max())
    return returns if returns.std() > FLAT * expected + offset else np.zeros(len(returns))
