"""Freed memory stays with the process, for the learner's next update.

An update allocates and frees the same hundreds of megabytes each time. By default glibc gives large blocks back to the kernel
at once and gets them again page by page, which takes some 7 % of an update on a CPU.

Invariant: a setting of the allocator and nothing else; where there is no glibc nothing happens.
"""

import ctypes
import functools
import logging

LOG = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 1 << 30
"""Freed bytes at the heap's end that are kept, and the size from which a block is mapped by itself."""
THREAD_HEAP_BYTES = 64 << 20
"""Of glibc's heaps for threads other than the main one, which are given up as soon as they are empty unless padded so far."""


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
