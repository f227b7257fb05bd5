"""The whole configuration of a run as frozen dataclasses, one per folder or concern.

Invariant: every setting has a docstring under it (meaning, unit, range, source where one exists) and is read somewhere;
`tests/configs` checks both. Values are validated by `configs.checks`, not here.
"""

from dataclasses import dataclass, field
from typing import Any

from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from configs.fields import number, one_of
from configs.goal_schema import GoalsConfig, WriterConfig
from configs.reward_schema import RewardConfig, RobustConfig, TermConfig


@dataclass(frozen=True)
class EnvConfig:
    """Which environment is played and where its captions come from."""

    id: str = "NetHackScore-v0"
    """gymnasium environment id; `module:Id` imports the module first."""
    captioner: str = "message"
    """Where captions come from: an observation key that holds message bytes (`message`; the policy reads it too),
    `info:KEY`, or `module:function`, called as function(obs, info) -> str; `none` for no captions, where the reward is
    a program over `features` (not in NetHack, whose captions are its messages)."""
    max_episode_steps: int = number(0, 0, 1e9)
    """Steps after which an episode is truncated; 0 uses the environment's own limit (most NetHack tasks: 5000). A
    higher limit makes it another task, and the run prints a notice."""
    options: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments for the environment's constructor, for example {character: mon-hum-neu-mal}."""
    stepping: str = one_of("lean", "gymnasium")
    """How NetHack is stepped: `lean` (through its engines alone, all environments of a worker together, in one C call
    where there is a C compiler and NLE 1.3.0's wheel; tasks that it does not support fall back to `gymnasium`) or
    `gymnasium` (NLE's own class for each environment: slower, with results equal to those of `lean`)."""
    share_engine_code: bool = True
    """Keep the code of NetHack's engines in memory once instead of once per environment, its calls bound in advance
    where NLE is 1.3.0's wheel (Linux; several times faster with many environments). Turn it off to compare, or where
    the kernel does not support it."""
    fold_case: bool = False
    """Lower-case captions before they are hashed."""
    fold_digits: bool = False
    """Replace each run of digits in captions by one `0` before they are hashed."""
    describer: str = ""
    """What describes states in words, for terms that read `state` or `change`: `nethack`, `minigrid`, or
    `module:function`, called as function(obs, info) -> str: one fact per sentence, coarse enough to repeat."""
    action_names: list[str] = field(default_factory=list)
    """The actions in words, in their order, for terms that read `history` and for `delphi eval --player judge`; empty
    uses the environment's own names, which NetHack and MiniGrid have."""
    stretch_bounds: bool = True
    """Multiply numbers that the environment bounds within (-1, 1), a speed of at most 0.07 say, until the farther bound
    is 1, before the policy reads them; not in NetHack. Runs of earlier versions have it off."""
    features: list[str] = field(default_factory=list)
    """Where numbers that describe a state come from, for terms that read `features`; at most 64 numbers. Any of:
    `blstats` (NetHack, MiniHack), `minigrid` (MiniGrid, BabyAI), `obs` (the entries of an observation that is a list of
    numbers), `info:KEY`, `module:function`, called as function(obs, info) -> mapping of names to numbers, and
    `objects:module:function`, called as function(obs, info) -> list of objects {kind, x, y}."""
    feature_names: list[str] = field(default_factory=list)
    """Names of the features of `obs`, one for each entry; empty names them obs0, obs1, and so on."""


