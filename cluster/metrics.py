"""The catalogue of metrics: everything measured that a run exports, with its unit, kind, meaning and healthy range.

Invariant: JSONL lines, TensorBoard, Ray's metrics, dashboard, alerts and documents all take names from here and nowhere
else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Group = Literal["learning", "throughput and bottleneck", "annotation", "reward model", "terms of the reward", "faults"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""The dashboard's rows, in their order."""
LEARNING, THROUGHPUT, ANNOTATION, REWARD, BY_TERM, FAULTS = GROUPS
WORKERS_TIME, LEARNERS_TIME = "time of the workers", "time of the learner"
"""Panels whose metrics are shares of one whole."""
RAY_PREFIX = "delphi_"
"""The prefix of names in `ray.util.metrics`; Ray adds `ray_` in front of it."""
LOOKING_ABOVE = 0.01
"""Nats of `policy_state_information` below which a policy hardly uses its observations."""
UNDEFINED = "undefined"
"""The label that is "yes" at Ray's endpoint while a metric is null, else empty, which Prometheus treats as absent."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric; null (None) until it is defined."""

    name: str
    unit: str
    kind: Literal["counter", "gauge"]
    """A counter only goes up within a run, over resumes too; a gauge is a current value or a log interval's mean."""
    meaning: str
    healthy: str
    group: Group
    """The row of the dashboard that shows it."""
    panel: str = ""
    """Title of a graph that it shares with others of its group; empty: a graph of its own."""
    red_above: float | None = None
    """The bound in `healthy`, for alerts: a gauge, or a counter's growth in ten minutes, is unhealthy above it."""
    red_below: float | None = None
    """The same bound from below."""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"metric {self.name}: got group {self.group!r}, wanted one of {', '.join(GROUPS)}")

    @property
    def exported_as(self) -> str:
        """Its name at Ray's metrics endpoint."""
        return f"ray_{RAY_PREFIX}{self.name}"


