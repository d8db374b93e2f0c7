"""The C library's memory, kept rather than given back.

glibc returns every block of more than 128 KiB to the kernel when it is freed, and a training step makes the same blocks
again and again; the page faults are some per cent of a mapped step's time (benchmarks/memory.py).
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep() -> bool:
    """Ask glibc to keep what is freed for the rest of the process; False where there is no such request."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_TRIM_THRESHOLD, _LARGE))
