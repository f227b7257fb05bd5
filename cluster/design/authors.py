"""Who writes the programs of a campaign: a language model behind the annotation service, or a file of programs.

Invariant: what an author writes is data. An author that cannot write is refused before the campaign begins.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from cluster.design.plan import Stopped
from cluster.judge import check_writer, service_credentials
from configs.checks import ConfigError
from configs.schema import RunConfig
from llm_server.annotation import Status, Writing
from llm_server.client import AnnotationClient, AnnotationRefused, InProcessClient, ServiceUnavailable
from llm_server.credentials import NO_CREDENTIALS
from llm_server.engines.building import check_engine
from llm_server.replicas import split_addresses
from llm_server.rubrics.loading import load_rubric
from llm_server.service.judge import build_judge
from llm_server.writing.loading import load_brief

PATIENCE_S = 600.0
"""How long a service that does not answer is asked again."""
PAUSE_S = 2.0
POLL_S = 0.2
WRITING_TIMEOUT_S = 300.0

T = TypeVar("T")
Fields: TypeAlias = Callable[[], Mapping[str, str]]
"""Called by authors that read what they are asked."""


class Author(Protocol):
    """Writes by briefs."""

    def write(self, brief: str, fields: Fields, seed: int, number: int) -> Writing | None:
        """What is written by `brief` about what `fields` gives; `number` counts the programs of the campaign from 0.
        None where there is nothing more. Raises ConfigError where the author refuses, RuntimeError where it does not
        answer, Stopped."""


class Pool:
    """Programs from a file of JSON lines, in their order, or in a random one by `seed`. ConfigError where it has none,
    or a line is not of the form."""

    def __init__(self, file: Path, seed: int | None = None) -> None:
        try:
            lines = file.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--programs: {file} cannot be read ({error}); give a file of JSON lines") from None
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self.texts = [_text(file, number, line) for number, line in numbered]
        if not self.texts:
            raise ConfigError(f'--programs: {file} has no line, wanted at least one {{"text": PROGRAM}}')
        if seed is not None:
            self.texts = [self.texts[place] for place in np.random.default_rng(seed).permutation(len(self.texts))]

    def write(self, brief: str, fields: Fields, seed: int, number: int) -> Writing | None:
        """See `Author`; what is asked plays no role."""
        return Writing(status=Status.OK, text=self.texts[number], tokens=0) if number < len(self.texts) else None


class ServiceAuthor:
    """The language model that `client` reaches; `is_stopped` ends its patience, and a writing under way."""

    def __init__(
        self, client: AnnotationClient | InProcessClient, say: Callable[[str], None], is_stopped: Callable[[], bool]
    ) -> None:
        self._client, self._say, self._is_stopped = client, say, is_stopped
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="author")

    def check(self) -> None:
        """ConfigError for a service that cannot write."""
        if not self._asked(lambda: self._client.describe().writes):
            raise ConfigError(
                "the annotation service cannot write: start one with a language model (service.engine), for the engine"
                " scripted with service.script_writings, or give --programs FILE"
            )

    def write(self, brief: str, fields: Fields, seed: int, number: int) -> Writing | None:
        """See `Author`."""
        self._say(f"the writer writes ({brief})")
        given = {name: text.encode() for name, text in fields().items() if text}
        return self._asked(lambda: self._client.write(load_brief(brief), given, 1, seed)[0])

    def close(self) -> None:
        """Ask nothing more; what is asked now ends with the client."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _asked(self, ask: Callable[[], T]) -> T:
        deadline, has_said = time.monotonic() + PATIENCE_S, False
        while True:
            future = self._thread.submit(ask)
            while not wait([future], POLL_S).done:
                if self._is_stopped():
                    raise Stopped
            try:
                return future.result()
            except AnnotationRefused as error:
                raise ConfigError(f"the writer refuses: {error}") from None
            except ServiceUnavailable as error:
                if self._is_stopped():
                    raise Stopped from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the writer does not answer: {error}") from None
                if not has_said:
                    self._say(f"waiting for the writer ({error})")
                has_said = True
            time.sleep(PAUSE_S)


@contextlib.contextmanager
def service_author(
    config: RunConfig, say: Callable[[str], None], is_stopped: Callable[[], bool]
) -> Iterator[ServiceAuthor]:
    """The author at `writer.address`, else at the first of `annotator.address`, else a model loaded in this process as
    `service` says. Raises ConfigError where it cannot write."""
    try:
        rubric, access = load_rubric(config.annotator.rubric), config.annotator
        shown = service_credentials(access) if access.address else NO_CREDENTIALS
        check_writer(config.writer, shown)
        address = config.writer.address or next(iter(split_addresses(access.address)), "")
        if address:
            timeout_s = max(access.request_timeout_s, WRITING_TIMEOUT_S)
            client: AnnotationClient | InProcessClient = AnnotationClient(address, rubric, timeout_s, shown)
        else:
            check_engine(config.service)
            say(f"loading the writer: {config.service.engine}")
            judge = build_judge(config.service, [rubric])
            client = InProcessClient(judge, rubric)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    author = ServiceAuthor(client, say, is_stopped)
    try:
        author.check()
        yield author
    finally:
        author.close()
        client.close() if address else judge.close()


def _text(file: Path, number: int, line: str) -> str:
    try:
        match json.loads(line):
            case {"text": str(text)}:
                return text
    except (ValueError, RecursionError):
        pass
    raise ConfigError(f'--programs: line {number} of {file} is not of the form {{"text": PROGRAM}}: got {line[:80]!r}')
