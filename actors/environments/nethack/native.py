"""The C functions of native.c, compiled once into the user's cache wherever a C compiler is found.

Compiling takes a second, at the first use on a machine, so an installed wheel, a checkout and the upload of a Ray job
find them alike. Nothing needs them: where they cannot be made, Python does the same, more slowly.

Invariant: both give the same, and one log line per process says why it is Python.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import platformdirs

from configs.made_once import make_once

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
LIBRARY = "native.so"
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
"""For every processor of the kind: a home directory may be shared by several machines."""
COMPILE_LIMIT_S = 120.0
ADDRESS, NUMBER = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library() -> ctypes.PyDLL | None:
    """The C functions, which hold the interpreter's lock; None where there are none."""
    try:
        path = _compiled(platformdirs.user_cache_path("delphi"))
        loaded = ctypes.PyDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.info("NetHack's engines are stepped by Python, which is slower than C: %s", error)
        return None
    loaded.step_games.argtypes = (ADDRESS, ADDRESS)
    loaded.step_games.restype = NUMBER
    loaded.cut_windows.argtypes = (NUMBER, ADDRESS, ADDRESS, *[NUMBER] * 5, ADDRESS, ADDRESS)
    loaded.count_seen.argtypes = (NUMBER, ADDRESS, NUMBER, ctypes.c_int16, ADDRESS)
    loaded.note_kinds.argtypes = (NUMBER, *[ADDRESS] * 3, NUMBER, *[ctypes.c_uint16] * 4, ADDRESS, ADDRESS, NUMBER)
    loaded.cut_windows.restype = loaded.count_seen.restype = loaded.note_kinds.restype = None
    return loaded


def address(array: np.ndarray) -> int:
    """Where an array's first element lies."""
    return array.__array_interface__["data"][0]


def _compiled(cache: Path) -> Path:
    """The compiled functions in `cache`; ValueError, OSError or SubprocessError if they cannot be compiled."""
    source = SOURCE.read_bytes()
    kind = f"{platform.system()} {platform.machine()} {platform.libc_ver()} {FLAGS}"
    key = hashlib.sha256(source + kind.encode()).hexdigest()[:16]
    return make_once(cache / f"nethack-functions-{key}", _compile) / LIBRARY


def _compile(folder: Path) -> None:
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ValueError("this machine has no C compiler (cc, gcc, clang)")
    command = [compiler, *FLAGS, "-o", str(folder / LIBRARY), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    if done.returncode:
        what = (done.stderr.strip() or "no output").splitlines()[0]
        raise ValueError(f"{compiler} ended with exit code {done.returncode}: {what}")
