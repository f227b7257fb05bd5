"""Binds an engine library's calls and variables to itself in advance, and empties functions whose effects nobody reads.

NetHack's library reaches each of its own functions and variables through tables of addresses that every copy has for
itself, so with many engines these jumps are mispredicted and the tables fall out of the caches. As a linker with
`-Bsymbolic` would have done, the code is changed to reach them directly, relative to itself.

Invariant: only builds whose every changed place was checked against a disassembly are changed, and a name that another
library of the process answers first is left to the dynamic loader: what the code computes stays the same.
"""

import ctypes
import hashlib
import struct
from collections.abc import Collection

import numpy as np

from actors.environments.nethack.elf import FILE_HEADER, PF_EXECUTE, PROGRAM_HEADER, PT_DYNAMIC, PT_LOAD

KNOWN_BUILDS = {
    "becf6478c75e40cf9488d6127892951f28ef8736b7b71ce22c37af006b280027": "nle 1.3.0, Python 3.11, x86-64",
    "bad9b29bad1fa58f764df77bb9640d14e6f905d81262aa37323e4633161b277f": "nle 1.3.0, Python 3.12, x86-64",
    "0e8c5394393acf58f7c0a5891b79a729d1e78ef7e53bbea00f7db44793f41d19": "nle 1.3.0, Python 3.13, x86-64",
}
"""SHA-256 of the libraries that may be changed, from the wheels of PyPI."""
TERMINAL_FUNCTIONS = ("tty_status_update", "tty_print_glyph", "recalc_mapseen")
"""Functions without a result that only draw on the terminal, or prepare the overview of the dungeon."""

DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_PLTRELSZ, DT_JMPREL = 5, 6, 7, 8, 2, 23
GLOB_DAT, JUMP_SLOT = 6, 7  # kinds of relocations
STB_GLOBAL, STT_OBJECT, STT_FUNC = 1, 1, 2
RELOCATION = np.dtype([("slot", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RETURN, JUMP, CALL = 0xC3, 0xE9, 0xE8
NUMBER = struct.Struct("<i")


def relink(library: bytes, emptied: Collection[str] = ()) -> bytes:
    """A library's file with its own calls and variables bound, and the functions `emptied` returning at once; it has
    the same length. ValueError, with the reason, for a build that is not known."""
    if hashlib.sha256(library).hexdigest() not in KNOWN_BUILDS:
        raise ValueError("it is another build than those of NLE 1.3.0's wheels for x86-64")
    linked = _Library(library)
    changed = bytearray(library)
    stubs = linked.bind_stubs(changed)
    linked.bind_calls(changed, stubs)
    linked.bind_variables(changed)
    for name in emptied:
        changed[linked.functions[name]] = RETURN
    return bytes(changed)


class _Library:
    """The tables of a library's file; addresses are offsets in the file, which are equal for what is read only."""

    def __init__(self, library: bytes) -> None:
        self._file = library
        _, _, _, _, _, at, _, _, _, size, count, *_ = FILE_HEADER.unpack_from(library)
        headers = [PROGRAM_HEADER.unpack_from(library, place) for place in range(at, at + count * size, size)]
        code = next(header for header in headers if header[0] == PT_LOAD and header[1] & PF_EXECUTE)
        self._start, length = code[2], code[5]
        self._code = np.frombuffer(library, np.uint8, length, self._start)
        spread = np.lib.stride_tricks.sliding_window_view(self._code, 4)
        self._numbers = np.ascontiguousarray(spread).view("<i4")[:, 0]  # the i32 at every address
        dynamic = next(header for header in headers if header[0] == PT_DYNAMIC)
        table = dict(struct.iter_unpack("<qQ", library[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16]))
        num_symbols = (table[DT_STRTAB] - table[DT_SYMTAB]) // SYMBOL.itemsize
        symbols = np.frombuffer(library, SYMBOL, num_symbols, table[DT_SYMTAB]).tolist()
        names, end = table[DT_STRTAB], b"\0"
        process = ctypes.CDLL(None)
        self._own: dict[int, int] = {}
        """Symbol -> address of what is bound to this library's definition in every process like this one."""
        self.functions: dict[str, int] = {}
        for i, (name_at, info, _, section, value, _) in enumerate(symbols):
            if section == 0 or info >> 4 != STB_GLOBAL or info & 15 not in (STT_OBJECT, STT_FUNC):
                continue
            name = library[names + name_at : library.index(end, names + name_at)].decode()
            if info & 15 == STT_FUNC:
                self.functions[name] = value
            if not _defines(process, name):
                self._own[i] = value
        calls = np.frombuffer(library, RELOCATION, table[DT_PLTRELSZ] // RELOCATION.itemsize, table[DT_JMPREL])
        others = np.frombuffer(library, RELOCATION, table[DT_RELASZ] // RELOCATION.itemsize, table[DT_RELA])
        self._called = self._slots(calls, JUMP_SLOT)
        self._variables = self._slots(others, GLOB_DAT)

    def _slots(self, relocations: np.ndarray, kind: int) -> dict[int, int]:
        """Slot -> the address of this library's own that the loader would write there."""
        return {
            slot: self._own[symbol]
            for slot, found, symbol, _ in relocations.tolist()
            if found == kind and symbol in self._own
        }

    def bind_stubs(self, changed: bytearray) -> dict[int, int]:
        """Make the stub of each own function (`jmp *slot; push index; jmp resolver`) jump there; stub -> function."""
        code = self._code
        found = np.flatnonzero((code[:-16] == 0xFF) & (code[1:-15] == 0x25) & (code[6:-10] == 0x68))
        slots = self._start + found + 6 + self._numbers[found + 2]
        stubs = {
            self._start + at: self._called[slot]
            for at, slot in zip(found.tolist(), slots.tolist(), strict=True)
            if slot in self._called
        }
        for at, function in stubs.items():
            changed[at] = JUMP
            NUMBER.pack_into(changed, at + 1, function - (at + 5))
        return stubs

    def bind_calls(self, changed: bytearray, stubs: dict[int, int]) -> None:
        """Make calls of stubs, and jumps to them, reach the functions."""
        found = np.flatnonzero((self._code[:-5] == CALL) | (self._code[:-5] == JUMP))
        targets = self._start + found + 5 + self._numbers[found + 1]
        theirs = np.isin(targets, list(stubs))
        for at, stub in zip((self._start + found[theirs]).tolist(), targets[theirs].tolist(), strict=True):
            NUMBER.pack_into(changed, at + 1, stubs[stub] - (at + 5))

    def bind_variables(self, changed: bytearray) -> None:
        """Turn each load of an own address from its slot (`mov slot(%rip), %register`) into `lea`."""
        code = self._code
        wide = (code[:-7] == 0x48) | (code[:-7] == 0x4C)
        found = np.flatnonzero(wide & (code[1:-6] == 0x8B) & ((code[2:-5] & 0xC7) == 5))
        slots = self._start + found + 7 + self._numbers[found + 3]
        own = np.isin(slots, list(self._variables))
        for at, slot in zip((self._start + found[own]).tolist(), slots[own].tolist(), strict=True):
            changed[at + 1] = 0x8D
            NUMBER.pack_into(changed, at + 3, self._variables[slot] - (at + 7))


def _defines(process: ctypes.CDLL, name: str) -> bool:
    """Whether the loader finds the name before it looks into the library itself."""
    try:
        process[name]
    except AttributeError:
        return False
    return True
