"""Checks of a configuration: each value by what its field declares, then combinations of several.

Invariant: a configuration that passes does not fail later for a reason that could have been seen here; each message says
what was got, what was wanted, and what the check prevents.
"""

import dataclasses
import os
import re
from typing import Any

from configs.fields import complaint
from configs.schema import RunConfig


class ConfigError(ValueError):
    """What the user asked for cannot be; the message is one line for the terminal."""


def validate(config: RunConfig) -> None:
    """Raise ConfigError for the first value out of range, unknown choice, or combination that cannot work."""
    _check_fields(config, "")
    try:
        check_key_variable(config.service.endpoint_key_env)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_combinations(config)


def _check_fields(section: Any, prefix: str) -> None:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{prefix}{field.name}.")
        elif wrong := complaint(field, value):
            raise ConfigError(f"{prefix}{field.name}: {wrong}")


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
        f"policy.crop_size: got {config.policy.crop_size}, wanted an odd number so that the agent is the centre",
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
    refuse(
        0 < config.annotator.max_labels < model.warmup_labels,
        f"reward_model.warmup_labels: got {model.warmup_labels}, more than annotator.max_labels ({config.annotator.max_labels}): nothing would"
        " ever be rewarded",
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
        model.goal_once_per_episode and model.permute,
        "reward_model.goal_once_per_episode: a caption whose reward is another's (reward_model.permute) reaches no goal; leave one of the two out",
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
