"""Keeps freed memory in the process for the learner's next update.

An update allocates and frees the same hundreds of megabytes each time. By default glibc returns large blocks to the
kernel at once and gets them back page by page, which takes about 7 % of an update on a CPU.

Invariant: only the allocator's settings change; without glibc nothing happens.
"""

import ctypes
import functools
import logging

LOG = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 1 << 30
"""Freed bytes kept at the heap's end, and the size from which a block is mapped separately."""
THREAD_HEAP_BYTES = 64 << 20
"""Size of glibc's heaps for threads other than the main one, which are released once empty unless padded to this
size."""


@functools.cache
def keep_freed_memory() -> None:
    """Keep up to `KEPT_BYTES` of freed memory in this process; effective once per process, from any thread."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        LOG.info("the C library has no mallopt: freed memory is returned to the operating system")
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, THREAD_HEAP_BYTES)
