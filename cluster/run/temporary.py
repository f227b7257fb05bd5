"""The one directory for a run's temporary files on a node: NetHack's engine copies, Ray's session in `local` and the token that guards
that session.

Invariant: it lies where TMPDIR says; it is removed when a run starts and when it ends, so that even `kill -9` leaves nothing for longer
than until the next start. Ray's session alone lies in /tmp where the paths of its sockets would be too long. The token is set before Ray
is first imported, because Ray reads it then; the home directory is left alone: a token that `ray.init` writes there would be asked for by
every cluster started on the machine afterwards.
"""

import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path


def use_private_token(directory: Path) -> Path | None:
    """Guard this process's cluster by a token of its own, kept in `directory` for the user; its file.

    None where authentication is set already (by the user's environment, or by an earlier run in this process).
    """
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return None
    token = secrets.token_hex(32)
    path = directory / "ray_token"
    path.touch(mode=0o600)
    path.write_text(token)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    return path


NAME = re.compile(r"delphi-\d+-[0-9a-f]{10}")
SHORT_ROOT = Path("/tmp")
MAX_SOCKET_BYTES = 107
"""Of a socket's path, by the kernel."""
LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def root() -> Path:
    """The folder for temporary files of this process's environment, whether or not it is a run's own already."""
    folder = Path(tempfile.gettempdir()).absolute()
    return folder.parent if NAME.fullmatch(folder.name) else folder


def temporary_directory(run_dir: str) -> Path:
    """Where the run at `run_dir` keeps temporary files on this node; not created."""
    digest = hashlib.sha256(os.path.abspath(run_dir).encode(errors="surrogateescape")).hexdigest()[:10]
    return root() / f"delphi-{os.getuid()}-{digest}"


def ray_directory(run_dir: str) -> Path:
    """Where a cluster that the run starts keeps its session: in the temporary directory, or in one of the same name in /tmp."""
    directory = temporary_directory(run_dir)
    fits = len(os.fsencode(directory / LONGEST_SOCKET)) <= MAX_SOCKET_BYTES or not SHORT_ROOT.is_dir()
    return (directory if fits else SHORT_ROOT / directory.name) / "ray"


def enter(run_dir: str) -> Path:
    """Create the directory and make it what `tempfile` uses in this process and in its children."""
    path = temporary_directory(run_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = str(path)
    return path


def sweep(run_dir: str) -> None:
    """Remove the directory and all in it; call only while holding the run's lock."""
    path = temporary_directory(run_dir)
    for directory in (path, SHORT_ROOT / path.name):
        shutil.rmtree(directory, ignore_errors=True)
    if tempfile.tempdir == str(path):
        tempfile.tempdir = None
        os.environ["TMPDIR"] = str(path.parent)
