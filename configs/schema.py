"""The whole configuration of a run as frozen dataclasses, one per folder or concern.

Invariant: every field has a docstring under it (meaning, unit, range, source where one exists) and is read somewhere;
`tests/configs` holds the schema to both. Values are checked by `configs.checks`, not here.
"""

from dataclasses import dataclass, field
from typing import Any

from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from configs.fields import number, one_of


@dataclass(frozen=True)
class EnvConfig:
    """Which environment is played and what counts as a caption."""

    id: str = "NetHackScore-v0"
    """gymnasium environment id; `module:Id` imports the module first."""
    captioner: str = "message"
    """Where captions come from: an observation key holding message bytes (`message`), which the policy reads too, `info:KEY`, or
    `module:function` (called as function(obs, info) -> str)."""
    max_episode_steps: int = number(0, 0, 1e9)
    """Steps after which an episode is truncated; 0 takes the environment's own limit (most NetHack tasks: 5000). A higher one makes another
    task of it, and the run says so."""
    options: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments for the environment's constructor, for example {character: mon-hum-neu-mal}."""
    stepping: str = one_of("lean", "gymnasium")
    """How NetHack is stepped: `lean` (the engines alone, all environments of a worker together; tasks that it does not know fall back)
    or `gymnasium` (NLE's own class for each environment: slower, and what `lean` equals)."""
    share_engine_code: bool = True
    """Keep the code of NetHack's engines in memory once instead of once per environment (Linux; several times faster with many
    environments). Turn it off to compare, or where a kernel misbehaves."""
    fold_case: bool = False
    """Lower-case captions before they are hashed."""
    fold_digits: bool = False
    """Replace each run of digits in captions by one `0` before they are hashed."""


@dataclass(frozen=True)
class ActorsConfig:
    """The rollout workers."""

    num_workers: int = number(1, 1, 10_000)
    """Worker processes in `local` and `connect`; worker objects in `inline`."""
    envs_per_worker: int = number(64, 1, 65_536)
    """Environments stepped together by one worker, B of a rollout."""
    rollout_steps: int = number(32, 1, 65_536)
    """Steps per rollout, T; also the length of back-propagation through time (ONI: 32)."""
    rollouts_in_flight: int = number(2, 1, 64)
    """`collect` calls outstanding per worker; bounds the rollout queue at num_workers x this."""
    device: str = "cpu"
    """Where a worker runs the network: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA where there is a device); environments stay on the CPU."""
    precision: str = one_of("auto", "bf16", "fp32")
    """Inference precision: `bf16`, `fp32`, or `auto` (bf16 where a measurement at the start says that it is clearly faster)."""
    torch_threads: int = number(1, 1, 1024)
    """Threads torch may use in one worker process."""


@dataclass(frozen=True)
class PolicyConfig:
    """The network that workers run and the learner trains."""

    network: str = one_of("auto", "glyph_crop", "nethack_full", "rendered_crop", "cnn", "mlp")
    """`glyph_crop` (NetHack), `nethack_full` (NetHack: besides the crop the 21 x 45 cells around the agent, the message by its words, the
    inventory), `rendered_crop` (NetHack, ONI's: 12 x 12 characters drawn as a picture), `cnn` (image observations), `mlp` (everything else),
    or `auto` (by the observation space: one of the others than `nethack_full` and `rendered_crop`)."""
    core: str = one_of("lstm", "gru", "none")
    """Recurrent core: `lstm`, `gru` or `none`."""
    core_size: int = number(256, 1, 65_536)
    """Width of the recurrent core (ONI: 512)."""
    core_skip: bool = True
    """Let the heads read the encoder's features beside the core's outputs (ONI: no). What is seen now then need not pass through the core,
    which otherwise collapses to a constant before it has learnt to carry it (docs/learning.md)."""
    hidden_size: int = number(256, 1, 65_536)
    """Width of the encoder's fully connected layer."""
    crop_size: int = number(9, 3, 41)
    """Side of the glyph crop around the agent, in cells; odd, for `nethack_full` at most 21. `rendered_crop` always draws 12 x 12."""
    image_layout: str = one_of("auto", "channels_last", "channels_first")
    """Which axis of an image observation holds its channels: `channels_last`, `channels_first`, or `auto`: the last, unless it has more
    than 4 entries, the first two differ in length, and the last two do not or the first has at most 4."""
    image_scale: float = number(255.0, 1e-06, 1e9)
    """What the values of image observations are divided by: 255 for pictures, the largest code for grids of small codes, which a network would
    hardly see as fractions of 255."""
    embedding_size: int = number(32, 1, 4096)
    """Width of a glyph's embedding and of the two convolutions over the crop (`glyph_crop`, `nethack_full`), and of large categorical
    entries."""
    reuse_crops: bool = True
    """Encode what repeats itself of NetHack's observations (crops, messages ...) only once, on a CPU: in a worker within a rollout, in the
    learner within a batch. What is learnt stays the same up to rounding; false is for measuring what it saves."""
    previous_action: bool = False
    """Let the network see the action of the step before, as one of all actions (none at an episode's start), beside the encoder's features
    (IMPALA, Espeholt et al. 2018; R2D2, Kapturowski et al. 2019). A policy that repeats itself then shows information between what it
    observes and what it does, whatever the environment shows."""
    previous_reward: bool = False
    """Let the network see the environment's reward of the step before, clipped to [-1, 1] (IMPALA)."""
    head_gain: float = number(0.01, 0, 100)
    """Gain of the policy head's orthogonal first weights; a small one makes all actions nearly equal at first (Andrychowicz et al. 2021;
    ONI: 1, as everywhere else)."""
    encoder_gain: float = number(1.4142, 0, 100)
    """Gain of the encoder's orthogonal first weights; the square root of 2, as in the common implementations of PPO (Engstrom et al. 2020),
    learns faster and more steadily than 1, which is ONI's (docs/results/sanity.md)."""


