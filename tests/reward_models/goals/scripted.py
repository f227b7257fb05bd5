"""A service that embeds, judges and writes by rules, for tests of goals; it is down, refuses or hangs on request."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

from llm_server.annotation import Judgement, ServiceDescription, Status, Writing
from llm_server.writing.brief import Brief
from tests.llm_server.fake_clients import FakeClient, FakeService, judge

SIZE = 64


def vector_of(text: str) -> np.ndarray:
    """[64] f32 of unit length: near for texts that share words, equal for the same words in any order."""
    sums = sum(
        (np.random.default_rng(xxh3_64_intdigest(word.encode())).normal(size=SIZE) for word in text.lower().split()),
        start=np.zeros(SIZE),
    )
    return (sums / max(float(np.linalg.norm(sums)), 1e-9)).astype(np.float32)


class Scripted(FakeService):
    """`writes`: from brief id and fields in words to the answer, "" for one that is not usable."""

    def __init__(self, writes: Callable[[str, Mapping[str, str]], str] = lambda brief, fields: "") -> None:
        super().__init__()
        self.writes = writes
        self.written: list[tuple[str, dict[str, str], int]] = []
        self.embedded: list[str] = []
        self.abouts: list[tuple[str, str]] = []
        self.hangs = threading.Event()

    def connect(self) -> "ScriptedClient":
        self.fail()
        self.connections += 1
        return ScriptedClient(self)


class ScriptedClient(FakeClient):
    """A goal achieves, or is sensible in, what shares a word with it."""

    def __init__(self, service: Scripted) -> None:
        super().__init__(service)
        self._scripted = service

    def embed(self, items: Sequence[bytes]) -> np.ndarray:
        self._scripted.fail()
        texts = [item.decode() for item in items]
        self._scripted.embedded += texts
        return np.stack([vector_of(text) for text in texts])

    def annotate(self, items: Sequence[bytes], *, abouts: Sequence[bytes] = ()) -> list[Judgement]:
        self._scripted.fail()
        if not abouts:
            return [judge(item.decode()) for item in items]
        pairs = [(item.decode(), about.decode()) for item, about in zip(items, abouts, strict=True)]
        self._scripted.abouts += pairs
        shared = [bool(set(item.split()) & set(about.split())) for item, about in pairs]
        return [Judgement(status=Status.OK, probability=0.9 if is_one else 0.1, answer_mass=1.0) for is_one in shared]

    def write(self, brief: Brief, fields: Mapping[str, bytes], num: int, seed: int) -> list[Writing]:
        self._scripted.gate.wait()
        self._scripted.fail()
        assert num == 1
        brief.check(fields, 4096)
        given = {name: value.decode() for name, value in fields.items()}
        self._scripted.written.append((brief.id, given, seed))
        text = self._scripted.writes(brief.id, given)
        return [Writing(status=Status.OK if text else Status.UNPARSED, text=text, tokens=9)]

    def describe(self) -> ServiceDescription:
        return super().describe()
