"""`Canary`: asks a service again and again whether it is alive, and says when it is not.

Invariant: only an unanswered question counts, never time that passed by itself (this process may have been stopped too): two in a row
that had half the patience each. Before a service has first judged it may take fifteen times as long: importing and loading block it.
"""

import threading
import time
from collections.abc import Callable

import grpc

from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.channel import call_metadata, open_channel
from llm_server.credentials import ClientCredentials
from llm_server.wire import LOADING

INTERVALS_PER_PATIENCE = 6
LOADING_FACTOR = 15
BATCH_FACTOR = 10
"""One batch of the service's own engine may take so many times the patience."""


class Canary:
    """Watches the service at `address` in a thread of its own until `close`.

    It is asked `Describe`, which waits for no model and takes a millisecond; any status of the service's own is an answer. With
    `watches_engine` the time that its engine has spent on one batch counts as well.
    """

    def __init__(
        self,
        address: str,
        credentials: ClientCredentials,
        patience_s: float,
        watches_engine: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why the service is taken to hang."""
        self.has_judged = False
        """Whether its judge is there."""
        self._patience_s, self._watches_engine, self._clock = patience_s, watches_engine, clock
        self._closed = threading.Event()
        self._channel = open_channel(address, credentials)
        self._metadata = call_metadata(credentials)
        self._thread = threading.Thread(target=self._watch, name="service-canary", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more; waits for nothing."""
        self._closed.set()
        self._channel.close()

    def _watch(self) -> None:
        stub = annotation_pb2_grpc.AnnotationStub(self._channel)
        unanswered, heard_at = 0, self._clock()
        while not self._closed.wait(self._patience_s / INTERVALS_PER_PATIENCE):
            try:
                timeout_s = self._patience_s / 2
                busy_s = stub.Describe(annotation_pb2.DescribeRequest(), timeout=timeout_s, metadata=self._metadata).engine_busy_s
            except grpc.RpcError as error:
                unanswered = unanswered + 1 if _is_silence(error) else 0
            except ValueError:  # the channel was closed
                return
            else:
                unanswered, self.has_judged = 0, True
                if self._watches_engine and busy_s > BATCH_FACTOR * self._patience_s:
                    self.problem = f"has been at one batch for {busy_s:.0f} s"
                    return
            patience_s = self._patience_s * (1 if self.has_judged else LOADING_FACTOR)
            if not unanswered:
                heard_at = self._clock()
            elif unanswered >= 2 and self._clock() - heard_at >= patience_s and not self._closed.is_set():
                self.problem = f"has given no sign of life for {self._clock() - heard_at:.0f} s"
                return


def _is_silence(error: grpc.RpcError) -> bool:
    """Whether the connection failed or the deadline passed, rather than the service giving a status of its own."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return LOADING not in (error.details() or "")
    return error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
