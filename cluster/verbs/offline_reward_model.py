"""The reward model of a run, in the newest checkpoint, or, trained on a judgement file, beside the checkpoints.

Invariant: a model that is trained before the policy is trained once per run directory; later starts of the run load it.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cluster.on_ray.placement import Interrupted
from cluster.plan import RunPlan, build_model, of_term
from cluster.run.directory import RunDirectory, find_run
from configs.loading import from_dict
from configs.schema import RunConfig
from learner.checkpoint import CheckpointError, load_latest, save_checkpoint
from learner.reward.paid import paid_rewards
from llm_server.annotation import Caption, JudgedCaption, JudgedPair, Status
from llm_server.annotator.pairs import pairs_of_judgements
from llm_server.offline.judgement_file import Judgements, read_judgements
from reward_models.interface import Asks, Evidence, RewardModel
from reward_models.shaping import RewardShaping

PROGRESS_INTERVAL_S = 5.0


class TrainedModel(NamedTuple):
    """A run's reward model in its present state."""

    model: RewardModel
    config: RunConfig
    env_steps: int
    """Environment steps of the policy's training so far."""
    paid: Mapping[int, float]
    """Intrinsic reward given so far, by caption id."""


def load_reward_model(run_dir: str) -> TrainedModel:
    """A run's reward model, of its newest checkpoint or trained before it. Raises ValueError where there is none."""
    run, saved = find_run(run_dir)
    config = from_dict(saved)
    model = build_model(config)
    try:
        state = load_latest(run.checkpoints, parts=("annotation", "learner", "loop"))
        trained_before = load_latest(run.reward_model)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    if state and state["annotation"]:
        model.load_state_dict(state["annotation"]["trainer"]["model"])
        paid = paid_rewards(state["learner"]["rewards"]["paid"])
        return TrainedModel(model, config, state["loop"]["env_steps"], paid)
    if trained_before:
        model.load_state_dict(trained_before["trainer"]["model"])
        return TrainedModel(model, config, 0, {})
    raise ValueError(
        f"{run_dir} has no complete checkpoint with a reward model yet; train it for a while, or stop it with Ctrl-C"
    )


def pretrain(plan: RunPlan, run: RunDirectory, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
    """Train the reward model of each term that has a file of judgements until it has converged, freeze it and save it
    with the run.

    Does nothing where the run has it already, or no such file is configured. Raises ValueError for a file that cannot
    be used, and Interrupted on a stop request.
    """
    for name, term in plan.terms.items():
        with of_term(name):
            _pretrain(term.config, run.reward_model_of(name), say, stop_requested)


def _pretrain(config: RunConfig, folder: Path, say: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
    path = config.reward_model.judgements
    if not path or load_latest(folder) is not None:
        return
    torch.set_num_threads(config.actors.torch_threads)
    judgements = read_judgements(path)
    model, options = build_model(config), RewardShaping(config.reward_model, config.seed)
    evidence = _evidence(config, model.asks, judgements)
    model.calibrate(judgements.threshold)
    model.learn(evidence)
    options.note_labels(sum(item.judgement.status is Status.OK for item in _answers(model.asks, judgements)))
    say(f"reward model {model.name}: {len(evidence):,} answers from {path} ({judgements.provenance})")
    said_at = time.monotonic()
    for turns in itertools.count(1):
        metrics = model.train()
        if model.is_settled:
            break
        if stop_requested():
            raise Interrupted("stopped while it trained the reward model")
        if time.monotonic() - said_at > PROGRESS_INTERVAL_S:
            say(f"reward model {model.name}: {_progress(config, turns, metrics)}")
            said_at = time.monotonic()
    captions, counts = _table(judgements)
    model.freeze(captions, counts)
    state = {"model": model.state_dict(), "options": options.state_dict(), "figures": dict(metrics)}
    save_checkpoint(folder, turns, {"trainer": state}, keep=1)
    say(f"reward model {model.name} trained, {_progress(config, turns, metrics)}; frozen from here on")


def check_judgements(plan: RunPlan) -> None:
    """ValueError for a judgement file that cannot be used, unless the run was trained on it before."""
    run = RunDirectory(Path(plan.config.run_dir))
    for name, term in plan.terms.items():
        path = term.config.reward_model.judgements
        if path and not run.reward_model_of(name).exists():
            with of_term(name):
                _evidence(term.config, term.asks, read_judgements(path))


def _evidence(config: RunConfig, asks: Asks, judgements: Judgements) -> Sequence[Evidence]:
    """What the model learns from: answers of the file, or pairs made of them. ValueError where there are none."""
    evidence: Sequence[Evidence] = _answers(asks, judgements)
    if asks is Asks.PAIRS and not judgements.pairs:
        evidence = pairs_of_judgements(judgements.captions, judgements.counts, config.annotator, config.seed)
    if not evidence:
        settings = config.reward_model
        raise ValueError(
            f"reward_model.judgements: {settings.judgements} holds no answers that `{settings.name}` learns from"
        )
    return evidence


def _answers(asks: Asks, judgements: Judgements) -> Sequence[JudgedCaption | JudgedPair]:
    return judgements.pairs if asks is Asks.PAIRS and judgements.pairs else judgements.captions


def _table(judgements: Judgements) -> tuple[list[Caption], np.ndarray]:
    in_pairs = [caption for judged in judgements.pairs for caption in (judged.pair.first, judged.pair.second)]
    every = [*(judged.caption for judged in judgements.captions), *in_pairs]
    captions = list({caption.id: caption for caption in every}.values())
    return captions, np.array([judgements.counts.get(caption.id, 1) for caption in captions], np.int64)


def _progress(config: RunConfig, turns: int, metrics: Mapping[str, float]) -> str:
    accuracy = metrics.get("accuracy")
    agreement = "no held-out answers" if accuracy is None else f"held-out accuracy {accuracy:.3f}"
    return f"at most {turns * config.reward_model.steps_per_turn:,} gradient steps, {agreement}"
