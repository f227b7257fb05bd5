"""A trial as a child process: starts it, waits for its end, and says what went wrong.

Invariant: a trial ends with whoever waits for it, after a checkpoint; all state is in its run directory.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.run.directory import write_atomically
from cluster.sweep.trial import STOPPED
from configs.loading import to_dict
from configs.schema import RunConfig
from llm_server.child_guard import end_with_parent
from llm_server.child_process import own_search_path

STOP_BUDGET_S = 60.0
"""For the checkpoint of a run that is asked to stop."""
POLL_S = 0.5
WAS_STOPPED = "was stopped before its end"


def write_config(config: RunConfig) -> str:
    """Write a run's configuration beside its directory; returns the file's path."""
    file = Path(f"{config.run_dir}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(to_dict(config), indent=2) + "\n")
    return str(file)


def run_trial(
    config: str, episodes: int, envs: int, *, is_stopped: Callable[[], bool] = bool, player: str = ""
) -> str | None:
    """A trial in a process of its own, to its end, or until `is_stopped`; what went wrong, `WAS_STOPPED` or None. Where
    a `player` is named, it alone is evaluated."""
    if not Path(config).exists():
        return f"this node does not see {config}: --out must be on a file system that all nodes share"
    log = Path(config).with_suffix(".log")
    command = [sys.executable, "-m", "cluster.sweep.trial", config, f"--episodes={episodes}", f"--envs={envs}"]
    command += [f"--player={player}"] if player else []
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    try:
        while (code := child.poll()) is None and not is_stopped():
            time.sleep(POLL_S)  # a longer wait would not notice that Ray cancels the task
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_BUDGET_S)
            child.kill()
            child.wait()
    if code is None or code == STOPPED:
        return WAS_STOPPED
    lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
    return f"ended with exit code {code}: {lines[-1]} (more in {log})" if code else None


def _environment() -> dict[str, str]:
    """Without what ties this process to its Ray worker."""
    kept = ("RAY_AUTH_", "RAY_USAGE_")
    left_out = [name for name in os.environ if name.startswith("RAY_") and not name.startswith(kept)]
    return {name: value for name, value in os.environ.items() if name not in left_out} | own_search_path()
