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
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.environments.errors import EnvironmentFailure, traceback_of
from cluster.doctor.environment import weigh_penalties
from cluster.on_ray.orphans import OrphanWatch
from cluster.on_ray.placement import Interrupted
from cluster.report.reward_files import write_at_end
from cluster.run import temporary
from cluster.run.console import Console
from cluster.run.directory import RunDirectory, open_run, record_provenance
from cluster.run.logs import log_to_file
from cluster.run.outcome import conclude
from cluster.run.session import RunSession, StopRequest
from cluster.trackers.backends import check_trackers
from cluster.trackers.tracking import tracked
from cluster.verbs.offline_reward_model import check_judgements, pretrain
from cluster.wiring import build_pipeline, check_parts
from configs.checks import ConfigError
from configs.schema import RunConfig

LOG = logging.getLogger(__name__)
WAIT_MESSAGE_INTERVAL_S = 10.0


def launch(config: RunConfig) -> int:
    """Train as `config` says; the exit code: 0 finished or stopped on request, 1 failed.

    Raises ConfigError before anything is created."""
    console = Console(config.logging, config.total_env_steps, config.cluster.mode, max_time_s=config.max_time_s)
    try:
        spec, plan, rubric_hash = check_parts(config)
        check_judgements(plan)
        check_trackers(config.logging.trackers)
    except ValueError as error:
        raise ConfigError(f"{error}{_keep_traceback(config, error.__cause__)}") from None
    irrelevant = () if spec.has_small_bounds else ("env.stretch_bounds",)
    run, run_epoch = open_run(config, rubric_hash, irrelevant=irrelevant)
    try:
        directory, sessions = temporary.begin(config.run_dir)
        log_to_file(run.log)
        record_provenance(run, run_epoch, rubric_hash)
        word = "starts" if run_epoch == 1 else f"continues (epoch {run_epoch})"
        limit = f" or {config.max_time_s:g} s" if config.max_time_s else ""
        terms = f", further terms {', '.join(config.terms)}" if config.terms else ""
        console.say(
            f"run {config.run_dir} {word}: {config.env.id}, reward model {config.reward_model.name}{terms},"
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
        with contextlib.closing(console), StopRequest(console.say) as stop:
            session = RunSession(
                plan=plan,
                spec=spec,
                rubric_hash=rubric_hash,
                run=run,
                epoch=run_epoch,
                temporary=directory,
                console=console,
                stop=stop,
            )
            with tracked(config, run, console.say) as tracking:
                pretrain(plan, run, console.say, session.stop_requested)
                if config.cluster.mode == "inline":
                    summary = train_inline(session)
                else:
                    with _own_cluster(session):
                        from cluster.on_ray.driver import train_on_ray  # imports Ray, after the token is set

                        summary = train_on_ray(session)
                tracking.outcome = "finished" if summary["finished"] else "stopped"
                code = conclude(session, summary)
                write_at_end(run.path)
                return code
    except Interrupted as stopped:
        print(f"delphi train: {stopped}; the same command starts or continues the run", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("delphi train: ended at once; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        LOG.exception("the run failed")
        advice = f"More in {run.log}; the same command continues from the last checkpoint"
        print(f"delphi train: the run failed: {error}\n{advice}", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(OSError):  # no folder for temporary files can be written
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
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{error}\n{trace}")
    except OSError:  # the error itself is still printed
        return ""
    return f"; its traceback is in {log}"


@contextlib.contextmanager
def _own_cluster(session: RunSession) -> Iterator[None]:
    """In `local`: a token that protects the run's cluster, and a watch that ends the cluster with this process."""
    if session.config.cluster.mode != "local":
        yield
        return
    token = temporary.use_private_token(session.temporary)
    if token is not None:
        session.console.say(f"Ray asks for a token, in {token}")
    with OrphanWatch(session.temporary, temporary.ray_directory(session.config.run_dir)):
        yield


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


def train_inline(session: RunSession) -> dict[str, Any]:
    """Train in this process, one turn of each component after the other; the summary."""
    from cluster.inline import InlineWorkers
    from cluster.loop import TrainingLoop

    config, run, epoch, stop = session.config, session.run, session.epoch, session.stop
    with contextlib.ExitStack() as while_loading:
        if session.plan.loads_language_model:
            what = f"the judge, which loads {config.service.model}"
            while_loading.enter_context(_report_waiting(WAIT_MESSAGE_INTERVAL_S, what, session.console))
        pipeline = build_pipeline(config, run, epoch)
    with (
        contextlib.closing(pipeline),
        contextlib.closing(InlineWorkers(config, pipeline, run_epoch=epoch)) as workers,
    ):
        loop = TrainingLoop(config, run, epoch, workers, pipeline)

        def on_stop() -> None:
            loop.stop()
            pipeline.interrupt()

        stop.on_request = on_stop
        if stop.requested:
            on_stop()
        return loop.run(session.console.update)
