"""Ranges, choices and cross-field checks of a configuration.

Invariant: a configuration that passes does not fail later for a reason that could have been seen here; each message says
what was got, what was wanted, and what the check prevents.
"""

import math
import operator
import os
import re
from collections.abc import Mapping

from configs.annotation_schema import RewardModelConfig
from configs.schema import RunConfig


class ConfigError(ValueError):
    """What the user asked for cannot be; the message is one line for the terminal."""


CHOICES: Mapping[str, tuple[str, ...]] = {
    "env.stepping": ("lean", "gymnasium"),
    "actors.precision": ("auto", "bf16", "fp32"),
    "learner.precision": ("auto", "bf16", "fp32"),
    "policy.network": ("auto", "glyph_crop", "nethack_full", "rendered_crop", "cnn", "mlp"),
    "policy.image_layout": ("auto", "channels_last", "channels_first"),
    "policy.core": ("lstm", "gru", "none"),
    "service.engine": ("transformers", "vllm", "openai", "scripted", "none"),
    "service.dtype": ("auto", "bfloat16", "float32"),
    "annotator.policy": ("recency_frequency", "frequency", "uncertainty"),
    "annotator.pairs": ("compared", "pointwise"),
    "reward_model.name": ("retrieval", "classification", "ranking", "embedding", "counts", "none"),
    "reward_model.output": ("binary", "soft", "probability"),
    "reward_model.labels": ("soft", "hard"),
    "reward_model.embedding": ("sentences", "bag-of-words"),
    "logging.console": ("auto", "rich", "plain", "quiet"),
    "cluster.mode": ("inline", "local", "connect"),
    "cluster.more_nodes": ("auto", "expected", "never"),
}

RANGES: Mapping[str, tuple[float, float]] = {
    "total_env_steps": (1, 1e15),
    "max_time_s": (0, 1e9),
    "seed": (0, 2**32 - 1),
    "env.max_episode_steps": (0, 1e9),
    "actors.num_workers": (1, 10_000),
    "actors.envs_per_worker": (1, 65_536),
    "actors.rollout_steps": (1, 65_536),
    "actors.rollouts_in_flight": (1, 64),
    "actors.torch_threads": (1, 1024),
    "policy.core_size": (1, 65_536),
    "policy.hidden_size": (1, 65_536),
    "policy.crop_size": (3, 41),
    "policy.image_scale": (1e-6, 1e9),
    "policy.embedding_size": (1, 4096),
    "policy.head_gain": (0, 100),
    "policy.encoder_gain": (0, 100),
    "learner.rollouts_per_batch": (1, 10_000),
    "learner.epochs": (1, 1000),
    "learner.minibatches": (1, 65_536),
    "learner.learning_rate": (0, 10),
    "learner.final_learning_rate_fraction": (0, 1),
    "learner.adam_beta1": (0, 0.999999),
    "learner.adam_beta2": (0, 0.9999999),
    "learner.adam_epsilon": (1e-12, 1),
    "learner.gamma": (0, 0.9999999),
    "learner.vtrace_rho_clip": (1e-6, 1e6),
    "learner.vtrace_c_clip": (1e-6, 1e6),
    "learner.trace_lambda": (0, 1),
    "learner.ppo_clip": (1e-6, 1e6),
    "learner.ratio_clamp": (1, 1e9),
    "learner.value_clip": (1e-6, 1e9),
    "learner.value_coefficient": (0, 1e6),
    "learner.entropy_coefficient": (0, 1e6),
    "learner.max_grad_norm": (1e-9, 1e9),
    "learner.max_policy_lag": (0, 1e9),
    "learner.torch_threads": (0, 1024),
    "reward.extrinsic_coefficient": (-1e6, 1e6),
    "reward.intrinsic_coefficient": (-1e6, 1e6),
    "reward.extrinsic_scale": (-1e9, 1e9),
    "reward.extrinsic_clip": (0, 1e12),
    "reward.count_exponent": (0, 100),
    "reward.max_intrinsic_share": (0.001, 1),
    "annotator.batch_size": (1, 4096),
    "annotator.max_in_flight": (1, 1024),
    "annotator.max_captions": (16, 1e9),
    "annotator.recency_half_life_env_steps": (1, 1e15),
    "annotator.labels_per_turn": (1, 1e6),
    "annotator.max_labels": (0, 1e12),
    "annotator.max_labels_per_s": (0, 1e9),
    "annotator.pairs_per_caption": (1, 10_000),
    "annotator.max_pairs": (1, 1e7),
    "annotator.request_timeout_s": (0.1, 3600),
    "annotator.max_backoff_s": (0.1, 3600),
    "annotator.wait_for_first_table_s": (0, 86_400),
    "service.batch_size": (1, 4096),
    "service.port": (0, 65_535),
    "service.nice": (0, 19),
    "service.torch_threads": (0, 1024),
    "service.max_items_per_request": (1, 1e6),
    "service.max_item_bytes": (256, 1e7),
    "service.script_delay_s": (0, 3600),
    "service.hang_timeout_s": (1, 86_400),
    "service.engine_timeout_s": (1, 3600),
    "service.tensor_parallel": (1, 1024),
    "service.gpu_memory_utilization": (0.01, 1),
    "service.max_model_len": (0, 1e7),
    "service.endpoint_concurrency": (1, 1024),
    "reward_model.threshold": (-1, 0.999999),
    "reward_model.publish_interval_s": (0.01, 3600),
    "reward_model.clip": (0, 1e6),
    "reward_model.warmup_labels": (0, 1e12),
    "reward_model.label_smoothing": (0, 0.999),
    "reward_model.learning_rate": (0, 10),
    "reward_model.weight_decay": (0, 10),
    "reward_model.batch_size": (1, 65_536),
    "reward_model.steps_per_turn": (1, 1e6),
    "reward_model.training_share": (0.01, 1),
    "reward_model.held_out_fraction": (0, 0.9),
    "reward_model.patience": (1, 1e6),
    "reward_model.epsilon": (-1e6, 1e6),
    "reward_model.epsilon_quantile": (-2, 0.999999),
    "checkpoint.interval_env_steps": (0, 1e15),
    "checkpoint.interval_s": (0, 1e9),
    "checkpoint.keep": (1, 10_000),
    "evaluation.episodes": (1, 1e6),
    "evaluation.time_share": (0.001, 1),
    "logging.interval_env_steps": (1, 1e15),
    "logging.console_interval_s": (0.1, 1e6),
    "logging.episode_window": (1, 1e6),
    "cluster.worker_cpus": (0, 1024),
    "cluster.learner_cpus": (0, 1024),
    "cluster.learner_gpus": (-1, 64),
    "cluster.annotator_cpus": (0, 1024),
    "cluster.service_gpus": (0, 64),
    "cluster.service_replicas": (0, 1000),
    "cluster.worker_gpus": (0, 64),
    "cluster.placement_timeout_s": (1, 1e6),
    "cluster.shutdown_budget_s": (1, 3600),
    "cluster.min_workers": (0, 10_000),
    "cluster.max_worker_restarts": (0, 1e9),
    "cluster.max_environment_loss": (0, 1),
    "cluster.max_learner_restarts": (0, 1e9),
    "cluster.worker_timeout_s": (1, 1e6),
    "cluster.learner_timeout_s": (10, 1e6),
    "cluster.object_store_bytes": (0, 1e15),
}


