"""Care for the heap of a worker: what the C library keeps and returns, and how often cycles are looked for."""

import ctypes
import gc

TRIM_BYTES = 32 << 20
"""How many bytes must have been freed before the heap is trimmed, which takes milliseconds."""

KEPT_BYTES = 16 << 20
"""Free memory at the end of the heap that is not returned at once."""

LARGE_BYTES = 256 << 10
"""Freed buffers of this size and above are returned at once: more than one read of a socket brings."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LIBC = ctypes.CDLL(None)


def tune() -> None:
    """Set up the heap and the collector of this process.

    By default glibc returns every freed buffer of 128 KiB to the system at once. Each page of the next one is a fault
    then, which values of 100 KB would pay for each time. So such buffers are kept until `trim`. Larger ones are still
    returned at once, or the budget of memory would not bound the process (mallopt(3)).

    Requests make no cycles, so full collections would only add to the tail latency.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        _LIBC.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    gc.freeze()
    gc.set_threshold(20_000, 250, 100)  # a collection of young objects takes 2 ms


def trim(used: int, peak: int) -> int:
    """Return freed memory to the system, once that is worth it. `used`: bytes now. -> the new peak of them.

    glibc keeps freed memory for the next time. After a burst of large replies that would be hundreds of megabytes.
    """
    if peak - used < TRIM_BYTES:
        return max(peak, used)
    if hasattr(_LIBC, "malloc_trim"):  # musl has none, and keeps less
        _LIBC.malloc_trim(0)
    return used
