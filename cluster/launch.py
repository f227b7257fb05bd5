"""Launches a run in any mode: checks what can be checked, enters the run directory, trains, and sums up.

           caption reports              judgements                  reward table (latest only)
    worker ───────────────▶ annotator ────────────▶ reward model ──────────────────────────┐
     ▲   │                      │ ▲                                                        ▼
     │   │              service (LLM)                                                   learner ──▶ checkpoints, metrics
     │   └── rollouts (FIFO, `rollouts_in_flight` per worker) ────────────────────────────▶│
     └────── policy snapshot (latest only) ◀───────────────────────────────────────────────┘

    loop          consumes                     waits for                    is unblocked by
    worker        the latest policy snapshot   the next `collect` call      the learner, which takes one of its rollouts
    learner       rollouts, the latest table   `Workers.take`               a worker that finishes `collect`
    annotator     captions not judged yet      the service, or free space   an answer or a time-out; the reward model
    reward model  judgements                   new judgements, an interval  the annotator
    driver        metric lines of the learner  the end of the learner       its end, a stop request, or a time-out

`inline` takes one turn of each loop after the other in this process; `local` and `connect` run worker, annotator with
reward model, and learner as Ray actors. The learner waits for workers only, never for the annotator or the service.

Invariant: an error in the configuration is found before anything is created; whatever happens after, the lock and the
temporary directory are released.
"""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from actors.environments.errors import EnvironmentFailure, traceback_of
from actors.environments.vector import EnvironmentSpec
from cluster.doctor.environment import weigh_penalties
from cluster.on_ray.orphans import OrphanWatch, end_orphans
from cluster.on_ray.placement import Interrupted
from cluster.plan import RunPlan
from cluster.run import temporary
from cluster.run.console import Console
from cluster.run.directory import RunDirectory, begin_epoch, open_run, record_provenance
from cluster.run.logs import log_to_file
from cluster.run.outcome import conclude
from cluster.verbs.offline_reward_model import check_judgements, pretrain
from cluster.wiring import build_pipeline, check_parts
from configs.checks import ConfigError
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)
WAIT_MESSAGE_INTERVAL_S = 10.0


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a request to stop; a second SIGINT or SIGTERM ends the process at once.

    SIGHUP never counts as the second signal: a closed terminal sends it more than once, and systemd sends it after
    SIGTERM. Where SIGHUP is ignored (nohup) it stays ignored.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self.on_request: Callable[[], None] = lambda: None
        """Called in the signal handler; must take no lock."""
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.requested = True
        self.on_request()
        with contextlib.suppress(RuntimeError):  # of a print that the signal interrupts: it is not reentrant
            self._say("stopping: writing a checkpoint (repeat to end at once)")


