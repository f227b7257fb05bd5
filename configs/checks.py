"""Validates a configuration: each value against its field's range or choices, then combinations of several values.

Invariant: a configuration that passes does not fail later for a reason that could have been detected here; each message
says what was got, what was wanted, and what the check prevents.
"""

import operator
import os
import re

from configs.errors import did_you_mean
from configs.features import check_sources
from configs.fields import complaint, values
from configs.goal_schema import DERIVED, GOAL_TERM, OF_STATES, SOURCES, WRITTEN
from configs.reward_schema import MAIN_TERM, TermConfig
from configs.schema import RunConfig

TRACKERS = ("wandb", "mlflow", "trackio")
TERM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
MAX_TERMS = 16
OF_JUDGED = ("rubric", "about", "model", "count_exponent", "max_labels")
"""Settings of a term that mean nothing to a program."""
NO_TERM = TermConfig()
MODULE_AND_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ConfigError(ValueError):
    """The configuration is invalid; the message is one line for the terminal."""


def validate(config: RunConfig) -> None:
    """Raise ConfigError for the first value out of range, unknown choice, or combination that cannot work."""
    for key, field, value in values(config):
        if wrong := complaint(field, value):
            raise ConfigError(f"{key}: {wrong}")
    check_key_variable(config.service.endpoint_key_env)
    _check_combinations(config)


def check_key_variable(name: str) -> None:
    """ConfigError unless `name` is empty or looks like a variable's name; not repeated: it may be the key."""
    if name and not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", name):
        raise ConfigError(
            "service.endpoint_key_env: wanted the name of an environment variable, in capitals with an underscore, such"
            " as OPENAI_API_KEY; what was given may be a key and is not repeated: put the key into that variable"
        )


