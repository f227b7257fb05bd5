"""Code that is bound in advance: only known builds are changed, and nothing but calls, loads and what is emptied."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import nle
import numpy as np
import pytest

from actors.environments.nethack.elf import read_only_part
from actors.environments.nethack.relinking import TERMINAL_FUNCTIONS, relink

PATH = Path(nle.__file__).parent / "libnethack.so"
LIBRARY = PATH.read_bytes()


def changes(changed: bytes) -> list[int]:
    return np.flatnonzero(np.frombuffer(changed, np.uint8) != np.frombuffer(LIBRARY, np.uint8)).tolist()


def test_a_build_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"another build than those of NLE 1\.3\.0"):
        relink(LIBRARY[:-1] + b"!")


def test_only_the_code_changes_and_keeps_its_length() -> None:
    changed = relink(LIBRARY)
    part = read_only_part(LIBRARY)
    (start, length, _) = next(segment for segment in part.segments if segment[2] & 4)
    places = changes(changed)
    assert len(changed) == len(LIBRARY)
    assert places[0] >= start
    assert places[-1] < start + length
    assert len(places) > 50_000, "NLE 1.3.0 has 31,197 such calls and 17,780 such loads"


def test_what_is_emptied_returns_at_once() -> None:
    bound = relink(LIBRARY)
    emptied = relink(LIBRARY, TERMINAL_FUNCTIONS)
    others = [i for i, (one, other) in enumerate(zip(bound, emptied, strict=True)) if one != other]
    assert len(others) == len(TERMINAL_FUNCTIONS)
    assert {emptied[i] for i in others} == {0xC3}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_every_change_lies_in_a_call_a_jump_or_a_load_and_has_the_target_that_the_loader_gives() -> None:
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", PATH], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^ *([0-9a-f]+):\t(\S+) *(.*)$", listing, re.MULTILINE)
    starts = np.array([int(at, 16) for at, _, _ in found])
    changed = relink(LIBRARY)
    places = np.array(changes(changed))
    used = np.unique(np.searchsorted(starts, places, side="right") - 1)
    kinds: dict[str, int] = {}
    functions = _functions()
    for i in used.tolist():
        at, name, text = starts[i], found[i][1], found[i][2]
        (number,) = struct.unpack_from("<i", changed, at + (3 if name == "mov" else 1))
        target = at + (7 if name == "mov" else 5) + number
        kinds[name] = kinds.get(name, 0) + 1
        if stub := re.match(r"[0-9a-f]+ <(\w+)@plt>", text):
            assert target == functions[stub[1]], (hex(at), text)
    assert set(kinds) == {"call", "jmp", "mov"}


def _functions() -> dict[str, int]:
    """The functions of the library by name, from binutils."""
    listing = subprocess.run(["readelf", "-W", "--dyn-syms", PATH], capture_output=True, text=True, check=True).stdout
    rows = [row.split() for row in listing.splitlines()]
    return {row[7].split("@")[0]: int(row[1], 16) for row in rows if len(row) > 7 and row[3] == "FUNC"}
