"""Labels/s of annotation by batch, store, replicas and prompt length, and what each part of a label's way costs.

`path`: from the caption book through gRPC and the judge's store into the reward model, with the scripted engine, which
costs next to nothing. `costs`: CPU time per label of each part of that way, and of tokenisation. `replicas`: the same
way to 1, 2 and 4 services whose scripted engine sleeps for a millisecond per label, as if it waited for a device.
`model`: a real model in this process, labels per second of CPU time, by batch and by the length of the rubric.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.verbs.bench import print_report, report
from configs.annotation_schema import ServiceConfig
from tests.benchmarks.label_costs import part_costs, tokenisation_cost
from tests.benchmarks.label_path import SCRIPT, Rate, captions, measure, services

PARTS = ("path", "costs", "replicas", "model")
STORES = ("memory", "disk", "disk, answers there")
REPLICAS = (1, 2, 4)
REPLICA_DELAY_S = 0.001
REPLICA_BATCH, REPLICA_IN_FLIGHT = 128, 4
EXAMPLES = (0.25, 0.5, 1.0)
"""Shares of the rubric's examples: prompts of three lengths."""
MODEL_BATCHES = (1, 8, 32, 64)
MODEL_CAPTIONS = 64
TOKENISED = 2_000


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the command or the model is wrong."""
    arguments = _parser().parse_args(argv)
    for name in ("labels", "repetitions"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: got {getattr(arguments, name)}, wanted at least 1")
    if not 1 <= min(arguments.batches) <= max(arguments.batches) <= 1024:
        raise ValueError(f"--batches: got {arguments.batches}, wanted numbers from 1 to 1024, the limit of a request")
    result = _measure(arguments)
    print_report(result, arguments.json)
    if not arguments.json:
        for name in ("cpu_us_per_label", "costs_us"):
            for part, value in result[name].items():
                print(f"{name}  {part}: {value:.1f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi bench annotation_scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (default: all)"
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[8, 32, 128],
        metavar="N",
        help="items per request (default: 8 32 128)",
    )
    parser.add_argument(
        "--labels", type=int, default=100_000, metavar="N", help="captions of a measurement (default: %(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=1, metavar="N", help="of each measurement (default: 1)")
    parser.add_argument("--rubric", default="nethack_progress", help="a rubric's name or file (default: %(default)s)")
    parser.add_argument("--model", default="smollm2", help="as service.model (default: %(default)s)")
    return parser


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from llm_server.rubrics.loading import load_rubric

    rubric = load_rubric(arguments.rubric)
    rates: dict[str, list[Rate]] = {}
    costs: dict[str, float] = {}
    model: dict[str, list[float]] = {}
    for repetition in range(arguments.repetitions):
        if "path" in arguments.parts:
            for batch in arguments.batches:
                _path(arguments, rubric, batch, rates)
        if "replicas" in arguments.parts:
            for number in REPLICAS:
                rates.setdefault(f"{number} replicas of a slow engine", []).append(_replicas(arguments, rubric, number))
        if "model" in arguments.parts:
            _model(arguments, rubric, repetition, model)
    if "costs" in arguments.parts:
        costs = part_costs(captions(arguments.labels), rubric, arguments.batches[0])
        tokenised = captions(TOKENISED)
        costs |= {
            f"tokenisation, {size} texts at a time": tokenisation_cost(tokenised, rubric, arguments.model, size)
            for size in (1, 32)
        }
    measured = {name: [rate.labels_per_s for rate in each] for name, each in rates.items()} | model
    measured |= {f"alone, {part}": [1e6 / max(cost, 0.01)] for part, cost in costs.items()}
    names = list(measured)
    return report(
        "annotation_scale",
        measured=measured,
        unit="labels/s",
        ratio_of=(names[-1], names[0]),
        settings={name: getattr(arguments, name) for name in ("parts", "batches", "labels", "rubric", "model")},
        cpu_us_per_label={
            f"{name}, {side}": statistics.median(getattr(rate, f"{side}_us") for rate in each)
            for name, each in rates.items()
            for side in ("client", "service")
        },
        costs_us=costs,
    )


def _path(arguments: argparse.Namespace, rubric: Any, batch: int, rates: dict[str, list[Rate]]) -> None:
    """The whole way without a store, with one that has no answer yet, and with one that has them all."""
    texts = captions(arguments.labels)
    with tempfile.TemporaryDirectory(prefix="delphi-benchmark-") as folder:
        for store in ("memory", str(Path(folder, "judgements.sqlite"))):
            config = ServiceConfig(engine="scripted", script=SCRIPT, store=store, nice=0, batch_size=max(32, batch))
            with services(config, arguments.rubric) as (addresses, processes):
                for kind in STORES[:1] if store == "memory" else STORES[1:]:
                    rate = measure(texts, addresses, processes, rubric, batch)
                    rates.setdefault(f"batch {batch}, store {kind}", []).append(rate)
                    _say(f"batch {batch}, store {kind}: {rate.labels_per_s:,.0f} labels/s")


def _replicas(arguments: argparse.Namespace, rubric: Any, number: int) -> Rate:
    config = ServiceConfig(
        engine="scripted", script=SCRIPT, script_delay_s=REPLICA_DELAY_S, store="memory", nice=0, batch_size=32
    )
    texts = captions(min(arguments.labels, 4_000 * number))
    with services(config, arguments.rubric, number) as (addresses, processes):
        rate = measure(texts, addresses, processes, rubric, REPLICA_BATCH, REPLICA_IN_FLIGHT)
    _say(f"{number} replicas: {rate.labels_per_s:,.0f} labels/s")
    return rate


def _model(arguments: argparse.Namespace, rubric: Any, repetition: int, found: dict[str, list[float]]) -> None:
    from llm_server.engines.building import build_engine

    config = ServiceConfig(model=arguments.model, device="cpu", dtype="float32", batch_size=max(MODEL_BATCHES))
    for share in EXAMPLES:
        shown = dataclasses.replace(rubric, examples=rubric.examples[: round(share * len(rubric.examples))])
        engine: Any = build_engine(config, shown)
        num_tokens = len(engine._single.prompt.prefix)
        for batch in MODEL_BATCHES:
            texts = captions(min(MODEL_CAPTIONS, 16 * batch), repetition * MODEL_CAPTIONS)
            texts = [text for caption in texts if (text := shown.item_text(caption.encode()))]
            began = time.process_time()
            for start in range(0, len(texts), batch):
                engine.score(texts[start : start + batch])
            rate = len(texts) / (time.process_time() - began)
            found.setdefault(f"model, rubric of {num_tokens} tokens, batch {batch}", []).append(rate)
            _say(f"rubric of {num_tokens} tokens, batch {batch}: {rate:.1f} labels per second of CPU time")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
