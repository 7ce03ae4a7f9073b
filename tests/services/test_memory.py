"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# In a process of its own, whose heap nothing else uses: many blocks below those that are mapped alone, of which the
# last one stays, so that the heap can't shrink from its end.
_SCRIPT = """
import ctypes
import app.services.memory as memory

def resident_mb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[:-1]:
    libc.free(block)
full = resident_mb()
memory.give_back()
print(full - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_gaps_in_the_heap_are_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 80


_THREADS = """
import ctypes, threading
import app.services.memory as memory

memory.bound_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(9)

def allocate():
    for _ in range(100):
        libc.malloc(50_000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
out = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_many_threads_share_two_heaps() -> None:
    ran = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True)
    assert ran.stdout.count("<heap nr=") == 2


_LARGE = """
import ctypes
import app.services.memory as memory

def resident_mb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

memory.bound_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
# By default, the first large block that is freed makes glibc put all of its size into a heap from then on.
libc.free(libc.malloc(30_000_000))
blocks = [libc.malloc(size) for size in (20_000_000, 10_000, 20_000_000, 10_000)]
for block, size in zip(blocks, (20_000_000, 10_000) * 2):
    ctypes.memset(block, 1, size)
full = resident_mb()
libc.free(blocks[0])
print(full - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_a_large_block_is_given_back_when_it_is_freed() -> None:
    ran = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 15
