"""What one worker hands over: `Rollout` (worker -> learner) and `CaptionReport` (worker -> annotator).

Invariant: `caption_ids[t]` and `extrinsic_rewards[t]` belong to what action `t` led to, an episode's last step included;
environments reset within the same step, so `obs[t+1]` is already the next episode's first observation.
"""

from dataclasses import dataclass, replace

import numpy as np

Version = tuple[int, int]
"""`(run_epoch, n)`: which start of the run produced it, and how many came before it in that epoch. Only goes up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeStatistics:
    """One finished episode (worker -> learner, for the logs)."""

    episode_return: float
    """Sum of the environment's own rewards."""
    length: int
    """Steps."""
    terminated: bool
    """False where the step limit truncated it."""
    info: dict[str, float]
    """What the environment adds about its end; NetHack: in_game_score, depth, success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """`T` steps of `B` environments from one worker under one policy version (worker -> learner)."""

    obs: dict[str, np.ndarray]
    """What the network reads: name -> [T+1, B, ...]."""
    actions: np.ndarray
    """[T, B] i64."""
    behaviour_logits: np.ndarray
    """[T, B, A] f32."""
    behaviour_values: np.ndarray
    """[T, B] f32."""
    final_values: np.ndarray
    """[T, B] f32: the worker's value of an episode's own last observation where truncated, else NaN."""
    extrinsic_rewards: np.ndarray
    """[T, B] f32."""
    terminated: np.ndarray
    """[T, B] bool."""
    truncated: np.ndarray
    """[T, B] bool."""
    caption_ids: np.ndarray
    """[T, B] u64; 0 is the empty caption."""
    caption_counts: np.ndarray
    """[T, B] i32: occurrences of that caption in the running episode, this one included; at least 1."""
    core_state: dict[str, np.ndarray]
    """Recurrent state before step 0: name -> [B, H] f32 (`h`, and `c` for an LSTM); empty without a core."""
    policy_version: Version
    """Of the weights that acted."""
    worker_id: str
    """`<index>.<incarnation>`: a replaced worker is another worker."""
    sequence_number: int
    """0, 1, 2 ... per worker_id, without gaps; goes on from where it was only where the episodes do (an exact resume)."""
    episodes: tuple[EpisodeStatistics, ...]
    """Episodes that ended in this rollout."""
    episode_ends: tuple[tuple[int, int], ...]
    """The step and the environment in which each of them ended."""
    timings: dict[str, float]
    """Seconds that collecting it took, by stage: `env`, `inference`, `other`."""
    lost: tuple[int, ...] = ()
    """Environments that failed in it and were rebuilt, in order: nothing of theirs in this rollout may be trained on. Where one failed it is
    `truncated` without a final value, and its next episode begins."""
    environment_errors: int = 0
    """Failures of environments since the worker's last rollout, those between episodes too."""
    environment_error: str = ""
    """The first one's traceback, which ends with the line that names it."""
    environment_notices: tuple[str, ...] = ()
    """What was found out of the environments that the user must be told, one line each."""

    @property
    def num_steps(self) -> int:
        """Environment steps in it that may be trained on: T x B without the lost ones."""
        return len(self.actions) * (self.actions.shape[1] - len(self.lost))

    def without_lost(self) -> "Rollout":
        """What may be trained on: itself, or a copy without the columns of the lost environments."""
        if not self.lost:
            return self
        kept = self.kept
        columns = {name: getattr(self, name)[:, kept] for name in PER_STEP}
        return replace(
            self,
            **columns,
            obs={name: array[:, kept] for name, array in self.obs.items()},
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
    "actions",
    "behaviour_logits",
    "behaviour_values",
    "final_values",
    "extrinsic_rewards",
    "terminated",
    "truncated",
    "caption_ids",
    "caption_counts",
)
"""The fields of `Rollout` that are [T, B, ...]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionReport:
    """Captions seen in one rollout (worker -> annotator); small, and sent even where the rollout is dropped."""

    texts: dict[int, str]
    """id -> text of every caption whose text has not been acknowledged by the current caption book."""
    counts: dict[int, int]
    """id -> steps of this rollout that showed it, 0 where only a reset did: only steps are paid. The empty caption is left out."""
    worker_id: str
    """As in the rollout."""
    sequence_number: int
    """As in the rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What a caption book has taken in (annotator -> worker)."""

    book_epoch: str
    """Identity of the caption book; a new one makes workers send their texts again."""
    sequence_number: int
    """The newest of this worker's reports that the book holds; its texts and those of all earlier ones are safe."""