def launch(config: RunConfig) -> int:
    """Train as `config` says; the exit code: 0 finished or stopped on request, 1 failed.

    Raises ConfigError before anything is created."""
    console = Console(config.logging, config.total_env_steps, config.cluster.mode, max_time_s=config.max_time_s)
    try:
        spec, plan, rubric_hash = check_parts(config)
    except ConfigError as error:
        raise ConfigError(f"{error}{_keep_traceback(config, error.__cause__)}") from None
    try:
        check_judgements(plan)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    run, run_epoch = open_run(config, rubric_hash)
    try:
        sessions = temporary.ray_directory(config.run_dir)
        end_orphans(temporary.temporary_directory(config.run_dir), sessions)
        temporary.sweep(config.run_dir)
        directory = temporary.enter(config.run_dir)
        log_to_file(run.log)
        record_provenance(run, run_epoch, rubric_hash)
        word = "starts" if run_epoch == 1 else f"continues (epoch {run_epoch})"
        limit = f" or {config.max_time_s:g} s" if config.max_time_s else ""
        console.say(
            f"run {config.run_dir} {word}: {config.env.id}, reward model {config.reward_model.name},"
            f" to {config.total_env_steps:,} steps{limit}"
        )
        result = weigh_penalties(config, spec)
        if result is not None:
            console.say(f"warning: {result.found}; {result.advice}")
        for notice in spec.notices:
            LOG.warning("%s", notice)
            console.say(f"warning: {notice}")
        if config.cluster.mode == "local" and not sessions.is_relative_to(directory):
            console.say(f"{directory} is too long a path for Ray's sockets: its session lies in {sessions}")
        with StopRequest(console.say) as stop:
            pretrain(config, run, console.say, lambda: stop.requested)

            def begin_next_epoch() -> int:
                epoch = begin_epoch(run)
                record_provenance(run, epoch, rubric_hash)
                return epoch

            if config.cluster.mode == "inline":
                summary = _train_inline(plan, run, run_epoch, stop, console)
            else:
                summary = _train_on_ray(plan, spec, run, run_epoch, directory, stop, console, begin_next_epoch)
            return conclude(plan, run, summary, console, lambda: stop.requested)
    except Interrupted as stopped:
        console.close()
        print(f"delphi train: {stopped}; the same command starts or continues the run", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        console.close()
        print("delphi train: ended at once; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        LOG.exception("the run failed")
        console.close()
        advice = f"More in {run.log}; the same command continues from the last checkpoint"
        print(f"delphi train: the run failed: {error}\n{advice}", file=sys.stderr)
        return 1
    finally:
        temporary.sweep(config.run_dir)
        run.release()


def _keep_traceback(config: RunConfig, error: BaseException | None) -> str:
    """Write the traceback of the user's environment into the run's log; returns where it is, to end a message."""
    trace = traceback_of(error) if isinstance(error, EnvironmentFailure) else ""
    if not trace:
        return ""
    log = RunDirectory(Path(config.run_dir)).log
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{error}\n{trace}")
    except OSError:  # the error itself is still printed
        return ""
    return f"; its traceback is in {log}"


def _train_on_ray(
    plan: RunPlan,
    spec: EnvironmentSpec,
    run: RunDirectory,
    run_epoch: int,
    directory: Path,
    stop: StopRequest,
    console: Console,
    begin_next_epoch: Callable[[], int],
) -> dict[str, Any]:
    is_local = plan.config.cluster.mode == "local"
    token = temporary.use_private_token(directory) if is_local else None
    if token is not None:
        console.say(f"Ray asks for a token, in {token}")
    from cluster.on_ray.driver import train  # imports Ray, after the token is set

    sessions = temporary.ray_directory(plan.config.run_dir)
    with OrphanWatch(directory, sessions) if is_local else contextlib.nullcontext():
        return train(
            plan,
            spec,
            run,
            run_epoch,
            temporary=directory,
            stop_requested=lambda: stop.requested,
            say=console.say,
            on_line=console.update,
            begin_epoch=begin_next_epoch,
        )


@contextlib.contextmanager
def _report_waiting(interval_s: float, what: str, console: Console) -> Iterator[None]:
    """Say every `interval_s` that the run waits for `what`, and for how long already, while the body runs."""
    over, began = threading.Event(), time.monotonic()

    def report() -> None:
        while not over.wait(interval_s):
            console.say(f"waiting for {what}, {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=report, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _train_inline(
    plan: RunPlan, run: RunDirectory, run_epoch: int, stop: StopRequest, console: Console
) -> dict[str, Any]:
    from cluster.inline import InlineWorkers
    from cluster.loop import TrainingLoop

    config = plan.config
    waiting: contextlib.AbstractContextManager = contextlib.nullcontext()
    if plan.loads_language_model:
        what = f"the judge, which loads {config.service.model}"
        waiting = _report_waiting(WAIT_MESSAGE_INTERVAL_S, what, console)
    with waiting:
        pipeline = build_pipeline(config, run, run_epoch)
    workers = None
    try:
        workers = InlineWorkers(config, pipeline, run_epoch=run_epoch)
        loop = TrainingLoop(config, run, run_epoch, workers, pipeline)

        def on_stop() -> None:
            loop.stop()
            pipeline.interrupt()

        stop.on_request = on_stop
        if stop.requested:
            on_stop()
        return loop.run(console.update)
    finally:
        if workers is not None:
            workers.close()
        pipeline.close()