@dataclass(frozen=True)
class LearnerConfig:
    """V-trace with a PPO-clipped surrogate. Passes, minibatches, step size, lambda and units of value are what learns in some million steps
    (docs/learning.md); everything else is ONI's documented run, whose own settings are preset `oni_score`."""

    rollouts_per_batch: int = number(1, 1, 10_000)
    """Rollouts joined along the environment axis into one batch; batch size = this x rollout_steps x envs_per_worker."""
    epochs: int = number(2, 1, 1000)
    """Passes over each batch (PPO, Schulman et al. 2017; ONI: 1), all towards targets and advantages computed before the first."""
    minibatches: int = number(4, 1, 65_536)
    """Gradient steps per pass (ONI: 1), each on an equal share of the batch's environments, drawn anew in every pass; no more than there
    are environments."""
    learning_rate: float = number(5e-4, 0, 10)
    """Adam's step size (ONI: 1e-4)."""
    final_learning_rate_fraction: float = number(1.0, 0, 1)
    """What is left of learning_rate at the end, in [0, 1]; it falls linearly with the steps towards total_env_steps, or with the time where
    max_time_s ends the run first. 1 keeps it constant, 0 is what many published runs of PPO do."""
    adam_beta1: float = number(0.9, 0, 0.999999)
    """Adam's first-moment decay."""
    adam_beta2: float = number(0.999, 0, 0.9999999)
    """Adam's second-moment decay."""
    adam_epsilon: float = number(1e-6, 1e-12, 1)
    """Adam's epsilon."""
    gamma: float = number(0.99, 0, 0.9999999)
    """Discount per environment step, in [0, 1)."""
    vtrace_rho_clip: float = number(1.0, 1e-06, 1e6)
    """Truncation level of the importance weights rho (IMPALA eq. 1)."""
    vtrace_c_clip: float = number(1.0, 1e-06, 1e6)
    """Truncation level of the trace weights c (IMPALA eq. 1)."""
    trace_lambda: float = number(0.95, 0, 1)
    """lambda, in [0, 1]: weight of each further step in targets and advantages (IMPALA remark 2; on-policy it is GAE's, Schulman et al.
    2016, where 0.95 is usual; ONI: 1)."""
    rho_weighted_advantage: bool = False
    """Multiply the policy advantage by rho as ONI does; off because the clipped ratio already is that weight."""
    ppo_clip: float = number(0.1, 1e-06, 1e6)
    """The ratio is clipped to [1/(1+x), 1+x]."""
    ratio_clamp: float = number(20.0, 1, 1e9)
    """The ratio is clamped to [1/x, x] before anything else, against overflow."""
    value_clip: float = number(1.0, 1e-06, 1e9)
    """The new value may leave the behaviour value by at most this before its loss is clipped."""
    value_coefficient: float = number(0.1, 0, 1e6)
    """Weight of the value loss (ONI: 0.5, of values in the rewards' own units)."""
    entropy_coefficient: float = number(0.003, 0, 1e6)
    """Weight of the entropy bonus."""
    max_grad_norm: float = number(4.0, 1e-09, 1e9)
    """Gradients are scaled down to this global L2 norm."""
    normalize_advantages: bool = True
    """Standardise advantages within the batch (standard-deviation floor 1e-3)."""
    normalize_returns: bool = True
    """Learn values in units of the targets' running mean and standard deviation, whatever the rewards' scale (PopArt, van Hasselt et al.
    2016: the head is rescaled so that no value changes; ONI: no); value_clip is then in these units too."""
    max_policy_lag: int = number(20, 0, 1e9)
    """Rollouts older than this many policy versions are dropped and counted."""
    precision: str = one_of("auto", "bf16", "fp32")
    """Autocast precision of training: `bf16`, `fp32`, or `auto` (bf16 where a measurement at the start says that it is clearly faster)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto` (CUDA if there is a device)."""
    torch_threads: int = number(0, 0, 1024)
    """Threads torch may use in the learner; 0 leaves torch's own choice."""


