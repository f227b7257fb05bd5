"""CPU time per label of each part of its way, each alone in this process; what remains of the whole way is gRPC,
threads and event loop.

Invariant: every part works on the same captions, in requests of the same size, and none finds an answer of a former
measurement.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.annotation_schema import ServiceConfig
from llm_server import annotation_pb2 as pb
from llm_server import wire
from llm_server.annotation import JudgedCaption, Judgement, ServiceDescription, Status
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.annotator.labels import Labels
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge
from llm_server.service.store import JudgementStore
from tests.benchmarks.label_path import SCRIPT, filled_book


def part_costs(texts: Sequence[str], rubric: Rubric, batch: int) -> dict[str, float]:
    """Microseconds per label, by part."""
    costs: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        costs[part] = 1e6 * (time.process_time() - began) / len(texts)
        return result

    book: CaptionBook = timed("client: reports into the book", lambda: filled_book(texts))
    with_judge = _judge(rubric)
    said = with_judge.describe()
    batches = timed("client: next captions of the book", lambda: _batches(book, batch, len(texts)))
    items = [[caption.text.encode() for caption in asked] for asked in batches]
    requests = timed("client: request to bytes", lambda: [_request(rubric, each) for each in items])
    read = timed("service: bytes to request", lambda: [pb.AnnotateRequest.FromString(each) for each in requests])
    try:
        answers: list[list[Judgement]] = timed(
            "service: queue and scripted engine", lambda: [with_judge.annotate(each.items) for each in read]
        )
    finally:
        with_judge.close()
    responses = timed(
        "service: response to bytes",
        lambda: [_response(one, each, said) for one, each in zip(answers, items, strict=True)],
    )
    judgements = timed(
        "client: bytes to judgements, hashes checked",
        lambda: [_judgements(one, each, rubric) for one, each in zip(responses, items, strict=True)],
    )
    labels = Labels(CaptionQuestions(book))
    timed(
        "client: labels recorded",
        lambda: [_record(labels, said, *each) for each in zip(batches, judgements, strict=True)],
    )
    with tempfile.TemporaryDirectory(prefix="delphi-benchmark-") as folder:
        store = JudgementStore(Path(folder, "judgements.sqlite"))
        key = said.fingerprint, said.rubric_hash
        store.put(*key, {b"another text": answers[0][0]})  # the judge is known
        timed("store: look-up of what is not there", lambda: [store.look_up(*key, each) for each in items])
        kept = [dict(zip(each, one, strict=True)) for each, one in zip(items, answers, strict=True)]
        timed("store: written", lambda: [store.put(*key, each) for each in kept])
        timed("store: look-up of what is there", lambda: [store.look_up(*key, each) for each in items])
        store.close()
    return costs


def tokenisation_cost(texts: Sequence[str], rubric: Rubric, model: str, batch: int) -> float:
    """Microseconds per text for the tokens of a model's prompt, `batch` texts at a time. ValueError for a model that
    cannot be loaded."""
    from llm_server.engines.models import bundled_model_folder, load_tokenizer, model_source
    from llm_server.engines.prompt_tokens import PromptTokens

    source = model_source(str(bundled_model_folder()) if model == "smollm2" else model)
    tokenizer, _, context = load_tokenizer(source, model)
    prompt = PromptTokens(tokenizer, rubric.question(), model=model, context=context)
    began = time.process_time()
    for start in range(0, len(texts), batch):
        prompt.all_tokens(texts[start : start + batch])
    return 1e6 * (time.process_time() - began) / len(texts)


def _judge(rubric: Rubric) -> Judge:
    from llm_server.service.judge import build_judge

    return build_judge(ServiceConfig(engine="scripted", script=SCRIPT, store="memory"), [rubric])


def _batches(book: CaptionBook, batch: int, number: int) -> list[Any]:
    return [book.next_batch(batch) for _ in range(0, number, batch)]


def _request(rubric: Rubric, items: Sequence[bytes]) -> bytes:
    return pb.AnnotateRequest(rubric_id=rubric.id, rubric_version=rubric.version, items=items).SerializeToString()


def _response(answers: Sequence[Judgement], items: Sequence[bytes], said: ServiceDescription) -> bytes:
    made = wire.annotate_response(answers, items, rubric_hash=said.rubric_hash, fingerprint=said.fingerprint)
    return made.SerializeToString()


def _judgements(response: bytes, items: Sequence[bytes], rubric: Rubric) -> list[Judgement]:
    return wire.judgements_of(pb.AnnotateResponse.FromString(response), items, rubric.content_hash)


def _record(labels: Labels, said: ServiceDescription, asked: Sequence[Any], judgements: Sequence[Judgement]) -> None:
    answers = [JudgedCaption(caption=one, judgement=other) for one, other in zip(asked, judgements, strict=True)]
    assert all(judgement.status is Status.OK for judgement in judgements)
    labels.record(said, answers, [])
