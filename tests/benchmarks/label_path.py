"""The way of a label from the caption book through gRPC, judge and store into the reward model, with a scripted engine.

Invariant: the service is the process that a run starts, and the client does what a run's annotator process does, except
that its captions are in the book from the beginning and no worker reports meanwhile. Every caption is another one, in
every message that it consists of, so each costs the whole way.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from actors.captions import caption_id
from configs.annotation_schema import AnnotatorConfig, RewardModelConfig, ServiceConfig
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.client import AnnotationClient
from llm_server.replicas import Replicas
from llm_server.replicated_client import ReplicatedClient
from llm_server.rubrics.rubric import Rubric
from llm_server.service.child import ServiceProcess
from reward_models.pipeline import AnnotationPipeline
from reward_models.retrieval import RetrievalModel
from reward_models.shaping import RewardShaping
from reward_models.training import RewardTrainer

LABELLED = Path(__file__).parents[1] / "llm_server" / "data" / "nethack_labelled.jsonl"
SCRIPT = "kill|destroy|level|stairs=0.9"
REPORT_CAPTIONS = 256
START_LIMIT_S = 120.0
STALL_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a number of labels took."""

    labels_per_s: float
    client_us: float
    """CPU time of the client's process per label."""
    service_us: float
    """The same of all service processes together."""


def captions(number: int, start: int = 0) -> list[str]:
    """Labelled captions of NetHack round and round, each of their messages made unique by a number."""
    texts = [json.loads(line)["caption"] for line in LABELLED.read_text("utf-8").splitlines()]
    return [
        "  ".join(f"{message} {n}.{place}" for place, message in enumerate(texts[n % len(texts)].split("  ")))
        for n in range(start, start + number)
    ]


def filled_book(texts: Sequence[str]) -> CaptionBook:
    """A book that has got all captions in reports."""
    book = CaptionBook(max_captions=2 * len(texts) + 16, recency_half_life_env_steps=200_000)
    for number, start in enumerate(range(0, len(texts), REPORT_CAPTIONS)):
        by_id = {caption_id(text): text for text in texts[start : start + REPORT_CAPTIONS]}
        book.take_report(by_id, dict.fromkeys(by_id, 1), "0.0", number, number * 4096)
    return book


@contextmanager
def services(config: ServiceConfig, rubric: str, number: int = 1) -> Iterator[tuple[list[str], list[psutil.Process]]]:
    """Addresses and processes of that many annotation services; a store of a file's name is one file each."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="delphi-benchmark-") as folder:
        started = []
        for index in range(number):
            store = f"{config.store}-{index}" if config.store not in ("", "memory") else config.store
            settings = dataclasses.replace(config, store=store)
            started.append(ServiceProcess(settings, [rubric], Path(folder, f"service-{index}.log")))
            stack.callback(started[-1].close)
        before = set(psutil.Process().children(recursive=True))
        deadline = time.monotonic() + START_LIMIT_S
        while sum(service.ensure_running() and service.is_loaded for service in started) < number:
            if time.monotonic() > deadline or any(service.problem for service in started):
                raise RuntimeError(f"no annotation service started: {[service.problem for service in started]}")
            time.sleep(0.05)
        processes = [child for child in psutil.Process().children(recursive=True) if child not in before]
        yield [service.address() for service in started], processes


def measure(
    texts: Sequence[str],
    addresses: Sequence[str],
    processes: Sequence[psutil.Process],
    rubric: Rubric,
    batch: int,
    in_flight: int = 2,
) -> Rate:
    """Label all captions, `in_flight` requests of `batch` at a time. RuntimeError where the labels stop coming."""
    config = AnnotatorConfig(batch_size=batch, max_in_flight=in_flight)
    book = filled_book(texts)
    reach = partial(AnnotationClient, rubric=rubric, timeout_s=STALL_LIMIT_S)
    connect: Any = partial(reach, addresses[0])
    if len(addresses) > 1:
        by_name = {address: address for address in addresses}
        connect = partial(ReplicatedClient, Replicas(lambda: by_name, reach))
    annotator = Annotator(connect, CaptionQuestions(book), config)
    settings = RewardModelConfig()
    trainer = RewardTrainer(RetrievalModel(settings), RewardShaping(settings, 0), book, 1)
    pipeline = AnnotationPipeline(book, trainer, annotator=annotator, config=settings)
    began, client, service = time.monotonic(), time.process_time(), _cpu_s(processes)
    try:
        pipeline.start()
        done, moved_at = 0, began
        while done < len(book):
            time.sleep(0.01)
            if annotator.num_answers > done:
                done, moved_at = annotator.num_answers, time.monotonic()
            elif time.monotonic() - moved_at > STALL_LIMIT_S:
                raise RuntimeError(f"no label for {STALL_LIMIT_S:.0f} s after {done} of {len(book)}")
        took = time.monotonic() - began
        client, service = time.process_time() - client, _cpu_s(processes) - service
    finally:
        pipeline.close()
    return Rate(labels_per_s=done / took, client_us=1e6 * client / done, service_us=1e6 * service / done)


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
