"""The pool of execution contexts: no more than allowed, and those who wait take turns."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import assert_equal

from nmsfree import EngineError, ModelError
from nmsfree.backends.options import MOST_CONTEXTS
from nmsfree.backends.tensorrt.pool import ContextPool
from nmsfree.testing.tensorrt import CONTEXT_BYTES


class Context:
    """Stands for an execution context; counts those that exist."""

    alive: list["Context"]

    def __init__(self, from_device: bool, alive: list["Context"]) -> None:
        self.from_device, self.alive = from_device, alive
        alive.append(self)

    def close(self) -> None:
        self.alive.remove(self)


def make_pool(most: int) -> tuple[ContextPool, list[Context], list[str]]:
    alive: list[Context] = []
    ended: list[str] = []
    make: Any = lambda from_device: Context(from_device, alive)  # noqa: E731
    return ContextPool(make, lambda: ended.append("finished"), most), alive, ended


def test_threads_share_the_contexts_that_are_allowed(
    make_rig: Any, noise: Callable[..., NDArray[np.uint8]]
) -> None:
    rig = make_rig()
    backend = rig.open(max_contexts=2)
    pictures = [noise(seed)[None] for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(backend.run, pictures))
    for picture, raw in zip(pictures, found, strict=True):
        assert_equal(raw, rig(picture))
    assert 1 <= rig.cuda.live()["streams"] <= 2
    backend.close()
    assert rig.cuda.live() == {}


@pytest.mark.parametrize(
    ("contexts", "given", "most"),
    [(100, None, MOST_CONTEXTS), (7, None, 3), (0, None, 1), (0, 5, 5)],
)
def test_by_default_half_of_the_free_memory_is_taken(
    make_rig: Any,
    contexts: int,
    given: int | None,
    most: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    rig = make_rig()
    rig.cuda.room = contexts * (CONTEXT_BYTES + 2**18)  # more than the buffers of a batch of 4
    backend = rig.open(max_contexts=given)
    said = "little GPU memory is free: runs at once:"
    assert (f"{said} {most}" in caplog.text) == (said in caplog.text) == (most in (1, 3))
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(backend._pool.take(from_device=False))
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(lambda: backend.run(np.zeros((1, 64, 96, 3), np.uint8)))
            while not backend._pool._waiting:
                time.sleep(0.001)
            stack.close()
            waiting.result(10)
    assert rig.cuda.alive["streams"] == most
    backend.close()
    assert rig.cuda.live() == {}


def test_who_waits_longest_is_next() -> None:
    pool, alive, ended = make_pool(1)
    order: list[int] = []

    def run(number: int) -> None:
        with pool.take(from_device=number % 2 == 1):
            order.append(number)
            assert len(alive) == 1 and alive[0].from_device == (number % 2 == 1)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    with pool.take(from_device=False):
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(pool._waiting) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4, 5]
    pool.close()
    assert (alive, ended) == ([], ["finished"])


def test_a_context_that_failed_makes_room_for_another() -> None:
    pool, alive, _ = make_pool(1)
    for _ in range(3):
        with pytest.raises(EngineError), pool.take(from_device=False):
            raise EngineError("the GPU failed")
        assert alive == []
    with pool.take(from_device=False):
        assert len(alive) == 1


def test_those_who_wait_are_told_that_the_pool_is_closed() -> None:
    pool, alive, ended = make_pool(1)
    with ThreadPoolExecutor(1) as other, pool.take(from_device=False):
        waiting = other.submit(lambda: pool.take(from_device=False).__enter__())
        while not pool._waiting:
            time.sleep(0.001)
        pool.close()
        with pytest.raises(ModelError, match="closed"):
            waiting.result(10)
        assert ended == []
    assert (alive, ended) == ([], ["finished"])
