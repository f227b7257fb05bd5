"""The virtual environment that a peer's script asks for, made once and kept in the user's cache directory.

A peer's script says in its docstring how to set it up: every `pip install ...` there is run, in order, in a new
environment. The environment's name has a hash of these commands, so that another version of the script gets another
environment.

Invariant: an environment in the cache is complete. It is filled beside its place and renamed into it, so a failed or
killed installation is never taken for one; only its `bin/python` is to be used, because pip's scripts name the place of
the making.
"""

import ast
import hashlib
import json
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

from cluster.verbs.bench import CHECKOUT
from configs.made_once import make_once

TORCH_LOCK = CHECKOUT / "locks" / "torch-cuda.txt"


def peer_python(script: Path, cache: Path | None = None) -> Path:
    """The interpreter of `script`'s environment, which is made if it is not there yet (minutes, about 2 GB).

    ValueError where the docstring asks for nothing or pip refuses.
    """
    installs = pip_installs(script)
    key = hashlib.sha256(json.dumps([sys.version_info[:2], installs]).encode()).hexdigest()[:12]
    cache = cache or platformdirs.user_cache_path("delphi") / "peers"
    return make_once(cache / f"{script.stem}-{key}", lambda folder: _fill(folder, installs)) / "bin" / "python"


def pip_installs(script: Path) -> list[list[str]]:
    """The arguments of each `pip install` in the script's docstring, in order; ValueError where there is none or it
    cannot be read."""
    try:
        docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"--against: {script} cannot be read as a Python script: {error}") from None
    commands = [command.strip() for line in docstring.splitlines() for command in line.split("&&")]
    installs = [shlex.split(command)[2:] for command in commands if command.startswith("pip install ")]
    if not installs:
        raise ValueError(
            f"--against: the docstring of {script} has no line that begins with `pip install`, so its environment"
            " cannot be made;"
            " name an interpreter that has what it needs with --against-python"
        )
    return installs


def _fill(folder: Path, installs: list[list[str]]) -> None:
    print(f"making the peer's environment (once, some minutes) in {folder.parent}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, symlinks=True)
    # Of the project's pins only torch's, and only where the peer has none: that version comes as the build for CPUs.
    pinned = any(argument.startswith("torch==") for arguments in installs for argument in arguments)
    pin = re.search(r"^torch==[\d.]+", TORCH_LOCK.read_text(), re.MULTILINE)
    (folder / "constraints.txt").write_text("\n" if pinned or pin is None else f"{pin[0]}\n")
    for arguments in installs:
        print(f"pip install {shlex.join(arguments)} ...", file=sys.stderr, flush=True)
        command = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            str(folder / "constraints.txt"),
        ]
        done = subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise ValueError(
                f"pip install {shlex.join(arguments)} failed; its last"
                f" lines:\n{chr(10).join(done.stderr.splitlines()[-10:])}"
            )
