"""The annotation service as a child process of the run: started, probed for liveness, started again, ended.

Invariant: at most one child is alive; it ends when its parent does, however that ends, because it watches its standard input; one that
hangs is killed; watching it never raises and never waits. Only an unanswered probe counts against it, never time that passed by itself
(this process may have been stopped too): two in a row that had half the limit each. Before a service has first judged, the limit is
fifteen times as long: importing and loading block it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from configs.annotation_schema import AccessConfig, ServiceConfig
from configs.backoff import backoff_s
from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.channel import call_metadata, open_channel
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials
from llm_server.serve import ACCESS_FLAGS, ANY_ADDRESS, FLAGS
from llm_server.wire import LOADING, STARTING

INTERVALS_PER_PATIENCE = 6
LOADING_FACTOR = 15
BATCH_FACTOR = 10
"""One batch of the service's own engine may take so many times the patience."""


class LivenessProbe:
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
        self._thread = threading.Thread(target=self._watch, name="service-probe", daemon=True)
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
                busy_s = stub.Describe(
                    annotation_pb2.DescribeRequest(), timeout=timeout_s, metadata=self._metadata
                ).engine_busy_s
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


LOG = logging.getLogger(__name__)
MAX_FAILED_STARTS = 5
CONFIGURATION_ERROR = 2
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
SLOW_START_S = 10.0
TERMINATE_BUDGET_S = 3.0
STDERR_LINES = 20
WATCHED_ENGINES = ("vllm", "openai", "none")
"""Engines whose batches have deadlines of their own, or that have none."""
OWN_PROCESSES = AccessConfig()


