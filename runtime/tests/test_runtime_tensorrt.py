"""The native TensorRT backend over the fakes: results, graphs, threads, freeing, errors.

The fakes do work when it is waited for and refuse what crashes a GPU, see `nmsfree.testing.cuda`.
"""

import gc
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import Noise, assert_equal, refused

from nmsfree import EngineError, InputError, ModelError, ModelSpec, NmsSpec, RawDetections
from nmsfree.backends.tensorrt.context import Timings
from nmsfree.testing.cuda import FakeCuda

pytestmark = pytest.mark.usefixtures("small_heap")
BUILD = "build the engine again with `nmsfree build`"
DOCTOR = "`nmsfree doctor` says what is missing"


@pytest.mark.parametrize("builder", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize(
    ("batch", "counts"), [((1, 2, 4), (3, 4, 1, 9, 2)), ((2, 2, 2), (2, 4)), ((1, 1, 1), (1, 3))]
)
def test_the_engine_gives_what_its_function_gives(
    make_rig: Any, noise: Noise, builder: str, batch: tuple[int, int, int], counts: tuple[int, ...]
) -> None:
    """Any number of images that batches of the engine's size make up, each with its own result."""
    rig = make_rig(builder, batch=batch)
    backend = rig.open()
    assert backend.spec.batch == (None if batch[0] != batch[2] else batch[2])
    for seed, count in enumerate(counts):
        images = np.stack([noise(10 * seed + i) for i in range(count)])
        assert_equal(backend.run(images), rig(images))
    backend.close()
    assert rig.cuda.live() == {}
    assert rig.module.alive == 0
    assert not rig.cuda.closed  # it is the caller's


def test_no_more_images_are_computed_than_were_given(make_rig: Any, noise: Noise) -> None:
    rig = make_rig()
    sizes: list[int] = []
    cells = rig.cells

    def counting(images: NDArray[np.uint8], spec: ModelSpec) -> RawDetections:
        sizes.append(len(images))
        return cells(images, spec)

    rig.cells = counting
    backend = rig.open()
    for count in (1, 6, 3):
        backend.run(np.stack([noise(i) for i in range(count)]))
    assert sizes == [4, 4, 1, 4, 2, 3]  # the warm-up, then as given


def test_images_that_are_not_contiguous_are_copied_rightly(make_rig: Any, noise: Noise) -> None:
    rig = make_rig()
    images = np.stack([noise(0, 128), noise(1, 128)])[:, ::2]
    for turned in (images, np.ascontiguousarray(images)[..., ::-1]):
        assert_equal(rig.open().run(turned), rig(np.ascontiguousarray(turned)))


def test_results_are_copies(make_rig: Any, noise: Noise) -> None:
    rig = make_rig()
    backend = rig.open()
    images = noise(0)[None]
    first = backend.run(images)
    backend.run(noise(1)[None])
    assert_equal(first, rig(images))


@pytest.mark.parametrize(
    ("builder", "batch", "can_capture", "nms", "launches"),
    [
        ("tensorrt", (1, 1, 1), True, None, 3),
        ("tensorrt", (1, 1, 1), False, None, 0),  # pycuda has no graphs
        ("tensorrt", (1, 2, 4), True, None, 0),  # shapes are not fixed
        ("tensorrt", (1, 1, 1), True, NmsSpec(), 0),  # shapes within depend on the data
        ("tensorrt", (1, 1, 1), True, NmsSpec(steps=20), 3),
        ("tensorrt-rtx", (1, 1, 1), True, None, 0),  # the library replays its own
    ],
)
def test_graphs_are_recorded_where_shapes_are_fixed(
    make_rig: Any,
    make_spec: Any,
    noise: Noise,
    builder: str,
    batch: Any,
    can_capture: bool,
    nms: Any,
    launches: int,
) -> None:
    rig = make_rig(builder, spec=make_spec(nms=nms), batch=batch)
    rig.cuda.can_capture = can_capture
    backend = rig.open()
    for seed in range(3):
        assert_equal(backend.run(noise(seed)[None]), rig(noise(seed)[None]))
    assert rig.cuda.done["graph launches"] == launches
    warmups = 2 if builder == "tensorrt-rtx" else 1
    assert rig.cuda.done["executions"] == warmups + 3  # and three runs, however
    shown = "CUDA graph" if launches or builder == "tensorrt-rtx" else "no CUDA graph"
    assert backend.describe().split(", ")[-1] == shown
    backend.close()
    assert rig.cuda.live() == {}


def test_nothing_is_allocated_after_the_first_run(make_rig: Any, noise: Noise) -> None:
    """No stream, event, buffer, graph or context more than after the first."""
    for builder in ("tensorrt-rtx", "tensorrt"):
        rig = make_rig(builder, batch=(1, 1, 1))
        images = noise(0)[None]
        result = rig(images)
        rig.cells = lambda *_, result=result: result
        backend = rig.open()
        backend.run(images)
        allocated, live = rig.cuda.done["allocations"], rig.cuda.live()
        for _ in range(100):
            backend.run(images)
        assert rig.cuda.done["allocations"] == allocated
        assert rig.cuda.live() == live
        assert rig.module.alive == 1
        backend.close()
        assert rig.cuda.live() == {}
        assert rig.module.alive == 0


@pytest.mark.parametrize(("builder", "stream"), [("tensorrt-rtx", None), ("tensorrt", 9)])
def test_eight_threads_get_bit_identical_results(
    make_rig: Any, noise: Noise, builder: str, stream: Any
) -> None:
    """Different images, with streams of its own and through one stream of the user's."""
    rig = make_rig(builder, batch=(1, 1, 1))
    images = [noise(seed)[None] for seed in range(50)]
    backend = rig.open(stream=stream)
    serial = [b"".join(array.tobytes() for array in backend.run(image)) for image in images]
    assert len(set(serial)) == 50
    barrier = threading.Barrier(8)

    def work(order: list[int]) -> list[tuple[int, bytes]]:
        barrier.wait()
        return [(i, b"".join(a.tobytes() for a in backend.run(images[i]))) for i in order]

    orders = [list(np.random.default_rng(t).permutation(50)) for t in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(work, orders):
            assert all(found == serial[i] for i, found in result)
    assert rig.module.alive <= (1 if stream else 8)  # in one stream, runs take turns
    backend.close()
    assert rig.cuda.live() == {}
    assert rig.module.alive == 0


def test_a_backend_that_nobody_closes_is_freed_with_its_last_reference(
    make_rig: Any, noise: Noise
) -> None:
    rig = make_rig()
    backend = rig.open()
    backend.run(noise(0)[None])
    del backend
    gc.collect()
    assert rig.cuda.live() == {}
    assert rig.module.alive == 0


def test_threads_that_come_and_go_share_one_context(make_rig: Any, noise: Noise) -> None:
    rig = make_rig()
    backend = rig.open()
    for seed in range(20):
        thread = threading.Thread(target=backend.run, args=(noise(seed)[None],))
        thread.start()
        thread.join()
    assert rig.module.alive == 1


def test_closing_during_a_run_lets_it_finish(make_rig: Any, noise: Noise) -> None:
    rig = make_rig()
    backend = rig.open()
    backend.run(noise(0)[None])
    running, go_on = threading.Event(), threading.Event()
    cells = rig.cells

    def slow(images: NDArray[np.uint8], spec: ModelSpec) -> RawDetections:
        running.set()
        assert go_on.wait(10)
        return cells(images, spec)

    rig.cells = slow
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(backend.run, noise(1)[None])
        assert running.wait(10)
        backend.close()
        assert rig.module.alive == 1  # still at work
        assert refused(lambda: backend.run(noise(2)[None]), ModelError).startswith("the detector")
        go_on.set()
        assert_equal(future.result(10), cells(noise(1)[None], rig.spec))
    assert rig.cuda.live() == {}
    assert rig.module.alive == 0


def test_a_closed_detector_says_so(make_rig: Any, noise: Noise) -> None:
    backend = make_rig().open()
    backend.close()
    message = refused(lambda: backend.run(noise(0)[None]), ModelError)
    assert message == "the detector is closed: open it again"
    backend.close()  # closing again is harmless


def test_stages_are_timed_for_each_thread(make_rig: Any, noise: Noise) -> None:
    """The fake's clock goes on by 1 ms per event: three stages of each of two batches."""
    backend = make_rig().open()
    assert backend.timings() is None
    backend.run(np.stack([noise(i) for i in range(5)]))
    assert backend.timings() == Timings(h2d=2.0, network=2.0, d2h=2.0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(backend.timings).result() is None


def test_a_users_stream_is_used_and_kept(make_rig: Any, noise: Noise) -> None:
    rig = make_rig("tensorrt", batch=(1, 1, 1))
    with rig.cuda.active():
        theirs = rig.cuda.create_stream()
    backend = rig.open(stream=theirs.native)
    assert_equal(backend.run(noise(0)[None]), rig(noise(0)[None]))
    assert rig.cuda.live()["streams"] == 1  # theirs, none of ours
    backend.close()
    assert rig.cuda.live() == {"streams": 1}


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_the_default_stream_is_refused(make_rig: Any, handle: int) -> None:
    assert refused(lambda: make_rig().open(stream=handle), InputError) == (
        "stream is CUDA's default stream, in which engines run badly and CUDA graphs not at all: "
        "make a stream, or leave it out"
    )


@pytest.mark.parametrize(
    ("batch", "images", "shown", "expected"),
    [
        ((1, 2, 4), np.zeros((1, 32, 96, 3), np.uint8), "1 × 32 × 96 × 3, uint8", "1 to 4"),
        ((1, 2, 4), np.zeros((64, 96, 3), np.uint8), "64 × 96 × 3, uint8", "1 to 4"),
        ((1, 2, 4), np.zeros((1, 64, 96, 3), np.float32), "1 × 64 × 96 × 3, float32", "1 to 4"),
        ((1, 2, 4), np.zeros((0, 64, 96, 3), np.uint8), "0 × 64 × 96 × 3, uint8", "1 to 4"),
        ((2, 2, 4), np.zeros((5, 64, 96, 3), np.uint8), "5 × 64 × 96 × 3, uint8", "2 to 4"),
        ((2, 2, 2), np.zeros((5, 64, 96, 3), np.uint8), "5 × 64 × 96 × 3, uint8", ""),
    ],
)
def test_wrong_images_are_refused(
    make_rig: Any, batch: Any, images: NDArray[Any], shown: str, expected: str
) -> None:
    """Of five images in batches of 2 to 4, one would be left."""
    sizes = f"N × 64 × 96 × 3, uint8, in batches of {expected}"
    sizes = sizes if expected else "2 × 64 × 96 × 3, uint8"
    said = refused(lambda: make_rig(batch=batch).open().run(images), ModelError)
    assert said == f"the model refused images of {shown} (expected {sizes})"


def test_what_is_no_array_is_refused(make_rig: Any) -> None:
    assert refused(lambda: make_rig().open().run([[1]]), InputError) == (
        "images are a list, expected a NumPy array or an array on the GPU (__dlpack__ or "
        "__cuda_array_interface__)"
    )


@pytest.mark.parametrize(
    ("method", "opening", "said"),
    [
        ("deserialize_cuda_engine", True, "refuses this plan"),
        ("create_execution_context", False, "cannot make an execution context"),
        ("set_tensor_address", False, "cannot run the engine"),
        ("set_input_shape", False, "cannot run the engine"),
        ("execute_async_v3", False, "cannot run the engine"),
    ],
)
def test_a_failure_of_the_vendor_is_one_line_and_leaves_nothing(
    make_rig: Any, noise: Noise, method: str, opening: bool, said: str
) -> None:
    rig = make_rig()
    rig.module.fail.add(method)
    advice = DOCTOR if said == "cannot run the engine" else BUILD
    expected = (
        f"{rig.path}: tensorrt-rtx 1.7.1.116 {said} (IFake::{method}: Internal Error (as asked)): "
        f"{advice}"
    )
    if opening:
        assert refused(rig.open, EngineError) == expected
    else:
        backend = rig.open()
        assert refused(lambda: backend.run(noise(0)[None]), EngineError) == expected
        rig.module.fail.clear()
        assert_equal(backend.run(noise(0)[None]), rig(noise(0)[None]))  # it can be used again
        backend.close()
    assert rig.cuda.live() == {}
    assert rig.module.alive == 0


def test_an_exception_of_the_bindings_is_one_line(
    make_rig: Any, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    backend = rig.open()

    def raising(*_: Any) -> Any:
        raise RuntimeError("something\nbroke")

    monkeypatch.setattr(rig.module, "cuda", None)
    monkeypatch.setattr("nmsfree.testing.tensorrt._Context.execute_async_v3", raising)
    assert refused(lambda: backend.run(noise(0)[None]), EngineError) == (
        f"{rig.path}: tensorrt-rtx 1.7.1.116 cannot run the engine (something broke): {DOCTOR}"
    )
    assert rig.cuda.live() == {}


def test_a_plan_that_the_library_cannot_run_is_not_deserialised(make_rig: Any) -> None:
    rig = make_rig()
    rig.module.fail |= {"get_engine_validity", "deserialize_cuda_engine"}
    assert refused(rig.open, EngineError) == (
        f"{rig.path}: tensorrt-rtx 1.7.1.116 refuses this plan (version mismatch): {BUILD}"
    )


def test_a_plan_of_somebody_else_is_refused(make_rig: Any) -> None:
    plan = json.dumps({"tensors": {"x": ["float32", [1]], "y": ["float32", [1]]}, "batch": [1]})
    rig = make_rig(engine_sha256=hashlib.sha256(plan.encode()).hexdigest())
    rig.path.write_text(plan, "utf-8")
    assert refused(rig.open, ModelError) == f"{rig.path}: the engine has x, y, no 'images': {BUILD}"


def test_an_engine_is_described_and_refused_on_another_gpu(make_rig: Any) -> None:
    rig = make_rig(precision="fp16", tf32=True)
    backend = rig.open()
    assert backend._engine._config.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert backend.describe() == (
        "tensorrt-rtx 1.7.1.116 on Fake GPU (SM 8.9), fp16, TF32 on, fake CUDA, CUDA graph"
    )
    rig.cuda._sm = 120
    message = refused(lambda: rig.open(rebuild=False), EngineError)
    assert message.startswith(f"{rig.path}: built for SM 8.9; found SM 12.0: ")


def test_an_engine_that_is_not_what_its_description_says(make_rig: Any, make_spec: Any) -> None:
    rig = make_rig(batch=(1, 1, 1))
    other = make_spec(top_k=7)
    text = rig.path.with_name("model.engine.json")
    text.write_text(text.read_text("utf-8").replace('"top_k": 10', '"top_k": 7'), "utf-8")
    assert other.top_k == 7
    boxes = "num_detections int32 [1, 1], detection_boxes float32 [1, {k}, 4], "
    rest = "detection_scores float32 [1, {k}], detection_classes int32 [1, {k}]"
    shape = "images uint8 [1, 64, 96, 3], " + boxes + rest
    assert refused(rig.open, ModelError) == (
        f"{rig.path}: the engine has {shape.format(k=10)}, but its description says "
        f"{shape.format(k=7)}: {BUILD}"
    )


def test_a_context_that_we_opened_is_given_back(
    make_rig: Any, monkeypatch: pytest.MonkeyPatch, noise: Noise
) -> None:
    rig = make_rig()
    asked: list[tuple[Any, int]] = []

    def opened(layer: Any, index: int) -> FakeCuda:
        asked.append((layer, index))
        return rig.cuda

    monkeypatch.setattr("nmsfree.backends.tensorrt.backend.open_cuda", opened)
    backend = rig.open(cuda="pycuda", device="cuda:1")
    backend.run(noise(0)[None])
    assert not rig.cuda.closed
    backend.close()
    assert rig.cuda.closed
    assert asked == [("pycuda", 1)]
    rig = make_rig()
    rig.module.fail.add("deserialize_cuda_engine")
    refused(lambda: rig.open(cuda=None), EngineError)
    assert rig.cuda.closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_neither_runs_nor_frees_an_engine(make_rig: Any) -> None:
    backend = make_rig().open()
    backend.run(np.zeros((1, 64, 96, 3), np.uint8))
    child = os.fork()
    if not child:  # what is wrong here is the child's status
        try:
            backend.run(np.zeros((1, 64, 96, 3), np.uint8))
        except EngineError as error:
            right = str(error).startswith("tensorrt-rtx 1.7.1.116 was started before this process")
            backend.close()
            os._exit(0 if right and not backend._finalizer.alive else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    backend.run(np.zeros((1, 64, 96, 3), np.uint8))
    backend.close()