@dataclass(frozen=True)
class ActorsConfig:
    """The rollout workers."""

    num_workers: int = number(1, 1, 10_000)
    """Worker processes in `local` and `connect`; worker objects in `inline`."""
    envs_per_worker: int = number(64, 1, 65_536)
    """Environments stepped together by one worker: B of a rollout."""
    rollout_steps: int = number(32, 1, 65_536)
    """Steps per rollout, T; also the length of back-propagation through time (ONI: 32)."""
    rollouts_in_flight: int = number(2, 1, 64)
    """Outstanding `collect` calls per worker; the rollout queue holds at most num_workers x this."""
    inference: str = one_of("worker", "central")
    """Where the policy is computed for the workers: `worker` (each in its own process) or `central` (in
    `cluster.inference_actors` on the workers' nodes, for the environments of all workers in one batch: for a GPU that
    many workers share; on Linux, not in `inline`)."""
    device: str = "cpu"
    """Device of inference: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA if available); environments run on the CPU."""
    precision: str = one_of("auto", "bf16", "fp32")
    """Inference precision: `bf16`, `fp32`, or `auto` (bf16 if measured to be clearly faster at the start)."""
    torch_threads: int = number(1, 1, 1024)
    """Threads that torch may use in one worker process or inference actor."""


@dataclass(frozen=True)
class PolicyConfig:
    """The network that workers run and the learner trains."""

    network: str = one_of("auto", "glyph_crop", "nethack_full", "rendered_crop", "cnn", "mlp")
    """`glyph_crop` (NetHack), `nethack_full` (NetHack: also the 21 x 45 cells around the agent, the message word by
    word, the inventory), `rendered_crop` (NetHack, ONI's: 12 x 12 characters drawn as a picture), `cnn` (images), `mlp`
    (everything else), or `auto` (by observation space; never `nethack_full` or `rendered_crop`)."""
    core: str = one_of("lstm", "gru", "none")
    """Recurrent core: `lstm`, `gru` or `none`."""
    core_size: int = number(256, 1, 65_536)
    """Width of the recurrent core (ONI: 512)."""
    core_skip: bool = True
    """Let the heads read the encoder's features beside the core's outputs (ONI: no). The current observation then need
    not pass through the core, which otherwise collapses to a constant before it learns to carry it
    (docs/learning.md)."""
    hidden_size: int = number(256, 1, 65_536)
    """Width of the encoder's fully connected layer."""
    crop_size: int = number(9, 3, 41)
    """Side of the glyph crop around the agent, in cells; odd, at most 21 for `nethack_full` (`rendered_crop`: 12)."""
    image_layout: str = one_of("auto", "channels_last", "channels_first")
    """Which axis of an image holds its channels: `channels_last`, `channels_first`, or `auto`: the last, unless it has
    more than 4 entries, the first two differ in length, and the last two are equal or the first has at most 4."""
    image_scale: float = number(255.0, 1e-06, 1e9)
    """Divisor of the values of image observations: 255 for pictures; for grids of small codes the largest code, because
    a network could hardly distinguish them as fractions of 255."""
    embedding_size: int = number(32, 1, 4096)
    """Width of a glyph's embedding and of the two convolutions over the crop (`glyph_crop`, `nethack_full`), and of the
    embeddings of large categorical entries."""
    reuse_crops: bool = True
    """Encode repeated rows of NetHack's observations (crops, messages ...) only once, on a CPU: per rollout in a
    worker, per batch in the learner. Results are the same up to rounding; false is for measuring what it saves."""
    previous_action: bool = False
    """Give the network the previous action, one-hot (none at an episode's start), in addition to the encoder's features
    (IMPALA, Espeholt et al. 2018; R2D2, Kapturowski et al. 2019). A policy that repeats itself then shows information
    between observation and action, whatever the environment shows."""
    previous_reward: bool = False
    """Give the network the environment's previous reward, clipped to [-1, 1] (IMPALA)."""
    reads_goal: bool = False
    """Give the network a goal, as the vector of its text: each environment of a worker pursues one of the run's goals
    at a time (section `goals`)."""
    instruction: str = one_of("none", "mission")
    """Which text of the observations is an instruction, which must be there and is recorded as the numbers of its words
    instead of its bytes: `mission` is that of MiniGrid and BabyAI. With `none` a network reads it like any other
    text."""
    head_gain: float = number(0.01, 0, 100)
    """Gain of the policy head's orthogonal initial weights; a small gain makes all actions nearly equally likely at
    first (Andrychowicz et al. 2021; ONI: 1, as everywhere else)."""
    encoder_gain: float = number(1.4142, 0, 100)
    """Gain of the encoder's orthogonal initial weights; the square root of 2, as in the common implementations of PPO
    (Engstrom et al. 2020), learns faster and more steadily than ONI's 1 (docs/results/sanity.md)."""


