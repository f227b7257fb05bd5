"""Headers of real and of damaged libraries: only pages that are certainly never written are shared."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import nle
import pytest

from actors.environments.nethack.elf import (
    DF_TEXTREL,
    DT_FLAGS,
    DT_TEXTREL,
    PF_WRITE,
    PROGRAM_HEADER,
    PT_DYNAMIC,
    PT_LOAD,
    read_only_part,
)

LIBRARY = (Path(nle.__file__).parent / "libnethack.so").read_bytes()
FIRST_HEADER = 64


def headers(library: bytes) -> list[tuple[int, ...]]:
    (count,) = struct.unpack_from("<H", library, 56)
    return [PROGRAM_HEADER.unpack_from(library, FIRST_HEADER + i * PROGRAM_HEADER.size) for i in range(count)]


def with_header(index: int, **changes: int) -> bytes:
    """The library with another program header at `index`."""
    names = ("kind", "flags", "offset", "address", "physical", "file_bytes", "memory_bytes", "alignment")
    values = dict(zip(names, headers(LIBRARY)[index], strict=True)) | changes
    copy = bytearray(LIBRARY)
    PROGRAM_HEADER.pack_into(copy, FIRST_HEADER + index * PROGRAM_HEADER.size, *values.values())
    return bytes(copy)


def with_bytes(offset: int, content: bytes) -> bytes:
    return LIBRARY[:offset] + content + LIBRARY[offset + len(content) :]


def with_dynamic_entry(tag: int, value: int) -> bytes:
    dynamic = next(header for header in headers(LIBRARY) if header[0] == PT_DYNAMIC)
    return with_bytes(dynamic[2], struct.pack("<qQ", tag, value))


def test_the_read_only_part_ends_before_the_first_page_that_is_written() -> None:
    part = read_only_part(LIBRARY)
    written = [header for header in headers(LIBRARY) if header[0] == PT_LOAD and header[1] & PF_WRITE]
    read_only = [header for header in headers(LIBRARY) if header[0] == PT_LOAD and not header[1] & PF_WRITE]
    assert part.length % mmap.PAGESIZE == 0
    assert max(header[3] + header[6] for header in read_only) <= part.length <= min(header[3] for header in written)
    assert len(part.segments) == len(read_only)
    assert sum(bool(protection & mmap.PROT_EXEC) for *_, protection in part.segments) == 1


LOADED = [i for i, header in enumerate(headers(LIBRARY)) if header[0] == PT_LOAD]
REFUSED: dict[str, Callable[[], bytes]] = {
    "an empty file": lambda: b"",
    "a text": lambda: b"#!/bin/sh\n" * 1000,
    "half a header": lambda: LIBRARY[:80],
    "32 bits": lambda: with_bytes(4, b"\x01"),
    "big-endian": lambda: with_bytes(5, b"\x02"),
    "a program": lambda: with_bytes(16, b"\x02\x00"),
    "no dynamic section": lambda: with_header(
        next(i for i, header in enumerate(headers(LIBRARY)) if header[0] == PT_DYNAMIC), kind=0
    ),
    "relocated code": lambda: with_dynamic_entry(DT_TEXTREL, 0),
    "relocated code, by the flags": lambda: with_dynamic_entry(DT_FLAGS, DF_TEXTREL),
    "a first segment that is written": lambda: with_header(LOADED[0], flags=6),
    "code that lies elsewhere in memory": lambda: with_header(
        LOADED[1], address=headers(LIBRARY)[LOADED[1]][3] + mmap.PAGESIZE
    ),
    "constants longer in memory": lambda: with_header(LOADED[2], memory_bytes=headers(LIBRARY)[LOADED[2]][6] + 1),
    "a written page within the code": lambda: with_header(LOADED[3], address=headers(LIBRARY)[LOADED[1]][3] + 0x228),
    "a cut file": lambda: LIBRARY[: len(LIBRARY) // 2],
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_library_that_is_not_plainly_shareable_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"^it|^its"):
        read_only_part(REFUSED[what]())