@dataclass(frozen=True)
class RewardConfig:
    """r[t] = k_ext * clip(s * r_env[t], -c, c) + k_int * R(caption_ids[t]) / caption_counts[t]^beta (spec: ONI section 2)."""

    extrinsic_coefficient: float = number(0.1, -1e6, 1e6)
    """k_ext; 0 is the reward-free setting (ONI: 0.1 for the score task, 10 for the sparse tasks)."""
    intrinsic_coefficient: float = number(0.4, -1e6, 1e6)
    """k_int (ONI's example: 0.4 for retrieval on the score task)."""
    extrinsic_scale: float = number(1.0, -1e9, 1e9)
    """s, applied before clipping."""
    extrinsic_clip: float = number(10.0, 0, 1e12)
    """c; the environment's reward is clipped to [-c, c] after scaling."""
    count_exponent: float = number(3.0, 0, 100)
    """beta: the n-th occurrence of a caption in one episode earns 1/n^beta of its reward."""
    max_intrinsic_share: float = number(1.0, 0.001, 1)
    """Cap s on intrinsic reward's share; 1 sets none. With I the mean of an episode's summed |intrinsic| reward, and E that of its summed
    positive extrinsic reward over the episodes that had any (both running means that forget by 0.99 per episode), intrinsic reward is multiplied by
    min(1, s / (1 - s) E / I). Until the first episode with a positive reward there is no cap: a sparse task must be explored first."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run's state is written; besides, when it reaches its goal and when it is asked to stop."""

    interval_env_steps: int = number(1_000_000, 0, 1e15)
    """Environment steps between checkpoints; 0 writes none but the last."""
    interval_s: float = number(600.0, 0, 1e9)
    """Seconds between checkpoints in `local` and `connect`; 0 switches this off (`inline` counts environment steps alone)."""
    keep: int = number(3, 1, 10_000)
    """Complete checkpoints kept; older ones are removed."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What a run that has reached its goal plays at its end: its policy, a blind and a random player, on held-out seeds (`delphi eval`)."""

    at_end: bool = False
    """Evaluate when the run has finished; one that is stopped by hand does not."""
    episodes: int = number(64, 1, 1e6)
    """Games per player at most. They are played in rounds, the first of 16, which count where all three players have ended them in time."""
    time_share: float = number(0.1, 0.001, 1)
    """Part of the time trained that the evaluation may take, in (0, 1]; half a minute in any case."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is written while the run goes on."""

    interval_env_steps: int = number(20_000, 1, 1e15)
    """Environment steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard event files under the run directory."""
    console: str = one_of("auto", "rich", "plain", "quiet")
    """`rich` (live display), `plain` (one line per interval), `quiet`, or `auto` (rich on a terminal)."""
    console_interval_s: float = number(10.0, 0.1, 1e6)
    """Seconds between plain progress lines."""
    episode_window: int = number(100, 1, 1e6)
    """Finished episodes that returns and lengths are averaged over (ONI: 100)."""


