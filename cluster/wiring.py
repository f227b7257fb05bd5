"""Builds the components of a run: where sections of `RunConfig` meet the classes that take them (but `cluster.loop`).

Invariant: every spawner builds through these functions, so the modes differ in where a component runs, not in what it
is.
"""

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from actors.captions import CaptionTracker
from actors.central.client import CentralInference
from actors.central.exchange import split_rows
from actors.central.server import InferenceServer
from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.split import SplitEnvironment
from actors.environments.vector import EnvironmentSpec, VectorEnvironment
from actors.inference import BatchedInference
from actors.policy import PolicyNet
from actors.worker import Inference, RolloutWorker
from cluster.plan import RunPlan, build_model, embedding_goals, plan_run
from cluster.run.directory import RunDirectory
from configs.annotation_schema import AccessConfig, AnnotatorConfig
from configs.checks import ConfigError
from configs.devices import resolve_device
from configs.schema import RunConfig
from learner.checkpoint import load_latest
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions, EmbeddingQuestions, JudgeClient
from llm_server.annotator.pairs import ComparedPairs, PointwisePairs
from llm_server.channel import check_address
from llm_server.client import AnnotationClient, InProcessClient
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials, CredentialFiles, load_client_credentials
from llm_server.engines.building import check_engine
from llm_server.replicas import Replicas, split_addresses
from llm_server.replicated_client import ReplicatedClient
from llm_server.rubrics.loading import load_rubric
from llm_server.service.child import ServiceProcess
from llm_server.service.judge import build_judge
from reward_models.interface import Asks
from reward_models.pipeline import AnnotationPipeline
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer


def build_worker(
    config: RunConfig, index: int, *, incarnation: str, stream: str, server: Path | None = None
) -> RolloutWorker:
    """Rollout worker `index`; `stream` names its environments' seeds. With `actors.inference=central` it asks the
    inference server that listens at `server`."""
    make = partial(
        make_environment,
        config.env,
        run_seed=config.seed,
        worker_index=index,
        stream=stream,
        policy=config.policy,
    )
    num_envs = config.actors.envs_per_worker
    env: VectorEnvironment | SplitEnvironment
    inference: Inference
    if server is None:
        env = make(num_envs=num_envs)
        inference = BatchedInference(PolicyNet(env.spec, config.policy), env.spec, num_envs, config.actors)
    else:
        rows = split_rows(num_envs)
        firsts = accumulate(rows[:-1], initial=0)
        env = SplitEnvironment([make(num_envs=part, first_env=first) for part, first in zip(rows, firsts, strict=True)])
        place, timeout_s = index // config.cluster.inference_actors, config.cluster.worker_timeout_s
        inference = CentralInference(server, env.spec, num_envs, place=place, timeout_s=timeout_s)
    captions = CaptionTracker(num_envs, fold_case=config.env.fold_case, fold_digits=config.env.fold_digits)
    seed = zlib.crc32(f"{config.seed}/{stream}/{index}/actions".encode())
    return RolloutWorker(env, inference, captions, config.actors, worker_id=f"{index}.{incarnation}", seed=seed)


def build_inference_server(config: RunConfig, spec: EnvironmentSpec, index: int, path: Path) -> InferenceServer:
    """Inference server `index` of `cluster.inference_actors`, which listens at `path`: of the workers whose number,
    divided by how many servers there are, leaves the remainder `index`."""
    num_workers = len(range(index, config.actors.num_workers, config.cluster.inference_actors))
    make_net = partial(PolicyNet, spec, config.policy)
    return InferenceServer(path, make_net, spec, config.actors, num_workers=num_workers)


def build_pipeline(
    config: RunConfig,
    run: RunDirectory,
    run_epoch: int,
    replicas: Callable[[], Mapping[str, str]] | None = None,
    credentials: CredentialFiles | None = None,
) -> AnnotationPipeline:
    """Caption book, annotator, reward model, and the judge: the service at `annotator.address`, the `replicas` that the
    run started (see `Replicas`; they require `credentials`), one service that is this process's child, or in `inline` a
    judge in this process. Raises ValueError for an error in model, rubric or store."""
    model = build_model(config)
    plan, settings = RunPlan(config, model.asks), config.annotator
    book = CaptionBook(
        settings.max_captions,
        settings.recency_half_life_env_steps,
        CaptionArchive(run.captions),
        policy=settings.policy,
    )
    trainer = RewardTrainer(model, RewardShaping(config.reward_model, config.seed), book, run_epoch)
    if config.reward_model.judgements:
        trainer.adopt(_trained_before(run))
    annotator = service = judge = None
    if plan.asks_judge:
        rubric = load_rubric(settings.rubric)

        def client(address: str, shown: ClientCredentials = NO_CREDENTIALS) -> AnnotationClient:
            return AnnotationClient(address, rubric, settings.request_timeout_s, shown)

        connect: Callable[[], JudgeClient]
        if settings.address:
            reach = partial(client, shown=service_credentials(settings))
            addresses = {address: address for address in split_addresses(settings.address)}
            if len(addresses) > 1:
                connect = partial(ReplicatedClient, Replicas(lambda: addresses, reach))
            else:
                connect = partial(reach, *addresses)
        elif replicas is not None:
            shown = credentials.client() if credentials is not None else NO_CREDENTIALS
            connect = partial(ReplicatedClient, Replicas(replicas, partial(client, shown=shown)))
        elif config.cluster.mode == "inline":
            judge = build_judge(plan.service, rubric)
            connect = partial(InProcessClient, judge)
        else:
            service = ServiceProcess(plan.service, settings.rubric, run.path / "service.log")
            connect = lambda: client(service.address())  # noqa: E731
        annotator = Annotator(connect, _questions(plan, book), settings)
    return AnnotationPipeline(
        book, trainer, annotator=annotator, service=service, judge=judge, config=config.reward_model
    )


