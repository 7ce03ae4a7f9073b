"""Memory of the process: few heaps, and what was freed is given back to the system. Both need glibc."""

from __future__ import annotations

import asyncio
import ctypes

# Numbers of glibc's options (mallopt(3)).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

# Heaps, of which glibc else makes eight per core: one for the event loop, and one for the threads that compute.
_HEAPS = 2
# A block of this size is mapped alone and is given back when it is freed; in a heap it would leave a gap as large. Else
# glibc raises the bound to 32 MiB on its own. From 1 MiB on a request would take a quarter longer, from 4 MiB 2 %.
_MAPPED_BYTES = 4 * 2**20
# Free memory at the end of a heap that is kept; if the bound above is fixed, glibc keeps 128 KiB.
_KEPT_BYTES = 32 * 2**20

# Tensors of requests leave gaps in the heaps. Within minutes of load, glibc holds as much in gaps as is in use. To give
# 250 MB back takes some 20 ms; they are got again page by page, in some 100 ms altogether.
_EVERY_S = 20.0


def bound_heaps() -> None:
    """Have all threads share two heaps without large blocks; call it before there are threads.

    By default, 16 clients brought the service to 930 MB in five minutes, and it went on growing.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_ARENA_MAX, _HEAPS)
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Give freed memory back to the system."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


async def give_back_now_and_then() -> None:
    """Give freed memory back every so many seconds, for ever."""
    while True:
        await asyncio.sleep(_EVERY_S)
        await asyncio.to_thread(give_back)
