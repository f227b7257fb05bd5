"""How `delphi doctor` measures labels per second: it asks the service that a run would start for a few seconds.

Invariant: nothing is downloaded, the judgement store is neither read nor written, nothing is left behind, and it ends
in time whatever the model does.
"""

import itertools
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import tenacity

from cluster.doctor.result import CheckResult, ok, warning
from cluster.doctor.subject import Subject
from configs.errors import one_line
from llm_server.client import AnnotationClient, AnnotationError, ServiceUnavailable
from llm_server.engines.models import readable_model_folder
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric, item_and_about
from llm_server.service.child import ServiceProcess

START_LIMIT_S = 120.0
ASK_S = 5.0
REQUEST_TIMEOUT_S = 30.0
FEW_LABELS_PER_S = 2.0
"""The main job needs about 4 a second for its new messages; below that the most frequent are asked first."""


def check_label_rate(subject: Subject) -> CheckResult:
    """Seconds to the first label and labels per second; not measured where the run starts no model of its own."""
    if not subject.plan.loads_language_model:
        return ok("not measured: no language model is loaded here")
    try:
        subject.models  # noqa: B018 (asked for its error)
    except ValueError:  # reported by the check of the judge
        return ok("not measured: the judge has to be put right first")
    if not any(term.judges for term in subject.plan.asking.values()):
        return ok("not measured: the language model labels nothing, it writes goals or is asked about them")
    service = replace(subject.plan.service, store="memory", host="127.0.0.1", port=0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if service.model == "smollm2":
            service = replace(service, model=str(stack.enter_context(readable_model_folder())))
        process = ServiceProcess(service, subject.plan.rubrics, Path(folder) / "service.log")
        stack.callback(process.close)
        try:
            return _measure(process, subject)
        except AnnotationError as error:
            found = f"the judge gave no label ({one_line(error, 100_000)[-300:]})"
            return warning(found, "correct the service.* keys, or give it a quieter machine")


def _measure(process: ServiceProcess, subject: Subject) -> CheckResult:
    term = next(term for term in subject.plan.asking.values() if term.judges)
    rubric, service, size = load_rubric(term.rubric), subject.plan.service, subject.config.annotator.batch_size
    shown = (*rubric.calibration.items, *rubric.calibration.positives, *rubric.examples)
    items = list(dict.fromkeys(item_and_about(each)[0].encode() for each in shown))
    batches = itertools.cycle(items[start : start + size] for start in range(0, len(items), size))
    patiently = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ServiceUnavailable),
        stop=tenacity.stop_after_delay(START_LIMIT_S),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )
    began = time.monotonic()
    with closing(patiently(_connect, process, rubric, term.any_about)) as client:
        client.annotate(items[:1], bypass_store=True)
        first_s = time.monotonic() - began
        number, asked_at = 0, time.monotonic()
        while (seconds := time.monotonic() - asked_at) < ASK_S or not number:
            number += len(client.annotate(next(batches), bypass_store=True))
        engine = client.describe().engine
    rate, threads = number / seconds, service.torch_threads
    by = f" by {threads} thread{'s' * (threads > 1)}" if threads else ""
    found = f"{service.model} ({engine}): {rate:.1f} labels/s{by}, the first {first_s:.0f} s after the start"
    if rate < FEW_LABELS_PER_S:
        return warning(found, "take a smaller service.model, more service.torch_threads, a GPU, or an endpoint")
    return ok(found)


def _connect(process: ServiceProcess, rubric: Rubric, about: str) -> AnnotationClient:
    """A client of the service, which answers. Raises ServiceUnavailable while it starts or loads its model."""
    with ExitStack() as on_error:
        client = AnnotationClient(process.address(), rubric, REQUEST_TIMEOUT_S, about=about)
        on_error.enter_context(closing(client))
        client.describe()
        on_error.pop_all()
    return client
