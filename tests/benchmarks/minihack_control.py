"""What `minihack_rewards` pays for: labels that a real judge gave once, and controls that pay for something else.

Invariant: a function of random play and of the judge's answers in float32, both kept in one file, so that no run asks a
judge. Only captions that random play shows often enough take part in the controls.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.captions import normalize
from actors.environments.factory import make_environment
from configs.schema import RunConfig

RANDOM_STEPS, NUM_ENVS = 40_000, 20
MIN_COUNT = 3
"""Captions that random play shows less often take no part in the controls."""
BAND = 5
"""Captions that are neighbours in frequency and exchange their labels: BAND - 1 permutations leave none where it
was."""
ROUNDING = 0.014
"""How far a probability moves where bfloat16 is rounded otherwise: the judge's answer within so much of theta is no
answer."""


def judged_captions(path: Path, config: RunConfig) -> dict[str, Any]:
    """`captions`: text, count and probability of progress, the most frequent first; `threshold`. Kept in `path` once
    there."""
    if not path.exists():
        counts = _random_play(config)
        texts = sorted(counts, key=lambda text: (-counts[text], text))
        probabilities, threshold = judge(texts, config)
        rows = [[text, counts[text], probability] for text, probability in zip(texts, probabilities, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"threshold": threshold, "random_steps": RANDOM_STEPS, "captions": rows}, indent=1) + "\n"
        )
    return json.loads(path.read_text())


def above(judged: Mapping[str, Any], margin: float) -> list[str]:
    """Captions that the judge puts above theta + `margin`."""
    return [text for text, _, probability in judged["captions"] if probability > judged["threshold"] + margin]


def permuted(judged: Mapping[str, Any], paid: Iterable[str], turn: int) -> list[str]:
    """The captions that get the labels of the `paid` ones where the labels of each one's band move on by `turn` places,
    1 to BAND - 1.

    A caption's band are the BAND captions nearest to it in rank of frequency, itself in the middle where there are
    enough on both sides. All turns together put a label once on every other caption of its band.
    """
    if not 1 <= turn < BAND:
        raise ValueError(f"turn is 1 to {BAND - 1}, got {turn}")
    ranked = _frequent(judged)
    places = [ranked.index(text) for text in paid if text in ranked]
    starts = [min(max(place - BAND // 2, 0), max(len(ranked) - BAND, 0)) for place in places]
    return [
        ranked[start + (place - start + turn) % min(BAND, len(ranked))]
        for place, start in zip(places, starts, strict=True)
    ]


def rarest(judged: Mapping[str, Any]) -> list[str]:
    """The one caption that random play shows least often, of those that take part."""
    return _frequent(judged)[-1:]


def payment(texts: Sequence[str]) -> list[str]:
    """Settings under which a run pays 1 for exactly these captions."""
    return paying([f"^{_expression(text)}$" for text in texts])


def paying(expressions: Sequence[str]) -> list[str]:
    """Settings under which a run pays 1 for the captions in which one of the regular expressions is found."""
    script = json.dumps(";".join(f"{expression}=1.0" for expression in expressions))
    return [
        "reward_model.name=retrieval",
        "reward_model.threshold=0.5",
        "service.engine=scripted",
        f"service.script={script}",
    ]


def judge(texts: Sequence[str], config: RunConfig) -> tuple[list[float], float]:
    """The judge's probability for each caption, and its threshold; float32, in which an answer depends on no batch and
    no processor."""
    from llm_server.rubrics.loading import load_rubric
    from llm_server.service.judge import build_judge

    built = build_judge(dataclasses.replace(config.service, dtype="float32"), load_rubric(config.annotator.rubric))
    try:
        answers = built.annotate([text.encode() for text in texts]) if texts else []
        return [answer.probability for answer in answers], built.describe().threshold
    finally:
        built.close()


def _frequent(judged: Mapping[str, Any]) -> list[str]:
    return [text for text, count, _ in judged["captions"] if count >= MIN_COUNT]


def _expression(text: str) -> str:
    """A regular expression for the caption as an engine is asked about it (spaces collapsed), without the script's own
    `;`."""
    return re.sub(r"(\\ )+", r"\\s+", re.escape(text)).replace(";", r"\x3b")


def _random_play(config: RunConfig) -> collections.Counter[str]:
    env = make_environment(config.env, num_envs=NUM_ENVS, run_seed=0, worker_index=0, stream="control")
    try:
        rng, counts = np.random.default_rng(0), collections.Counter[str]()
        env.reset()
        for _ in range(RANDOM_STEPS // NUM_ENVS):
            step = env.step(rng.integers(0, env.spec.num_actions, NUM_ENVS))
            counts.update(filter(None, map(normalize, step.captions)))
    finally:
        env.close()
    return counts
