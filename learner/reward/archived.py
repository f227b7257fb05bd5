"""What a term of the reward pays for archived episodes, and the gates on it (`reward_models.gates`).

Events and improvements are as the learner pays them, at a term's full weight, by the given table. Potentials and visits
are judged by what each step gains, k (v(after) - v(before)): the return of a potential says nothing by construction,
since it is the same whatever the agent does, and what a visit earns depends on the run's visits before.

Invariant: the payments are the learner's own, so a gate judges what would be trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from actors.channels import CHANGE, HISTORY, STATE
from actors.features.signals import FEATURES, FEATURES_BEFORE, FEATURES_START
from actors.rollout import Rollout
from configs.reward_schema import TermConfig
from learner.episodes import Episode, Episodes
from learner.reward.payments import PAYMENTS, Payment
from learner.reward.programs import ProgramPayment
from reward_models.gates import Outcomes, Rewards, Verdict, judge, static_gate
from reward_models.programs.compiling import compile_program
from reward_models.table import RewardTable

CHANNELS = (STATE, CHANGE, HISTORY)
BY_GAIN = ("potential", "visits")


def archived_rewards(term: TermConfig, archive: Episodes, table: RewardTable | None = None) -> list[np.ndarray]:
    """[episode][step] f32, NaN where it is not known. `term` as `configs.terms.resolved_terms` returns it;
    `table`, of a judged term, is None before the first. Raises ValueError for what a term reads that the archive does
    not hold, and for a program that does not fit its features."""
    if term.pays in BY_GAIN:
        term = replace(term, pays="potential", gamma=1.0)
    payment: Payment
    if term.program:
        _check_features(archive)
        payment = ProgramPayment(term, archive.features, archive.actions)
    else:
        payment = PAYMENTS[term.pays](term)
        if archive.episodes and term.reads not in archive.episodes[0].steps:
            held = ", ".join(name for name in ("caption", *CHANNELS) if name in archive.episodes[0].steps)
            raise ValueError(f"the episodes hold {held}, and the term reads {term.reads}")
    table = RewardTable.empty() if table is None else table
    rewards = []
    for episode in archive.episodes:
        paid = payment.pay(_rollout(episode), table)
        rewards.append(np.where(paid.known, paid.rewards, np.float32(np.nan))[:, 0])
    return rewards


def archived_outcomes(archive: Episodes) -> Outcomes:
    """How the episodes ended."""
    return Outcomes(
        success=archive.outcomes("success"),
        extrinsic_returns=archive.outcomes("extrinsic_return"),
        terminated=archive.outcomes("terminated"),
    )


def program_rewards(text: str, archive: Episodes) -> list[np.ndarray]:
    """What a program's number is for each step, or, if it says how far a state is, by how much each step raised it;
    unclipped below 1e6. Raises ValueError, a ProgramError for a text that is no program."""
    _check_features(archive)
    form = compile_program(text, archive.features, archive.actions).form
    pays = "event" if form == "reward" else "potential"
    return archived_rewards(TermConfig(reads=FEATURES, program=text, pays=pays, program_clip=1e6), archive)


def judged_program(text: str, archive: Episodes, earlier: Mapping[str, Rewards]) -> list[Verdict]:
    """The verdicts of all gates on a program, the static one alone where it fails; `earlier` as for `gates.judge`.
    Raises ValueError for episodes without features."""
    _check_features(archive)
    static = static_gate(text, archive.features, archive.actions)
    if static.passed is False:
        return [static]
    return [static, *judge(program_rewards(text, archive), archived_outcomes(archive), earlier)]


def summed(rewards: Sequence[Rewards]) -> list[np.ndarray]:
    """What several terms pay together: one that is not known adds nothing, and the sum is not known where none is."""
    total = []
    for of_terms in zip(*rewards, strict=True):
        stacked = np.stack(of_terms)
        known = ~np.isnan(stacked)
        total.append(
            np.where(known.any(axis=0), np.where(known, stacked, np.float32(0)).sum(axis=0), np.float32(np.nan))
        )
    return total


def _check_features(archive: Episodes) -> None:
    if not archive.features:
        raise ValueError("the episodes hold no features, which a program reads: train a new run with env.features")


def _rollout(episode: Episode) -> Rollout:
    """The episode as a rollout of one environment, ended by no terminal state."""
    steps = {name: array[:, None] for name, array in episode.steps.items()}
    length, signals = episode.num_kept, {name: steps[name] for name in steps.keys() - {"actions", "extrinsic_rewards"}}
    if episode.features is not None and episode.start is not None:
        features = episode.features[:, None]
        signals[FEATURES], signals[FEATURES_BEFORE] = features[1:], features[:-1]
        signals[FEATURES_START] = np.broadcast_to(episode.start, features[1:].shape)
    truncated = np.zeros((length, 1), bool)
    truncated[-1] = True
    nothing = np.zeros((length, 1), np.float32)
    return Rollout(
        obs={},
        actions=steps["actions"].astype(np.int64),
        behaviour_logits=nothing[..., None],
        behaviour_values=nothing,
        final_values=nothing,
        extrinsic_rewards=steps["extrinsic_rewards"],
        terminated=np.zeros((length, 1), bool),
        truncated=truncated,
        caption_ids=signals.pop("caption"),
        caption_counts=signals.pop("caption_counts"),
        core_state={},
        policy_version=(0, 0),
        worker_id="0.0",
        sequence_number=0,
        episodes=(),
        episode_ends=(),
        timings={},
        signals=signals,
    )
