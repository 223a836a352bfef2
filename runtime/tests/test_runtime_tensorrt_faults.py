"""A GPU that fails: all else is freed, and one line says why. CUDA graphs: promised where used."""

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import runtime_helpers as helpers
from runtime_helpers import Noise, assert_equal

from nmsfree import EngineError
from nmsfree.backends.tensorrt.engine import GraphUse
from nmsfree.cuda.base import free_all
from nmsfree.testing.cuda import FakeCuda

pytestmark = pytest.mark.usefixtures("small_heap")
refused = helpers.refusing(EngineError)
# Method that fails → what is left of a context with a graph, four events and five buffers.
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


@pytest.mark.parametrize("method", [*LEFT, "active"])
def test_a_context_that_cannot_be_freed_keeps_neither_the_others_nor_the_engine(
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
def test_a_run_that_failed_frees_its_context(make_rig: Any, noise: Noise, method: str) -> None:
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
def test_a_context_that_cannot_be_made_leaves_what_cannot_be_freed(
    make_rig: Any, noise: Noise, method: str, left: dict[str, int]
) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    backend = rig.open()
    rig.cuda.fail |= {method, "destroy_event"}
    assert refused(lambda: backend.run(noise(0)[None])) == failed(method)
    assert rig.cuda.live() == left
    assert contexts(rig) == 0


FIXED = (1, 1, 1)


def said(backend: Any) -> str:
    """The end of the description."""
    return str(backend.describe().split(", ")[-1])


@pytest.mark.parametrize("batch", [FIXED, (1, 2, 4)])
@pytest.mark.parametrize(
    ("asked", "said_by"),
    [("is_stream_capturable", ""), ("", "execute_async_v3"), ("", "create_execution_context")],
)
def test_a_library_that_does_without_a_graph_is_noticed(
    make_rig: Any, noise: Noise, caplog: pytest.LogCaptureFixture, asked: str, said_by: str,
    batch: Any,
) -> None:  # fmt: skip
    rig = make_rig(batch=batch)
    rig.module.falls_back = said_by
    rig.module.fail.add(asked)
    backend = rig.open()
    for seed in range(3):
        assert_equal(backend.run(noise(seed)[None]), rig(noise(seed)[None]))
    assert said(backend) == "no CUDA graph"
    assert caplog.messages == [
        f"no CUDA graph, runs take a little longer: {rig.path}: tensorrt-rtx 1.7.1.116 says that "
        "it cannot be captured"
    ]


def test_a_batch_size_that_comes_later_may_have_another_answer(
    make_rig: Any, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    backend = rig.open()
    backend.run(noise(0)[None])
    assert said(backend) == "CUDA graph"
    rig.module.falls_back = "execute_async_v3"
    assert_equal(backend.run(np.stack([noise(1), noise(2)])), rig(np.stack([noise(1), noise(2)])))
    assert said(backend) == "no CUDA graph"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("builder", "batch"), [("tensorrt-rtx", (1, 2, 4)), ("tensorrt", FIXED)])
def test_asked_before_the_first_run_it_prepares_that_run(
    make_rig: Any, noise: Noise, builder: str, batch: Any
) -> None:
    rig = make_rig(builder, batch=batch)
    backend = rig.open()
    assert rig.module.alive == 0
    assert said(backend) == "CUDA graph"
    assert said(backend) == "CUDA graph"
    assert rig.module.alive == 1
    allocated = rig.cuda.done["allocations"]
    assert_equal(backend.run(noise(0)[None]), rig(noise(0)[None]))
    assert rig.cuda.done["allocations"] == allocated
    backend.close()
    assert said(backend) == "CUDA graph"
    assert rig.cuda.live() == {}


def test_what_is_not_prepared_is_no_graph_and_no_description(make_rig: Any) -> None:
    """There can be none, the engine was closed before any run, the run cannot be prepared."""
    rig = make_rig("tensorrt", batch=(1, 2, 4))
    assert said(rig.open()) == "no CUDA graph"
    assert rig.module.alive == 0
    for builder in ("tensorrt-rtx", "tensorrt"):
        backend = make_rig(builder, batch=FIXED).open()
        backend.close()
        assert said(backend) == "no CUDA graph"
    rig = make_rig()
    backend = rig.open()
    rig.module.fail.add("execute_async_v3")
    with pytest.raises(EngineError, match="cannot run the engine"):
        _ = backend.describe()
    assert rig.cuda.live() == {}


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "execute_async_v3"])
def test_a_recording_that_fails_costs_the_graph_only(
    make_rig: Any,
    noise: Noise,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Nothing of it is left either: an open recording would forbid the thread to allocate."""
    rig = make_rig("tensorrt", batch=FIXED)
    if method == "execute_async_v3":
        fail_while_recording(rig, monkeypatch)
    else:
        rig.cuda.fail.add(method)
    backend = rig.open()
    assert_equal(backend.run(noise(0)[None]), rig(noise(0)[None]))
    assert_equal(backend.run(noise(1)[None]), rig(noise(1)[None]))
    assert said(backend) == "no CUDA graph"
    rig.cuda.fail.clear()
    with backend._pool.take(False), backend._pool.take(False):
        assert "graphs" not in rig.cuda.live()  # a second context does not try again
    cuda = f"CUDA: {method} failed (as asked): `nmsfree doctor` says what is missing"
    vendor = (
        f"{rig.path}: tensorrt 11.4.0 cannot record the engine as a CUDA graph "
        "(IFake::execute_async_v3: Internal Error (as asked)): it runs without one"
    )
    why = vendor if method == "execute_async_v3" else cuda
    assert caplog.messages == [f"no CUDA graph, runs take a little longer: {why}"]
    assert rig.cuda.done["graph launches"] == 0
    assert rig.cuda._capturing == set()
    backend.close()
    assert rig.cuda.live() == {}


def fail_while_recording(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine run, but not in a stream that records."""
    begin, end = rig.cuda.begin_capture, rig.cuda.end_capture

    def begin_capture(stream: Any) -> None:
        begin(stream)
        rig.module.fail.add("execute_async_v3")

    def end_capture(stream: Any) -> Any:
        rig.module.fail.clear()
        return end(stream)

    monkeypatch.setattr(rig.cuda, "begin_capture", begin_capture)
    monkeypatch.setattr(rig.cuda, "end_capture", end_capture)


def test_one_context_without_counts_for_all(caplog: pytest.LogCaptureFixture) -> None:
    use = GraphUse(possible=True)
    assert use.used is None
    use.works()
    assert use.used is True
    use.fails("first")
    use.works()
    use.fails("second")
    assert use.used is False
    assert caplog.messages == ["no CUDA graph, runs take a little longer: first"]
    assert GraphUse(possible=False).used is False
