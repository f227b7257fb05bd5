"""Finds the pages of a shared library that are never written, from its file's headers.

Invariant: a file in which that is not certain, for whatever reason, is refused.
"""

import mmap
import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC = 1, 2
PF_EXECUTE, PF_WRITE = 1, 2
DT_TEXTREL, DT_FLAGS, DF_TEXTREL = 22, 30, 4
FILE_HEADER = struct.Struct("<16s2HI3QI6H")
PROGRAM_HEADER = struct.Struct("<2I6Q")
ALIGNMENT_OFFSET = 48
"""Offset of p_align in a program header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnlyPart:
    """The pages at the start of a library that are never written."""

    length: int  # bytes, whole pages, from the library's start
    segments: tuple[tuple[int, int, int], ...]
    """(start, bytes, protection) of each segment; its start is the same in the file and from the library's base."""
    dynamic: int  # address of the dynamic section, from the library's base
    alignment_at: int  # file offset of the alignment that the first segment requests


def read_only_part(library: bytes) -> ReadOnlyPart:
    """The part of a library's file that may be shared. Raises ValueError with the reason if there is none."""
    try:
        ident, kind, _, _, _, at, _, _, _, entry_size, count, *_ = FILE_HEADER.unpack_from(library)
        if ident[:6] != b"\x7fELF\x02\x01" or kind != 3 or entry_size != PROGRAM_HEADER.size:
            raise ValueError("it is not a 64-bit little-endian ELF shared object")
        headers = [
            (place, *PROGRAM_HEADER.unpack_from(library, place))
            for place in range(at, at + count * entry_size, entry_size)
        ]
        dynamic = next(header for header in headers if header[1] == PT_DYNAMIC)
        entries = list(struct.iter_unpack("<qQ", library[dynamic[3] : dynamic[3] + dynamic[6] // 16 * 16]))
    except (struct.error, StopIteration):
        raise ValueError("its ELF headers are incomplete") from None
    if any(tag == DT_TEXTREL or (tag == DT_FLAGS and value & DF_TEXTREL) for tag, value in entries):
        raise ValueError("its code is relocated when it is loaded")
    loaded = [header for header in headers if header[1] == PT_LOAD]
    first_written = next((i for i, header in enumerate(loaded) if header[2] & PF_WRITE), len(loaded))
    segments: list[tuple[int, int, int]] = []
    length = 0
    for _, _, flags, offset, address, _, file_bytes, memory_bytes, _ in loaded[:first_written]:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = -(-(offset + file_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        if offset != address or file_bytes != memory_bytes or start < length or not (segments or start == 0):
            raise ValueError("its read-only segments do not lie in memory as they do in the file")
        protection = mmap.PROT_READ | (mmap.PROT_EXEC if flags & PF_EXECUTE else 0)
        segments.append((start, end - start, protection))
        length = end
    shares_pages = any(header[4] // mmap.PAGESIZE * mmap.PAGESIZE < length for header in loaded[first_written:])
    if not segments or length > len(library) or shares_pages:
        raise ValueError("it does not begin with read-only segments of its own pages")
    return ReadOnlyPart(
        length=length, segments=tuple(segments), dynamic=dynamic[4], alignment_at=loaded[0][0] + ALIGNMENT_OFFSET
    )
