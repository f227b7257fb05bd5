"""Configuration of the reward: how extrinsic and intrinsic reward are mixed, further terms of the intrinsic reward, and
safeguards of the models behind it."""

from dataclasses import dataclass, field
from typing import Any

from configs.fields import number, one_of

MAIN_TERM = "main"
"""The name of the term that the sections `reward_model`, `annotator` and `reward` describe."""


@dataclass(frozen=True)
class RewardConfig:
    """r[t] = k_ext * clip(s * r_env[t], -c, c) + k_int * R(caption_ids[t]) / caption_counts[t]^beta (ONI section 2),
    plus the other `terms`."""

    extrinsic_coefficient: float = number(0.1, -1e6, 1e6)
    """k_ext; 0 trains without extrinsic reward (ONI: 0.1 for the score task, 10 for the sparse tasks)."""
    intrinsic_coefficient: float = number(0.4, -1e6, 1e6)
    """k_int (ONI's example: 0.4 for retrieval on the score task)."""
    extrinsic_scale: float = number(1.0, -1e9, 1e9)
    """s, applied before clipping."""
    extrinsic_clip: float = number(10.0, 0, 1e12)
    """c; the environment's reward is clipped to [-c, c] after scaling."""
    count_exponent: float = number(3.0, 0, 100)
    """beta: the n-th occurrence of a caption in one episode earns 1/n^beta of its reward."""
    max_intrinsic_share: float = number(1.0, 0.001, 1)
    """Cap s on the share of intrinsic reward; 1 sets none. With I the mean of an episode's summed |intrinsic| reward,
    and E that of its summed positive extrinsic reward over the episodes that had any (both running means with decay
    0.99 per episode), intrinsic reward is multiplied by min(1, s / (1 - s) E / I). There is no cap before the first
    episode with a positive reward: a sparse task must be explored first."""
    episode_cap: float = number(0.0, 0, 1e9)
    """`terms.NAME.episode_cap` of the main term."""
    anneal_env_steps: int = number(0, 0, 1e15)
    """`terms.NAME.anneal_env_steps` of the main term."""
    trust: str = one_of("none", "outcome", "earned")
    """`terms.NAME.trust` of the main term."""


@dataclass(frozen=True)
class TermConfig:
    """A further term of the intrinsic reward, beside the main one that `reward_model`, `annotator` and `reward`
    describe: what is read, who judges it, how it is paid, and how much."""

    reads: str = one_of("caption", "state", "change", "history", "features")
    """What is judged: `caption`, `state` (what `env.describer` says of the state that an action leads to), `change`
    (what it no longer says, what it says anew, and the caption) or `history` (the shares of the episode's actions so
    far); or `features`, the numbers of `env.features`, which nobody judges: the term is a `program`."""
    rubric: str = ""
    """Name of a built-in rubric or path of a rubric YAML file; empty uses annotator.rubric."""
    about: str = ""
    """What items are judged about (a goal, an instruction, a question), for a rubric with an `about_label`."""
    model: dict[str, Any] = field(default_factory=dict)
    """Differences from reward_model, for example {name: classification, output: soft}. `goals` and `judgements` are not
    taken from there, because they belong to the main term's question."""
    coefficient: float = number(1.0, -1e6, 1e6)
    """Factor on what the term pays."""
    program: str = ""
    """For `features`: what computes the term's number (docs/programs.md). The file of a program, *.py, or its text: a
    function or an expression, for example `after.height - before.height`."""
    program_clip: float = number(10.0, 0, 1e6)
    """The number of a `program` is clipped to +- this."""
    pays: str = one_of("event", "potential", "improvement", "visits")
    """With v the number that the reward model has for an item, or the program computes: `event`: v / n^beta for what
    happened, the n-th time in the episode (v itself for a program); `potential`: gamma v(after) - v(before), which
    leaves the optimal policy as it is (Ng et al. 1999); `improvement`: by how much v(after) exceeds its maximum of the
    episode; `visits`: 1/sqrt(n) for the n-th visit of the bin that v(after) lies in (ProgressCounts). All but `event`
    need reads=state, or a program `progress(state)`."""
    gamma: float = number(-1.0, -1, 1)
    """Discount of `potential`; -1 uses learner.gamma, 1 pays plain differences."""
    count_exponent: float = number(-1.0, -1, 100)
    """beta of `event`; -1 uses reward.count_exponent."""
    bins: int = number(10, 1, 10_000)
    """Bins of equal width over [0, 1] for `visits`."""
    visits_of: str = one_of("run", "episode")
    """Visits of `visits` are counted over the `run` or the `episode`."""
    episode_cap: float = number(0.0, 0, 1e9)
    """The most that the term pays in one episode, as a sum of absolute values; 0 sets no cap."""
    anneal_env_steps: int = number(0, 0, 1e15)
    """The coefficient is multiplied by exp(-env_steps / x); 0 does not anneal."""
    trust: str = one_of("none", "outcome", "earned")
    """`outcome`: the term is multiplied by min(1, exp((mu+ - mu-) / s)), with mu+ and mu- the running means of what it
    paid in episodes with and without success, and s their pooled standard deviation, once there are ten of each. A term
    that pays failures more than successes loses its weight (after SophiaVL-R1, Fan et al. 2025). `earned`: the term
    pays nothing until there are three of each, then (mu+ - mu-) / 2e, between 0 and 1, with e the standard error; but a
    task in which fewer than one episode in thirty succeeds is explored with the term first."""
    max_labels: int = number(-1, -1, 1e12)
    """Maximum answers that the run receives for the term; 0 sets no limit, -1 uses annotator.max_labels."""


@dataclass(frozen=True)
class RobustConfig:
    """Safeguards of the reward models that are trained (classification, ranking); they apply to every term."""

    ensemble: int = number(1, 1, 64)
    """Networks trained on bootstrap samples of the same answers; rewards are read from their mean."""
    pessimism: float = number(0.0, 0, 100)
    """Rewards are read from the ensemble's mean minus this many of its standard deviations (a lower confidence
    bound)."""
    noise_rate: float = number(0.0, 0, 0.499)
    """Assumed fraction e of flipped answers: targets q become (q - e) / (1 - 2e), which makes the loss unbiased (rDPO,
    Chowdhury et al. 2024)."""
    pseudo_confidence: float = number(0.0, 0, 0.999999)
    """From this confidence on, captions without an answer that were seen three times are trained on with the model's
    own prediction; 0 disables this (semi-supervised reward modelling, He et al. 2024)."""
    pseudo_share: float = number(1.0, 0, 100)
    """Maximum number of such captions, as a multiple of the number of answers."""
    distance_alarm: float = number(0.0, 0, 1)
    """A notice is shown where the distance of a reward table to the one 100 versions before exceeds this; 0 disables
    it."""