CATALOGUE: tuple[Metric, ...] = (
    Metric("env_steps", "steps", "counter", "environment steps the learner consumed", "rises", THROUGHPUT, red_below=1),
    Metric("env_steps_per_s", "steps/s", "gauge", "consumed steps per second over the log interval", "steady",
        THROUGHPUT),
    Metric("time_s", "s", "counter", "seconds of running, earlier epochs included", "rises", THROUGHPUT),
    Metric("learner_updates", "updates", "counter", "optimiser steps taken", "rises", THROUGHPUT),
    Metric("updates_skipped_nonfinite", "updates", "counter", "updates skipped for a non-finite loss or gradient", "0",
        FAULTS, red_above=0),
    Metric("worker_env_fraction", "fraction", "gauge", "share of the workers' time spent stepping environments",
        "the largest of the workers' shares", THROUGHPUT, panel=WORKERS_TIME),
    Metric("worker_inference_fraction", "fraction", "gauge", "share of the workers' time spent on the policy's forward"
        " passes", "below worker_env_fraction", THROUGHPUT, panel=WORKERS_TIME),
    Metric("worker_other_fraction", "fraction", "gauge", "share of the workers' time spent on captions, sampling and"
        " bookkeeping", "below 0.15", THROUGHPUT, panel=WORKERS_TIME, red_above=0.15),
    Metric("worker_idle_fraction", "fraction", "gauge", "share of the workers' time outside `collect`: waiting for the"
        " learner, hand-over", "below 0.1, or else the learner is the bottleneck", THROUGHPUT, panel=WORKERS_TIME,
        red_above=0.1),
    Metric("learner_wait_fraction", "fraction", "gauge", "share of the learner's time spent waiting for rollouts",
        "below 0.5", THROUGHPUT, panel=LEARNERS_TIME, red_above=0.5),
    Metric("learner_relabel_fraction", "fraction", "gauge", "share of the learner's time spent looking up and mixing"
        " rewards", "below 0.03 together with transfer", THROUGHPUT, panel=LEARNERS_TIME, red_above=0.03),
    Metric("learner_transfer_fraction", "fraction", "gauge", "share of the learner's time spent copying rollouts into"
        " the training batch", "below 0.03 together with relabel", THROUGHPUT, panel=LEARNERS_TIME, red_above=0.03),
    Metric("learner_train_fraction", "fraction", "gauge", "share of the learner's time spent in forward and backward"
        " passes and the optimiser", "near 1 where the learner is the bottleneck", THROUGHPUT, panel=LEARNERS_TIME),
    Metric("learner_publish_fraction", "fraction", "gauge", "share of the learner's time spent publishing weights",
        "below 0.05", THROUGHPUT, panel=LEARNERS_TIME, red_above=0.05),
    Metric("learner_other_fraction", "fraction", "gauge", "share of the learner's time spent on metrics, checkpoints"
        " and the rest", "below 0.05", THROUGHPUT, panel=LEARNERS_TIME, red_above=0.05),
    Metric("checkpoint_age_s", "s", "gauge", "time since a checkpoint was written, or since the start",
        "below what checkpoint.interval_s and interval_env_steps say", FAULTS),
    Metric("checkpoints_failed", "checkpoints", "counter", "checkpoints that could not be written in this epoch;"
        " retried when the next is due", "0", FAULTS, red_above=0),
    Metric("policy_lag_mean", "versions", "gauge", "mean age of consumed rollouts in policy versions", "0 to 4",
        THROUGHPUT, panel="policy lag", red_above=4),
    Metric("policy_lag_max", "versions", "gauge", "largest age of a consumed rollout", "below learner.max_policy_lag",
        THROUGHPUT, panel="policy lag"),
    Metric("rollouts_dropped_stale", "rollouts", "counter", "rollouts dropped for their age or an older run epoch",
        "0, a few after a resume", FAULTS, red_above=10),
    Metric("rollouts_waiting", "rollouts", "gauge", "finished rollouts that the learner has not taken yet",
        "at most num_workers x rollouts_in_flight", THROUGHPUT),
    Metric("workers_running", "workers", "gauge", "running rollout workers; others are starting, waiting for resources"
        " or backing off; null in one process", "actors.num_workers", FAULTS),
    Metric("worker_restarts", "workers", "counter", "rollout workers replaced in this epoch", "0", FAULTS, red_above=0),
    Metric("environment_errors", "errors", "counter", "exceptions of environments, and observations and rewards that"
        " are not finite or not as declared, in this epoch; the environment is rebuilt, its sample dropped", "0",
        FAULTS, red_above=0),
    Metric("run_epoch", "starts", "counter", "starts of the run, restarts of a dead learner included", "1", FAULTS),
    Metric("episodes_total", "episodes", "counter", "finished episodes", "rises", LEARNING),
    Metric("episode_return_extrinsic_mean", "reward", "gauge", "mean extrinsic return of the last"
        " logging.episode_window episodes in the order of their starts, so that long ones are not missing; null until"
        " the first have all ended", "rises", LEARNING),
    Metric("episode_success_mean", "fraction", "gauge", "share of episodes that reached the task's goal, same window;"
        " null where a task has none", "rises", LEARNING),
    Metric("episode_in_game_score_mean", "points", "gauge", "in-game score at the end of an episode, same window; null"
        " outside NetHack, as are the next five", "task dependent", LEARNING),
    Metric("episode_depth_mean", "levels", "gauge", "deepest level reached in an episode, same window",
        "task dependent", LEARNING, panel="levels in NetHack"),
    Metric("episode_experience_level_mean", "levels", "gauge", "the agent's level at the end, same window",
        "task dependent", LEARNING, panel="levels in NetHack"),
    Metric("episode_gold_mean", "zorkmids", "gauge", "gold carried at the end, same window", "task dependent",
        LEARNING),
    Metric("episode_tiles_seen_mean", "cells", "gauge", "map cells seen, summed over the levels visited, same window",
        "task dependent", LEARNING),
    Metric("episode_kills_mean", "monsters", "gauge", "monsters that the agent killed, by the messages, same window",
        "task dependent", LEARNING),
    Metric("episode_return_intrinsic_mean", "reward", "gauge", "mean of k_int R / N^beta summed over an episode, same"
        " window", "rises at first", REWARD),
    Metric("kills_per_1000_steps", "monsters", "gauge", "monsters killed per 1,000 steps of the episodes in that"
        " window; null outside NetHack, as the next", "rises where fighting pays", LEARNING),
    Metric("in_game_score_per_1000_steps", "points", "gauge", "NetHack's own score per 1,000 steps of the episodes in"
        " that window", "rises", LEARNING),
    Metric("episode_length_mean", "steps", "gauge", "mean episode length, same window", "task dependent", LEARNING),
    Metric("reward_extrinsic_per_1000_steps", "reward", "gauge", "extrinsic reward per 1,000 steps over the log"
        " interval, over all steps trained on, of unfinished episodes too", "rises", LEARNING),
    Metric("reward_intrinsic_per_1000_steps", "reward", "gauge", "k_int R / N^beta per 1,000 steps over the log"
        " interval", "rises at first", REWARD),
    Metric("intrinsic_reward_mean", "reward/step", "gauge", "mean intrinsic reward per step, weighted by k_int",
        "above 0, falls as novelty fades", REWARD),
    Metric("intrinsic_scale", "factor", "gauge", "factor on intrinsic reward, by reward.max_intrinsic_share; 1 without"
        " a cap", "1", REWARD),
    Metric("reward_trust_min", "factor", "gauge", "smallest weight that `trust` gives to a term of the reward;"
        " null where no term has it", "above 0.5; below, a term pays failures more than successes, or has earned no"
        " weight yet", REWARD,
        red_below=0.5),
    Metric("intrinsic_unknown_fraction", "fraction", "gauge", "share of steps whose caption is not in the reward table"
        " yet", "below 0.05 after the first minutes", ANNOTATION, red_above=0.05),
    Metric("steps_without_table_fraction", "fraction", "gauge", "share of all steps so far that were trained on before"
        " the first reward table; null where no term of the reward has any", "near 0", ANNOTATION),
    Metric("captions_distinct", "captions", "gauge", "distinct captions in the caption book", "rises, ever slower",
        ANNOTATION),
    Metric("annotations_total", "judgements", "counter", "judgements this run received, cached ones included", "rises",
        ANNOTATION, panel="judgements"),
    Metric("annotations_per_s", "judgements/s", "gauge", "judgements received per second over the log interval",
        "engine dependent", ANNOTATION),
    Metric("annotations_pending", "captions", "gauge", "captions waiting for a judgement",
        "falls after the first minutes", ANNOTATION),
    Metric("annotations_cached", "judgements", "counter", "judgements read from the store", "up to annotations_total",
        ANNOTATION, panel="judgements"),
    Metric("annotations_unparsed", "judgements", "counter", "answers outside the allowed ones; never used as labels",
        "below 5 % of annotations_total", ANNOTATION, panel="judgements"),
    Metric("annotations_undecided", "judgements", "counter", "answers within the numerical noise of theta, which"
        " differs by processor: neither yes nor no, not rewarded", "below 2 % of annotations_total", ANNOTATION,
        panel="judgements"),
    Metric("annotation_age_s", "s", "gauge", "mean time from a caption's first report to its judgement, newest"
        " judgements", "seconds", ANNOTATION),
    Metric("annotation_results_waiting", "judgements", "gauge", "judgements received and not yet trained on", "near 0",
        ANNOTATION),
    Metric("captions_evicted", "captions", "counter", "captions evicted from the full caption book", "0", FAULTS,
        red_above=0),
    Metric("annotations_rejected", "answers", "counter", "answers of the annotation service that violate the contract"
        " (number, range, order, rubric); dropped and requested again", "0", FAULTS, red_above=0),
    Metric("annotations_dropped", "judgements", "counter", "labels dropped because another judge (weights, engine or"
        " rubric) answers at the address: all captions are asked again, the reward model is reset", "0", FAULTS,
        red_above=0),
    Metric("annotation_requests_failed", "requests", "counter", "failed requests to the annotation service, which were"
        " repeated", "0", FAULTS, red_above=0),
    Metric("annotator_up", "0 or 1", "gauge", "1 while the annotation service answers; null where none is needed", "1",
        FAULTS, red_below=1),
    Metric("annotation_replicas_up", "replicas", "gauge", "annotation replicas that listen; null without"
        " cluster.service_replicas", "cluster.service_replicas", ANNOTATION),
    Metric("service_restarts", "restarts", "counter", "annotation service processes restarted in this epoch", "0",
        FAULTS, red_above=0),
    Metric("forward_passes", "judgements", "counter", "judgements this run received that the model computed, not the"
        " store", "up to annotations_total", ANNOTATION, panel="judgements"),
    Metric("reward_version", "versions", "counter", "reward tables published in this run epoch", "rises", REWARD),
    Metric("reward_model_accuracy", "fraction", "gauge", "agreement of the reward model with the judge's labels; null"
        " for models without parameters", "above 0.8", REWARD, red_below=0.8),
    Metric("reward_model_disagreement", "log-odds or z", "gauge", "standard deviation of the reward model's networks,"
        " mean over all occurrences of captions; null without robust.ensemble", "falls", REWARD),
    Metric("pseudo_labels", "captions", "gauge", "captions without an answer that the reward model trains on with its"
        " own prediction; null without robust.pseudo_confidence", "task dependent", REWARD),
    Metric("pair_order_disagreement", "fraction", "gauge", "share of compared pairs of which the judge prefers another"
        " caption in the other order; null unless annotator.pairs=compared", "small",
        REWARD),
    Metric("reward_distance", "distance", "gauge", "distance of the newest reward table to the one before, 0 to 1",
        "falls towards 0", REWARD, panel="distance of reward tables"),
    Metric("reward_distance_100", "distance", "gauge", "distance of the last two reward tables that are 100 versions"
        " apart", "falls; below robust.distance_alarm", REWARD, panel="distance of reward tables"),
    Metric("goals_active", "goals", "gauge", "goals that are paid and given; null without goals.sources, as the next"
        " six", "at most 256", REWARD),
    Metric("goals_refused", "texts", "counter", "proposed texts that became no goal: empty, too long, no text, or no"
        " room in the book", "small", REWARD),
    Metric("goals_suggested_per_state", "goals", "gauge", "goals suggested in a described state, mean over the states"
        " that were asked about; null without suggest and closed", "1 to 10", REWARD),
    Metric("goals_achieved_per_episode", "goals", "gauge", "goals achieved in an episode, mean over the last hundred or"
        " so", "rises at first", REWARD),
    Metric("goal_success_mean", "fraction", "gauge", "recent success rate of goals, mean over those that were tried;"
        " without policy.reads_goal every episode tries all goals", "rises", REWARD),
    Metric("writings_total", "writings", "counter", "answers of the writer of goals, cached ones included",
        "rises, ever slower", REWARD, panel="writings"),
    Metric("writings_unparsed", "writings", "counter", "of these, answers that were not usable",
        "below 10 % of writings_total", REWARD, panel="writings"),
    Metric("policy_loss", "loss", "gauge", "clipped surrogate policy loss", "near 0", LEARNING, panel="losses"),
    Metric("value_loss", "loss", "gauge", "clipped value loss, before its coefficient", "falls", LEARNING,
        panel="losses"),
    Metric("entropy", "nats", "gauge", "mean entropy of the policy", "falls slowly, not to 0", LEARNING),
    Metric("policy_state_information", "nats", "gauge", "information between state and action: entropy of the batch's"
        " mean policy minus mean entropy", "0.05 or more; a policy that does not look has 0", LEARNING,
        red_below=LOOKING_ABOVE),
    Metric("update_kl", "nats", "gauge", "mean KL from the policy before an update to the one after it, on a subset of"
        " its states", "0.001 to 0.05", LEARNING),
    Metric("approx_kl", "nats", "gauge", "mean KL from the behaviour policy to the learner's", "below 0.05", LEARNING,
        red_above=0.05),
    Metric("clip_fraction", "fraction", "gauge", "share of steps whose ratio was clipped", "below 0.3", LEARNING,
        panel="clipping", red_above=0.3),
    Metric("rho_clipped_fraction", "fraction", "gauge", "share of steps whose importance weight exceeded"
        " vtrace_rho_clip", "around 0.5 or less", LEARNING, panel="clipping"),
    Metric("grad_clipped_fraction", "fraction", "gauge", "share of gradient steps whose norm was scaled down to"
        " learner.max_grad_norm", "up to 0.5", LEARNING, panel="clipping"),
    Metric("core_saturated_fraction", "fraction", "gauge", "share of the recurrent core's outputs beyond 0.95 in size;"
        " null without a core", "up to 0.2", LEARNING, panel="recurrent core"),
    Metric("core_dead_fraction", "fraction", "gauge", "share of the core's units whose outputs vary over states by a"
        " standard deviation below 0.01; null without a core", "up to 0.2", LEARNING, panel="recurrent core"),
    Metric("explained_variance", "fraction", "gauge", "1 - Var(vs - V) / Var(vs)", "rises towards 1", LEARNING),
    Metric("grad_norm", "norm", "gauge", "global gradient norm before clipping", "around learner.max_grad_norm or less",
        LEARNING),
)  # fmt: skip

