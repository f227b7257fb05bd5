"""Keeps NetHack's code and constants in memory once for all engines of a process, in huge pages.

Every NLE engine loads a private copy of the engine library, so with many engines instruction cache and TLB misses
dominate. The read-only segments of all copies are replaced by one sealed shared memory file, which the kernel is asked
to back by huge pages and whose code is bound in advance (`relinking.py`). NLE loads the library at an engine's first
reset and reopens it at each later one, which undoes the mapping:

    pages = engine_pages()              # the one of this process
    env = NLE(...)                      # its nethack.dlpath is the path of the private copy
    pages.prepare(env.nethack.dlpath)   # once, before the first reset
    env.reset()
    pages.share(env.nethack.dlpath)     # after every reset of the engine, about 0.01 ms

Nothing needs closing: a mapping ends when NLE closes its library, the shared file with the process.

Invariant: only pages that are never written, free of relocations and, but for what `relink` changes, byte-identical to
the private copy's are replaced.
If the library, the loader or the kernel does not allow it, the engines stay as NLE made them, with one warning per
process.
"""

import ctypes
import errno
import fcntl
import functools
import logging
import mmap
import os
import struct
from collections.abc import Collection
from pathlib import Path

from tenacity import Retrying, retry_if_exception, stop_after_attempt

from actors.environments.nethack.elf import read_only_part
from actors.environments.nethack.relinking import TERMINAL_FUNCTIONS, relink

logger = logging.getLogger(__name__)

HUGE_PAGE_BYTES = 1 << 21
MADV_COLLAPSE = 25  # Linux 6.1; not in Python's mmap module
MAP_FIXED = 0x10
MAP_FAILED = ctypes.c_void_p(-1).value
RTLD_NOLOAD = 4
PROT_NONE = 0
READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC
COLLAPSE_ATTEMPTS = 3
"""The kernel may be busy with a page for a moment (EAGAIN, EBUSY)."""


class _LinkMap(ctypes.Structure):
    """The dynamic loader's record of a library (link.h)."""

    _fields_ = (("l_addr", ctypes.c_size_t), ("l_name", ctypes.c_char_p), ("l_ld", ctypes.c_size_t))


