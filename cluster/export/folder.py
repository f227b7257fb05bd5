"""Writes the folder of an exported policy or reward model: model.safetensors, config.json, README.md.

Invariant: the folder holds all that `learner.exported` needs, and nothing of this machine: no path, no address, no
credential.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from actors.environments.factory import make_environment
from cluster.export.model_card import policy_card, reward_card
from cluster.plan import TermPlan, build_model, embedding_goals, plan_run
from cluster.run.directory import RunDirectory
from cluster.run.evaluation import load_subject, policy_net
from cluster.run.provenance import packages
from cluster.run.rubric_record import hashes_by_setting, rubric_setting
from configs.features import without_features
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from configs.terms import resolved_terms
from learner.checkpoint_format import encode_tree
from learner.exported import CONFIG, FORMAT_VERSION, GOAL_VECTORS, POLICY_FORMAT, REWARD_FORMAT, WEIGHTS, spec_as_json
from llm_server.offline.caption_file import read_archive
from reward_models.interface import RewardModel
from reward_models.table import RewardTable
from reward_models.training import saved_table

CARD, PORTABLE = "README.md", "policy.pt2"
SHOWN_CAPTIONS = 20


def write_policy(
    run_dir: str, folder: Path, name: str, license_: str, evaluation: Mapping[str, Any] | None, *, portable: bool
) -> None:
    """The newest policy of a run. `evaluation`: a report of `delphi eval`; None takes that of the run's summary, if it
    is of this checkpoint. Raises ValueError where there is none, and CheckpointError."""
    subject = load_subject(run_dir)
    run, config, steps = subject.run, subject.config, subject.env_steps
    settings = without_features(config.env)
    env = make_environment(settings, num_envs=1, run_seed=0, worker_index=0, stream="export", policy=config.policy)
    with contextlib.closing(env):
        net, interface, names = policy_net(subject, env.spec), env.interface(), env.spec.action_names
    saved = {
        "format": POLICY_FORMAT,
        "format_version": FORMAT_VERSION,
        "architectures": ["PolicyNet"],
        "model_type": POLICY_FORMAT,
        "policy": asdict(config.policy),
        "environment": asdict(config.env),
        "interface": interface,
        "observations": {entry: spec_as_json(spec) for entry, spec in env.spec.observations.items()},
        "num_actions": env.spec.num_actions,
        "action_names": list(names) or [str(number) for number in range(env.spec.num_actions)],
        "training": _training_facts(run, config, steps),
    }
    if portable:
        from cluster.export.portable import write_portable

        saved["portable"] = write_portable(net, env.spec, config.policy, folder / PORTABLE)
    evaluation = _fitting(evaluation, config, steps) if evaluation else _own_evaluation(run, steps)
    tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
    if net.goal_vectors is not None:
        goals = list(subject.goals.texts) if subject.goals is not None else []
        saved["goals"], tensors[GOAL_VECTORS] = goals, net.goal_vectors[1 : len(goals) + 1].contiguous()
    _write(folder, saved, tensors, policy_card(name, license_, saved, evaluation))


def write_reward(run_dir: str, folder: Path, name: str, license_: str) -> None:
    """The reward model of a run's newest checkpoint. Raises ValueError where there is none, and CheckpointError."""
    subject = load_subject(run_dir)
    run, config, annotation = subject.run, subject.config, subject.annotation
    if config.reward_model.name == "none" or not annotation:
        raise ValueError(f"{run_dir} has no reward model (reward_model.name={config.reward_model.name})")
    model = build_model(config)
    if model.takes_goals:
        config = replace(config, reward_model=replace(config.reward_model, goals=embedding_goals(config)))
    trainer = annotation["trainer"]
    table = saved_table(trainer, 0)
    tree, tensors = encode_tree(
        {"model": _scoring_state(model, trainer["model"]), "ids": table.ids, "rewards": table.rewards}, "reward"
    )
    saved = {
        "format": REWARD_FORMAT,
        "format_version": FORMAT_VERSION,
        "architectures": [type(model).__name__],
        "model_type": REWARD_FORMAT,
        "reward_model": {**asdict(config.reward_model), "judgements": ""},
        "robust": asdict(config.robust),
        "environment": asdict(config.env),
        "num_captions": len(table) - 1,
        "accuracy": trainer["figures"].get("accuracy"),
        "state": tree,
        "training": _training_facts(run, config, subject.env_steps),
    }
    _write(folder, saved, tensors, reward_card(name, license_, saved, _most_paid(run, table)))


