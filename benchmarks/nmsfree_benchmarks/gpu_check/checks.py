"""What the claims compare: results, threads and memory of a backend.

Each returns what it saw and raises `GateError` where a claim does not hold. None of them needs a
GPU: they are tried on the processor, too.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import Backend, OnnxRuntimeBackend
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.detector import Detector
from nmsfree.errors import GateError
from nmsfree_benchmarks.common.engines import has_graph
from nmsfree_benchmarks.gpu_check.claims import CannotTry
from nmsfree_export.verify.parity import compare, load_images, tolerance_for

THREADS, PICTURES = 8, 200
RUNS = 5000  # after which memory must be what it was
LEAK = 8.0  # MiB that the driver may take for itself meanwhile
OPENED = 10  # engines, one after another
REPLAYED = 4  # pictures
TRIES = 3  # another program may take memory once; a leak goes on

Pixels = NDArray[np.uint8]  # [1, H, W, 3], BGR


def same_answers(reference: Path, other: Backend) -> str:
    """Compare a backend with ONNX Runtime on the processor, on the bundled pictures.

    Raises:
        GateError: scores, boxes or the number of objects differ.
    """
    expected = OnnxRuntimeBackend(reference)
    try:
        allowed = tolerance_for(expected.spec.precision, other.spec.precision)
        parity = compare(expected, other, load_images(None), allowed)
    finally:
        expected.close()
        description = other.description
        other.close()
    parity.enforce()
    return f"{description}: {parity}"


def threads_agree(backend: Backend, threads: int = THREADS, pictures: int = PICTURES) -> str:
    """Run different pictures in many threads at once, and in one: bit for bit the same.

    Raises:
        GateError: some thread got another result.
    """
    images = scenes(backend, pictures)

    def run(image: Pixels) -> bytes:
        return b"".join(np.ascontiguousarray(a).tobytes() for a in backend.run(image))

    serial = [run(image) for image in images]
    if len(set(serial)) < 2:
        raise GateError("all pictures gave one answer, so threads cannot be told apart")
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(run, images * threads))
    wrong = sum(a != b for a, b in zip(found, serial * threads, strict=True))
    if wrong:
        raise GateError(f"{wrong} of {len(found)} results differ from those of one thread")
    return f"{threads} threads × {pictures} pictures, bit for bit the same"


def memory_is_flat(
    backend: Backend, used: Callable[[], float | None], runs: int = RUNS, leak: float = LEAK
) -> str:
    """Run many times and look whether memory grows, and goes on growing.

    Args:
        used: MiB in use now; None where it is not told.
        leak: MiB that are allowed.

    Raises:
        GateError: it grew by more, each time.
        CannotTry: memory cannot be read.
    """
    images = scenes(backend, 4)
    for image in images:
        backend.run(image)  # contexts, buffers and kernels come with the first runs
    for _ in range(TRIES):
        before = used()
        if before is None:
            raise CannotTry("the driver does not tell how much memory is in use")
        for index in range(runs):
            backend.run(images[index % len(images)])
        grown = (used() or 0.0) - before
        if grown <= leak:
            return f"{grown:+.1f} MiB after {runs} runs"
    raise GateError(
        f"memory grew by {grown:.1f} MiB in {runs} runs, {TRIES} times, at most {leak:g} allowed"
    )


def closing_frees(
    opened: Callable[[], Backend], used: Callable[[], float | None], times: int = OPENED
) -> str:
    """Open, run and close many times; memory must not grow.

    Args:
        opened: opens the backend.
        used: MiB in use now; None where it is not told.

    Raises:
        GateError: it grew by more than `LEAK`, each time.
        CannotTry: memory cannot be read.
    """

    def once() -> None:
        backend = opened()
        try:
            backend.run(scenes(backend, 1)[0])
        finally:
            backend.close()

    once()  # loaded code and the context's own memory stay
    for _ in range(TRIES):
        before = used()
        if before is None:
            raise CannotTry("the driver does not tell how much memory is in use")
        for _ in range(times):
            once()
        grown = (used() or 0.0) - before
        if grown <= LEAK:
            return f"{grown:+.1f} MiB after {times} engines were opened, run and closed"
    raise GateError(
        f"{grown:.1f} MiB are left after {times} engines were closed, {TRIES} times, at most "
        f"{LEAK:g} allowed"
    )


def replays_graph(backend: Backend) -> str:
    """Run the same pictures again and again, the first time to capture a graph.

    Raises:
        GateError: no graph was captured, or a replay gives other results.
    """
    images = scenes(backend, REPLAYED)
    first = [backend.run(image) for image in images]
    if has_graph(backend) is not True:
        raise GateError(f"no CUDA graph was captured: {backend.description}")
    for image, expected in zip(images, first, strict=True):
        same_bytes(expected, backend.run(image), "a replay by the first run")
    return f"{backend.description}; {REPLAYED} pictures, replays bit for bit the same"


def same_bytes(expected: Sequence[Any], found: Sequence[Any], what: str) -> str:
    """Raise GateError unless two raw outputs are equal bit for bit."""
    names = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
    for name, a, b in zip(names, expected, found, strict=True):
        if not np.array_equal(a, b):
            raise GateError(f"{what}: {name} differs")
    return f"{what}: bit for bit the same"


def scenes(backend: Backend, count: int) -> list[Pixels]:
    """Letterboxed digits scenes that differ, uint8 [1, H, W, 3] BGR."""
    detector = Detector(backend)
    images = [make_scene("crowd" if i % 2 else "val", i).image for i in range(count)]
    return [detector.preprocess([image])[0][:1] for image in images]