def validate(config: RunConfig) -> None:
    """Raise ConfigError for the first value out of range, unknown choice, or combination that cannot work."""
    for key, choices in CHOICES.items():
        got = operator.attrgetter(key)(config)
        if got not in choices:
            raise ConfigError(f"{key}: got {got!r}, wanted one of {', '.join(choices)}")
    for key, (low, high) in RANGES.items():
        got = operator.attrgetter(key)(config)
        if not math.isfinite(got) or not low <= got <= high:
            raise ConfigError(f"{key}: got {got}, wanted a number from {low:.10g} to {high:.10g}")
    try:
        check_key_variable(config.service.endpoint_key_env)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_combinations(config)


def check_key_variable(name: str) -> None:
    """ValueError unless `name` is empty or reads like a variable's name; it may be the key itself, so it is not repeated."""
    if name and not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", name):
        raise ValueError(
            "service.endpoint_key_env: wanted the name of an environment variable, in capitals with an underscore, such as OPENAI_API_KEY;"
            " what was given may be a key and is not repeated: put the key into that variable"
        )


def _check_combinations(config: RunConfig) -> None:
    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ConfigError(message)

    cluster, actors, learner = config.cluster, config.actors, config.learner
    refuse(
        config.policy.crop_size % 2 == 0,
        f"policy.crop_size: got {config.policy.crop_size}, wanted an odd number so that the hero is the centre",
    )
    refuse(
        cluster.mode == "connect" and not os.path.isabs(config.run_dir),
        f"run_dir: got {config.run_dir!r}, wanted an absolute path with cluster.mode=connect, because a job's working directory is a temporary copy",
    )
    refuse(
        config.annotator.batch_size > config.service.max_items_per_request,
        f"annotator.batch_size: got {config.annotator.batch_size}, wanted at most service.max_items_per_request"
        f" ({config.service.max_items_per_request}), else the service refuses every request",
    )
    credentials = [name for name in ("tls_ca", "tls_cert", "tls_key", "token_file") if getattr(config.annotator, name)]
    refuse(
        bool(credentials) and not config.annotator.address,
        f"annotator.{(credentials or [''])[0]}: got a file without annotator.address, wanted the address of the service that it is for: one that"
        " the run starts listens to this machine alone",
    )
    starts_vllm = config.service.engine == "vllm" and not config.annotator.address and cluster.mode != "inline"
    refuse(
        starts_vllm and config.service.tensor_parallel > max(1.0, cluster.service_gpus),
        f"service.tensor_parallel: got {config.service.tensor_parallel} with cluster.service_gpus={cluster.service_gpus:g}, wanted no more GPUs"
        " than the service requests: it sees no others",
    )
    refuse(
        actors.device.startswith("cuda") and cluster.mode != "inline" and cluster.worker_gpus == 0,
        f"actors.device: got {actors.device!r} with cluster.worker_gpus=0, wanted the GPUs that a worker uses requested for it (a fraction shares one)",
    )
    refuse(
        config.service.device.startswith("cuda")
        and cluster.service_gpus == 0
        and cluster.mode != "inline"
        and not config.annotator.address,
        f"service.device: got {config.service.device!r} with cluster.service_gpus=0, wanted the GPUs that the service uses requested for it (a"
        " fraction shares one)",
    )
    refuse(
        cluster.min_workers > actors.num_workers,
        f"cluster.min_workers: got {cluster.min_workers}, wanted at most actors.num_workers ({actors.num_workers}); 0 waits for all of them",
    )
    refuse(
        cluster.service_replicas > 0 and bool(config.annotator.address),
        f"cluster.service_replicas: got {cluster.service_replicas} with annotator.address={config.annotator.address}, which starts no service;"
        " leave one of the two out",
    )
    model = config.reward_model
    is_judged = model.name in ("retrieval", "classification", "ranking") and not model.judgements
    is_embedded = model.name == "embedding" and model.embedding == "sentences"
    refuse(
        is_judged and config.service.engine == "none" and not config.annotator.address,
        f"service.engine: got none with reward_model.name={model.name}, which learns from judgements and would get none",
    )
    refuse(
        is_embedded and len(model.goals) > config.service.max_items_per_request,
        f"service.max_items_per_request: got {config.service.max_items_per_request}, wanted at least the number of goals ({len(model.goals)})",
    )
    refuse(
        model.warmup_labels > 0 and not (is_judged or is_embedded),
        f"reward_model.warmup_labels: got {model.warmup_labels}, but this reward model asks nothing while the policy trains; leave it at 0",
    )
    refuse(
        0 < config.annotator.max_labels < model.warmup_labels,
        f"reward_model.warmup_labels: got {model.warmup_labels}, more than annotator.max_labels ({config.annotator.max_labels}): nothing would"
        " ever be rewarded",
    )
    refuse(
        model.name == "ranking" and model.epsilon_quantile != -1 and model.epsilon != RewardModelConfig().epsilon,
        f"reward_model.epsilon: got {model.epsilon}, which reward_model.epsilon_quantile={model.epsilon_quantile} overrides; set"
        " reward_model.epsilon_quantile=-1 to use it",
    )
    refuse(
        config.annotator.max_labels_per_s > 0 and cluster.mode == "inline",
        "annotator.max_labels_per_s: a run in turns asks by turns, not by the clock; set annotator.labels_per_turn with cluster.mode=inline",
    )
    refuse(
        len(model.goals) > 64 or any(not goal.strip() for goal in model.goals),
        f"reward_model.goals: got {len(model.goals)} sentences, wanted at most 64 and none empty",
    )
    refuse(
        model.goal_once_per_episode and model.name != "embedding",
        f"reward_model.goal_once_per_episode: got true with reward_model.name={model.name}, but only `embedding` knows goals",
    )
    refuse(
        model.goal_once_per_episode and model.permute,
        "reward_model.goal_once_per_episode: a caption whose reward is another's (reward_model.permute) reaches no goal; leave one of the two out",
    )
    refuse(
        bool(model.judgements) and model.name not in ("retrieval", "classification", "ranking"),
        f"reward_model.judgements: got a file with reward_model.name={model.name}, which learns from no judgements",
    )
    refuse(
        model.epsilon_quantile < 0 and model.epsilon_quantile not in (-1, -2),
        f"reward_model.epsilon_quantile: got {model.epsilon_quantile}, wanted a quantile in [0, 1), -1 to take reward_model.epsilon, or -2 for"
        " the judge's theta",
    )
    in_flight = actors.num_workers * actors.rollouts_in_flight
    refuse(
        -(-in_flight // learner.rollouts_per_batch) > learner.max_policy_lag and cluster.mode != "inline",
        f"actors.num_workers x actors.rollouts_in_flight: got {in_flight} rollouts in flight, which lag more than learner.max_policy_lag"
        f" ({learner.max_policy_lag}) updates of {learner.rollouts_per_batch} rollouts: they would be dropped; raise learner.rollouts_per_batch",
    )
