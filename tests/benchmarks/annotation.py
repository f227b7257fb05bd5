"""Labels/s of reading an answer from one forward pass against generating it as text, same model and engine.

Both sides run through transformers in the same dtype, with the prompt's fixed part computed once and its key/value
cache shared by all captions, each at its best of several batch sizes. The generating judge writes free text up to a
limit and stops at its label; captions that have their answer leave the batch every few tokens. Only answers that can be
parsed count as labels.
"""

import argparse
import copy
import dataclasses
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.verbs.bench import divide, print_report, report
from tests.benchmarks.annotation_prompt import END, EXAMPLES, parse, prompt

CAPTIONS = Path(__file__).parents[1] / "llm_server" / "data" / "nethack_labelled.jsonl"
TEMPERATURE = 0.1
"""ONI's."""
PIECE_TOKENS = 16
"""So often those that are done leave the batch."""
END_TOKENS = 12
"""The end mark lies within so many tokens."""


class GeneratingJudge:
    """Asks a model that a `TransformersEngine` has loaded for knowledge, analysis and verdict, as text."""

    def __init__(self, engine: Any, *, max_new_tokens: int, with_knowledge: bool) -> None:
        import torch

        self._torch, self._model, self._tokenizer, self._device = (
            torch,
            engine._model,
            engine._tokenizer,
            engine._device,
        )
        self._max_new_tokens = max_new_tokens
        before, self._after = prompt(with_knowledge)
        self._prefix = self._tokenizer(before, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            self._prefix_cache = self._model(
                torch.tensor([self._prefix], device=self._device), use_cache=True
            ).past_key_values
        self.answers: list[str] = []
        """All that it has written."""

    def answer(self, captions: Sequence[str]) -> list[str]:
        """The text written about each caption, all in one batch."""
        torch = self._torch
        texts = [
            self._tokenizer(f" {caption}{self._after}", add_special_tokens=False)["input_ids"] for caption in captions
        ]
        width, pad = max(map(len, texts)), self._tokenizer.pad_token_id
        # The padding lies between the shared prefix and the caption; masked, it takes no position.
        ids = torch.tensor([self._prefix + [pad] * (width - len(text)) + text for text in texts], device=self._device)
        mask = torch.tensor(
            [[1] * len(self._prefix) + [0] * (width - len(t)) + [1] * len(t) for t in texts], device=self._device
        )
        cache = copy.deepcopy(self._prefix_cache)
        cache.batch_repeat_interleave(len(texts))
        start, rows, answers = ids.shape[1], list(range(len(texts))), [""] * len(texts)
        with torch.no_grad():
            while rows and ids.shape[1] - start < self._max_new_tokens:
                room = min(PIECE_TOKENS, self._max_new_tokens - (ids.shape[1] - start))
                ids = self._generate(ids, mask, cache, room, start)
                mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
                kept = []
                for place, row in enumerate(rows):
                    text = self._tokenizer.decode(ids[place, start:], skip_special_tokens=True)
                    answers[row] = text.split(END)[0] + END if END in text else text
                    if END not in text and self._tokenizer.eos_token_id not in ids[place, start:]:
                        kept.append(place)
                if len(kept) < len(rows):
                    chosen = torch.tensor(kept, dtype=torch.long, device=self._device)
                    ids, mask, rows = ids[chosen], mask[chosen], [rows[place] for place in kept]
                    cache.batch_select_indices(chosen)
        self.answers += answers
        return answers

    def num_tokens(self, text: str) -> int:
        """Length of a text for this model."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generate(self, ids: Any, mask: Any, cache: Any, room: int, start: int) -> Any:
        from transformers import StoppingCriteria, StoppingCriteriaList

        torch, tokenizer = self._torch, self._tokenizer

        class AtTheLabel(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                tails = tokenizer.batch_decode(input_ids[:, max(start, input_ids.shape[1] - END_TOKENS) :])
                return torch.tensor([END in tail for tail in tails], device=input_ids.device)

        return self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=room,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([AtTheLabel()]),
        )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements in turns and report them. ValueError for a model that cannot be loaded."""
    import torch

    from configs.annotation_schema import ServiceConfig
    from llm_server.engines.building import build_engine
    from llm_server.rubrics.loading import load_rubric

    if arguments.torch_threads:
        torch.set_num_threads(arguments.torch_threads)
    torch.manual_seed(arguments.seed)
    rubric = load_rubric(arguments.rubric)
    config = ServiceConfig(engine="transformers", model=arguments.model, device=arguments.device, dtype=arguments.dtype)
    engines = {size: build_engine(dataclasses.replace(config, batch_size=size), rubric) for size in arguments.batches}
    generating = GeneratingJudge(
        engines[arguments.batches[0]],
        max_new_tokens=arguments.max_new_tokens,
        with_knowledge=not arguments.without_knowledge,
    )
    captions = _captions(
        [example.item for example in rubric.examples] + [message for message, *_ in EXAMPLES], arguments.seed
    )
    one_pass: dict[int, list[float]] = {size: [] for size in arguments.batches}
    parsed: dict[int, list[float]] = {size: [] for size in arguments.batches}
    written: dict[int, list[float]] = {size: [] for size in arguments.batches}
    for size in arguments.batches:  # warm-up
        engines[size].score(captions[:size])
    for repetition in range(arguments.repetitions):
        for size in arguments.batches:
            chosen = _some(captions, max(arguments.captions if size > 1 else arguments.captions // 4, size), repetition)
            began = time.perf_counter()
            scores = engines[size].score(chosen)
            seconds = time.perf_counter() - began
            labels = sum(
                math.isfinite(score.probability) and score.answer_mass >= rubric.min_answer_mass for score in scores
            )
            one_pass[size].append(labels / seconds)
            chosen = _some(captions, max(arguments.generated, size), repetition)
            began = time.perf_counter()
            answers = [
                text
                for start in range(0, len(chosen), size)
                for text in generating.answer(chosen[start : start + size])
            ]
            seconds = time.perf_counter() - began
            parsed[size].append(sum(parse(answer) is not None for answer in answers) / seconds)
            written[size].append(len(answers) / seconds)
            print(
                f"repetition {repetition + 1}, batch {size}: one pass {one_pass[size][-1]:.1f} labels/s,"
                f" generated {parsed[size][-1]:.2f} (parsed or not: {written[size][-1]:.2f})",
                file=sys.stderr,
                flush=True,
            )
    return _result(arguments, engines[arguments.batches[0]], generating, one_pass, parsed, written)


def _result(
    arguments: argparse.Namespace,
    engine: Any,
    generating: GeneratingJudge,
    one_pass: dict[int, list[float]],
    parsed: dict[int, list[float]],
    written: dict[int, list[float]],
) -> dict[str, Any]:
    import torch

    best_one_pass, best_parsed, best_written = (
        max(side, key=lambda size: statistics.median(side[size])) for side in (one_pass, parsed, written)
    )
    measured = {f"one pass, batch {size}": values for size, values in one_pass.items()}
    measured |= {f"generated and parsed, batch {size}": values for size, values in parsed.items()}
    measured |= {f"generated, batch {size}": values for size, values in written.items()}
    settings = {name: getattr(arguments, name) for name in SETTINGS} | {
        "engine": engine.name,
        "torch_threads": torch.get_num_threads(),
        "temperature": TEMPERATURE,
        "prompt": "analysis, verdict" if arguments.without_knowledge else "knowledge, analysis, verdict",
    }
    return report(
        "annotation",
        measured=measured,
        unit="labels/s",
        ratio_of=(f"one pass, batch {best_one_pass}", f"generated and parsed, batch {best_parsed}"),
        settings=settings,
        ratio_with_unparsed=divide(
            statistics.median(one_pass[best_one_pass]), statistics.median(written[best_written])
        ),
        parsed_fraction=statistics.mean(parse(answer) is not None for answer in generating.answers),
        tokens_per_answer=statistics.mean(map(generating.num_tokens, generating.answers)),
    )


def _captions(shown: Sequence[str], seed: int) -> list[str]:
    """Captions that neither prompt shows, shuffled."""
    captions = [json.loads(line)["caption"] for line in CAPTIONS.read_text("utf-8").splitlines()]
    kept = [caption for caption in captions if caption not in shown]
    random.Random(seed).shuffle(kept)
    return kept


def _some(captions: Sequence[str], number: int, repetition: int) -> list[str]:
    """`number` captions, others in each repetition, round and round."""
    start = repetition * number
    return [captions[(start + place) % len(captions)] for place in range(number)]


SETTINGS = ("model", "rubric", "device", "dtype", "batches", "captions", "generated", "max_new_tokens", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the command or the model is wrong."""
    parser = argparse.ArgumentParser(prog="delphi bench annotation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--model", default="smollm2", help="smollm2 (packaged), a folder, or a Hugging Face id (default: smollm2)"
    )
    parser.add_argument(
        "--rubric", default="nethack_progress", help="of the one-pass judge (default: nethack_progress)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--dtype", default="auto", help="bfloat16, float32 or auto (default)")
    parser.add_argument(
        "--torch-threads",
        type=int,
        default=0,
        metavar="N",
        help="threads for torch; 0 leaves torch's own choice (default)",
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 16, 64], metavar="N", help="batch sizes (default: 1 16 64)"
    )
    parser.add_argument(
        "--repetitions", type=int, default=2, metavar="N", help="measurements of each kind (default: 2)"
    )
    parser.add_argument(
        "--captions",
        type=int,
        default=256,
        metavar="N",
        help="captions of a one-pass measurement; a quarter at batch 1 (default: 256)",
    )
    parser.add_argument(
        "--generated", type=int, default=2, metavar="N", help="captions of a generation, at least a batch (default: 2)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest generated answer (default: 256)"
    )
    parser.add_argument(
        "--without-knowledge", action="store_true", help="generate a shorter answer, analysis and verdict only"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of captions and sampling (default: 0)")
    arguments = parser.parse_args(argv)
    for name in ("repetitions", "captions", "generated", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least 1")
    if arguments.torch_threads < 0:
        parser.error(f"--torch-threads: got {arguments.torch_threads}, wanted at least 0")
    if min(arguments.batches) < 1:
        parser.error(f"--batches: got {min(arguments.batches)}, wanted at least 1")
    print_report(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
