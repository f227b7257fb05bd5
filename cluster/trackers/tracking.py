"""The experiment trackers of a run (`logging.trackers`): a child process for each, beside the driver, which follows
metrics.jsonl.

    driver ──the job, then the outcome──▶ child ◀── metrics.jsonl ◀── learner
           ◀──run id, env_steps told──         ──▶ W&B, MLflow, Trackio ...

The driver is the process that the user started, so WANDB_*, MLFLOW_* and logins are those of the user in every mode;
the learner, wherever it runs, knows nothing of trackers.

Invariant: nothing here waits for a tracker before the run has ended, and then at most `logging.tracker_deadline_s`. A
tracker that fails is reported once and left out; trackers.json holds each one's run id and the step up to which it has
the metric lines, with which the next start goes on.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.on_ray.placement import Interrupted
from cluster.run.directory import RunDirectory, write_atomically
from cluster.trackers.backends import FAILURE, TrackedRun
from cluster.trackers.child import as_job
from configs.loading import to_dict
from configs.schema import RunConfig
from llm_server.child_process import own_search_path, start_process_group

LOG = logging.getLogger(__name__)
MODULE = "cluster.trackers.child"
SAY_INTERVAL_S = 10.0


class Tracking:
    """The trackers of one start of a run; `outcome` is what they are told at its end."""

    def __init__(self, config: RunConfig, run: RunDirectory, say: Callable[[str], None]) -> None:
        self.outcome = FAILURE
        self._file, self._say = run.trackers, say
        self._known, self._lock, self._is_closed = self._read(), threading.Lock(), False
        self._children = {}
        for name in config.logging.trackers:
            try:
                self._children[name] = self._start(name, config, run)
            except OSError as error:  # the machine has no room for a process
                self._report(name, str(error))

    def close(self, deadline_s: float) -> None:
        """Tell the outcome, wait for the trackers until the deadline, and end those that are not done."""
        try:
            for child, _ in self._children.values():
                with contextlib.suppress(OSError):  # it has ended, and that was reported
                    assert child.stdin is not None
                    child.stdin.write(json.dumps({"outcome": self.outcome}).encode() + b"\n")
                    child.stdin.flush()
            self._wait(deadline_s)
        finally:
            self._is_closed = True
            for name, (child, reader) in self._children.items():
                if child.poll() is None:
                    within = f"within {deadline_s:g} s (logging.tracker_deadline_s)"
                    self._report(name, f"did not take everything {within}; the same command later delivers the rest")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                with contextlib.suppress(OSError):  # what it did not read
                    assert child.stdin is not None
                    child.stdin.close()
                reader.join()

    def _wait(self, deadline_s: float) -> None:
        began = told = time.monotonic()
        while running := [name for name, (child, _) in self._children.items() if child.poll() is None]:
            now = time.monotonic()
            if now - began > deadline_s:
                return
            if now - told > SAY_INTERVAL_S:
                self._say(f"waiting for {', '.join(running)}, {now - began:.0f} s")
                told = now
            time.sleep(0.05)

    def _start(
        self, name: str, config: RunConfig, run: RunDirectory
    ) -> tuple["subprocess.Popen[bytes]", threading.Thread]:
        settings, known = config.logging, self._known.get(name, {})
        job = TrackedRun(
            name=settings.tracker_run_name or run.path.name,
            run_dir=str(run.path),
            config=to_dict(config),
            project=settings.tracker_project,
            tags=[config.env.id, config.reward_model.name, *settings.tracker_tags],
            run_id=known.get("run_id"),
            env_steps=known.get("env_steps", -1),
        )
        child = start_process_group([sys.executable, "-m", MODULE], subprocess.PIPE, own_search_path())
        with contextlib.suppress(OSError):  # its end is reported by the thread
            assert child.stdin is not None
            child.stdin.write(as_job(name, job).encode())
            child.stdin.flush()
        reader = threading.Thread(target=self._follow, args=(name, child), name=f"tracker-{name}", daemon=True)
        reader.start()
        return child, reader

    def _follow(self, name: str, child: "subprocess.Popen[bytes]") -> None:
        """Note what the child tells until it ends."""
        assert child.stdout is not None
        problem = last = ""
        with child.stdout as messages:
            for raw in messages:
                try:
                    message = dict(json.loads(raw))
                except (ValueError, TypeError):  # a traceback from before the child took its pipe
                    last = raw.decode(errors="replace").strip() or last
                    continue
                problem = message.get("problem", "")
                if "place" in message:
                    self._say(f"tracker {name}: {message['place']}")
                if "run_id" in message:
                    self._note(name, message["run_id"], message["env_steps"])
        code = child.wait()
        if code > 0:
            self._report(name, problem or last or f"its process ended with exit code {code}")
        elif code < 0 and not self._is_closed:
            self._report(name, f"its process was ended by signal {-code}")

    def _report(self, name: str, what: str) -> None:
        LOG.warning("tracker %s is left out: %s", name, what)
        self._say(f"tracker {name} is left out, the run goes on: {what}")

    def _note(self, name: str, run_id: str, env_steps: int) -> None:
        with self._lock:
            self._known[name] = {"run_id": run_id, "env_steps": env_steps}
            with contextlib.suppress(OSError):  # the disk is full: the next note may succeed
                write_atomically(self._file, json.dumps(self._known, indent=2) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self._file.read_bytes())
            return {name: dict(entry) for name, entry in known.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            LOG.warning("%s is damaged (%s): new tracked runs begin", self._file, error)
            return {}


@contextlib.contextmanager
def tracked(config: RunConfig, run: RunDirectory, say: Callable[[str], None]) -> Iterator[Tracking]:
    """The run's trackers while the body runs; set `outcome` before it ends, else the run counts as failed."""
    tracking, deadline_s = Tracking(config, run, say), config.logging.tracker_deadline_s
    try:
        yield tracking
    except Interrupted:
        tracking.outcome = "stopped"
        raise
    except KeyboardInterrupt:  # the user wants the end at once
        deadline_s = 0.0
        raise
    finally:
        tracking.close(deadline_s)
