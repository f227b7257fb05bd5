"""Builds the components of a run: where sections of `RunConfig` meet the classes that take them (but `cluster.loop`).

Invariant: every spawner builds through these functions, so the modes differ in where a component runs, not in what it
is.
"""

import os
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from actors.captions import CaptionTracker, normalize
from actors.central.client import CentralInference
from actors.central.exchange import split_rows
from actors.central.server import InferenceServer
from actors.channels import CHANGE, STATE, Channels
from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.split import SplitEnvironment
from actors.environments.vector import MISSION, EnvironmentSpec, VectorEnvironment
from actors.features.signals import FEATURES
from actors.goals.entry import GoalEntryEnvironment
from actors.goals.guide import GoalGuide
from actors.goals.keeper import MISSIONS, GoalKeeper
from actors.goals.sheet import GoalSheet
from actors.inference import BatchedInference
from actors.policy import PolicyNet
from actors.rollout import Acknowledgement, CaptionReport
from actors.worker import Inference, RolloutWorker
from cluster.goals.building import build_goals
from cluster.judge import SharedJudge, check_addresses, check_writer, service_credentials
from cluster.plan import RunPlan, TermPlan, build_model, check_rubrics, embedding_goals, of_term, plan_run
from cluster.run.directory import RunDirectory
from configs.checks import ConfigError
from configs.devices import resolve_device
from configs.features import without_features
from configs.goal_schema import GOAL_TERM, MAX_GOALS
from configs.reward_schema import MAIN_TERM
from configs.schema import EnvConfig, RunConfig
from configs.terms import read_channels, resolved_terms
from learner.checkpoint import load_latest
from learner.reward.programs import term_program
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions, EmbeddingQuestions
from llm_server.annotator.pairs import ComparedPairs, PointwisePairs
from llm_server.credentials import CredentialFiles
from llm_server.engines.building import check_engine
from llm_server.rubrics.loading import load_rubric
from reward_models.building import check_safeguards
from reward_models.interface import Asks
from reward_models.pipeline import AnnotationPipeline
from reward_models.published import PublishedReward
from reward_models.reward_pipeline import RewardPipeline
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer


