"""A campaign on MountainCar whose author and trainer are scripts, for tests."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.design.authors import Fields
from cluster.design.campaign import Campaign
from cluster.design.gating import ArchiveGates
from cluster.design.journal import Journal
from cluster.design.kind import load_kind
from cluster.design.plan import Plan
from cluster.design.runs import Outcome
from configs.loading import load_config
from configs.schema import RunConfig
from learner.episodes import Episode, Episodes
from llm_server.annotation import Status, Writing
from reward_models.gates import Verdict
from reward_models.programs.program import Program

BASE = load_config(
    overrides=[
        "env.id=MountainCar-v0",
        "env.captioner=tests.toy_environments:say_nothing",
        "env.features=[obs]",
        "env.feature_names=[position,velocity]",
        "reward_model.name=none",
        "actors.envs_per_worker=4",
        "actors.rollout_steps=25",
        "cluster.mode=inline",
    ]
)
STEPS = 1000
BROKEN = "import os"


class ScriptedAuthor:
    """Writes the texts in turn, round and round; each is a function of how many came before. `asked` are the fields of
    each question, by its brief."""

    def __init__(self, texts: Sequence[str] = (), words: str = "") -> None:
        self.texts, self.words = texts, words
        self.asked: list[tuple[str, dict[str, str]]] = []

    def write(self, brief: str, fields: Fields, seed: int, number: int) -> Writing:
        self.asked.append((brief, {name: text for name, text in fields().items() if text}))
        if not brief.startswith("write_"):
            return Writing(status=Status.OK, text=self.words, tokens=2)
        text = self.texts[number % len(self.texts)] if self.texts else f"{number + 1} * after.position"
        return Writing(status=Status.OK if text else Status.UNPARSED, text=text, tokens=5)


def score_of(program: str) -> float:
    """What the scripted trainer makes of a program: the first number in it, modulo 7."""
    digits = "".join(char if char.isdigit() else " " for char in program).split()
    return float(int(digits[0]) % 7) if digits else 0.0


class ScriptedTrainer:
    """Trains nothing; `trained` are the programs and seeds. The run of a program with `die` in its components dies."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def train(self, config: RunConfig, is_stopped: Callable[[], bool]) -> Outcome:
        text = config.terms["design"].program
        with self._lock:
            self.trained.append((text, config.seed))
        run, steps = config.run_dir, config.total_env_steps
        if "die" in text:
            return Outcome(run=run, env_steps=100, problem="ended with exit code 1: boom")
        figures = {"return": score_of(text), "length": 200.0}
        return Outcome(run=run, env_steps=steps, figures=figures, curves={"component reward": [0.5, 1.0]})

    def env_steps(self, config: RunConfig) -> int:
        return 0


class RefusingGate:
    """Refuses programs whose first number is one of `refused`, once there is an archive."""

    def __init__(self, *refused: float) -> None:
        self.refused, self.seen = refused, list[tuple[int, Path | None]]()

    def verdicts(self, program: Program, before: Mapping[str, Program], archive: Path | None) -> list[Verdict]:
        self.seen.append((len(before), archive))
        passed = None if archive is None else score_of(program.text) not in self.refused
        found = Verdict(gate="preference", passed=passed, figure=0.1, message="failures earn more")
        return [Verdict(gate="static", passed=True, figure=1.0, message="it varies"), found]

    def episodes(self, archive: Path) -> Episodes:
        return Episodes(episodes=[make_episode([[0, 1], [2, 1]])], seen=(1, 0), features=("position", "velocity"))


def make_episode(features: Sequence[Sequence[float]], is_success: bool = False) -> Episode:
    """An episode of as many steps as there are states after the first."""
    steps, rows = len(features) - 1, np.array(features, np.float32)
    ends = {"success": is_success, "terminated": is_success, "extrinsic_return": float(is_success), "length": steps}
    of_steps = {"actions": np.zeros(steps, np.int32), "extrinsic_rewards": np.zeros(steps, np.float32)}
    of_steps |= {"caption": np.zeros(steps, np.uint64), "caption_counts": np.zeros(steps, np.int32)}
    return Episode(steps=of_steps, features=rows, start=rows[0], **ends)


def make_plan(out: Path, kind: str = "eureka", **changes: Any) -> Plan:
    of_plan = {name: changes.pop(name) for name in [*changes] if name in Plan.__dataclass_fields__}
    settings = {"kind": load_kind(kind, **changes), "task": "Reach the flag.", "base": BASE, "steps": STEPS, "out": out}
    return Plan(**{**settings, "features": ("position", "velocity"), "actions": (), **of_plan})


def make_campaign(
    plan: Plan,
    author: Any = None,
    trainer: Any = None,
    gates: Any = None,
    journal: Journal | None = None,
    **options: Any,
) -> Campaign:
    plan.out.mkdir(exist_ok=True)
    journal = journal or Journal(plan.out / "campaign.jsonl")
    parts = author or ScriptedAuthor(), gates or ArchiveGates(plan.features, plan.actions), trainer or ScriptedTrainer()
    return Campaign(plan, journal, *parts, **{"say": lambda _: None, **options})