@dataclass(frozen=True)
class LearnerConfig:
    """V-trace with a PPO-clipped surrogate. The defaults of epochs, minibatches, learning rate, lambda and return
    normalisation are those that learn within a few million steps (docs/learning.md); everything else is ONI's
    documented run, whose own settings are in preset `oni_score`."""

    rollouts_per_batch: int = number(1, 1, 10_000)
    """Rollouts joined into one batch, whose size is this x rollout_steps x envs_per_worker."""
    epochs: int = number(2, 1, 1000)
    """Passes over each batch (PPO, Schulman et al. 2017; ONI: 1), with targets and advantages from before the first."""
    minibatches: int = number(4, 1, 65_536)
    """Gradient steps per pass (ONI: 1), each on an equal share of the batch's environments, drawn anew per pass."""
    learning_rate: float = number(5e-4, 0, 10)
    """Adam's step size (ONI: 1e-4)."""
    final_learning_rate_fraction: float = number(1.0, 0, 1)
    """Final fraction of learning_rate, in [0, 1]; the rate falls linearly with the steps towards total_env_steps, or
    with the time if max_time_s ends the run first. 1 keeps it constant; many published runs of PPO use 0."""
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
    """lambda, in [0, 1]: weight of each further step in targets and advantages (IMPALA remark 2; on-policy it equals
    GAE's, Schulman et al. 2016, where 0.95 is usual; ONI: 1)."""
    rho_weighted_advantage: bool = False
    """Multiply the policy advantage by rho as ONI does; off because the clipped ratio already is that weight."""
    ppo_clip: float = number(0.1, 1e-06, 1e6)
    """The ratio is clipped to [1/(1+x), 1+x]."""
    ratio_clamp: float = number(20.0, 1, 1e9)
    """The ratio is clamped to [1/x, x] first, against overflow."""
    value_clip: float = number(1.0, 1e-06, 1e9)
    """The new value may differ from the behaviour value by at most this before its loss is clipped."""
    value_coefficient: float = number(0.1, 0, 1e6)
    """Weight of the value loss (ONI: 0.5, with values in the rewards' own units)."""
    entropy_coefficient: float = number(0.003, 0, 1e6)
    """Weight of the entropy bonus."""
    max_grad_norm: float = number(4.0, 1e-09, 1e9)
    """Gradients are scaled down to this global L2 norm."""
    normalize_advantages: bool = True
    """Standardise advantages within the batch (standard-deviation floor 1e-3)."""
    normalize_returns: bool = True
    """Learn values in units of the targets' running mean and standard deviation, whatever the rewards' scale (PopArt,
    van Hasselt et al. 2016: rescales the head so that no value changes; ONI: no); value_clip is then in these units."""
    max_policy_lag: int = number(20, 0, 1e9)
    """Rollouts older than this many policy versions are dropped and counted."""
    precision: str = one_of("auto", "bf16", "fp32")
    """Training precision: `bf16` autocast, `fp32`, or `auto` (bf16 if measured to be clearly faster at the start)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto` (CUDA if there is a device)."""
    torch_threads: int = number(0, 0, 1024)
    """Threads that torch may use in the learner; 0 keeps torch's default."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run's state is written; also at the end of the run and when it is asked to stop."""

    interval_env_steps: int = number(1_000_000, 0, 1e15)
    """Environment steps between checkpoints; 0 writes only the last."""
    interval_s: float = number(600.0, 0, 1e9)
    """Seconds between checkpoints in `local` and `connect`; 0 disables this (`inline` counts steps only)."""
    keep: int = number(3, 1, 10_000)
    """Complete checkpoints kept; older ones are removed."""