def build_worker(
    config: RunConfig, index: int, *, incarnation: str, stream: str, server: Path | None = None
) -> RolloutWorker:
    """Rollout worker `index`; `stream` names its environments' seeds. With `actors.inference=central` it asks the
    inference server that listens at `server`."""
    make = partial(
        make_environment,
        _read_by_terms(config),
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
    return RolloutWorker(
        env,
        inference,
        CaptionTracker(num_envs, _caption_text(config)),
        config.actors,
        worker_id=f"{index}.{incarnation}",
        seed=zlib.crc32(f"{config.seed}/{stream}/{index}/actions".encode()),
        channels=build_channels(config, env),
        goals=build_keeper(config, env, f"{stream}/{index}"),
    )


def build_keeper(config: RunConfig, env: VectorEnvironment | SplitEnvironment, place: str) -> GoalKeeper | None:
    """The keeper of the environments' goals, seeded by the run's seed and `place`; None in a run without goals. Raises
    ValueError for missions that the environment does not give."""
    if not config.goals.sources:
        return None
    if MISSIONS in config.goals.sources and env.missions is None:
        what = f"{config.env.id} observes no text `{MISSION}`"
        raise ValueError(f"goals.sources: got {MISSIONS}, but {what}; give goals of another source")
    return GoalKeeper(config.goals, env.num_envs, seed=zlib.crc32(f"{config.seed}/{place}/goals".encode()))


def build_guide(config: RunConfig, env: GoalEntryEnvironment, sheet: GoalSheet, place: str) -> GoalGuide:
    """What gives goals of `sheet` to environments outside a worker; `place`: see `build_keeper`."""
    keeper = build_keeper(config, env, place)
    assert keeper is not None, "a policy that reads goals has sources of goals"
    keeper.take_sheet(sheet)
    channels = build_channels(config, env, read_channels(config) - {FEATURES})
    return GoalGuide(keeper, CaptionTracker(env.num_envs, _caption_text(config)), channels)


def goal_sheet(reward: PublishedReward) -> GoalSheet | None:
    """What workers are told of the goals in `reward`; None where there are none yet."""
    goals, table = reward.goals, reward.tables.get(GOAL_TERM)
    if goals is None:
        return None
    ids, masks = np.zeros(0, np.uint64), np.zeros((0, MAX_GOALS // 64), np.uint64)
    if table is not None and table.goals is not None:
        achieves = table.goals.any(axis=1)
        ids, masks = table.ids[achieves], table.goals[achieves]
    return GoalSheet(
        version=(*goals.version, *(table.reward_version if table is not None else ())),
        texts=goals.texts,
        vectors=goals.vectors,
        sampling=goals.sampling,
        before=goals.before,
        suggested_ids=goals.suggested_ids,
        suggested=goals.suggested,
        achieved_ids=ids,
        achieved=masks,
    )


def build_channels(
    config: RunConfig, env: VectorEnvironment | SplitEnvironment, reads: Collection[str] | None = None
) -> Channels:
    """The channels beside captions that terms read (or `reads`). Raises ValueError for `history` without names of the
    actions."""
    reads = read_channels(config) if reads is None else reads
    return Channels(reads, env.num_envs, env.spec.action_names, _caption_text(config), len(env.spec.features))


def _read_by_terms(config: RunConfig) -> EnvConfig:
    """The environment, with a describer and features only if a term reads them."""
    reads = read_channels(config)
    env = config.env if reads & {STATE, CHANGE} else replace(config.env, describer="")
    return env if FEATURES in reads else without_features(env)


def _caption_text(config: RunConfig) -> Callable[[bytes], str]:
    return partial(normalize, fold_case=config.env.fold_case, fold_digits=config.env.fold_digits)


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
) -> RewardPipeline:
    """For each term a caption book, an annotator and a reward model, and the judge that they share (see `SharedJudge`).
    The terms whose models are trained share `reward_model.training_share`, and those that ask a judge
    `annotator.max_labels_per_s`. Raises ValueError for an error in model, rubric or store."""
    plan = plan_run(config)
    models = {name: build_model(term.config) for name, term in plan.terms.items()}
    num_trained = sum(model.is_trained for model in models.values())
    judge = SharedJudge(plan, run, replicas, credentials)
    pipelines, goals = {}, None
    for name, term in plan.terms.items():
        rewards, settings = term.config.reward_model, term.config.annotator
        archive = CaptionArchive(run.captions_of(name))
        book = CaptionBook(settings.max_captions, settings.recency_half_life_env_steps, archive, policy=settings.policy)
        questions = _questions(term, book)
        if term.asks is Asks.GOALS:
            models[name], questions, goals = build_goals(term, judge, book, plan=plan, run_epoch=run_epoch)
        trainer = RewardTrainer(models[name], RewardShaping(rewards, term.config.seed), book, run_epoch, config.robust)
        if rewards.judgements:
            trainer.adopt(_trained_before(run.reward_model_of(name)))
        annotator = None
        if term.asks_judge:
            settings = replace(settings, max_labels_per_s=settings.max_labels_per_s / len(plan.asking))
            annotator = Annotator(judge.connect(load_rubric(term.rubric), term.about), questions, settings)
        pipelines[name] = AnnotationPipeline(
            book,
            trainer,
            annotator=annotator,
            service=judge.service,
            judge=judge.in_process if name == MAIN_TERM else None,
            config=replace(rewards, training_share=rewards.training_share / max(1, num_trained)),
        )
    return RewardPipeline(pipelines, {name: term.reads for name, term in plan.terms.items()}, goals)


def take_report(pipeline: RewardPipeline, report: CaptionReport, env_steps: int) -> Acknowledgement:
    """Add a worker's report, of all channels, to the caption books."""
    channels = {"caption": (report.texts, report.counts), **report.channels}
    counts = asdict(report.goals) if report.goals is not None else None
    book_epoch, sequence_number = pipeline.report(channels, report.worker_id, report.sequence_number, env_steps, counts)
    return Acknowledgement(book_epoch=book_epoch, sequence_number=sequence_number)


def _trained_before(folder: Path) -> Mapping[str, Any]:
    state = load_latest(folder)
    if state is None:
        raise RuntimeError(
            f"{folder} is missing: the reward model was to be trained before the policy; start the run again"
        )
    return state["trainer"]


def _questions(term: TermPlan, book: CaptionBook) -> CaptionQuestions:
    config = term.config
    if term.asks is Asks.EMBEDDINGS:
        return EmbeddingQuestions(book, embedding_goals(config))
    if term.asks is Asks.PAIRS:
        pairs = ComparedPairs if config.annotator.pairs == "compared" else PointwisePairs
        return pairs(book, config.annotator, config.seed)
    return CaptionQuestions(book)


def check_programs(config: RunConfig, spec: EnvironmentSpec) -> None:
    """Raises ConfigError for a term's program that cannot be paid in the environment of `spec`."""
    for name, term in resolved_terms(config).items():
        if term.program:
            with of_term(name):
                try:
                    term_program(term, spec.features, spec.action_names)
                except ValueError as error:
                    raise ValueError(f"program: {error}") from None


def check_parts(config: RunConfig) -> tuple[EnvironmentSpec, RunPlan, str | None]:
    """Build and drop what can be built cheaply, so that errors in the configuration show before a run begins.

    The environment's specification, the run's plan, and the hashes of the rubrics that are used, if any (`hash`,
    and ` NAME=hash` for each further term). Raises ConfigError.
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
            env.reset()  # some errors of a captioner or describer show only in an episode
            build_channels(config, env)
            build_keeper(config, env, "check")
        finally:
            env.close()
        PolicyNet(env.spec, config.policy)
        check_programs(config, env.spec)
        check_safeguards(config)
        plan = plan_run(config)
        hashes = check_rubrics(plan)
        check_writer(config.writer)
        if config.annotator.address and plan.asks_judge:
            check_addresses(config.annotator.address)
            if is_local:
                check_writer(config.writer, service_credentials(config.annotator))
        elif plan.asks_judge and is_local:
            check_engine(plan.service)
    except EnvironmentFailure as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return env.spec, plan, hashes
