"""A whole run whose policy reads goals, in this process: what workers are told, resume, evaluation, export."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.captions import caption_id
from actors.goals.entry import GOAL
from cluster.export.command import main as export
from cluster.inline import InlineWorkers
from cluster.loop import TrainingLoop
from cluster.run.directory import open_run
from cluster.run.evaluation import Evaluation, Games, kept_games, load_subject, policy_net
from cluster.verbs.evaluate import evaluate
from cluster.wiring import check_parts, goal_sheet
from configs.checks import ConfigError
from configs.goal_schema import GOAL_TERM
from configs.loading import load_config
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from learner.checkpoint import load_latest
from learner.evaluation import PolicyPlayer
from learner.exported import load_policy
from reward_models.goals.published import PublishedGoals
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.actors.goals.toy_goals import make_sheet, masks_of
from tests.end_to_end.test_resume import TIMES_AND_EPOCHS, differences

TEXTS = ["advance to cell 1", "advance to cell 2", "advance to cell 3"]
UPDATE = 128
SETTINGS = [
    "env.id=tests.toy_environments:Corridor-v0",
    "env.options={length: 6, slip: 0.1}",
    "env.max_episode_steps=11",
    "policy.core_size=8",
    "policy.hidden_size=8",
    "policy.reads_goal=true",
    "goals.sources=[config]",
    f"goals.texts={TEXTS}",
    "goals.ordered=true",
    "reward_model.name=none",
    "logging.tensorboard=false",
    "logging.console=quiet",
    "learner.epochs=1",
    "learner.minibatches=1",
    f"logging.interval_env_steps={6 * UPDATE}",
]


class ToyAnnotation:
    """Annotation that knows the corridor's goals, which are a plan; there is one more after each 4 reports, up to all
    of them."""

    def __init__(self) -> None:
        self.reports = 0
        self.problem = None

    def report(self, *_: Any) -> tuple[str, int]:
        self.reports += 1
        return "book", self.reports

    def turn(self, max_labels: int) -> None:
        """Nothing is judged."""

    def latest_reward(self) -> PublishedReward:
        number = min(1 + self.reports // 4, len(TEXTS))
        sheet = make_sheet(TEXTS[:number], before=[-1, 0, 1][:number])
        names = ("texts", "vectors", "sampling", "before", "suggested_ids", "suggested")
        goals = PublishedGoals(
            version=(1, number), weights=sheet.sampling, **{name: getattr(sheet, name) for name in names}
        )
        ids = np.array([0, *(caption_id(f"You advance to cell {cell + 1}.") for cell in range(3))], np.uint64)
        masks = masks_of([[], [0], [1], [2]])
        order = np.argsort(ids)
        table = RewardTable(
            ids=ids[order], rewards=np.zeros(4, np.float32), reward_version=(1, self.reports), goals=masks[order]
        )
        return PublishedReward(tables={MAIN_TERM: RewardTable.empty(), GOAL_TERM: table}, goals=goals)

    def metrics(self) -> dict[str, Any]:
        return {}

    def top_rewarded(self, n: int, min_count: int) -> list[Any]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"reports": self.reports}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reports = state["reports"]


def configured(run_dir: Path, *settings: str) -> RunConfig:
    return load_config(preset="debug", overrides=[*SETTINGS, f"run_dir={run_dir}", *settings])


@contextlib.contextmanager
def loop_of(config: RunConfig) -> Iterator[TrainingLoop]:
    run, run_epoch = open_run(config)
    annotation: Any = ToyAnnotation()
    with contextlib.closing(InlineWorkers(config, annotation, run_epoch=run_epoch)) as workers:
        try:
            yield TrainingLoop(config, run, run_epoch, workers, annotation)
        finally:
            run.release()


def train(run_dir: Path, updates: int, *settings: str) -> dict[str, Any]:
    with loop_of(configured(run_dir, f"total_env_steps={updates * UPDATE}", *settings)) as loop:
        loop.run()
    state = load_latest(run_dir / "checkpoints")
    assert state is not None
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("run") / "whole"
    return run_dir, train(run_dir, 12)


def test_a_resumed_run_goes_on_bit_for_bit_with_its_goals(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    train(tmp_path, 6)
    halves = train(tmp_path, 12)
    found = [
        line
        for line in differences(trained[1], halves)
        if not any(word in line.split(":")[0] for word in (*TIMES_AND_EPOCHS, "version"))
    ]
    assert not found, found[:20]
    assert halves["goals"]["texts"] == TEXTS
    assert halves["workers"]["workers"][0]["goals"]["goals"].max() >= 1, "goals beyond the first are pursued"


def test_workers_are_told_when_goals_have_changed_and_the_learner_before_it_trains(tmp_path: Path) -> None:
    told: list[int] = []
    with loop_of(configured(tmp_path, f"total_env_steps={10 * UPDATE}")) as loop:
        publish, step = loop.workers.publish_goals, loop.learner.step
        loop.workers.publish_goals = lambda sheet: (told.append(len(sheet.texts)), publish(sheet))[1]  # type: ignore[method-assign, func-returns-value]

        def checked(rollouts: Any, *rest: Any) -> Any:
            newest = max(int(rollout.obs[GOAL].max()) for rollout in rollouts)
            result = step(rollouts, *rest)
            assert loop.learner.net.goal_vectors is not None
            assert loop.learner.net.goal_vectors[1 : newest + 1].any(dim=1).all()
            assert loop.learner.net.goal_vectors.any(dim=1).sum() == told[-1]
            return result

        loop.learner.step = checked  # type: ignore[method-assign]
        loop.run()
    assert told == [1, 2, 3], "not with every version of a table that says the same"


def test_an_evaluation_gives_goals_as_training_did_in_the_order_of_their_plan(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    act = PolicyPlayer.act

    def noted(player: PolicyPlayer, obs: Any, counted: np.ndarray) -> np.ndarray:
        seen.append(obs[GOAL].copy())
        return act(player, obs, counted)

    monkeypatch.setattr(PolicyPlayer, "act", noted)
    sizes = {"episodes": 6, "num_envs": 3, "seed": 0, "players": ["policy"], "again": True}
    said: list[str] = []
    report = evaluate(str(trained[0]), **sizes, say=said.append)
    goals = np.stack(seen)
    assert (goals[0] == 1).all(), "the first of the plan"
    assert {1, 2} <= set(np.unique(goals).tolist())
    for of_env in goals.T.tolist():
        for before, after in itertools.pairwise(of_env):
            assert after in (before, 1, before + 1) or (before, after) == (3, 0), "the next, or another episode"
    assert report["policy"].keys() == evaluate(str(trained[0]), **sizes, say=said.append)["policy"].keys()
    first = len(seen) // 2
    assert np.array_equal(goals, np.stack(seen[first:])), "equal seeds, equal goals"


def test_games_that_were_kept_are_of_one_sheet(trained: tuple[Path, dict[str, Any]]) -> None:
    subject, games = load_subject(str(trained[0])), Games(num_envs=1, per_env=1, seed=0)
    assert subject.goals is not None
    other = dataclasses.replace(subject, goals=dataclasses.replace(subject.goals, sampling=subject.goals.sampling / 2))
    assert kept_games(subject, games)._subject != kept_games(other, games)._subject


def test_an_exported_policy_pursues_the_goal_that_it_is_told(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    form = ["--format", "torch-export"]
    assert export([str(trained[0]), "--policy", "--out", str(tmp_path / "out"), *form]) == 0
    policy = load_policy(tmp_path / "out")
    assert policy.goals == TEXTS
    card = (tmp_path / "out/README.md").read_text()
    assert f"- `{TEXTS[2]}`" in card
    assert f'policy.pursue("{TEXTS[0]}")\naction = policy.act(obs)' in card
    obs = {"message": np.zeros(64, np.uint8), "position": np.eye(6, dtype=np.float32)[0]}
    with pytest.raises(ValueError, match="this policy reads a goal: wanted pursue"):
        policy.act(obs)
    with pytest.raises(ValueError, match=r"goal: got 'advance to cell 9'.*wanted None or one of its 3 `goals`"):
        policy.pursue("advance to cell 9")
    net = policy_net(load_subject(str(trained[0])), policy_spec(trained[0]))
    program = torch.export.load(tmp_path / "out/policy.pt2").module()
    logits = []
    for number, goal in enumerate([None, *TEXTS]):
        policy.pursue(goal)
        policy.reset()
        logits.append(policy.evaluate(obs)[0])
        tensors = {name: torch.from_numpy(np.stack([array])) for name, array in obs.items()}
        tensors[GOAL] = torch.tensor([number], dtype=torch.int16)
        with torch.no_grad():
            wanted, _, _ = net.step(tensors, net.initial_state(1))
            portable, _, _ = program(tensors, net.initial_state(1))
        np.testing.assert_array_equal(logits[-1], wanted[0].numpy())
        torch.testing.assert_close(portable, wanted)
    assert len({tuple(each.tolist()) for each in logits}) == 4


def policy_spec(run_dir: Path) -> Any:
    return check_parts(configured(run_dir))[0]


def test_a_run_without_goals_cannot_go_on_with_them(trained: tuple[Path, dict[str, Any]]) -> None:
    config = configured(trained[0], "policy.reads_goal=false")
    with pytest.raises(ConfigError, match=r"holds a run with another configuration: policy.reads_goal: true -> false"):
        open_run(config)


def test_a_checkpoint_before_any_goals_is_played_without_one(trained: tuple[Path, dict[str, Any]]) -> None:
    subject = dataclasses.replace(load_subject(str(trained[0])), goals=None)
    said: list[str] = []
    Evaluation(subject, Games(num_envs=1, per_env=1, seed=0), said.append).of("policy")
    assert any("had no goals yet" in line for line in said)


def test_missions_that_the_environment_does_not_give_are_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, "goals.sources=[missions]", "goals.texts=[]", "goals.ordered=false")
    with pytest.raises(
        ConfigError, match=r"goals\.sources: got missions, but .*Corridor-v0 observes no text `mission`"
    ):
        check_parts(config)


def test_there_is_no_sheet_without_goals() -> None:
    assert goal_sheet(PublishedReward.of(RewardTable.empty())) is None
    sheet = goal_sheet(ToyAnnotation().latest_reward())
    assert sheet is not None
    assert sheet.version == (1, 1, 1, 0)
    assert len(sheet.achieved_ids) == 3, "items that achieve nothing are left out"