@dataclass(frozen=True)
class ArchiveConfig:
    """A sample of the finished episodes of the run, to which any reward can be held afterwards (docs/gates.md)."""

    keep: bool = False
    """Keep one, in RUN/episodes.safetensors: rewards, captions, actions and, where `env.features` has sources, features
    of the last 512 steps of an episode. For `delphi audit --trajectories`."""
    max_episodes: int = number(500, 1, 10_000)
    """Episodes kept with success, and as many without, each a uniform sample of all in the run. 500 of 512 steps and 16
    features take 25 MB."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation of a finished run: its policy, a blind and a random player, on held-out seeds (`delphi eval`)."""

    at_end: bool = False
    """Evaluate when the run has finished; a run that is stopped by hand is not evaluated."""
    episodes: int = number(64, 1, 1e6)
    """Maximum games per player, in rounds, the first of 16; a round counts if all three players finish it in time."""
    time_share: float = number(0.1, 0.001, 1)
    """Maximum duration of the evaluation as a fraction of the training time, in (0, 1]; at least half a minute."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is written during the run."""

    interval_env_steps: int = number(20_000, 1, 1e15)
    """Environment steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard event files under the run directory."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers that also get the metrics: `wandb`, `mlflow`, `trackio` (extras of the same names), or
    `module:Class` (docs/trackers.md)."""
    tracker_project: str = ""
    """The trackers' project or experiment; empty uses WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT, else
    `delphi`."""
    tracker_run_name: str = ""
    """Name of the run at the trackers; empty uses the last part of run_dir."""
    tracker_tags: list[str] = field(default_factory=list)
    """Tags at the trackers, beside the environment and the reward model."""
    tracker_deadline_s: float = number(30.0, 0, 3600)
    """Seconds that the end of the run waits for trackers that have not taken everything yet."""
    console: str = one_of("auto", "rich", "plain", "quiet")
    """`rich` (live display), `plain` (one line per interval), `quiet`, or `auto` (rich on a terminal that is not
    dumb)."""
    console_interval_s: float = number(10.0, 0.1, 1e6)
    """Seconds between plain progress lines."""
    episode_window: int = number(100, 1, 1e6)
    """Finished episodes over which returns and lengths are averaged (ONI: 100)."""


