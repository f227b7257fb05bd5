"""`delphi linear-program`: asks a judge which features are good for a task, and writes the linear reward program.

Invariant: the judge is asked once about each feature that changes in random play, and about the items without content;
nothing is written unless the program compiles.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.flags import add_configuration
from configs.paths import path_argument
from llm_server.offline.judge_flags import (
    ITEMS_PER_REQUEST,
    OfflineJudgeClient,
    add_judge_flags,
    opened_judge,
    read_judge_flags,
)
from llm_server.standard_output import guarded

if TYPE_CHECKING:
    import numpy as np

    from cluster.programs.linear import JudgedFeature
    from configs.schema import RunConfig
    from llm_server.annotation import ServiceDescription

RUBRIC = "feature_sign"
NUM_STEPS = 16_384
"""Enough for what is rare in random play: in MiniGrid's DoorKey-6x6 a door opens in one of 1,300 steps."""
NUM_ENVS = 8
MAX_STEPS = 1_000_000
MAX_TASK = 300
"""Characters."""
TITLE = "A linear reward program by judgement, written by `delphi linear-program`."
"""The first comment of every program that is written: by it a file is known as one that may be written anew."""


class NothingJudged(Exception):
    """The judge calls no feature good or bad."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 1 the judge calls nothing good or bad, or does not answer, 2 an invalid command."""
    arguments = _parser().parse_intermixed_args(argv)
    from actors.environments.errors import EnvironmentFailure
    from llm_server.client import AnnotationRefused, ServiceUnavailable

    try:
        written = _write(arguments)
    except (NothingJudged, ServiceUnavailable) as error:
        print(f"delphi linear-program: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, AnnotationRefused, EnvironmentFailure) as error:
        print(f"delphi linear-program: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(written.facts))
    else:
        written.print()
    return 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """A program that was written, and how."""

    out: str
    env_id: str
    task: str
    said: "ServiceDescription"
    theta: float
    """Of the task."""
    num_steps: int
    seed: int
    exchanged: str
    """How signs were exchanged; empty where they are the judge's."""
    features: "list[JudgedFeature]"
    never_varied: list[str]

    def left_out(self) -> dict[str, list[str]]:
        """By reason, the features that the program leaves out."""
        undecided = [f.name for f in self.features if not f.weight]
        small = [f.name for f in self.features if f.weight and not f.coefficient]
        found = {
            "never change in random play": self.never_varied,
            "neither good nor bad to the judge": undecided,
            "of smaller weight than the others": small,
        }
        return {reason: names for reason, names in found.items() if names}

    @property
    def header(self) -> list[str]:
        """The program's comments."""
        said = self.said
        rubric = f"rubric {said.rubric_id} version {said.rubric_version} ({said.rubric_hash})"
        play = f"Changes were measured over {self.num_steps:,} random steps, seed {self.seed}"
        lines = [
            TITLE,
            f"Environment: {self.env_id}. Task: {self.task}",
            f"Judge: {said.model} ({said.engine}), {rubric}, theta {self.theta:.3f}.",
            f"{play}; over them the sum of the components has deviation 1.",
        ]
        lines += [self.exchanged] if self.exchanged else []
        return lines + [f"Left out, {reason}: {', '.join(names)}" for reason, names in self.left_out().items()]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """As JSON values, None for an answer that is missing."""
        rows = [asdict(f) | {"probability": f.probability if f.probability >= 0 else None} for f in self.features]
        said = self.said
        return {
            "program": self.out,
            "env_id": self.env_id,
            "task": self.task,
            "model": said.model,
            "engine": said.engine,
            "rubric": said.rubric_id,
            "rubric_version": said.rubric_version,
            "rubric_hash": said.rubric_hash,
            "theta": self.theta,
            "random_steps": self.num_steps,
            "seed": self.seed,
            "exchanged": self.exchanged,
            "features": rows,
            "never_varied": self.never_varied,
        }

    def print(self) -> None:
        """The table, for people."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("Feature", overflow="fold")
        for name in ("P(more is good)", "Weight", "Deviation", "Coefficient"):
            table.add_column(name, justify="right")
        for f in sorted(self.features, key=lambda f: -abs(f.coefficient)):
            coefficient = f"{f.coefficient:+.4g}" if f.coefficient else ""
            table.add_row(f.name, f"{f.probability:.3f}", f"{f.weight:+.3f}", f"{f.deviation:.4g}", coefficient)
        console = Console(markup=False, emoji=False, soft_wrap=True, highlight=False)
        console.print(table)
        for line in self.header[2:]:
            console.print(line)
        console.print(f"{self.out}: use it with terms.NAME.reads=features terms.NAME.program={self.out}")


def _write(arguments: argparse.Namespace) -> Written:
    from cluster.programs.linear import (
        CONTENT_FREE,
        JudgedFeature,
        exchanged_signs,
        in_words,
        program_text,
        scaled,
        theta_of,
        weights_of,
    )
    from configs.loading import load_config
    from llm_server.rubrics.question import plain_line

    task = plain_line(arguments.task, MAX_TASK + 1)
    _check(arguments, task)
    config = load_config(preset=arguments.preset, file=arguments.config, overrides=arguments.overrides)
    if not config.env.features:
        raise ValueError("env.features: got none, wanted where the numbers come from, as env.features=[minigrid]")
    rubric, service = read_judge_flags(arguments, with_store=False)
    rubric.check_about(True)
    names, deviations, changes = _measured(config, arguments.steps)
    varied = [place for place, deviation in enumerate(deviations) if deviation > 0]
    never_varied = [name for place, name in enumerate(names) if place not in varied]
    if not varied:
        steps = f"{arguments.steps:,} steps of random play"
        raise ValueError(f"env.features: none of {', '.join(names)} changes in {steps}; give others, or more --steps")
    with opened_judge(rubric, service, arguments, task) as judge:
        said = judge.describe()
        answers = _asked(judge, [*CONTENT_FREE, *(in_words(names[place]) for place in varied)], said)
    probabilities = answers[len(CONTENT_FREE) :]
    theta = theta_of(answers[: len(CONTENT_FREE)], said.threshold)
    weights = weights_of(probabilities, theta, said.noise)
    if not weights.any():
        what = f"{said.model} calls no feature good or bad for the task (theta {theta:.3f})"
        raise NothingJudged(f"{what}: {', '.join(names[place] for place in varied)}; nothing was written")
    exchanged = ""
    if arguments.permute is not None:
        before, weights = weights, exchanged_signs(weights, arguments.permute)
        moved, of = int((before != weights).sum()), int((weights != 0).sum())
        exchanged = f"A control: signs permuted among the features, seed {arguments.permute}; {moved} of {of} differ."
    judged = [
        JudgedFeature(name=names[place], probability=float(p), deviation=float(deviations[place]), weight=float(weight))
        for place, p, weight in zip(varied, probabilities, weights, strict=True)
    ]
    written = Written(
        out=arguments.out,
        env_id=config.env.id,
        task=task,
        said=said,
        theta=theta,
        num_steps=len(changes),
        seed=config.seed,
        exchanged=exchanged,
        features=scaled(judged, changes[:, varied]),
        never_varied=never_varied,
    )
    text = program_text(written.features, names, written.header)
    Path(arguments.out).write_text(text, "utf-8")
    return written


def _measured(config: "RunConfig", num_steps: int) -> "tuple[Sequence[str], np.ndarray, np.ndarray]":
    """The features' names [F], the deviations [F] of their changes in random play, and the changes [N, F]."""
    from actors.environments.factory import make_environment
    from cluster.programs.linear import deviations_of
    from cluster.programs.random_play import feature_changes

    made = make_environment(
        config.env,
        num_envs=min(NUM_ENVS, num_steps),
        run_seed=config.seed,
        worker_index=0,
        stream="linear-program",
        policy=config.policy,
    )
    with closing(made) as env:
        changes = feature_changes(env, num_steps, config.seed)
        return env.spec.features, deviations_of(changes), changes


def _asked(judge: OfflineJudgeClient, items: Sequence[str], said: "ServiceDescription") -> "np.ndarray":
    """[N] f64: the judge's probability that more of each item is good; NaN without a usable answer."""
    import numpy as np

    from llm_server.annotation import Status

    sent, size = [item.encode() for item in items], min(ITEMS_PER_REQUEST, said.max_items_per_request)
    answers = [a for begin in range(0, len(sent), size) for a in judge.annotate(sent[begin : begin + size])]
    return np.array([a.probability if a.status is Status.OK else np.nan for a in answers], np.float64)


def _check(arguments: argparse.Namespace, task: str) -> None:
    """Raises ValueError for flags that cannot be used."""
    if not 0 < len(task) <= MAX_TASK:
        got = "an empty text" if not task else "a longer text"
        raise ValueError(f"--task: got {got}, wanted one sentence of at most {MAX_TASK} characters")
    if not 1 <= arguments.steps <= MAX_STEPS:
        raise ValueError(f"--steps: got {arguments.steps}, wanted 1 to {MAX_STEPS:,}")
    if arguments.permute is not None and arguments.permute < 0:
        raise ValueError(f"--permute: got {arguments.permute}, wanted at least 0")
    out = Path(arguments.out)
    if out.suffix != ".py" or out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out: got {out}, wanted a file FILE.py in a folder that exists")
    begin = f"# {TITLE}\n".encode()
    if out.exists():
        with out.open("rb") as file:
            if file.read(len(begin)) != begin:
                what = "a file that this command did not write"
                raise ValueError(f"--out: got {out}, {what}, wanted another name: it would be lost")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi linear-program",
        description="Ask a judge, once about each of the environment's features, whether it is good for the task when"
        " it grows, and write the linear reward program of its answers.",
        epilog="example:\n"
        "  delphi linear-program --preset minigrid_doorkey env.features=[minigrid] \\\n"
        "    --task 'Pick up the key, open the locked door and go to the goal.' --out linear.py\n"
        "  delphi train --preset minigrid_doorkey env.features=[minigrid] reward_model.name=none \\\n"
        "    terms.linear.reads=features terms.linear.program=linear.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser, "a built-in configuration")
    permute = "write a control: the same weights with their signs permuted among the features"
    parser.add_argument("--task", required=True, metavar="TEXT", help="what is to be done, in one sentence")
    parser.add_argument("--out", type=path_argument, required=True, metavar="FILE.py", help="where the program goes")
    parser.add_argument("--permute", type=int, metavar="SEED", help=permute)
    steps = f"steps of random play in which changes are measured (default: {NUM_STEPS})"
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N", help=steps)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_judge_flags(parser, with_store=False, rubric=RUBRIC)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