@dataclass(frozen=True)
class ClusterConfig:
    """Where the parts run."""

    mode: str = one_of("local", "inline", "connect")
    """`inline` (this process, no Ray), `local` (Ray started here), `connect` (an existing cluster)."""
    address: str = "auto"
    """Ray address for `connect`; `auto` finds the cluster this process belongs to."""
    worker_cpus: float = number(1.0, 0, 1024)
    """CPUs requested per rollout worker; all requests shrink in proportion where their sum exceeds a cluster that cannot grow."""
    worker_gpus: float = number(0.0, 0, 64)
    """GPUs requested per rollout worker, with `actors.device`; a fraction shares one among workers."""
    learner_cpus: float = number(1.0, 0, 1024)
    """CPUs requested for the learner."""
    learner_gpus: float = number(-1.0, -1, 64)
    """GPUs requested for the learner; -1 asks for one where the cluster has any at the start (an autoscaler's nodes are not there yet: say 1)."""
    annotator_cpus: float = number(0.5, 0, 1024)
    """CPUs requested for the annotator (its own service process runs niced beside it)."""
    service_gpus: float = number(0.0, 0, 64)
    """GPUs requested for the annotation service: for the annotator, whose child it is, or for each replica."""
    service_replicas: int = number(0, 0, 1000)
    """Annotation services in `local` and `connect`, spread over the nodes, each asked about its own share of the captions; 0 starts one,
    as the annotator's child."""
    min_workers: int = number(0, 0, 10_000)
    """Rollout workers that must fit before a run begins in `connect`; 0 waits for all. Those that do not fit join when there is room."""
    more_nodes: str = one_of("auto", "expected", "never")
    """Whether nodes may join the cluster of `connect`, which the run then waits for where it does not fit: `auto` (where an autoscaler runs),
    `expected` (started by hand, say) or `never`."""
    placement_timeout_s: float = number(120.0, 1, 1e6)
    """Seconds to wait for nodes to join where they may (`more_nodes`) before the run fails with a table of what was asked and what there is."""
    shutdown_budget_s: float = number(15.0, 1, 3600)
    """Seconds that stopping may take, the last checkpoint included, before processes are ended by force."""
    max_worker_restarts: int = number(5, 0, 1e9)
    """Replacements of one rollout worker in a row, without a rollout from it in between, before the run fails; each comes after a longer
    pause. A crash now and then costs nothing, however long the run and however many its workers; nor does the loss of a node."""
    worker_timeout_s: float = number(120.0, 1, 1e6)
    """A worker whose `collect` takes longer than this is ended, by force if need be, and replaced."""
    learner_timeout_s: float = number(300.0, 10, 1e6)
    """A learner that answers nothing for longer than this, not even that it is busy, is ended and started again from the last checkpoint."""
    max_environment_loss: float = number(0.5, 0, 1)
    """Share of the environments' rollouts that may be lost to failures of the environment, over the last 32 rollouts, before the run fails;
    an environment that raises, or gives what is not finite or not as declared, is rebuilt, and the rollout of that one environment is not trained on."""
    max_learner_restarts: int = number(3, 0, 1e9)
    """Restarts of a dead learner from the last checkpoint, in a row and without a new checkpoint in between, before the run fails; in `local`
    and `connect`."""
    object_store_bytes: int = number(0, 0, 1e15)
    """Object store size for `local`; 0 sizes it from the rollouts in flight (at least 200 MB)."""
    dashboard: bool = True
    """Start Ray's dashboard in `local`."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    run_dir: str = ""
    """Directory of the run; empty takes runs/<preset>. Absolute in `connect`, on a file system that all nodes share."""
    total_env_steps: int = number(10_000_000, 1, 1e15)
    """Environment steps the learner consumes before the run ends; raise it to continue a finished run."""
    max_time_s: float = number(0.0, 0, 1e9)
    """Seconds of training after which the run ends as at total_env_steps, whichever comes first; 0 sets no limit; raise it to continue a
    finished run. Waiting for the first rewards counts, and so does the time of earlier starts up to the checkpoints that were continued from;
    starting, and the evaluation at the end, do not. The learning rate falls with the time where that ends the run."""
    seed: int = number(1, 0, 4_294_967_295)
    """Seed of everything random in the run."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment."""
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    """The rollout workers."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The network."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """The update."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How extrinsic and intrinsic reward are mixed."""
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    """What the LLM is asked, and when."""
    service: ServiceConfig = field(default_factory=ServiceConfig)
    """The annotation service that the run starts."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """How judgements become rewards."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When state is written."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is played at the end."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is shown and recorded."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where the parts run."""
