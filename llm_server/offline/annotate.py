"""`delphi annotate`: judges the captions of a file or a run, and pairs of them, into a judgement file for offline
training.

Invariant: every answer is written before the next batch is asked, and a repeated command asks only what is missing.
Pairs are drawn by how often both captions occur, each at most once in either order, as a function of the seed.
"""

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import tenacity

from configs.paths import path_argument
from llm_server.annotation import Caption, CaptionPair, JudgedCaption, JudgedPair, Status
from llm_server.offline.caption_file import read_counted
from llm_server.offline.judge_flags import (
    ITEMS_PER_REQUEST,
    OfflineJudgeClient,
    add_judge_flags,
    opened_judge,
    read_judge_flags,
)
from llm_server.offline.judgement_file import JudgementFile, Provenance, caption_of, read_judgements, read_provenance
from llm_server.progress import progress
from llm_server.rubrics.rubric import Rubric
from llm_server.standard_output import guarded, output_may_be_lost

DRAWS_AT_ONCE = 4096
LEAST_NEW_FRACTION = 0.05
NUM_ATTEMPTS = 5
"""Attempts of one request to an unavailable service; with the pauses between them, half a minute."""
Item = TypeVar("Item")


def sample_pairs(
    counts: Sequence[int], num_pairs: int, seed: int, taken: Iterable[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """`num_pairs` new pairs of different indices of `counts`, not in `taken` in either order; fewer if no more exist.

    Both members are drawn with probability proportional to their counts, as in a sample of pairs of observations
    (Motif), without pairs of equal members and repetitions. When a few captions are so frequent that hardly any draw is
    new, the weights are replaced by their square roots, repeatedly if necessary.
    """
    seen = {frozenset(pair) for pair in taken}
    wanted = min(num_pairs, len(counts) * (len(counts) - 1) // 2 - len(seen))
    weights = np.asarray(counts, np.float64)
    rng = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < wanted:
        drawn = rng.choice(len(counts), size=(DRAWS_AT_ONCE, 2), p=weights / weights.sum())
        before = len(chosen)
        for first, second in drawn.tolist():
            pair = frozenset((first, second))
            if len(pair) == 2 and pair not in seen:
                seen.add(pair)
                chosen.append((first, second))
        if len(chosen) - before < LEAST_NEW_FRACTION * DRAWS_AT_ONCE:
            weights = np.sqrt(weights)
    return chosen[:wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 interrupted (the same command continues), 2 an error in the command, the model or a file."""
    arguments = _parser().parse_args(argv)
    from llm_server.client import AnnotationRefused, ServiceUnavailable

    output_may_be_lost()
    try:
        _annotate(arguments)
    except (ValueError, AnnotationRefused) as error:
        return _say(str(error), 2)
    except ServiceUnavailable as error:
        return _say(f"{error}; all answers are kept, run the same command again to continue", 1)
    except sqlite3.Error as error:
        problem = f"{arguments.out} cannot be written ({error})"
        return _say(f"{problem}; free some disk space and run the same command again to continue", 1)
    except KeyboardInterrupt:
        return _say("interrupted; all answers are kept, run the same command again to continue", 1)
    return 0


def _annotate(arguments: argparse.Namespace) -> None:
    for name in ("pairs", "seed"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"--{name}: got {getattr(arguments, name)}, wanted at least 0")
    counts = read_counted(arguments.captions)
    rubric, config = read_judge_flags(arguments, with_store=True)
    if arguments.pairs and rubric.pairs is None:
        raise ValueError(f"--pairs: rubric '{rubric.id}' has no `pairs` section, so it compares nothing")
    rubric.check_about(bool(arguments.about))
    _check_out(rubric, arguments.about, Path(arguments.out))  # before a model is loaded
    with opened_judge(rubric, config, arguments, arguments.about) as judge:
        said = judge.describe()
        asked_by = Provenance.of(said, arguments.about)
        with closing(JudgementFile(Path(arguments.out), asked_by, said.pays_above)) as file:
            file.add_captions(counts)
            size = min(ITEMS_PER_REQUEST, said.max_items_per_request)
            _ask("captions", file.unjudged(), partial(_judge_captions, judge, file), size)
            if arguments.pairs:
                plan_pairs(file, counts, arguments.pairs, arguments.seed)
            _ask("pairs", file.pairs(unjudged=True), partial(_judge_pairs, judge, file), max(1, size // 2))
    _sum_up(arguments.out)


def _ask(what: str, missing: Sequence[Item], judge: Callable[[Sequence[Item]], None], size: int) -> None:
    """Let `judge` answer and write all items, `size` at a time; retried while the service is unavailable, with
    ServiceUnavailable after `NUM_ATTEMPTS`."""
    from llm_server.client import ServiceUnavailable

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ServiceUnavailable),
        stop=tenacity.stop_after_attempt(NUM_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=2.0) + tenacity.wait_random(0.0, 1.0),
        before_sleep=_say_attempt,
        reraise=True,
    )
    with progress(what, len(missing)) as advance:
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            retrying(judge, batch)
            advance(len(batch))


def _judge_captions(judge: OfflineJudgeClient, file: JudgementFile, batch: Sequence[Caption]) -> None:
    answers = judge.annotate([caption.text.encode() for caption in batch])
    file.write_captions(JudgedCaption(caption=c, judgement=a) for c, a in zip(batch, answers, strict=True))


def _judge_pairs(judge: OfflineJudgeClient, file: JudgementFile, batch: Sequence[CaptionPair]) -> None:
    answers = judge.annotate_pairs([(pair.first.text.encode(), pair.second.text.encode()) for pair in batch])
    file.write_pairs(JudgedPair(pair=p, judgement=a) for p, a in zip(batch, answers, strict=True))


def plan_pairs(file: JudgementFile, counts: dict[str, int], num_pairs: int, seed: int) -> None:
    """Fill the file's pairs up to `num_pairs`, drawn by the counts; fewer if no more exist."""
    texts = list(counts)
    places = {text: place for place, text in enumerate(texts)}
    planned = file.pairs()
    known = [(places.get(pair.first.text), places.get(pair.second.text)) for pair in planned]
    taken = [(first, second) for first, second in known if first is not None and second is not None]
    # Later additions need another random stream, or the same pairs would be drawn first.
    drawn = sample_pairs(list(counts.values()), max(0, num_pairs - len(planned)), seed + len(planned), taken)
    file.add_pairs(CaptionPair(first=caption_of(texts[i]), second=caption_of(texts[j])) for i, j in drawn)
    if (total := len(planned) + len(drawn)) < num_pairs:
        print(f"{len(texts)} captions make no more than {total} pairs; all are asked", file=sys.stderr)


def _say_attempt(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    print(f"delphi annotate: {error}; attempt {state.attempt_number} of {NUM_ATTEMPTS}", file=sys.stderr, flush=True)


def _check_out(rubric: Rubric, about: str, out: Path) -> None:
    try:
        theirs = read_provenance(out)
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be read: {error.strerror}; give another file") from None
    if theirs and theirs.about != about:
        raise ValueError(
            f"judgement file '{out}' holds answers about {theirs.about!r}, requested is {about!r}: give another --out"
        )
    if theirs and (theirs.rubric_hash, theirs.pairs_hash) != (rubric.content_hash, rubric.pairs_hash):
        raise ValueError(
            f"judgement file '{out}' holds answers to rubric '{theirs.rubric_id}' version {theirs.rubric_version}"
            f" ({theirs.rubric_hash}), requested is '{rubric.id}' version {rubric.version} ({rubric.content_hash}):"
            " give another --out"
        )
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}")


def _sum_up(out: str) -> None:
    found = read_judgements(out)
    positive = sum(judged.judgement.probability > found.threshold for judged in found.captions)
    everything: list[JudgedCaption | JudgedPair] = [*found.captions, *found.pairs]
    lacking = sum(judged.judgement.status is not Status.OK for judged in everything)
    print(
        f"{out}: {len(found.captions)} captions ({positive} above theta {found.threshold:.3f}), {len(found.pairs)}"
        f" pairs, {lacking} of all without a usable answer; train on it with reward_model.judgements={out}"
    )


def _say(message: str, code: int) -> int:
    print(f"delphi annotate: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi annotate",
        description="Judge captions, and pairs of them, into a file that offline training reads. Running the same"
        " command again continues.",
        epilog='CAPTIONS is JSON lines, {"caption": "You kill the newt!", "count": 3} (count is optional), a run\n'
        "directory, or its captions.sqlite; `delphi export RUN` writes such lines.\n"
        "example: delphi annotate runs/nethack_score --rubric nethack_progress --pairs 5000 --out judgements.sqlite\n"
        "         delphi train --preset nethack_score reward_model.name=ranking"
        " reward_model.judgements=judgements.sqlite",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    captions, out = "JSON lines, a run directory, or its captions.sqlite", "the judgement file; continued if it exists"
    about = "what the captions are judged about, for a rubric with an about_label"
    pairs = "pairs to compare, drawn by their captions' counts (default: 0)"
    parser.add_argument("captions", type=path_argument, metavar="CAPTIONS", help=captions)
    parser.add_argument("--out", type=path_argument, required=True, metavar="FILE", help=out)
    parser.add_argument("--about", default="", metavar="TEXT", help=about)
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help=pairs)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which pairs are drawn (default: 0)")
    add_judge_flags(parser, with_store=True)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
