"""The directory of a run's temporary files on a node: NetHack's engine copies, Ray's session in `local`, and that
session's token.

Invariant: it lies in TMPDIR and is removed when a run starts and when it ends, so that even after `kill -9` the next
start removes it. Only Ray's session lies in /tmp where the paths of its sockets would be too long. The token is set
before Ray is first imported, because Ray reads it then, and not in the home directory: every later cluster on the
machine would ask for a token that `ray.init` writes there.
"""

import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from cluster.on_ray.orphans import end_orphans

NAME = re.compile(r"delphi-\d+-[0-9a-f]{10}")
SHORT_ROOT = Path("/tmp")
MAX_SOCKET_BYTES = 107
"""The kernel's limit on a socket's path."""
LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def use_private_token(directory: Path) -> Path | None:
    """Protect this process's cluster by its own token, kept in `directory` for the user; returns the token's file.

    None where authentication is configured already, by the user's environment or by an earlier run in this process.
    """
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return None
    token = secrets.token_hex(32)
    path = directory / "ray_token"
    path.touch(mode=0o600)
    path.write_text(token)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    return path


def root() -> Path:
    """The folder for temporary files in this process's environment, outside any run's own directory."""
    folder = Path(tempfile.gettempdir()).absolute()
    return folder.parent if NAME.fullmatch(folder.name) else folder


def temporary_directory(run_dir: str) -> Path:
    """The directory for temporary files of the run at `run_dir` on this node; not created."""
    digest = hashlib.sha256(os.path.abspath(run_dir).encode(errors="surrogateescape")).hexdigest()[:10]
    return root() / f"delphi-{os.getuid()}-{digest}"


def ray_directory(run_dir: str) -> Path:
    """The session directory of the run's own cluster: in the temporary directory, or under the same name in /tmp."""
    directory = temporary_directory(run_dir)
    fits = len(os.fsencode(directory / LONGEST_SOCKET)) <= MAX_SOCKET_BYTES or not SHORT_ROOT.is_dir()
    return (directory if fits else SHORT_ROOT / directory.name) / "ray"


def sockets_directory(run_dir: str) -> Path:
    """Where UNIX sockets of the run on this node lie, short enough for the kernel; created."""
    path = ray_directory(run_dir).parent
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def begin(run_dir: str) -> tuple[Path, Path]:
    """End what a killed process of this run left behind, and enter a new directory; that, and the folder for the
    sessions of the run's own cluster. Requires the run's lock."""
    sessions = ray_directory(run_dir)
    end_orphans(temporary_directory(run_dir), sessions)
    sweep(run_dir)
    return enter(run_dir), sessions


def enter(run_dir: str) -> Path:
    """Create the directory, and make `tempfile` use it in this process and its children."""
    path = temporary_directory(run_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = str(path)
    return path


def sweep(run_dir: str) -> None:
    """Remove the directory and its content; requires the run's lock."""
    path = temporary_directory(run_dir)
    for directory in (path, SHORT_ROOT / path.name):
        shutil.rmtree(directory, ignore_errors=True)
    if tempfile.tempdir == str(path):
        tempfile.tempdir = None
        os.environ["TMPDIR"] = str(path.parent)
