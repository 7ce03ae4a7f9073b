"""Memory of the process: what was freed is given back to the system."""

from __future__ import annotations

import asyncio
import ctypes

# Tensors of requests leave gaps in the heaps of the threads that made them. Within minutes of load, glibc holds as much
# in gaps as is in use, and a little more with every hour. To give 250 MB back takes some 20 ms; they are got again page
# by page, in some 100 ms altogether.
_EVERY_S = 60.0


def give_back() -> None:
    """Give freed memory back to the system, where the C library keeps it (glibc)."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


async def give_back_now_and_then() -> None:
    """Give freed memory back every minute, for ever."""
    while True:
        await asyncio.sleep(_EVERY_S)
        await asyncio.to_thread(give_back)