def _check_combinations(config: RunConfig) -> None:
    def refuse(key: str, problem: str) -> None:
        raise ConfigError(f"{key}: got {operator.attrgetter(key)(config)!r}{problem}")

    actors, learner, annotator, service = config.actors, config.learner, config.annotator, config.service
    cluster, model = config.cluster, config.reward_model
    is_inline, starts_service = cluster.mode == "inline", not annotator.address
    if config.policy.crop_size % 2 == 0:
        refuse("policy.crop_size", ", wanted an odd number so that the agent is the centre")
    if cluster.mode == "connect" and not os.path.isabs(config.run_dir):
        why = "because a job's working directory is a temporary copy"
        refuse("run_dir", f", wanted an absolute path with cluster.mode=connect, {why}")
    if annotator.batch_size > service.max_items_per_request:
        limit = f"service.max_items_per_request ({service.max_items_per_request})"
        refuse("annotator.batch_size", f", wanted at most {limit}, else the service refuses every request")
    for name in ("tls_ca", "tls_cert", "tls_key", "token_file"):
        if starts_service and getattr(annotator, name):
            why = "a service that the run starts listens on this machine only"
            refuse(f"annotator.{name}", f" without annotator.address, wanted the address that it is for: {why}")
    if not is_inline and starts_service:
        gpus = f" with cluster.service_gpus={cluster.service_gpus:g}, wanted"
        if service.engine == "vllm" and service.tensor_parallel > max(1.0, cluster.service_gpus):
            refuse("service.tensor_parallel", f"{gpus} no more GPUs than the service requests: it sees no others")
        if service.device.startswith("cuda") and cluster.service_gpus == 0:
            refuse("service.device", f"{gpus} a request for the GPUs that the service uses (a fraction shares one)")
    if cluster.num_learners > 1 and is_inline:
        refuse("cluster.num_learners", " with cluster.mode=inline, wanted 1: everything is in one process")
    if learner.rollouts_per_batch % cluster.num_learners:
        why = "each learner gets as many rollouts of a batch"
        refuse(
            "learner.rollouts_per_batch", f", wanted a multiple of cluster.num_learners ({cluster.num_learners}): {why}"
        )
    is_central = actors.inference == "central"
    if is_central and is_inline:
        refuse("actors.inference", " with cluster.mode=inline, wanted worker: there, workers take turns in one process")
    if is_central and cluster.inference_actors > actors.num_workers:
        limit = f"actors.num_workers ({actors.num_workers})"
        refuse("cluster.inference_actors", f", wanted at most {limit}: each serves at least one worker")
    user, key = ("an inference actor", "inference_gpus") if is_central else ("a worker", "worker_gpus")
    if not is_inline and actors.device.startswith("cuda") and getattr(cluster, key) == 0:
        gpus = f" with cluster.{key}=0, wanted"
        refuse("actors.device", f"{gpus} a request for the GPUs that {user} uses (a fraction shares one)")
    if cluster.min_workers > actors.num_workers:
        limit = f"actors.num_workers ({actors.num_workers})"
        refuse("cluster.min_workers", f", wanted at most {limit}; 0 waits for all of them")
    if cluster.service_replicas > 0 and not starts_service:
        refuse("cluster.service_replicas", f" with annotator.address={annotator.address}, which starts no service")
    if 0 < annotator.max_labels < model.warmup_labels:
        limit = f"annotator.max_labels ({annotator.max_labels})"
        refuse("reward_model.warmup_labels", f", wanted at most {limit}: nothing would ever be rewarded")
    if annotator.max_labels_per_s > 0 and is_inline:
        refuse("annotator.max_labels_per_s", " with cluster.mode=inline, wanted 0: annotator.labels_per_turn limits it")
    if len(model.goals) > 64 or any(not goal.strip() for goal in model.goals):
        raise ConfigError(f"reward_model.goals: got {len(model.goals)} sentences, wanted at most 64 and none empty")
    if model.goal_once_per_episode and model.permute:
        why = "a caption whose reward is another's reaches no goal"
        refuse("reward_model.goal_once_per_episode", f" with reward_model.permute=True, wanted one of the two: {why}")
    if model.epsilon_quantile < 0 and model.epsilon_quantile not in (-1, -2):
        wanted = "a quantile in [0, 1), -1 to use reward_model.epsilon, or -2 for the judge's theta"
        refuse("reward_model.epsilon_quantile", f", wanted {wanted}")
    try:
        check_sources(config.env.features, config.env.feature_names)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_terms(config)
    _check_goals(config)
    _check_captions(config)
    _check_safeguards(config)
    trackers = config.logging.trackers
    for name in trackers:
        if name not in TRACKERS and not MODULE_AND_CLASS.fullmatch(name):
            wanted = f"{did_you_mean(name, TRACKERS)}, wanted {', '.join(TRACKERS)} or module:Class"
            raise ConfigError(f"logging.trackers: got {name!r}{wanted}")
    if len(set(trackers)) < len(trackers):
        refuse("logging.trackers", ", wanted each tracker once")
    in_flight, per_update = actors.num_workers * actors.rollouts_in_flight, learner.rollouts_per_batch
    if -(-in_flight // per_update) > learner.max_policy_lag and not is_inline:
        raise ConfigError(
            f"actors.num_workers x actors.rollouts_in_flight: got {in_flight} rollouts in flight, which lag more than"
            f" learner.max_policy_lag ({learner.max_policy_lag}) updates of {per_update} rollouts and would be dropped;"
            " raise learner.rollouts_per_batch"
        )


def _check_terms(config: RunConfig) -> None:
    if len(config.terms) > MAX_TERMS:
        raise ConfigError(f"terms: got {len(config.terms)}, wanted at most {MAX_TERMS}")
    for name, term in config.terms.items():
        if name == MAIN_TERM:
            why = "`main` is the term that reward_model, annotator and reward describe"
            raise ConfigError(f"terms.{name}: wanted another name: {why}")
        if not TERM_NAME.fullmatch(name):
            raise ConfigError(f"terms: got the name {name!r}, wanted small letters, digits and _, at most 32 of them")
        if term.pays != "event" and term.reads not in ("state", "features"):
            got, why = f"got {term.pays!r} with reads={term.reads}", "an event has no value before and after an action"
            raise ConfigError(f"terms.{name}.pays: {got}, wanted reads=state: {why}")
        if term.reads in ("state", "change") and not config.env.describer:
            wanted = "wanted nethack, minigrid or module:function"
            raise ConfigError(f"env.describer: got '', {wanted}: terms.{name} reads {term.reads}, which it describes")
        _check_program(name, term, config)


def _check_captions(config: RunConfig) -> None:
    """Refuse what reads captions in an environment that has none."""
    reads = {f"terms.{name} reads them": term.reads == "caption" for name, term in config.terms.items()}
    reads |= {f"reward_model.name={config.reward_model.name} rewards them": config.reward_model.name != "none"}
    reads |= {"goals are matched with them": bool(config.goals.sources) and config.goals.reads == "caption"}
    if config.env.captioner == "none" and any(reads.values()):
        why = next(why for why, is_so in reads.items() if is_so)
        raise ConfigError(f"env.captioner: got none, wanted where captions come from: {why}")


def _check_program(name: str, term: TermConfig, config: RunConfig) -> None:
    if bool(term.program) != (term.reads == "features"):
        wanted = "wanted a program if and only if the term reads features"
        got = f"got {term.program.strip().splitlines()[0]!r}" if term.program.strip() else "got none"
        raise ConfigError(f"terms.{name}.program: {got} with reads={term.reads}, {wanted}")
    if not term.program:
        return
    if not config.env.features:
        wanted = "wanted blstats, minigrid, obs, info:KEY or module:function"
        raise ConfigError(f"env.features: got [], {wanted}: terms.{name} is a program, which reads them")
    for key in OF_JUDGED:
        if (got := getattr(term, key)) != getattr(NO_TERM, key):
            raise ConfigError(f"terms.{name}.{key}: got {got!r} with a program, which asks nobody; leave it out")


def _check_goals(config: RunConfig) -> None:
    goals, sources = config.goals, set(config.goals.sources)

    def refuse(key: str, problem: str) -> None:
        raise ConfigError(f"goals.{key}: got {getattr(goals, key)!r}{problem}")

    for name in goals.sources:
        if name not in SOURCES:
            near = did_you_mean(name, SOURCES)
            raise ConfigError(f"goals.sources: got {name!r}{near}, wanted any of {', '.join(SOURCES)}")
    if len(sources) < len(goals.sources):
        refuse("sources", ", wanted each source once")
    if bool(goals.texts) != ("config" in sources):
        got = f"got {len(goals.texts)} with goals.sources={goals.sources}"
        raise ConfigError(f"goals.texts: {got}, wanted texts if and only if `config` is a source")
    if not sources:
        if config.policy.reads_goal:
            raise ConfigError("policy.reads_goal: got true without goals, wanted goals.sources: it would read nothing")
        return
    if GOAL_TERM in config.terms:
        why = "goals.sources makes a term of this name; name yours otherwise"
        raise ConfigError(f"terms.{GOAL_TERM}: got a term with goals.sources={goals.sources}: {why}")
    if goals.ordered and not sources & {"config", "decompose"}:
        refuse("ordered", " without a plan, wanted `config` or `decompose` among goals.sources")
    for why, needs_task in (("decompose", "decompose" in sources), ("relevance", goals.relevance != "none")):
        if needs_task and not goals.task.strip():
            refuse("task", f", wanted what the agent is to do, in one sentence: {why} needs it")
    if goals.scope == "current" and not config.policy.reads_goal:
        refuse("scope", " with policy.reads_goal=False, wanted policy.reads_goal=true: the policy is given no goal")
    if goals.scope == "suggested" and not sources & {*OF_STATES}:
        refuse("scope", f" with goals.sources={goals.sources}, wanted suggest or closed: nothing suggests any goal")
    described = [name for name in OF_STATES if name in sources] + [goals.reads] * (goals.reads == "change")
    if described and not config.env.describer:
        wanted = "wanted nethack, minigrid or module:function"
        raise ConfigError(f"env.describer: got '', {wanted}: goals with {described[0]} need states in words")
    written = [name for name in WRITTEN if name in sources]
    if written and not config.writer.address and config.service.engine == "none" and not config.annotator.address:
        wanted = f"wanted one that writes, or writer.address: {written[0]} asks a language model"
        raise ConfigError(f"service.engine: got none with goals.sources={goals.sources}, {wanted}")
    if sources <= {*DERIVED}:
        refuse("sources", f", wanted another source beside: {' and '.join(goals.sources)} begin with goals of others")


def _check_safeguards(config: RunConfig) -> None:
    robust, held_out = config.robust, config.reward_model.held_out_fraction
    if robust.ensemble < 2:
        alone = f"with robust.ensemble={robust.ensemble}, which cannot disagree; wanted robust.ensemble of at least 2"
        if robust.pessimism:
            raise ConfigError(f"robust.pessimism: got {robust.pessimism:g} {alone}")
        if config.annotator.policy == "disagreement":
            raise ConfigError(f"annotator.policy: got disagreement {alone}")
    if robust.pseudo_confidence and not held_out:
        got, why = f"got {robust.pseudo_confidence:g} with reward_model.held_out_fraction=0", "nothing would end it"
        raise ConfigError(f"robust.pseudo_confidence: {got}, wanted a fraction above 0: {why}")
    if 0 < robust.pseudo_confidence <= 0.5:
        wanted = "wanted above 0.5: every prediction or its opposite is that sure"
        raise ConfigError(f"robust.pseudo_confidence: got {robust.pseudo_confidence:g}, {wanted}")
