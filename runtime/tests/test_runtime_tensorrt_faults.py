"""A GPU that fails, also while things are freed: all else is freed, and one line says why."""

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import runtime_helpers as helpers
from runtime_helpers import Noise

from nmsfree import EngineError
from nmsfree.cuda.base import free_all
from nmsfree.testing.cuda import FakeCuda

# Method that fails → what is left of a lane with a graph, four events and five buffers.
refused = helpers.refusing(EngineError)
LEFT: dict[str, dict[str, int]] = {
    "synchronize": {},
    "destroy_graph": {"graphs": 1},
    "destroy_event": {"events": 4},
    "free": {"device allocations": 5},
    "free_pinned": {"pinned allocations": 5},
    "destroy_stream": {"streams": 1},
}


def contexts(rig: Any) -> int:
    """Execution contexts that are alive; not counting what a caught error's frames hold."""
    gc.collect()
    return int(rig.module.alive)


def failed(method: str) -> str:
    return f"CUDA: {method} failed (as asked): `nmsfree doctor` says what is missing"


def test_every_step_is_taken_and_the_first_error_raised() -> None:
    taken = []

    def step(number: int) -> Callable[[], object]:
        def take() -> None:
            taken.append(number)
            if number in (2, 3):
                raise EngineError(str(number))

        return take

    assert refused(lambda: free_all(step(i) for i in range(5))) == "2"
    assert taken == [0, 1, 2, 3, 4]


def test_an_error_that_is_forgotten_keeps_nothing() -> None:
    """Not until the garbage collector comes by: it may come when no CUDA context is current."""

    class Memory:
        def free(self) -> None:
            raise EngineError("the GPU is gone")

    memory = Memory()
    alive = weakref.ref(memory)
    gc.disable()
    try:
        with suppress(EngineError):
            free_all([memory.free])
        del memory
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("method", LEFT)
def test_what_cannot_be_freed_keeps_nothing_else(make_rig: Any, noise: Noise, method: str) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    backend = rig.open()
    backend.run(noise(0)[None])
    rig.cuda.fail.add(method)
    assert refused(backend.close) == failed(method)
    assert rig.cuda.live() == LEFT[method]
    assert contexts(rig) == 0


@pytest.mark.parametrize("method", [*LEFT, "active"])
def test_a_lane_that_cannot_be_freed_keeps_neither_the_others_nor_the_engine(
    make_rig: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    monkeypatch.setattr("nmsfree.backends.tensorrt.backend.open_cuda", lambda *_: rig.cuda)
    backend = rig.open(cuda=None)
    with backend._pool.take(False), backend._pool.take(False):
        assert rig.module.alive == 2
    held: list[Any] = []
    at_release = lambda _: held.extend([backend._engine._engine, rig.module.alive])  # noqa: E731
    monkeypatch.setattr(FakeCuda, "close", at_release)
    rig.cuda.fail.add(method)
    assert refused(backend.close) == failed(method)
    assert contexts(rig) == 0
    if method != "active":
        assert rig.cuda.live() == {kind: 2 * count for kind, count in LEFT[method].items()}
    kept = 1 if method == "destroy_graph" else 0  # by the fake's graph, which the error names
    assert held == [None, kept]
    backend.close()  # it is closed, and says nothing more


@pytest.mark.parametrize("method", ["synchronize", "copy_in", "record", "elapsed_ms", "launch"])
def test_a_run_that_failed_frees_its_lane(make_rig: Any, noise: Noise, method: str) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    backend = rig.open()
    backend.run(noise(0)[None])
    rig.cuda.fail |= {method, "destroy_event"}  # what fails afterwards is not what is told
    assert refused(lambda: backend.run(noise(1)[None])) == failed(method)
    assert rig.cuda.live() == {"events": 4}
    assert contexts(rig) == 0
    rig.cuda.fail.clear()
    images = noise(2)[None]
    np.testing.assert_array_equal(backend.run(images).detection_scores, rig(images)[2])


@pytest.mark.parametrize(
    ("method", "left"),
    [
        ("create_stream", {}),
        ("create_event", {}),
        ("allocate", {"events": 4}),
        ("allocate_pinned", {"events": 4}),
        ("copy_in", {"events": 4}),
        ("synchronize", {"events": 4}),
    ],
)
def test_a_lane_that_cannot_be_made_leaves_what_cannot_be_freed(
    make_rig: Any, noise: Noise, method: str, left: dict[str, int]
) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    backend = rig.open()
    rig.cuda.fail |= {method, "destroy_event"}
    assert refused(lambda: backend.run(noise(0)[None])) == failed(method)
    assert rig.cuda.live() == left
    assert contexts(rig) == 0
