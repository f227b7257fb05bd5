"""The judge's audit: its answers about labelled captions and pairs of them, measured by agreement and speed.

Invariant: every answer comes from the model (the store is neither read nor written), captions that the rubric shows as
examples are left out, and unparsed answers are counted, never guessed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import numpy as np

from llm_server.annotation import Judgement, Status
from llm_server.offline.audit_metrics import (
    NUM_BINS,
    accuracy_interval,
    auc_interval,
    balanced_accuracy,
    calibration_error,
    pair_agreement,
    rank_correlation_interval,
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
    min_similarity: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of one judge as JSON values, None where undefined.

    `num_pairs` pairs of a positive and a negative caption are compared, none with graded labels. At least `num_timed`
    captions are timed; missing ones are made of the words of the labelled ones. With `min_similarity` every caption is
    judged alone, and its probability counts only where the cosine of its sentence embedding with that of its `about`
    exceeds it, else 0. ValueError where too few captions are left.
    """
    captions = without_examples(labelled, shown_by(rubric))
    said = judge.describe()
    size = min(ITEMS_PER_REQUEST, said.max_items_per_request)
    texts = [caption.text for caption in captions]
    others = shuffled_words(texts, WARM_UP_CAPTIONS + max(0, num_timed - len(texts)), seed)
    warm_up, others = others[:WARM_UP_CAPTIONS], others[WARM_UP_CAPTIONS:]
    annotate = partial(_annotate, judge)
    abouts = [caption.about if rubric.about_label else "" for caption in captions]
    _ask("warm-up", annotate, [*zip(warm_up, cycle(abouts), strict=False)], size)
    timed = [*zip(texts, abouts, strict=True), *zip(others, cycle(abouts), strict=False)]
    began = time.perf_counter()
    judgements = _ask("captions", annotate, timed, size)
    seconds = time.perf_counter() - began
    judged = judgements[: len(captions)]
    is_graded = captions[0].value is not None
    measured: Callable[..., dict[str, Any]] = (
        graded_metrics if is_graded else partial(score_metrics, are_probabilities=True)
    )
    probabilities = np.array([j.probability if j.status is Status.OK else np.nan for j in judged])
    masses = [judgement.answer_mass for judgement in judged]
    if min_similarity is not None:
        probabilities = probabilities * (similarities(judge, captions, size) > min_similarity)
    report = {
        "rubric": rubric.id,
        "rubric_version": rubric.version,
        "rubric_hash": said.rubric_hash,
        "model": said.model,
        "engine": said.engine,
        "fingerprint": said.fingerprint,
        "examples_left_out": len(labelled) - len(captions),
        "undecided": said.num_undecided(probabilities),
        **measured(probabilities, captions, said.threshold),
        **({} if min_similarity is None else {"min_similarity": min_similarity}),
        "answer_mass_mean": float(np.mean(masses)),
        "answer_mass_min": float(np.min(masses)),
        "labels_per_s": sum(judgement.status is Status.OK for judgement in judgements) / seconds,
        "labels_timed": len(timed),
        "seconds_timed": seconds,
    }
    if num_pairs and rubric.pairs and not is_graded:
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
    correct = accuracy_interval(scores, labels, threshold)
    metrics = {
        "auc": auc.estimate,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "accuracy": correct.estimate,
        "accuracy_low": correct.low,
        "accuracy_high": correct.high,
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


def graded_metrics(scores: np.ndarray, captions: Sequence[LabelledCaption], threshold: float) -> dict[str, Any]:
    """Agreement of `scores` [N] with graded labels, None where undefined; a NaN score counts as unparsed."""
    values = np.array([caption.label for caption in captions])
    answered = ~np.isnan(scores)
    found = rank_correlation_interval(scores[answered].astype(np.float64), values[answered])
    names = ("spearman", "spearman_low", "spearman_high")
    return {
        **{name: None if np.isnan(value) else value for name, value in zip(names, found, strict=True)},
        "threshold": threshold,
        "captions": len(captions),
        "positives": sum(caption.is_positive for caption in captions),
        "unparsed": int((~answered).sum()),
    }


def similarities(judge: OfflineJudgeClient, captions: Sequence[LabelledCaption], size: int) -> np.ndarray:
    """[N] f32: the cosine of each caption's sentence embedding with that of what it is about."""
    texts = [*dict.fromkeys(text for caption in captions for text in (caption.about, caption.text))]
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    embedded = np.concatenate([judge.embed([text.encode() for text in chunk]) for chunk in chunks])
    vectors = dict(zip(texts, embedded, strict=True))
    return np.array([vectors[caption.about] @ vectors[caption.text] for caption in captions])


def shown_by(rubric: Rubric) -> list[str]:
    """The rubric's examples, each after what it is judged about, if anything."""
    return [f"{example.about} {example.item}" for example in rubric.examples]


def without_examples(labelled: Sequence[LabelledCaption], examples: Iterable[str]) -> list[LabelledCaption]:
    """The captions that are no example, alone or after what they are about, ignoring case and spacing. ValueError where
    a class is then missing."""
    shown = {folded(example) for example in examples}
    kept = [c for c in labelled if shown.isdisjoint({folded(c.text), folded(f"{c.about} {c.text}")})]
    if len({caption.label for caption in kept}) < 2:
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


def _annotate(judge: OfflineJudgeClient, asked: Sequence[tuple[str, str]], *, bypass_store: bool) -> list[Judgement]:
    """Judgements of texts, each about the second of the two if that is not empty."""
    abouts = [about.encode() for _, about in asked if about]
    return judge.annotate([text.encode() for text, _ in asked], abouts=abouts, bypass_store=bypass_store)


def _ask(what: str, ask: Callable[..., list[Answer]], items: Sequence[Any], size: int) -> list[Answer]:
    answers: list[Answer] = []
    with progress(what, len(items)) as advance:
        for start in range(0, len(items), size):
            answers += ask(items[start : start + size], bypass_store=True)
            advance(len(answers) - start)
    return answers


def folded(text: str) -> str:
    """`text` without what does not tell captions apart: case and spacing."""
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
    "spearman": Row(
        "rank correlation",
        "Spearman, 95 % interval {spearman_low:.3f} to {spearman_high:.3f} (bootstrap of the captions)",
        "all answers are alike",
    ),
    "accuracy": Row(
        "accuracy", "positive: {positive_means}; 95 % interval {accuracy_low:.3f} to {accuracy_high:.3f} (Wilson)"
    ),
    "min_similarity": Row("least cosine", "with what a caption is about; below it the probability counts as 0"),
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
