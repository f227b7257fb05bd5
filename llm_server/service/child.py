"""The annotation service as a child process of the run: started, probed for liveness, restarted, ended.

Invariant: a service that hangs is killed. Only unanswered probes count as a hang, never elapsed time alone (this
process may have been stopped too): two in a row, each with half the time limit. Before a service has first judged, the
limit is fifteen times as long, because importing and loading block it.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import grpc

from configs.annotation_schema import AccessConfig, ServiceConfig
from llm_server import annotation_pb2, annotation_pb2_grpc
from llm_server.channel import call_metadata, open_channel
from llm_server.child_process import Child, ChildProcess, ChildSettings, ChildState, start_process_group
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials
from llm_server.serve import ACCESS_FLAGS, ANY_ADDRESS, FLAGS
from llm_server.wire import LOADING, STARTING

LOG = logging.getLogger(__name__)
PROBES_PER_TIMEOUT = 6
LOADING_FACTOR = 15
BATCH_FACTOR = 10
"""One batch of the service's own engine may take this many times `hang_timeout_s`."""
MAX_FAILED_STARTS = 5
SUPERVISION = ChildSettings(
    name="the annotation service",
    max_backoff_s=30.0,
    stable_s=math.inf,  # only an answer resets the count of failures
    max_failures=MAX_FAILED_STARTS,
    is_proven_by_first=False,
    final_exit_codes=(2,),  # a configuration error
    advice="\nIt is not started again: correct the `service` and `annotator` keys and re-run the same command.",
    end_budget_s=3.0,
)
SLOW_START_S = 10.0
OUTPUT_LINES = 20
URGENT_STARTS = 2
"""So many load at full priority: nothing can be judged before. Of a service that dies again and again, the others take
no time from training."""
WATCHED_ENGINES = ("vllm", "openai", "none")
"""Engines whose batches have deadlines of their own, or that have no batches."""
LOOPBACK_ACCESS = AccessConfig()