class LibC:
    """The required calls of the C library; OSError if one is refused."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        try:
            self._mmap, self._munmap, self._madvise = library.mmap, library.munmap, library.madvise
            self._dlopen, self._dlclose = library.dlopen, library.dlclose
        except AttributeError as error:
            raise OSError(f"the C library lacks a call: {error}") from None
        self._mmap.restype = self._dlopen.restype = ctypes.c_void_p
        self._mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        self._munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._dlopen.argtypes = (ctypes.c_char_p, ctypes.c_int)
        self._dlclose.argtypes = (ctypes.c_void_p,)

    def map(self, address: int | None, length: int, protection: int, flags: int, fd: int, offset: int = 0) -> int:
        """mmap(2): the mapped address."""
        mapped = self._mmap(address, length, protection, flags, fd, offset)
        if mapped == MAP_FAILED:
            raise _last_error("mmap")
        return int(mapped)

    def unmap(self, address: int, length: int) -> None:
        """munmap(2)."""
        if self._munmap(address, length):
            raise _last_error("munmap")

    def collapse(self, address: int, length: int) -> None:
        """Move a mapped range into huge pages: madvise(2) with MADV_COLLAPSE."""
        if self._madvise(address, length, MADV_COLLAPSE):
            raise _last_error("madvise(MADV_COLLAPSE)")

    def find_library(self, path: str) -> tuple[int, int] | None:
        """Base and address of the dynamic section of a loaded library; None if it is not loaded."""
        handle = self._dlopen(os.fsencode(path), os.RTLD_LAZY | RTLD_NOLOAD)
        if not handle:
            return None
        found = ctypes.cast(handle, ctypes.POINTER(_LinkMap)).contents
        place = (found.l_addr, found.l_ld)
        self._dlclose(handle)  # NLE ends the process where its library is still open at a reset
        return place


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


class SharedFile:
    """The read-only part of a library in a sealed memory file, in huge pages if the kernel provides them."""

    def __init__(self, library: bytes, libc: LibC, emptied: Collection[str] = ()) -> None:
        """`emptied`: see `relink`. OSError or ValueError, with the reason, if it cannot be made."""
        self.part = part = read_only_part(library)
        self.libc = libc
        self.original = library[: part.length]
        aligned = bytearray(self.original)
        struct.pack_into("<Q", aligned, part.alignment_at, HUGE_PAGE_BYTES)
        self.aligned = bytes(aligned)
        """`original`, but requesting a place where its addresses and the file's huge pages are congruent."""
        self.no_huge_pages: OSError | None = None  # why there are no huge pages
        self.not_relinked: ValueError | None = None
        content = bytearray(self.aligned)
        try:
            content[:] = relink(library, emptied)[: part.length]
            struct.pack_into("<Q", content, part.alignment_at, HUGE_PAGE_BYTES)
        except ValueError as error:
            self.not_relinked = error
        if not hasattr(os, "memfd_create"):
            raise ValueError("this system has no memory files")
        num_bytes = -(-part.length // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        fd = os.memfd_create("nethack-pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            path = f"/proc/self/fd/{fd}"
            Path(path).write_bytes(bytes(content) + bytes(num_bytes - part.length))
            try:
                self._collapse(fd, num_bytes)
            except OSError as error:
                self.no_huge_pages = error
            resizing = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL | resizing)
            # Older kernels map a sealed file as shared only if it was opened for reading.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)
        try:  # so that a forbidden mapping is detected here, not in `map_over`
            libc.unmap(libc.map(None, part.length, READ_EXECUTE, mmap.MAP_SHARED, self._fd), part.length)
        except OSError:
            os.close(self._fd)
            raise

    def map_over(self, base: int, path: str) -> None:
        """Replace the read-only part of the library loaded at `base` from `path`; OSError, with nothing changed, if
        that is refused, RuntimeError if it left a hole that cannot be filled again: the engine must not continue."""
        try:
            self.libc.map(base, self.part.length, READ_EXECUTE, mmap.MAP_SHARED | MAP_FIXED, self._fd)
        except OSError:  # which may have left a hole: map the private copy again, as the loader did
            try:
                self._restore(base, path)
            except OSError as error:
                what = f"the engine's code at {path} is lost: it can be neither shared nor mapped again"
                raise RuntimeError(f"{what}: {error}") from error
            raise

    def _restore(self, base: int, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, length, protection in self.part.segments:
                self.libc.map(base + start, length, protection, mmap.MAP_PRIVATE | MAP_FIXED, fd, start)
        finally:
            os.close(fd)

    def _collapse(self, fd: int, num_bytes: int) -> None:
        reserved = num_bytes + HUGE_PAGE_BYTES
        room = self.libc.map(None, reserved, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        try:
            aligned = -(-room // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            self.libc.map(aligned, num_bytes, READ_EXECUTE, mmap.MAP_SHARED | MAP_FIXED, fd)
            busy = retry_if_exception(lambda error: getattr(error, "errno", 0) in (errno.EAGAIN, errno.EBUSY))
            attempts = Retrying(retry=busy, stop=stop_after_attempt(COLLAPSE_ATTEMPTS), reraise=True)
            attempts(self.libc.collapse, aligned, num_bytes)
        finally:
            self.libc.unmap(room, reserved)


class EnginePages:
    """The shared pages of one process, made from the first library that is prepared."""

    def __init__(self, draws_terminal: bool = True) -> None:
        """`draws_terminal`: engines draw what a person would see, and keep the overview of the dungeon."""
        self._emptied = () if draws_terminal else TERMINAL_FUNCTIONS
        self._file: SharedFile | None = None
        self._prepared: dict[str, os.stat_result] = {}
        self._off = self._noticed = False

    def prepare(self, path: str) -> None:
        """Prepare the private copy of an engine that has not been reset yet for `share`."""
        if self._off:
            return
        try:
            copy = Path(path).read_bytes()
            if self._file is None:
                self._file = SharedFile(copy, LibC(), self._emptied)
                if why := self._file.not_relinked:
                    logger.info("the engine's code is shared unchanged, which is slower: %s", why)
                if reason := self._file.no_huge_pages:
                    self._notice(f"engine code is shared between environments, but not in huge pages ({reason})")
            shared = self._file
            if copy[: shared.part.length] not in (shared.original, shared.aligned):
                raise ValueError("it differs from the first engine's")
            if not shared.no_huge_pages:
                at = shared.part.alignment_at
                with open(path, "r+b") as file:
                    file.seek(at)
                    file.write(shared.aligned[at : at + 8])
            self._prepared[path] = os.stat(path)
        except (OSError, ValueError) as error:
            self._off = self._file is None
            self._notice(f"engine code is not shared between environments: {path}: {error}")

    def share(self, path: str) -> None:
        """Replace the read-only pages of an engine just reset; does nothing for one that was not prepared."""
        if self._off or self._file is None or path not in self._prepared:
            return
        try:
            if not os.path.samestat(os.stat(path), self._prepared[path]):
                return
            place = self._file.libc.find_library(path)
            if place is None:
                return
            base, dynamic = place
            if dynamic != base + self._file.part.dynamic or base % mmap.PAGESIZE:
                raise OSError("the loader placed the library in an unknown way")
            self._file.map_over(base, path)
        except OSError as error:
            self._off = True
            self._notice(f"engine code is no longer shared between environments: {path}: {error}")

    def _notice(self, loss: str) -> None:
        if not self._noticed:
            self._noticed = True
            logger.warning("%s; many environments in one process step more slowly", loss)


@functools.cache
def engine_pages(draws_terminal: bool = True) -> EnginePages:
    """The pages that all engines of this process share that draw on their terminal, or all that do not."""
    return EnginePages(draws_terminal)
