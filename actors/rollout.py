"""The data that a worker hands over: `Rollout` (worker -> learner) and `CaptionReport` (worker -> annotator).

Invariant: `caption_ids[t]` and `extrinsic_rewards[t]` belong to what action `t` led to, an episode's last step
included; environments reset within the same step, so `obs[t+1]` is already the next episode's first observation.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from actors.goals.counts import GoalCounts

Version = tuple[int, int]
"""`(run_epoch, n)`: the start of the run that produced it, and the number within that epoch. Only increases."""
Items = tuple[dict[int, str], dict[int, int]]
"""Of one channel since the last report: id -> text, and id -> steps that showed it; see `CaptionReport`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeStatistics:
    """One finished episode (worker -> learner, for the logs)."""

    episode_return: float  # sum of the environment's own rewards
    length: int
    terminated: bool  # False if the step limit truncated it
    info: dict[str, float]  # the environment's metrics of the episode; NetHack: in_game_score, depth, success


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Rollout:
    """`T` steps of `B` environments from one worker under one policy version (worker -> learner). A rollout equals
    itself only, so that it can be a key."""

    obs: dict[str, np.ndarray]  # the network's observations: name -> [T+1, B, ...]
    actions: np.ndarray  # [T, B] i64
    behaviour_logits: np.ndarray  # [T, B, A] f32
    behaviour_values: np.ndarray  # [T, B] f32
    final_values: np.ndarray  # [T, B] f32: value of a truncated episode's own last observation, else NaN
    extrinsic_rewards: np.ndarray  # [T, B] f32
    terminated: np.ndarray  # [T, B] bool
    truncated: np.ndarray  # [T, B] bool
    caption_ids: np.ndarray  # [T, B] u64; 0 is the empty caption
    caption_counts: np.ndarray  # [T, B] i32: occurrences of that caption in the running episode, from 1 on
    core_state: dict[str, np.ndarray]
    """Recurrent state before step 0: name -> [B, H] f32 (`h`, and `c` for an LSTM); empty without a core."""
    policy_version: Version  # of the weights that chose the actions
    worker_id: str  # `<index>.<incarnation>`: a replaced worker has a new id
    sequence_number: int
    """0, 1, 2 ... per worker_id, without gaps; continued after a resume only if it is exact (the episodes go on)."""
    episodes: tuple[EpisodeStatistics, ...]  # that ended in this rollout
    episode_ends: tuple[tuple[int, int], ...]  # step and environment of each of these ends
    timings: dict[str, float]  # seconds spent collecting, by stage: `env`, `inference`, `other`
    lost: tuple[int, ...] = ()
    """Environments that failed in this rollout and were rebuilt, in order: none of their data here may be trained on.
    The failed step is `truncated` without a final value, and the next episode begins."""
    environment_errors: int = 0  # environment failures since the worker's last rollout, those between episodes included
    environment_error: str = ""  # traceback of the first failure; its last line names the failure
    environment_notices: tuple[str, ...] = ()  # notices about the environments for the user, one line each
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    """What further terms of the reward read. [T, B] each, of the channels C that a term reads (`state`, `change`,
    `history`): `C` u64, the id of the item that action t led to, an episode's own last one included; `C_counts` i32,
    its occurrences in the running episode, this one included; `state_before` u64, the state in which action t was
    taken. 0 is the empty text. Of a run that reads features, [T, B, F] f32 each: `features` of the state that action t
    led to, `features_before` of the one in which it was taken, `features_start` of the one in which its episode began;
    NaN is unknown, as all of `features` is where an environment failed."""

    @property
    def num_steps(self) -> int:
        """Environment steps that may be trained on: T x B without the lost environments."""
        return len(self.actions) * (self.actions.shape[1] - len(self.lost))

    def without_lost(self) -> "Rollout":
        """The data that may be trained on: the rollout itself, or a copy without the columns of lost environments."""
        if not self.lost:
            return self
        kept = self.kept
        return replace(
            self,
            **{name: getattr(self, name)[:, kept] for name in PER_STEP},
            obs={name: array[:, kept] for name, array in self.obs.items()},
            signals={name: array[:, kept] for name, array in self.signals.items()},
            core_state={name: array[kept] for name, array in self.core_state.items()},
            lost=(),
        )

    @property
    def kept(self) -> np.ndarray:
        """[B] bool: False for lost environments."""
        kept = np.ones(self.actions.shape[1], bool)
        kept[list(self.lost)] = False
        return kept


PER_STEP = (
    *("actions", "behaviour_logits", "behaviour_values", "final_values", "extrinsic_rewards"),
    *("terminated", "truncated", "caption_ids", "caption_counts"),
)
"""The fields of `Rollout` that are [T, B, ...]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionReport:
    """Captions seen in one rollout (worker -> annotator); small, and sent even if the rollout is dropped."""

    texts: dict[int, str]  # id -> text of every caption whose text the current caption book has not acknowledged
    counts: dict[int, int]
    """id -> steps that showed it, 0 if only a reset did: only steps are rewarded. Without the empty caption."""
    worker_id: str
    sequence_number: int  # both as in the rollout
    channels: dict[str, Items] = field(default_factory=dict)
    """`texts` and `counts` of the channels other than captions, by name; of `mission` the counts are of episodes."""
    goals: GoalCounts | None = None  # None in a run without goals


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What a caption book has stored (annotator -> worker)."""

    book_epoch: str  # identity of the caption book; workers send their texts again to a new one
    sequence_number: int  # this worker's newest report that the book holds; its texts and all earlier ones are stored