class LivenessProbe:
    """Probes the service at `address` in its own thread until `close`.

    Each probe is a `Describe` call, which waits for no model and takes a millisecond; any status that the service
    itself returns is an answer. With `watches_engine` the time that its engine has spent on one batch counts as well.
    """

    def __init__(
        self,
        address: str,
        credentials: ClientCredentials,
        hang_timeout_s: float,
        watches_engine: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem: str | None = None
        """Why the service counts as hung."""
        self.has_judged = False
        """Whether its judge is loaded."""
        self._hang_timeout_s, self._watches_engine, self._clock = hang_timeout_s, watches_engine, clock
        self._closed = threading.Event()
        self._channel = open_channel(address, credentials)
        self._metadata = call_metadata(credentials)
        self._thread = threading.Thread(target=self._watch, name="service-probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop probing, without waiting for the thread."""
        self._closed.set()
        self._channel.close()

    def _watch(self) -> None:
        stub = annotation_pb2_grpc.AnnotationStub(self._channel)
        request, timeout_s = annotation_pb2.DescribeRequest(), self._hang_timeout_s / 2
        unanswered, heard_at = 0, self._clock()
        while not self._closed.wait(self._hang_timeout_s / PROBES_PER_TIMEOUT):
            try:
                busy_s = stub.Describe(request, timeout=timeout_s, metadata=self._metadata).engine_busy_s
            except grpc.RpcError as error:
                unanswered = unanswered + 1 if _is_silence(error) else 0
            except ValueError:  # the channel was closed
                return
            else:
                unanswered, self.has_judged = 0, True
                if self._watches_engine and busy_s > BATCH_FACTOR * self._hang_timeout_s:
                    self.problem = f"has been at one batch for {busy_s:.0f} s"
                    return
            limit_s = self._hang_timeout_s * (1 if self.has_judged else LOADING_FACTOR)
            if not unanswered:
                heard_at = self._clock()
            elif unanswered >= 2 and self._clock() - heard_at >= limit_s and not self._closed.is_set():
                self.problem = f"has answered no liveness probe for {self._clock() - heard_at:.0f} s"
                return


def _is_silence(error: grpc.RpcError) -> bool:
    """Whether the connection failed or the deadline passed, as opposed to a status that the service returned."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return LOADING not in (error.details() or "")
    return error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class ServiceProcess(ChildProcess):
    """`python -m llm_server.serve` under `rubrics` (names or files) as a child; thread-safe.

    Its output is appended to `log_path`; its address is read from a file beside it. `ensure_running` is to be called
    about every second; it also kills a child that fails its liveness probe (see `ServiceConfig.hang_timeout_s`). It
    listens as `access` says, and clients show it `credentials`. After `MAX_FAILED_STARTS` children without one answer
    (`served`), or one that reports a configuration error, none is started again: `problem` says why.
    """

    def __init__(
        self,
        config: ServiceConfig,
        rubrics: Sequence[str],
        log_path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        access: AccessConfig = LOOPBACK_ACCESS,
        credentials: ClientCredentials = NO_CREDENTIALS,
    ) -> None:
        super().__init__(SUPERVISION, clock)
        self._log_path, self._address_path = log_path, log_path.with_suffix(".address")
        command = serve_command(config, rubrics, access)
        self._command = [*command, "--address-file", str(self._address_path), "--exit-with-parent"]
        self._config, self._credentials = config, credentials
        self._probe: LivenessProbe | None = None
        self._address = ""
        self._log_start = 0
        self._is_slow_start_reported = False

    @property
    def is_loaded(self) -> bool:
        """Whether the running child has loaded its judge, as its answers to the liveness probe say."""
        return (probe := self._probe) is not None and probe.has_judged

    def address(self) -> str:
        """host:port of the running child.

        Raises ServiceUnavailable while none listens, and AnnotationRefused once none is started any more.
        """
        with self._changed:
            if self.ensure_running():
                return self._address
            if self.problem is not None:
                raise AnnotationRefused(self.problem)
            raise ServiceUnavailable(f"{STARTING} (its output: {self._log_path})")

    def ensure_running(self) -> bool:
        """Start or restart the child where that is due; whether one is alive and listening."""
        return self.poll() is ChildState.UP

    def served(self) -> None:
        """Note that an answer came, which resets the count of failures."""
        with self._changed:
            self._failures = 0
            if self._probe:
                self._probe.has_judged = True

    def _start(self) -> Child:
        self._address_path.unlink(missing_ok=True)
        self._is_slow_start_reported = False
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",  # nothing in the working directory shadows a module
        }
        is_urgent = self._num_starts < URGENT_STARTS and self._config.engine not in WATCHED_ENGINES
        priority = ["--nice-once-ready"] if is_urgent else []
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            return start_process_group([*self._command, *priority], log, environment)

    def _watch(self) -> None:
        if self._probe and self._probe.problem:
            self._condemn(f"{self._probe.problem} and was killed{self._last_words()}", 0.0)
        if self.state is not ChildState.STARTING:
            return
        with suppress(FileNotFoundError):
            self._address = self._address_path.read_text().strip()
        waited_s = self._clock() - self._started_at
        if self._address:
            host, _, port = self._address.rpartition(":")
            self._probe = LivenessProbe(
                f"{ANY_ADDRESS.get(host, host)}:{port}",
                self._credentials,
                self._config.hang_timeout_s,
                watches_engine=self._config.engine not in WATCHED_ENGINES,
            )
            LOG.info("the annotation service listens on %s after %.1f s", self._address, waited_s)
            self._now_up()
        elif waited_s > SLOW_START_S and not self._is_slow_start_reported:
            self._is_slow_start_reported = True
            LOG.info(
                "waiting for the annotation service to listen for %.0f s (its output: %s)", waited_s, self._log_path
            )

    def _last_words(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(self._log_start, self._log_path.stat().st_size - 8192))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            lines = [f"(its log cannot be read: {error})"]
        tail = "\n".join(lines[-OUTPUT_LINES:]) or "(it wrote nothing)"
        return f"; the last lines of its output:\n{tail}"

    def _release(self) -> None:
        probe, self._probe, self._address = self._probe, None, ""
        if probe:
            probe.close()
        with suppress(OSError):  # one that stays is deleted by the next start
            self._address_path.unlink()


def serve_command(config: ServiceConfig, rubrics: Sequence[str], access: AccessConfig = LOOPBACK_ACCESS) -> list[str]:
    """The command line that serves `config` under `rubrics` (this interpreter, any working directory)."""
    values = {name: getattr(config, name) for name in FLAGS} | {name: getattr(access, name) for name in ACCESS_FLAGS}
    # `--name=value`, so that a value may begin with a dash. An empty value keeps the service's default, except that an
    # empty `endpoint_key_env` means that no key is sent.
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in values.items()
        if value != "" or name == "endpoint_key_env"
    ]
    anywhere = ["--insecure-listen-anywhere"] * access.insecure_listen_anywhere
    named = [f"--rubric={rubric}" for rubric in rubrics]
    return [sys.executable, "-m", "llm_server.serve", *named, *flags, *anywhere]
