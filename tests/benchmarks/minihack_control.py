"""The control of `minihack_rewards` that must fail: the judge's answers, permuted among captions of similar frequency.

Invariant: only captions that a step can lead to take part (an episode's first one is never paid for), none keeps its own answer, and
the judge's answers stay the same set: what is destroyed is their meaning. A function of the seed and of random play alone.
"""

import collections
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from actors.captions import normalize
from actors.environment import make_environment
from configs.schema import RunConfig

RANDOM_STEPS, NUM_ENVS = 40_000, 20
MIN_COUNT = 3
"""Captions that random play shows less often take no part."""
BAND = 5
"""Captions that are neighbours in frequency and exchange their answers."""


def judged_captions(path: Path, config: RunConfig) -> dict[str, Any]:
    """`captions`: text, count and probability of progress, the most frequent first; `threshold`. Kept in `path` once there."""
    if not path.exists():
        counts = _random_play(config)
        texts = sorted(counts, key=lambda text: (-counts[text], text))
        probabilities, threshold = _judge(texts, config)
        rows = [[text, counts[text], probability] for text, probability in zip(texts, probabilities, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"threshold": threshold, "random_steps": RANDOM_STEPS, "captions": rows}, indent=1) + "\n")
    return json.loads(path.read_text())


def permute(captions: list[list[Any]], seed: int) -> dict[str, float]:
    """Caption to the probability of another one in its band. `captions`: text, count, probability, the most frequent first."""
    rows = [(text, probability) for text, count, probability in captions if count >= MIN_COUNT]
    rng = np.random.default_rng(seed)
    permuted: dict[str, float] = {}
    for start in range(0, max(len(rows) - BAND + 1, 1), BAND):
        end = start + BAND if len(rows) - start - BAND >= BAND else len(rows)  # the last band takes the rest
        band = [rows[start + place] for place in rng.permutation(end - start)]
        permuted |= {text: band[place - 1][1] for place, (text, _) in enumerate(band)}  # each takes the one before: never its own
    return permuted


def overrides(judged: dict[str, Any], seed: int) -> list[str]:
    """Settings under which a run gets the permuted answers: through the scripted engine, with the judge's own threshold."""
    rules = [f"^{_expression(text)}$={p}" for text, p in permute(judged["captions"], seed).items()]
    return ["service.engine=scripted", f"service.script={json.dumps(';'.join(rules))}", f"reward_model.threshold={judged['threshold']}"]


def _expression(text: str) -> str:
    """A regular expression for the caption as an engine is asked about it (spaces collapsed), without the script's own `;`."""
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


def _judge(texts: list[str], config: RunConfig) -> tuple[list[float], float]:
    from llm_server.judge import build_judge
    from llm_server.rubric_file import load_rubric

    judge = build_judge(config.service, load_rubric(config.annotator.rubric))
    try:
        return [judgement.probability for judgement in judge.annotate([text.encode() for text in texts])], judge.describe().threshold
    finally:
        judge.close()