def service_credentials(settings: AnnotatorConfig) -> ClientCredentials:
    """The client's credentials for `annotator.address`. Raises ValueError for invalid files or addresses."""
    credentials = load_client_credentials(settings.tls_ca, settings.tls_cert, settings.tls_key, settings.token_file)
    check_addresses(settings.address, credentials)
    return credentials


def check_addresses(setting: str, credentials: ClientCredentials = NO_CREDENTIALS) -> None:
    """ValueError unless `setting`, a non-empty `annotator.address`, holds addresses that may get these credentials."""
    for address in split_addresses(setting) or [setting]:
        check_address(address, credentials)


def _trained_before(run: RunDirectory) -> Mapping[str, Any]:
    state = load_latest(run.reward_model)
    if state is None:
        raise RuntimeError(
            f"{run.reward_model} is missing: the reward model was to be trained before the policy; start the run again"
        )
    return state["trainer"]


def replica_service(
    config: RunConfig, run: RunDirectory, index: int, host: str, credentials: CredentialFiles | None
) -> ServiceProcess:
    """Annotation replica `index`, which listens on `host`; with `credentials` it uses TLS and requires certificate and
    token.

    A configured store becomes one file per replica, because the file system may be shared by several nodes; the default
    store in the user's cache is local to each node."""
    settings = plan_run(config).service
    store = settings.store
    if store not in ("", "memory"):
        store = str(Path(store).with_name(f"{Path(store).stem}-{index}{Path(store).suffix}"))
    settings = replace(settings, host=host, port=0, store=store)
    log = run.path / f"service-{index}.log"
    if credentials is None:
        return ServiceProcess(settings, config.annotator.rubric, log)
    access = AccessConfig(
        tls_cert=str(credentials.server_cert),
        tls_key=str(credentials.server_key),
        tls_client_ca=str(credentials.ca),
        token_file=str(credentials.token),
    )
    return ServiceProcess(settings, config.annotator.rubric, log, access=access, credentials=credentials.client())


def _questions(plan: RunPlan, book: CaptionBook) -> CaptionQuestions:
    config = plan.config
    if plan.asks is Asks.EMBEDDINGS:
        return EmbeddingQuestions(book, embedding_goals(config))
    if plan.asks is Asks.PAIRS:
        pairs = ComparedPairs if config.annotator.pairs == "compared" else PointwisePairs
        return pairs(book, config.annotator, config.seed)
    return CaptionQuestions(book)


def check_parts(config: RunConfig) -> tuple[EnvironmentSpec, RunPlan, str | None]:
    """Build and drop what can be built cheaply, so that errors in the configuration show before a run begins.

    The environment's specification, the run's plan, and the rubric's hash where one is used. Raises ConfigError.
    """
    try:
        is_local = config.cluster.mode != "connect"  # else learner and service see other devices and folders
        if is_local:
            resolve_device(config.learner.device, "learner.device")
            resolve_device(config.actors.device, "actors.device")
            if config.actors.inference == "central" and not hasattr(os, "memfd_create"):
                raise ConfigError("actors.inference: got 'central', wanted worker: central needs Linux's shared memory")
        env = make_environment(
            config.env, num_envs=1, run_seed=config.seed, worker_index=0, stream="check", policy=config.policy
        )
        try:
            env.reset()  # some errors of a captioner show only in an episode
        finally:
            env.close()
        PolicyNet(env.spec, config.policy)
        plan = plan_run(config)
        if not plan.asks_judge:
            return env.spec, plan, None
        rubric = load_rubric(config.annotator.rubric)
        if plan.asks is Asks.PAIRS and config.annotator.pairs == "compared" and rubric.pairs is None:
            raise ConfigError(
                f"annotator.pairs: got compared, but rubric '{rubric.id}' has no `pairs` section; write one, or take"
                " annotator.pairs=pointwise"
            )
        if config.annotator.address:
            check_addresses(config.annotator.address)
            if is_local:
                service_credentials(config.annotator)
        elif is_local:
            check_engine(plan.service)
    except EnvironmentFailure as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return env.spec, plan, "/".join(hash for hash in (rubric.content_hash, rubric.pairs_hash) if hash)
