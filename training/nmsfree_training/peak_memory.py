"""How much memory a piece of work takes on this processor."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SAMPLING_S = 0.0005  # between two looks at the process's memory


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Give a list whose only item becomes the growth of this process in bytes, at its highest."""
    process, grown, done = psutil.Process(), [0], threading.Event()
    _give_back_freed()
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(SAMPLING_S):
            grown[0] = max(grown[0], process.memory_info().rss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()


def _give_back_freed() -> None:
    """Hand freed memory back to Linux, or its second use would not be seen as growth."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep less
        if trim is not None:
            trim(0)
