"""An annotation service whose answers can be spoilt on their way out, and a cable that can be cut; both in this
process."""

import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from configs.annotation_schema import ServiceConfig
from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge, build_judge
from llm_server.wire import annotate_response, describe_response


class SpoiltService(annotation_pb2_grpc.AnnotationServicer):
    """Judges as `debug`'s script does and lets `spoil` have each response before it goes out; None sends it as it
    is."""

    def __init__(self, rubric: Rubric) -> None:
        self.spoil: Callable[[Any], Any] | None = None
        self.num_spoilt = 0
        self.judge: Judge = build_judge(
            ServiceConfig(engine="scripted", script="kill|destroy|level|stairs=0.9", store="memory"), [rubric]
        )
        self._server = grpc.server(ThreadPoolExecutor(8))
        annotation_pb2_grpc.add_AnnotationServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Annotate(self, request: annotation_pb2.AnnotateRequest, context: Any) -> annotation_pb2.AnnotateResponse:
        said = self.judge.describe()
        response = annotate_response(
            self.judge.annotate(list(request.items)),
            list(request.items),
            rubric_hash=said.rubric_hash,
            fingerprint=said.fingerprint,
        )
        if self.spoil is not None:
            self.num_spoilt += len(request.items)
            response = self.spoil(response)
        return response

    def Describe(self, request: annotation_pb2.DescribeRequest, context: Any) -> annotation_pb2.DescribeResponse:
        return describe_response(self.judge.describe())

    def close(self) -> None:
        self._server.stop(0.5).wait()
        self.judge.close()


class Cable:
    """Carries TCP connections to `address`. `cut` breaks them and refuses new ones; `hold` lets nothing through and
    breaks nothing."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_held = self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._lock = threading.Lock()
        self._accept()

    def cut(self) -> None:
        """Break every connection; refuse new ones until `mend`."""
        with self._lock:
            # A listener that a thread is in the midst of accepting on goes on listening until it is woken.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for pair in self._pairs:
                for end in pair:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def mend(self) -> None:
        """Listen again on the same port."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self._listener = socket.create_server(("127.0.0.1", self._port))
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self._accept()

    def hold(self, is_held: bool) -> None:
        """Whether bytes wait, as they do while packets are lost."""
        self._is_held = is_held

    def close(self) -> None:
        self._is_closed = True
        self._is_held = False
        self.cut()

    def _accept(self) -> None:
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            try:
                while True:
                    for end in select.select([near, far], [], [], 0.05)[0] if not self._is_held else ():
                        chunk = end.recv(65536)
                        if not chunk:
                            return
                        (far if end is near else near).sendall(chunk)
                    if self._is_held:
                        time.sleep(0.05)
            except OSError:
                return
