"""Freed memory goes back to the system, in a process of its own, since what a test run left behind would hide it."""

import subprocess
import sys

import pytest

from swarmd import memory

# Small allocations with one in use at the end, so that the heap's top can't shrink by itself.
FRAGMENT = """
import ctypes, psutil
from swarmd import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
pieces = [libc.malloc(50_000) for _ in range(1_000)]
for piece in pieces: ctypes.memset(piece, 1, 50_000)
for piece in pieces[:-1]: libc.free(piece)
before = psutil.Process().memory_info().rss
memory.give_back()
print(before - psutil.Process().memory_info().rss)
"""


# glibc tells of its arenas, one heap each, in XML.
THREADS = """
import ctypes, sys, threading
from swarmd import memory
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "share": memory.share_arenas()
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    libc.malloc(50_000)
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(memory._trim is None, reason="only glibc has arenas")
def test_threads_share_arenas() -> None:
    def arenas(how: str) -> int:
        command = [sys.executable, "-c", THREADS, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr=")

    assert arenas("share") <= memory.ARENAS < arenas("each")


@pytest.mark.skipif(memory._trim is None, reason="this C library gives memory back by itself")
def test_freed_memory_below_memory_in_use_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000_000


CYCLES = """
import gc, sys
from swarmd import memory
class Node: pass
loaded = [Node() for _ in range(500_000)]  # as torch has
gc.collect()
if sys.argv[1] == "settle": memory.settle()
def garbage():
    one = Node()
    one.itself, one.ballast = one, [Node()]
for _ in range(30_000): garbage()
print(sum(isinstance(it, Node) for it in gc.get_objects()))
"""


def test_garbage_is_collected_though_much_is_loaded() -> None:
    def left(how: str) -> int:
        command = [sys.executable, "-c", CYCLES, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert left("settle") < 10_000


def test_a_library_without_trimming_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", None)
    memory.give_back()


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_allocator_that_the_user_has_set_up_stays(name: str) -> None:
    environment = {name: "backend:cudaMallocAsync"}
    memory.grow_segments(environment)
    assert environment == {name: "backend:cudaMallocAsync"}


def test_segments_grow_where_the_user_says_nothing() -> None:
    environment: dict[str, str] = {}
    memory.grow_segments(environment)
    assert environment == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