def _scoring_state(model: RewardModel, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's state that scores: without labels, pairs, optimiser, and weights in training."""
    model.load_state_dict({**state, "is_frozen": True} if "is_frozen" in state else state)
    model.retain(frozenset())
    kept = model.state_dict()
    if "fitting" in kept:
        for network in kept["fitting"].get("members", {"0": kept["fitting"]}).values():
            network.update(adam={}, weights=network["best"])
    return kept


def _training_facts(run: RunDirectory, config: RunConfig, env_steps: int) -> dict[str, Any]:
    """What the model was trained with, as far as the run recorded it."""
    start: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, LookupError):
        start = json.loads((run.path / "provenance.json").read_bytes())[-1]
    plan, hashes = plan_run(config), hashes_by_setting(start.get("rubric_hash"))
    return {
        "env_steps": env_steps,
        "seed": config.seed,
        "commit": start.get("commit"),
        "versions": start.get("packages") or packages(),
        "learner": asdict(config.learner),
        "reward": asdict(config.reward),
        **_judge_facts(plan.main, hashes.get(rubric_setting(MAIN_TERM))),
        "terms": {
            name: asdict(term)
            | (OF_PROGRAM if term.program else _judge_facts(plan.terms[name], hashes.get(rubric_setting(name))))
            for name, term in resolved_terms(config).items()
            if name != MAIN_TERM
        },
    }


OF_PROGRAM = {"reward_model": "program", "judge": None, "rubric": None, "rubric_hash": None}
"""Judge's facts of a term that is a program."""


def _judge_facts(term: TermPlan, rubric_hash: str | None) -> dict[str, Any]:
    """`reward_model`, and who answered to which question; None where nobody is asked."""
    service, asks = term.config.service, term.asks_judge
    model = Path(service.model).name if service.model.startswith(("/", ".", "~")) else service.model
    judge = "a running service" if term.config.annotator.address else f"{service.engine} engine"
    return {
        "reward_model": term.config.reward_model.name,
        "judge": f"{model} ({judge})" if asks and service.engine != "scripted" else "scripted rules" if asks else None,
        "rubric": Path(term.rubric).stem if asks else None,
        "rubric_hash": rubric_hash if asks else None,
    }


def _own_evaluation(run: RunDirectory, env_steps: int) -> dict[str, Any] | None:
    """The evaluation at the run's end, if it was of this checkpoint."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        evaluation = json.loads(run.summary.read_bytes()).get("evaluation")
        if evaluation and evaluation.get("env_steps") == env_steps:
            return evaluation
    return None


def _fitting(evaluation: Mapping[str, Any], config: RunConfig, env_steps: int) -> dict[str, Any]:
    got = evaluation["environment"], evaluation["env_steps"]
    if got != (config.env.id, env_steps):
        raise ValueError(
            f"--evaluation: it is of {got[0]} after {got[1]:,} steps, wanted {config.env.id} after {env_steps:,}:"
            " repeat `delphi eval RUN --json`"
        )
    return dict(evaluation)


def _most_paid(run: RunDirectory, table: RewardTable) -> list[tuple[str, float, int]]:
    """(caption, reward, count) of the rewarded captions that occurred most; empty without the run's captions."""
    from actors.captions import caption_id

    try:
        rows = read_archive(str(run.path))
    except ValueError:
        return []
    rewards, _ = table.look_up(np.array([caption_id(row["caption"]) for row in rows], np.uint64))
    paid = [(row["caption"], float(r), row["count"]) for row, r in zip(rows, rewards, strict=True) if r > 0]
    return paid[:SHOWN_CAPTIONS]


def _write(folder: Path, config: dict[str, Any], tensors: Mapping[str, Any], card: str) -> None:
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(dict(tensors), {"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / CARD).write_text(card, "utf-8")
