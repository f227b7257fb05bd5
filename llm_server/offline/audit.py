"""The judge's audit: its answers about labelled captions and pairs of them, measured by agreement and speed.

Invariant: every answer comes from the model (the store is neither read nor written), captions that the rubric shows as
examples are left out, and unparsed answers are counted, never guessed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llm_server.annotation import Status
from llm_server.offline.audit_metrics import (
    NUM_BINS,
    accuracy,
    auc_interval,
    balanced_accuracy,
    calibration_error,
    pair_agreement,
)
from llm_server.offline.caption_file import LabelledCaption
from llm_server.offline.judge_flags import ITEMS_PER_REQUEST, OfflineJudgeClient
from llm_server.progress import progress
from llm_server.rubrics.rubric import Rubric

WARM_UP_CAPTIONS = 32
Answer = TypeVar("Answer")


def audit_judge(
    judge: OfflineJudgeClient,
    rubric: Rubric,
    labelled: Sequence[LabelledCaption],
    *,
    num_pairs: int,
    num_timed: int,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of one judge as JSON values, None where undefined.

    `num_pairs` pairs of a positive and a negative caption are compared. At least `num_timed` captions are timed;
    missing ones are made of the words of the labelled ones. ValueError where too few captions are left.
    """
    captions = without_examples(labelled, [example.item for example in rubric.examples])
    said = judge.describe()
    size = min(ITEMS_PER_REQUEST, said.max_items_per_request)
    texts = [caption.text for caption in captions]
    others = shuffled_words(texts, WARM_UP_CAPTIONS + max(0, num_timed - len(texts)), seed)
    _ask("warm-up", judge.annotate, [text.encode() for text in others[:WARM_UP_CAPTIONS]], size)
    timed = [text.encode() for text in texts + others[WARM_UP_CAPTIONS:]]
    began = time.perf_counter()
    judgements = _ask("captions", judge.annotate, timed, size)
    seconds = time.perf_counter() - began
    judged = judgements[: len(captions)]
    probabilities = np.array([j.probability if j.status is Status.OK else np.nan for j in judged])
    masses = [judgement.answer_mass for judgement in judged]
    report = {
        "rubric": rubric.id,
        "rubric_version": rubric.version,
        "rubric_hash": said.rubric_hash,
        "model": said.model,
        "engine": said.engine,
        "fingerprint": said.fingerprint,
        "examples_left_out": len(labelled) - len(captions),
        "undecided": said.num_undecided(probabilities),
        **score_metrics(probabilities, captions, said.threshold, are_probabilities=True),
        "answer_mass_mean": float(np.mean(masses)),
        "answer_mass_min": float(np.min(masses)),
        "labels_per_s": sum(judgement.status is Status.OK for judgement in judgements) / seconds,
        "labels_timed": len(timed),
        "seconds_timed": seconds,
    }
    if num_pairs and rubric.pairs:
        shown = [text for example in rubric.pairs.examples for text in (example.first, example.second)]
        report |= _pair_metrics(judge, captions, shown, num_pairs, size // 2, seed)
    return report


def score_metrics(
    scores: np.ndarray, captions: Sequence[LabelledCaption], threshold: float, *, are_probabilities: bool
) -> dict[str, Any]:
    """Agreement of `scores` [N] with the captions' labels, None where undefined; a NaN score counts as unparsed."""
    labels = np.array([caption.is_positive for caption in captions])
    answered = ~np.isnan(scores)
    scores, labels = scores[answered].astype(np.float64), labels[answered]
    auc = auc_interval(scores, labels)
    metrics = {
        "auc": auc.estimate,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "accuracy": accuracy(scores, labels, threshold),
        "balanced_accuracy": balanced_accuracy(scores, labels, threshold),
        "calibration_error": calibration_error(scores, labels) if are_probabilities else np.nan,
    }
    return {
        **{name: None if np.isnan(value) else value for name, value in metrics.items()},
        "calibration_bins": NUM_BINS,
        "threshold": threshold,
        "positive_means": f"a probability above theta = {threshold:.3f}" if are_probabilities else "rewarded",
        "captions": len(captions),
        "positives": sum(caption.is_positive for caption in captions),
        "unparsed": int((~answered).sum()),
    }


def without_examples(labelled: Sequence[LabelledCaption], examples: Iterable[str]) -> list[LabelledCaption]:
    """The captions that are no example, ignoring case and spacing. ValueError where a class is then missing."""
    shown = {_folded(example) for example in examples}
    kept = [caption for caption in labelled if _folded(caption.text) not in shown]
    if len({caption.is_positive for caption in kept}) < 2:
        raise ValueError(
            f"of {len(labelled)} labelled captions {len(kept)} are no examples of the rubric, and those are all of one"
            " kind: add more"
        )
    return kept


def shuffled_words(texts: Sequence[str], number: int, seed: int) -> list[str]:
    """Up to `number` distinct texts with the lengths and the words of `texts`, none of which they repeat, so that no
    cache answers them. Fewer where `texts` have too few words."""
    rng = np.random.default_rng(seed)
    lengths = [len(text.split()) for text in texts]
    words = np.array([word for text in texts for word in text.split()])
    made: dict[str, None] = {}
    for attempt in range(10 * number):
        text = " ".join(rng.choice(words, lengths[attempt % len(lengths)]))
        if text not in texts:
            made[text] = None
        if len(made) == number:
            break
    return list(made)


def sample_labelled_pairs(captions: Sequence[LabelledCaption], num_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Up to `num_pairs` distinct (positive, negative) pairs, uniformly."""
    positives = [caption.text for caption in captions if caption.is_positive]
    negatives = [caption.text for caption in captions if not caption.is_positive]
    total = len(positives) * len(negatives)
    chosen = np.random.default_rng(seed).choice(total, min(num_pairs, total), replace=False)
    return [(positives[number // len(negatives)], negatives[number % len(negatives)]) for number in chosen]


def _pair_metrics(
    judge: OfflineJudgeClient,
    captions: Sequence[LabelledCaption],
    examples: Sequence[str],
    num_pairs: int,
    size: int,
    seed: int,
) -> dict[str, Any]:
    """The metrics of pairs; of no pairs, with the reason in `pairs_remark`, where the captions that are no examples
    lack a class."""
    try:
        captions = without_examples(captions, examples)
    except ValueError as error:
        chosen, remark = [], f"none asked: {error}"
    else:
        chosen = sample_labelled_pairs(captions, num_pairs, seed)
        remark = f"{len(chosen)} pairs of a positive and a negative caption, both orders"
    pairs = [(first.encode(), second.encode()) for first, second in chosen]
    began = time.perf_counter()
    judgements = _ask("pairs", judge.annotate_pairs, pairs, max(1, size))
    seconds = time.perf_counter() - began
    answered = [judgement for judgement in judgements if judgement.status is Status.OK]
    found = pair_agreement(np.array([j.preference for j in answered]), np.array([j.position_bias for j in answered]))
    return {
        "pairs": len(judgements),
        "pairs_unparsed": len(judgements) - len(answered),
        **{f"pair_{name}": None if np.isnan(value) else value for name, value in found._asdict().items()},
        **({"pair_labels_per_s": len(pairs) / seconds} if pairs else {}),
        "pairs_remark": remark,
    }


def _ask(what: str, ask: Callable[..., list[Answer]], items: Sequence[Any], size: int) -> list[Answer]:
    answers: list[Answer] = []
    with progress(what, len(items)) as advance:
        for start in range(0, len(items), size):
            answers += ask(items[start : start + size], bypass_store=True)
            advance(len(answers) - start)
    return answers


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


class Row(NamedTuple):
    """A line of the table."""

    label: str
    remark: str = ""
    """A format string over the report; so is the next."""
    remark_if_none: str = ""
    """The remark if the metric is None."""


ROWS: dict[str, Row] = {
    "auc": Row("AUC", "95 % interval {auc_low:.3f} to {auc_high:.3f} (bootstrap within each class)"),
    "accuracy": Row("accuracy", "positive: {positive_means}"),
    "balanced_accuracy": Row("balanced accuracy"),
    "calibration_error": Row("calibration error", "expected, {calibration_bins} bins", "there are no probabilities"),
    "answer_mass_mean": Row("answer mass, mean"),
    "answer_mass_min": Row("answer mass, least"),
    "unparsed": Row("unparsed", "of {captions} captions, {positives} of them positive"),
    "undecided": Row("undecided", "within the noise of theta: not paid"),
    "reward_precision": Row(
        "reward precision",
        "share of the reward paid that went to progress; {reward_labelled_fraction:.0%} of it is labelled",
        "nothing that was paid is labelled",
    ),
    "labels_per_s": Row("labels/s", "{labels_timed} captions in {seconds_timed:.1f} s, loading excluded"),
    "pair_accuracy": Row("pairs: accuracy", "{pairs_remark}", "{pairs_remark}"),
    "pair_position_bias": Row("pairs: bias to the first place (log-odds)"),
    "pair_order_flips": Row("pairs: answers that the order decides"),
    "pairs_unparsed": Row("pairs: unparsed"),
}
"""The rows of the table by metric, in this order."""


def print_table(report: Mapping[str, Any]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", Column(justify="right"), "", title=report["title"], title_justify="left", show_header=False)
    for name, row in ROWS.items():
        if name in report:
            value = report[name]
            shown = "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
            remark = row.remark_if_none if value is None else row.remark
            table.add_row(row.label, shown, remark.format_map(report))
    Console(soft_wrap=True, markup=False, emoji=False).print(table)