TERMS = "terms"
"""The key of a metric line whose value holds, by term, OF_TERMS without the prefix `term_`, in runs with several
terms; besides, `problem` says why the term's items are no longer judged, or is null, and of a program `component_NAME`
is the mean of each of its components per step."""
OF_TERMS: tuple[Metric, ...] = (
    Metric("term_mean", "reward/step", "gauge", "mean reward that the term paid per step over the log interval",
        "task dependent", BY_TERM),
    Metric("term_share", "fraction", "gauge", "share of the summed size of what all terms paid over the log interval",
        "none near 1 for long", BY_TERM),
    Metric("term_unknown", "fraction", "gauge", "share of steps whose item is not in the term's reward table yet",
        "falls after the first minutes", BY_TERM),
    Metric("term_trust", "factor", "gauge", "weight by `trust`; 1 without", "near 1", BY_TERM),
    Metric("term_coefficient", "factor", "gauge", "coefficient, after annealing", "as configured", BY_TERM),
    Metric("term_version", "versions", "counter", "reward tables published in this run epoch", "rises", BY_TERM),
    Metric("term_labels", "judgements", "counter", "usable answers that this run received for the term", "rises",
        BY_TERM),
    Metric("term_captions", "items", "gauge", "distinct items in the term's caption book", "rises, ever slower",
        BY_TERM),
)  # fmt: skip
NAMES: frozenset[str] = frozenset(metric.name for metric in CATALOGUE)


def markdown_table(metrics: Sequence[Metric] = CATALOGUE) -> str:
    """Metrics as the documents show them."""
    rows = [f"| `{m.name}` | {m.unit} | {m.kind} | {m.meaning} | {m.healthy} |" for m in metrics]
    return "\n".join(["| name | unit | kind | meaning | healthy |", "|---|---|---|---|---|", *rows])
