"""Memory of the process: few heaps, and what was freed is given back to the system. Both need glibc."""

from __future__ import annotations

import asyncio
import ctypes

# glibc's number for the largest number of heaps (mallopt(3)), of which it else makes eight per core.
_ARENA_MAX = -8
# One for the event loop, and one for the threads that compute.
_HEAPS = 2

# Tensors of requests leave gaps in the heaps. Within minutes of load, glibc holds as much in gaps as is in use. To give
# 250 MB back takes some 20 ms; they are got again page by page, in some 100 ms altogether.
_EVERY_S = 20.0


def use_few_heaps() -> None:
    """Have all threads share two heaps; call it before there are threads.

    With one for each thread, gaps add up: under 16 clients the service came to 930 MB within five minutes, now 870.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_ARENA_MAX, _HEAPS)


def give_back() -> None:
    """Give freed memory back to the system."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


async def give_back_now_and_then() -> None:
    """Give freed memory back every so many seconds, for ever."""
    while True:
        await asyncio.sleep(_EVERY_S)
        await asyncio.to_thread(give_back)
