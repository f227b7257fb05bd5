"""Freed memory stays with the process, for the learner's next update.

An update allocates and frees the same hundreds of megabytes each time. By default glibc gives large blocks back to the kernel
at once and gets them again page by page, which takes some 7 % of an update on a CPU.

What is kept falls to pieces over time: blocks are never twice of quite the same sizes, so more and more of what is free lies between
what is not. Hence from time to time all of it is given back after all.

Invariant: nothing but the allocator is touched; where there is no glibc nothing happens.
"""

import contextlib
import ctypes
import functools
import logging

LOG = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 1 << 30
"""Freed bytes at the heap's end that are kept, and the size from which a block is mapped by itself."""
THREAD_HEAP_BYTES = 64 << 20
"""Of glibc's heaps for threads other than the main one, which are given up as soon as they are empty unless padded so far."""


UPDATES_BETWEEN_RETURNS = 50
"""Some ten seconds of a CPU's learner: getting the memory again costs half a percent of that."""


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to `KEPT_BYTES`; once per process, from any thread."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        LOG.info("freed memory goes back to the operating system: there is no mallopt here")
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, THREAD_HEAP_BYTES)


def return_freed_memory() -> None:
    """Give the kernel all that this process has freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
