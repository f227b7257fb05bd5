"""The run directory: its lock, its configuration, the run epoch, and what a resume does to it.

Invariant: one process at a time owns it; what goes on from a checkpoint is the same experiment or is refused with a
diff."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import secrets
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from cluster.run.provenance import PACKAGES, commit, machine, packages
from cluster.run.rubric_record import hashes_by_setting, refuse_edited, rubrics_before
from configs.checks import ConfigError
from configs.loading import experiment_diff, to_dict
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from learner.checkpoint_format import DECODING_ERRORS, MAX_TREE_BYTES, candidates, parse_json, read_regular

LOG = logging.getLogger(__name__)
SUPERSEDED = ".superseded"


class RunDirectory:
    """Paths of one run, and its checks; made by `open_run`, or by path in a process that the owner started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.captions = path / "captions.sqlite"
        self.reward_model = path / "reward_model"  # of a model that was trained before the policy
        self.evaluations = path / "evaluations"  # the games that were played in evaluations
        self.log = path / "log.txt"
        self.summary = path / "summary.json"
        self.trackers = path / "trackers.json"
        self._metrics = path / "metrics.jsonl"
        self._lock: IO[str] | None = None

    def captions_of(self, term: str) -> Path:
        """The archive of a term's items."""
        return self.captions if term == MAIN_TERM else self.path / f"captions-{term}.sqlite"

    def reward_model_of(self, term: str) -> Path:
        """The folder of a term's reward model, where that was trained before the policy."""
        return self.reward_model if term == MAIN_TERM else self.path / f"reward_model-{term}"

    def supersede_metrics(self, env_steps: int) -> int:
        """Move metric lines beyond `env_steps`, the checkpoint's, to metrics.superseded.jsonl; returns how many."""
        if not self._metrics.exists():
            return 0
        kept: list[str] = []
        moved: list[str] = []
        for line in self._metrics.read_text("utf-8", errors="replace").splitlines():
            try:
                beyond = (json.loads(line).get("env_steps") or 0) > env_steps
            except (ValueError, AttributeError, TypeError, RecursionError):  # truncated by a kill, or damaged
                beyond = True
            (moved if beyond else kept).append(line + "\n")
        if moved:
            with (self.path / "metrics.superseded.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(moved)
            write_atomically(self._metrics, "".join(kept))
        return len(moved)

    def check_epoch(self, run_epoch: int) -> None:
        """RuntimeError where the run has been started again since: a learner that was declared dead, perhaps cut off
        from its driver for a while, must not write into its successor's run. A file that cannot be read now is
        ignored."""
        now = 0
        with contextlib.suppress(OSError, ConfigError):
            now = _starts_so_far(self.path / "run_epoch")
        if now > run_epoch:
            raise RuntimeError(
                f"{self.path} is at epoch {now}, this learner is of epoch {run_epoch}: it was declared dead, and stops"
            )

    def write_nonce(self) -> str:
        """Write a random token, which `check_nonce` in another process compares."""
        nonce = secrets.token_hex(16)
        write_atomically(self.path / "nonce", nonce)
        return nonce

    def check_nonce(self, nonce: str) -> None:
        """RuntimeError where this process sees another directory than the process that wrote `nonce`."""
        file = self.path / "nonce"
        if not file.exists() or file.read_text() != nonce:
            raise RuntimeError(
                f"run_dir {self.path} on {socket.gethostname()} is not the directory that the driver sees;"
                " give a path on a file system that all nodes share"
            )

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def open_run(
    config: RunConfig, rubric_hash: str | None = None, *, irrelevant: Collection[str] = ()
) -> tuple[RunDirectory, int]:
    """Create or re-enter `config.run_dir`: the directory, locked, and this start's run epoch (1 for the first). The
    settings `irrelevant` make no difference in this run.

    Raises ConfigError where another process owns it, where it cannot be written, or where it holds a checkpoint of
    another experiment or of an earlier version of the rubric."""
    run = RunDirectory(Path(config.run_dir).absolute())
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        run._lock = lock(run.path)
    except OSError as error:
        raise ConfigError(
            f"run_dir: cannot write {config.run_dir}: {error.strerror}; choose another run_dir="
        ) from None
    resolved = to_dict(config)
    epoch_file = run.path / "run_epoch"
    try:
        run_epoch = (_starts_so_far(epoch_file) if epoch_file.exists() else _starts_in_checkpoints(run)) + 1
        if candidates(run.checkpoints):
            hashes, before = hashes_by_setting(rubric_hash), rubrics_before(run.path)
            same = {key for key, found in hashes.items() if before.get(key) == found}  # wherever the files lie now
            _check_experiment(run, resolved, may_change=same.union(irrelevant))
            refuse_edited(run.path, hashes, before)
        else:
            _begin_anew(run, resolved)
        write_atomically(run.path / "config.json", json.dumps(resolved, indent=2) + "\n")
        write_atomically(epoch_file, f"{run_epoch}\n")
    except OSError as error:
        run.release()
        raise ConfigError(
            f"run_dir: cannot write {config.run_dir}: {error.strerror}; make room, or correct the permissions"
        ) from None
    except BaseException:
        run.release()
        raise
    return run, run_epoch


def begin_epoch(run: RunDirectory) -> int:
    """The next run epoch, for a learner that is restarted within one start of the run; requires the run's lock."""
    file = run.path / "run_epoch"
    run_epoch = _starts_so_far(file) + 1
    write_atomically(file, f"{run_epoch}\n")
    return run_epoch


def find_run(path: str) -> tuple[RunDirectory, dict[str, Any]]:
    """An existing run and its saved configuration; where there is none, a ConfigError that lists the runs nearby."""
    run = RunDirectory(Path(path).expanduser().absolute())
    config_file = run.path / "config.json"
    if not config_file.exists():
        near = sorted(p.parent for p in run.path.parent.glob("*/config.json")) if run.path.parent.exists() else []
        names = ", ".join(os.path.relpath(p) for p in near[:5])
        raise ConfigError(
            f"no run at {path} (it has no config.json); "
            + (f"there are: {names}" if near else "give a run_dir that `delphi train` made")
        )
    return run, _saved_config(config_file)


def _check_experiment(
    run: RunDirectory, resolved: dict[str, Any], *, of_reward_model: bool = False, may_change: Collection[str] = ()
) -> None:
    """ConfigError where the checkpoint, or the reward model trained before the policy, is another experiment's; the
    settings `may_change` are not compared."""
    file = run.path / "config.json"
    if not file.exists():
        return
    differences = experiment_diff(_saved_config(file), resolved, of_reward_model=of_reward_model)
    differences = [line for line in differences if line.partition(":")[0] not in may_change]
    if differences:
        is_older = any(line.startswith("env.stretch_bounds:") for line in differences)
        same = "the same settings, with env.stretch_bounds=false," if is_older else "the same settings"
        raise ConfigError(
            f"{run.path} holds a run with another configuration: {'; '.join(differences)}."
            f" Give {same} to continue it, or another run_dir= for a new run"
        )


def _begin_anew(run: RunDirectory, resolved: dict[str, Any]) -> None:
    """Nothing was trained yet, so any configuration is accepted; captions of another one are moved aside."""
    if any(candidates(folder) for folder in run.path.glob(f"{run.reward_model.name}*")):
        _check_experiment(run, resolved, of_reward_model=True)
    is_same = False
    with contextlib.suppress(ConfigError):
        is_same = not experiment_diff(_saved_config(run.path / "config.json"), resolved)
    if not is_same:
        run.trackers.unlink(missing_ok=True)  # another experiment is another tracked run
        for captions in run.path.glob("captions*.sqlite"):
            if not captions.stem.endswith(SUPERSEDED):
                _move_aside(captions)


def _move_aside(captions: Path) -> None:
    for ending in ("", "-wal", "-shm"):  # with SQLite's own files
        old = Path(f"{captions}{ending}")
        aside = Path(f"{captions.with_suffix(f'{SUPERSEDED}.sqlite')}{ending}")
        aside.unlink(missing_ok=True)
        if old.exists():
            old.replace(aside)


def record_provenance(run: RunDirectory, run_epoch: int, rubric_hash: str | None) -> None:
    """Add what this start ran with to provenance.json: commit, package versions, rubric hash, hardware."""
    file = run.path / "provenance.json"
    try:
        starts = json.loads(file.read_bytes()) if file.exists() else []
        if not isinstance(starts, list):
            raise ValueError("it is no list")
    except (ValueError, RecursionError) as error:  # nothing depends on this record
        aside = file.with_name("provenance.damaged.json")
        LOG.warning("%s is damaged (%s): moved to %s, starting an empty one", file, error, aside.name)
        file.replace(aside)
        starts = []
    starts.append(
        {
            "run_epoch": run_epoch,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit(),
            "packages": dict.fromkeys(PACKAGES) | packages(),
            "python": platform.python_version(),
            "rubric_hash": rubric_hash,
            "hardware": {"processor": machine()["processor"], "cpus": os.cpu_count(), "host": socket.gethostname()},
        }
    )
    write_atomically(file, json.dumps(starts, indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`; a reader sees the old content or the new, never a part, even after a power loss."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _saved_config(file: Path) -> dict[str, Any]:
    try:
        saved = json.loads(file.read_bytes())
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}); put a copy back, or, where this run's settings are known to be the same as"
            " before, delete it: the next start writes it, and goes on from the checkpoints"
        ) from None
    saved.setdefault("env", {}).setdefault("stretch_bounds", False)  # of a version that knew of no such setting
    return saved


def _starts_so_far(file: Path) -> int:
    if not file.exists():
        return 0
    try:
        starts = int(file.read_text())
        if starts < 0:
            raise ValueError(f"got {starts}")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}); write the largest run_epoch of provenance.json beside it into it, and start"
            " again"
        ) from None
    return starts


def _starts_in_checkpoints(run: RunDirectory) -> int:
    """The newest run epoch in the checkpoints, for a run that was copied without its file `run_epoch`; 0 without one.
    What is damaged here is reported when it is loaded."""
    epochs = [0]
    for path in candidates(run.checkpoints):
        with contextlib.suppress(*DECODING_ERRORS, OSError):
            epochs.append(int(parse_json(read_regular(path / "learner.json", MAX_TREE_BYTES))["run_epoch"]))
    return max(epochs)


def lock(path: Path, key: str = "run_dir=") -> IO[str]:
    """The lock on a directory, held until it is closed. Raises ConfigError, which names the setting or flag `key`,
    where another process holds it, and OSError."""
    file = (path / "run.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ConfigError(
            f"{key.rstrip('=')} {path} is in use by {owner}; stop that first, or give another {key}"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