@dataclass(frozen=True)
class ClusterConfig:
    """Where the components run."""

    mode: str = one_of("local", "inline", "connect")
    """`inline` (this process, no Ray), `local` (Ray is started here), `connect` (an existing cluster)."""
    address: str = "auto"
    """Ray address for `connect`; `auto` finds the cluster that this process belongs to."""
    worker_cpus: float = number(1.0, 0, 1024)
    """CPUs requested per rollout worker; all requests shrink in proportion if they exceed a cluster of fixed size."""
    worker_gpus: float = number(0.0, 0, 64)
    """GPUs requested per rollout worker, together with `actors.device`; with a fraction, workers share a GPU."""
    num_learners: int = number(1, 1, 1000)
    """Learners in `local` and `connect`, which make each update together: each computes an equal share of the batch's
    rollouts, and their gradients are summed. It changes what is learnt only through rounding."""
    inference_actors: int = number(1, 1, 1000)
    """Inference actors with `actors.inference=central`, each with an equal share of the workers, on its own node: one
    per GPU. They request as many CPUs as a worker."""
    inference_gpus: float = number(0.0, 0, 64)
    """GPUs requested per inference actor, together with `actors.device`; with a fraction, others share its GPU."""
    learner_cpus: float = number(1.0, 0, 1024)
    """CPUs requested for each learner."""
    learner_gpus: float = number(-1.0, -1, 64)
    """GPUs requested for each learner; -1 requests one, or a fraction where learners must share, if the cluster has any
    at the start (with autoscaling, set 1). Learners with whole GPUs exchange gradients by NCCL, else by gloo."""
    annotator_cpus: float = number(0.5, 0, 1024)
    """CPUs requested for the annotator (its service is a separate process with low priority)."""
    service_gpus: float = number(0.0, 0, 64)
    """GPUs requested for the annotation service: for the annotator, its parent process, or for each replica."""
    service_replicas: int = number(0, 0, 1000)
    """Annotation services in `local` and `connect`, spread over the nodes; each judges its own share of the captions. 0
    starts one, as a child process of the annotator."""
    min_workers: int = number(0, 0, 10_000)
    """Rollout workers that must fit before a run begins in `connect`, 0: all. The others join when there is room."""
    more_nodes: str = one_of("auto", "expected", "never")
    """Whether nodes may join the cluster of `connect`; if so, a run that does not fit waits for them. `auto` (if an
    autoscaler runs), `expected` (for example if nodes are started by hand) or `never`."""
    placement_timeout_s: float = number(120.0, 1, 1e6)
    """Seconds to wait for nodes (`more_nodes`) before the run fails with a table of requests and resources."""
    shutdown_budget_s: float = number(15.0, 1, 3600)
    """Seconds that shutdown may take, the last checkpoint included, before processes are killed."""
    max_worker_restarts: int = number(5, 0, 1e9)
    """Consecutive replacements of one rollout worker, without a rollout in between, before the run fails; the pause
    before each grows. Occasional crashes of any number of workers do not add up; the loss of a node is not counted. The
    same holds for an inference actor."""
    worker_timeout_s: float = number(120.0, 1, 1e6)
    """A worker whose `collect` takes longer than this is stopped, by force if necessary, and replaced; an inference
    actor, with its workers, after half of it without a sign of life."""
    learner_timeout_s: float = number(300.0, 10, 1e6)
    """A learner without any answer (not even busy) for longer is stopped and restarted from the last checkpoint; also
    the longest that learners wait for each other."""
    max_environment_loss: float = number(0.5, 0, 1)
    """Maximum share of the environments' last 32 rollouts lost to failures before the run fails. An environment that
    raises, or returns values that are not finite or not as declared, is rebuilt, and its rollout is not trained on."""
    max_learner_restarts: int = number(3, 0, 1e9)
    """Consecutive restarts of a dead learner from the last checkpoint, without a new checkpoint in between, before the
    run fails; in `local` and `connect`."""
    object_store_bytes: int = number(0, 0, 1e15)
    """Object store size for `local`; 0 derives it from the rollouts in flight (at least 200 MB)."""
    dashboard: bool = True
    """Start Ray's dashboard in `local`."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    run_dir: str = ""
    """Directory of the run; empty means runs/<preset>. Absolute in `connect`, on a file system that all nodes share."""
    total_env_steps: int = number(10_000_000, 1, 1e15)
    """Environment steps that the learner consumes before the run ends; raise it to continue a finished run."""
    max_time_s: float = number(0.0, 0, 1e9)
    """Seconds of training after which the run ends as at total_env_steps, whichever comes first; 0 sets no limit; raise
    it to continue a finished run. It includes the wait for the first rewards and the time of earlier starts up to the
    checkpoints that they were resumed from, but not startup or the evaluation at the end. If this limit ends the run,
    the learning rate falls with the time."""
    seed: int = number(1, 0, 4_294_967_295)
    """Seed of everything random in the run."""
    env: EnvConfig = field(default_factory=EnvConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    terms: dict[str, TermConfig] = field(default_factory=dict, metadata={"section": TermConfig})
    robust: RobustConfig = field(default_factory=RobustConfig)
    goals: GoalsConfig = field(default_factory=GoalsConfig)
    writer: WriterConfig = field(default_factory=WriterConfig)
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
