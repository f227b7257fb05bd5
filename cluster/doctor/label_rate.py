"""How `delphi doctor` measures labels per second: it asks the service that a run would start for a few seconds.

Invariant: nothing is downloaded, the judgement store is neither read nor written, nothing is left behind, and it ends
in time whatever the model does.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cluster.doctor.result import CheckResult, ok, warning
from cluster.doctor.subject import Subject
from configs.errors import one_line
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable
from llm_server.engines.model_check import check_model
from llm_server.engines.models import readable_model_folder
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric
from llm_server.service.child import ServiceProcess

NAME = "labels"
START_LIMIT_S = 120.0
ASK_S = 5.0
REQUEST_TIMEOUT_S = 30.0
FEW_LABELS_PER_S = 2.0
"""The main job needs about 4 a second for its new messages; below that the most frequent are asked first."""


def check_label_rate(subject: Subject) -> CheckResult:
    """Seconds to the first label and labels per second; not measured where the run starts no model of its own."""
    service = subject.plan.service
    if not subject.plan.loads_language_model:
        return ok(NAME, "not measured: no language model is loaded here")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            model = str(stack.enter_context(readable_model_folder())) if service.model == "smollm2" else service.model
            settings = replace(service, model=model, store="memory", host="127.0.0.1", port=0)
            rubric = load_rubric(subject.config.annotator.rubric)
            check_model(settings, rubric)
        except ValueError:  # reported by the check of the judge
            return ok(NAME, "not measured: the judge has to be put right first")
        process = ServiceProcess(settings, subject.config.annotator.rubric, Path(folder) / "service.log")
        try:
            return _measure(process, rubric, subject)
        except (AnnotationRefused, ServiceUnavailable) as error:
            found = f"the judge gave no label ({one_line(error, 100_000)[-300:]})"
            return warning(NAME, found, "correct the service.* keys, or give it a quieter machine")
        finally:
            process.close()


def _measure(process: ServiceProcess, rubric: Rubric, subject: Subject) -> CheckResult:
    batch_size, model = subject.config.annotator.batch_size, subject.plan.service.model
    texts = rubric.calibration.items + rubric.calibration.positives + tuple(example.item for example in rubric.examples)
    items = list(dict.fromkeys(text.encode() for text in texts))
    began = time.monotonic()
    client = _connected(process, rubric, lambda: time.monotonic() - began < START_LIMIT_S)
    try:
        client.annotate(items[:1], bypass_store=True)
        first_s = time.monotonic() - began
        number, at, asked_at = 0, 0, time.monotonic()
        while (seconds := time.monotonic() - asked_at) < ASK_S or not number:
            batch = items[at : at + batch_size]
            number += len(client.annotate(batch, bypass_store=True))
            at = (at + batch_size) % len(items) if at + batch_size < len(items) else 0
        engine = client.describe().engine
    finally:
        client.close()
    rate = number / seconds
    threads = subject.plan.service.torch_threads
    by = f" by {threads} thread{'s' * (threads > 1)}" if threads else ""
    found = f"{model} ({engine}): {rate:.1f} labels/s{by}, the first {first_s:.0f} s after the start"
    if rate < FEW_LABELS_PER_S:
        return warning(NAME, found, "take a smaller service.model, more service.torch_threads, a GPU, or an endpoint")
    return ok(NAME, found)


def _connected(process: ServiceProcess, rubric: Rubric, may_wait: Callable[[], bool]) -> AnnotationClient:
    """A client of the service once it answers. Raises the error of the last attempt when `may_wait` returns False."""
    while True:
        try:
            client = AnnotationClient(process.address(), rubric, REQUEST_TIMEOUT_S)
            try:
                client.describe()
                return client
            except BaseException:
                client.close()
                raise
        except ServiceUnavailable:
            if not may_wait():
                raise
            time.sleep(0.2)
