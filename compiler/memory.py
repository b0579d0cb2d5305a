"""What the process holds, and what the C library keeps of memory that was freed.

Activations are large, and freed and allocated anew all the time. glibc at first hands each back to the kernel, which
zeroes its pages again for the next; later on it keeps what lies between small blocks that still live. Compiling
ResNet-50, the one took a second of page faults, the other 100 MB. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import resource

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20
"""The most that either setting takes on 64 bits: https://man7.org/linux/man-pages/man3/mallopt.3.html."""


def reuse_freed_memory() -> None:
    """Have freed blocks reused, as glibc does by itself once it has seen large ones freed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


def return_freed_memory() -> None:
    """Hand what is free back to the kernel, from between the blocks that live too."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024
