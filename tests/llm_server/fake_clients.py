"""A judge without a model: its answer is a function of the text, and it fails, hangs or refuses on request."""

import threading
from collections.abc import Sequence

from llm_server.annotation import Judgement, ServiceDescription, Status
from llm_server.client import ServiceUnavailable


class FakeService:
    """State shared by all clients. `fail_next` errors are raised one by one; requests wait while `gate` is cleared."""

    def __init__(self) -> None:
        self.fail_next: list[Exception] = []
        self.is_down = False
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.requests: list[list[str]] = []
        self.answered: list[str] = []
        self.threshold, self.model, self.noise = 0.5, "0", 0.0
        self.connections = self.closed = self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def connect(self) -> "FakeClient":
        self.connections += 1
        return FakeClient(self)

    def fail(self) -> None:
        if self.is_down:
            raise ServiceUnavailable("connection refused")
        if self.fail_next:
            raise self.fail_next.pop(0)


class FakeClient:
    """One connection to a `FakeService`."""

    def __init__(self, service: FakeService) -> None:
        self._service = service
        self._model: str | None = None  # of the judge that described itself

    def annotate(self, items: Sequence[bytes]) -> list[Judgement]:
        service = self._service
        with service.lock:
            service.requests.append([item.decode() for item in items])
            service.under_way += 1
            service.most_under_way = max(service.most_under_way, service.under_way)
        service.arrived.release()
        try:
            service.gate.wait()
            with service.lock:
                service.fail()
                if self._model not in (None, service.model):
                    raise ServiceUnavailable("now has another judge")
                service.answered += [item.decode() for item in items]
            return [judge(item.decode()) for item in items]
        finally:
            with service.lock:
                service.under_way -= 1

    def describe(self) -> ServiceDescription:
        if self._service.is_down:
            raise ServiceUnavailable("connection refused")
        self._model = self._service.model
        return ServiceDescription(
            model="fake",
            engine="fake",
            fingerprint=self._service.model,
            rubric_id="fake",
            rubric_version="1",
            rubric_hash="0",
            pairs_hash="",
            threshold=self._service.threshold,
            max_items_per_request=1024,
            max_item_bytes=4096,
            forward_passes=0,
            noise=self._service.noise,
        )

    def take_rejected(self) -> int:
        return 0

    def close(self) -> None:
        self._service.closed += 1


def judge(text: str) -> Judgement:
    """`odd` captions are unparsed, `bad` rejected, `old` come from the store, `kill` is progress."""
    status = Status.UNPARSED if "odd" in text else Status.REJECTED if "bad" in text else Status.OK
    probability = (0.9 if "kill" in text else 0.2) if status is Status.OK else float("nan")
    return Judgement(status=status, probability=probability, answer_mass=0.5, cached="old" in text)
