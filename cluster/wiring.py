"""Builds the parts from a `RunConfig`: the one place where a section of the configuration meets the class that takes it.

Invariant: every spawner builds through these functions, so the modes differ in where a part runs, never in what it is.
"""

import zlib
from collections.abc import Callable
from functools import partial

from actors.captions import CaptionTracker
from actors.environment import EnvironmentSpec, make_environment
from actors.policy import PolicyNet
from actors.worker import RolloutWorker
from cluster.run_directory import RunDirectory
from configs.schema import RunConfig
from configs.validation import ConfigError
from learner.update import resolve_device
from llm_server.annotator import AnnotationClient, Annotator
from llm_server.caption_archive import CaptionArchive
from llm_server.caption_book import CaptionBook
from llm_server.client import AnnotationClient as GrpcClient
from llm_server.client import InProcessClient
from llm_server.engine import check_engine
from llm_server.judge import build_judge
from llm_server.rubric_file import load_rubric
from llm_server.service_process import ServiceProcess
from reward_models.training import AnnotationPipeline, RewardTrainer, build_reward_model


def build_worker(config: RunConfig, index: int, *, incarnation: str, stream: str) -> RolloutWorker:
    """Rollout worker `index`; `stream` names its environments' seeds."""
    env = make_environment(
        config.env,
        num_envs=config.actors.envs_per_worker,
        run_seed=config.seed,
        worker_index=index,
        stream=stream,
        crop_size=config.policy.crop_size,
        network=config.policy.network,
    )
    captions = CaptionTracker(env.num_envs, fold_case=config.env.fold_case, fold_digits=config.env.fold_digits)
    seed = zlib.crc32(f"{config.seed}/{stream}/{index}/actions".encode())
    return RolloutWorker(env, PolicyNet(env.spec, config.policy), captions, config.actors, worker_id=f"{index}.{incarnation}", seed=seed)


def build_pipeline(config: RunConfig, run: RunDirectory, run_epoch: int) -> AnnotationPipeline:
    """Caption book, annotator, reward model; and what judges: the service at `annotator.address`, one that is started with
    the run, or in `inline` a judge in this process. Raises ValueError for what is wrong with model, rubric or store."""
    model = build_reward_model(config.reward_model)
    book = CaptionBook(config.annotator.max_captions, config.annotator.recency_half_life_env_steps, CaptionArchive(run.captions))
    trainer = RewardTrainer(model, book, run_epoch)
    annotator = service = judge = None
    if model.needs_judgements:
        rubric, timeout_s = load_rubric(config.annotator.rubric), config.annotator.request_timeout_s
        connect: Callable[[], AnnotationClient]
        if config.annotator.address:
            connect = partial(GrpcClient, config.annotator.address, rubric, timeout_s)
        elif config.cluster.mode == "inline":
            judge = build_judge(config.service, rubric)
            connect = partial(InProcessClient, judge)
        else:
            service = ServiceProcess(config.service, config.annotator.rubric, run.path / "service.log")
            connect = lambda: GrpcClient(service.address(), rubric, timeout_s)  # noqa: E731
        annotator = Annotator(connect, book, config.annotator)
    return AnnotationPipeline(
        book, trainer, annotator=annotator, service=service, judge=judge, publish_interval_s=config.reward_model.publish_interval_s
    )


def check_parts(config: RunConfig) -> tuple[EnvironmentSpec, str | None]:
    """Build and drop what can be built cheaply, so that mistakes show before a run begins.

    The environment's specification, and the rubric's hash where one is used. Raises ConfigError.
    """
    try:
        here = config.cluster.mode != "connect"  # elsewhere the learner and the service see other devices and folders
        if here:
            resolve_device(config.learner.device)
        env = make_environment(
            config.env,
            num_envs=1,
            run_seed=config.seed,
            worker_index=0,
            stream="check",
            crop_size=config.policy.crop_size,
            network=config.policy.network,
        )
        try:
            env.reset()  # a captioner can be wrong only in what an episode shows
        finally:
            env.close()
        PolicyNet(env.spec, config.policy)
        if not build_reward_model(config.reward_model).needs_judgements:
            return env.spec, None
        rubric = load_rubric(config.annotator.rubric)
        if here and not config.annotator.address:
            check_engine(config.service)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return env.spec, rubric.content_hash