class ServiceProcess:
    """`python -m llm_server.serve` as a child; thread-safe.

    Its output is appended to `log_path`; its address is read from a file beside it. `ensure_running` is to be called every
    second or so: it notices an exit and starts the next child after a back-off, and kills one that owes its probe an answer (see
    `ServiceConfig.hang_timeout_s`). It listens as `access` says, and `credentials` are what it wants to be shown. After `MAX_FAILED_STARTS` children without
    one answer (`served`), or one that calls its configuration wrong, none is started again: `problem` says why.
    """

    def __init__(
        self,
        config: ServiceConfig,
        rubric: str,
        log_path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        access: AccessConfig = OWN_PROCESSES,
        credentials: ClientCredentials = NO_CREDENTIALS,
    ) -> None:
        self.problem: str | None = None
        """Why it is not started any more, with its last lines; None as long as there is hope."""
        self.restarts = 0
        """Children started after the first."""
        self._log_path, self._address_path = log_path, log_path.with_suffix(".address")
        self._command = [
            *serve_command(config, rubric, access),
            "--address-file",
            str(self._address_path),
            "--exit-with-parent",
        ]
        self._config, self._credentials = config, credentials
        self._probe: LivenessProbe | None = None
        self._killed_for: str | None = None
        self._clock = clock
        self._lock = threading.RLock()
        self._child: subprocess.Popen[bytes] | None = None
        self._address: str | None = None
        self._started_at = self._start_at = clock()
        self._log_start = 0
        self._failures = 0  # in a row
        self._num_starts = 0
        self._is_slow_start_reported = False
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the living child."""
        with self._lock:
            return self._child.pid if self._child and self._child.poll() is None else None

    def address(self) -> str:
        """host:port of the child that is running now.

        Raises ServiceUnavailable while there is none, and AnnotationRefused once there will be none.
        """
        self.ensure_running()
        with self._lock:
            if self.problem is not None:
                raise AnnotationRefused(self.problem)
            if self._address is None:
                raise ServiceUnavailable(f"{STARTING} (its output: {self._log_path})")
            return self._address

    def ensure_running(self) -> bool:
        """Start or restart the child where that is due; whether one is alive and listening."""
        with self._lock:
            if self._is_closed or self.problem is not None:
                return False
            try:
                self._watch()
            except OSError as error:  # no memory to fork, no disk for the log
                self._failed(f"could not be started: {error}")
            return self._address is not None

    def served(self) -> None:
        """An answer came: what failed before is forgiven."""
        with self._lock:
            self._failures = 0
            if self._probe:
                self._probe.has_judged = True

    def _watch(self) -> None:
        exit_code = self._child.poll() if self._child else None
        if self._child and exit_code is None and self._probe and self._probe.problem:
            self._killed_for = self._killed_for or self._probe.problem
            os.killpg(self._child.pid, signal.SIGKILL)
            exit_code = self._child.poll()  # most often it has not ended yet, and is looked at again
        if self._child and exit_code is not None:
            what = f"{self._killed_for} and was killed" if self._killed_for else f"ended with exit code {exit_code}"
            self._release_child()
            self._failed(what, is_final=exit_code == CONFIGURATION_ERROR)
            self._address = None
        if self._child is None and self.problem is None and self._clock() >= self._start_at:
            self._start()
        if self._child and self._address is None:
            self._read_address()

    def _start(self) -> None:
        self._address_path.unlink(missing_ok=True)
        self._is_slow_start_reported = False
        self._started_at = self._clock()
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # whatever lies in the working directory shadows no module
            "PYTHONUNBUFFERED": "1",
        }
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: Ctrl-C is for the run, which then ends the child in its own time.
            # What nobody has waited for yet is loaded at full priority; what broke and is started again takes nothing from training.
            hurry = [] if self._num_starts or self._config.engine in WATCHED_ENGINES else ["--nice-once-ready"]
            self._child = subprocess.Popen(
                [*self._command, *hurry],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.restarts += self._num_starts > 0
        self._num_starts += 1

    def _read_address(self) -> None:
        try:
            self._address = self._address_path.read_text().strip() or None
        except FileNotFoundError:
            self._address = None
        waited_s = self._clock() - self._started_at
        if self._address is not None:
            has_own_engine = self._config.engine not in WATCHED_ENGINES
            self._probe = LivenessProbe(
                _reachable(self._address), self._credentials, self._config.hang_timeout_s, has_own_engine
            )
            LOG.info("the annotation service listens on %s after %.1f s", self._address, waited_s)
        elif waited_s > SLOW_START_S and not self._is_slow_start_reported:
            self._is_slow_start_reported = True
            LOG.info(
                "waiting for the annotation service to listen for %.0f s (its output: %s)", waited_s, self._log_path
            )

    def _failed(self, what: str, is_final: bool = False) -> None:
        self._failures += 1
        message = f"the annotation service {what}; its last lines:\n{self._last_lines()}"
        if self._failures == 1 or is_final:
            LOG.error("%s", message)
        if is_final or self._failures >= MAX_FAILED_STARTS:
            self.problem = f"{message}\nIt is not started again: correct the `service` and `annotator` keys and re-run the same command."
        self._start_at = self._clock() + backoff_s(self._failures, FIRST_BACKOFF_S, MAX_BACKOFF_S)

    def _last_lines(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(self._log_start, self._log_path.stat().st_size - 8192))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"(its log cannot be read: {error})"
        return "\n".join(lines[-STDERR_LINES:]) or "(it wrote nothing)"

    def _release_child(self) -> None:
        if self._child and self._child.stdin:
            self._child.stdin.close()
        if self._probe:
            self._probe.close()
        self._child = self._probe = self._killed_for = None

    def close(self) -> None:
        """End the child within five seconds, by force if need be; nothing is left of it but its log."""
        with self._lock:
            self._is_closed = True
            if self._child:
                self._child.terminate()
                try:
                    self._child.wait(TERMINATE_BUDGET_S)
                except subprocess.TimeoutExpired:
                    os.killpg(self._child.pid, signal.SIGKILL)
                    self._child.wait()
                self._release_child()
            self._address = None
            self._address_path.unlink(missing_ok=True)


def serve_command(config: ServiceConfig, rubric: str, access: AccessConfig = OWN_PROCESSES) -> list[str]:
    """The command line that serves `config` (this interpreter, any working directory)."""
    options = (
        {"rubric": rubric}
        | {name: getattr(config, name) for name in FLAGS}
        | {name: getattr(access, name) for name in ACCESS_FLAGS}
    )
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    # `--name=value`, so that a value may begin with a dash; empty ones keep the service's own default, save that no key is no key.
    given = (f"{name}={value}" for name, value in flags.items() if value != "" or name == "--endpoint-key-env")
    return [
        sys.executable,
        "-m",
        "llm_server.serve",
        *given,
        *["--insecure-listen-anywhere"] * access.insecure_listen_anywhere,
    ]


def _reachable(address: str) -> str:
    """Where this machine finds a service that listens on `address`."""
    host, _, port = address.rpartition(":")
    return f"{ANY_ADDRESS.get(host, host)}:{port}"
