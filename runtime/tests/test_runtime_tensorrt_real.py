"""Engines of TensorRT-RTX, or of TensorRT for GPUs that it lacks; run where there is a GPU."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import Noise

from nmsfree import Detector, EngineError, MissingExtraError, ModelSpec, RawDetections
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.backends.tensorrt.targets import sm_text
from nmsfree.backends.tensorrt.vendor import is_installed, load_vendor
from nmsfree.cuda import Cuda, open_cuda
from nmsfree.machine import find_gpus

if not is_installed("tensorrt-rtx") and not is_installed("tensorrt"):
    pytest.skip("neither TensorRT-RTX nor TensorRT is installed", allow_module_level=True)
driver = pytest.importorskip("cuda.bindings.driver")
engine = pytest.importorskip("nmsfree_export.tensorrt.build")

GPUS = find_gpus()
LAYERS = ("cuda-python", "pycuda")
NEAR = 1e-5  # of scores, which differ by 6e-5 (1 / 64 / 255) where they differ
SLACK = 8 << 20  # bytes: four of the pages of 2 MiB in which the driver takes memory


def builder_here() -> tuple[str, tuple[int, ...]]:
    """What builds engines for this machine's GPU, or an RTX 4060; and the SMs to ask it for.

    TensorRT-RTX does not build for data centre GPUs (SM 9.0), TensorRT for the machine's only.
    """
    sms = tuple(gpu.capability[0] * 10 + gpu.capability[1] for gpu in GPUS.found[:1])
    if is_installed("tensorrt-rtx"):
        if {*sms} <= {*load_vendor("tensorrt-rtx").buildable()}:
            return "tensorrt-rtx", sms
        lacking = f"TensorRT-RTX does not build for SM {sm_text(sms[0])}"
    else:
        lacking = "TensorRT-RTX is not installed"
    if not GPUS.found or not is_installed("tensorrt"):
        pytest.skip(f"{lacking}, and TensorRT is not installed or has no GPU")
    return "tensorrt", ()


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, make_spec: Any, make_onnx: Any
) -> Callable[..., Path]:
    """Return a function that builds the tiny model for this machine's GPU, or an RTX 4060."""
    builder, sms = builder_here()

    def make(batch: tuple[int, int, int] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("engine")
        spec = make_spec(batch=None if batch else 1)
        onnx = make_onnx(folder / "model.onnx", spec)
        options = engine.BuildOptions(builder=builder, sms=sms, batch=batch)
        engine.build_engine(onnx, folder / "model.engine", options)
        return folder / "model.engine"

    return make


def test_without_a_driver_an_engine_says_so(build: Callable[..., Path]) -> None:
    if GPUS.cuda is not None:
        pytest.skip("this machine has a driver")
    with pytest.raises(EngineError) as info:
        Detector(build())
    assert str(info.value).startswith("no NVIDIA driver that can be used (")
    assert str(info.value).endswith("): `nmsfree doctor` says what is missing")
    assert info.value.exit_status == 3


@pytest.fixture(params=LAYERS)
def cuda(request: pytest.FixtureRequest) -> Iterator[Cuda]:
    if GPUS.problem:
        pytest.skip(f"needs a GPU: {GPUS.problem}")
    try:
        opened = open_cuda(request.param)
    except MissingExtraError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


def assert_near(found: RawDetections, expected: RawDetections) -> None:
    """Every row; where scores are equal, any may come first, and any be the last that is given."""
    np.testing.assert_array_equal(found.num_detections, expected.num_detections)
    np.testing.assert_allclose(found.detection_scores, expected.detection_scores, atol=NEAR)
    for image in range(len(expected.num_detections)):
        for one, other in zip(rows(found, image), rows(expected, image), strict=True):
            np.testing.assert_allclose(one, other, atol=NEAR)


def rows(raw: RawDetections, image: int) -> tuple[NDArray[Any], ...]:
    """Boxes, scores and classes that are better than the last, in the order of the boxes."""
    _, boxes, scores, classes = (array[image] for array in raw)
    sure = scores > scores[-1] + NEAR
    order = np.lexsort(boxes[sure].round().T)
    return boxes[sure][order], scores[sure][order], classes[sure][order]


@pytest.mark.parametrize(
    ("name", "change"),
    [("detection_boxes", 1), ("detection_scores", 1e-3), ("detection_classes", 1)],
)
def test_near_is_near(
    noise: Noise, make_spec: Any, bright_cells: Any, name: str, change: float
) -> None:
    """Of 20 pictures, with equal scores in some; whatever differs in one row is seen."""
    images = np.stack([noise(seed) for seed in range(20)])
    expected: RawDetections = bright_cells(images, make_spec())
    swapped = RawDetections(*(array.copy() for array in expected))
    tied = np.argwhere(np.diff(expected.detection_scores) == 0)
    for image, row in tied:
        for array in swapped[1:]:
            array[image, [row, row + 1]] = array[image, [row + 1, row]]
    assert tied.size > 0
    assert_near(swapped, expected)
    getattr(swapped, name)[3, 0] += type(getattr(swapped, name).flat[0])(change)
    with pytest.raises(AssertionError):
        assert_near(swapped, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [None, (1, 2, 4)])
def test_it_runs_and_equals_its_definition(
    cuda: Cuda, build: Any, noise: Noise, make_spec: Any, bright_cells: Any, batch: Any
) -> None:
    spec: ModelSpec = make_spec()
    backend = TensorRtBackend(build(batch), cuda=cuda)
    for count in (1, 3, 4, 9):
        images = np.stack([noise(count * 10 + i) for i in range(count)])
        assert_near(backend.run(images), bright_cells(images, spec))
    backend.close()


@pytest.mark.gpu
def test_eight_threads_get_bit_identical_results(cuda: Cuda, build: Any, noise: Noise) -> None:
    backend = TensorRtBackend(build(), cuda=cuda)
    images = [noise(seed)[None] for seed in range(200)]
    run = lambda i: b"".join(a.tobytes() for a in backend.run(images[i]))  # noqa: E731
    serial = [run(i) for i in range(200)]
    assert len(set(serial)) == 200
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, [*range(200)] * 8)) == serial * 8
    backend.close()


@pytest.mark.gpu
def test_kernels_are_cached_beside_the_engine(cuda: Cuda, build: Any, noise: Noise) -> None:
    path = build()
    if read_sidecar(path).builder != "tensorrt-rtx":
        pytest.skip("TensorRT has its kernels in the engine")
    for cached in (False, True):
        backend = TensorRtBackend(path, cuda=cuda)
        assert backend.uses_cached_kernels is cached
        backend.run(noise(0)[None])
        backend.close()
        assert path.with_name("model.engine.cache").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("own_stream", [False, True])
def test_arrays_and_streams_of_torch_are_taken(
    build: Any, noise: Noise, make_spec: Any, bright_cells: Any, own_stream: bool
) -> None:
    if GPUS.problem:
        pytest.skip(f"needs a GPU: {GPUS.problem}")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this build of PyTorch has no CUDA")
    images = np.stack([noise(i) for i in range(3)])
    stream = torch.cuda.Stream() if own_stream else None
    backend = TensorRtBackend(build((1, 2, 4)), cuda="cuda-python", stream=stream)
    tensor = torch.from_numpy(images).cuda()
    assert_near(backend.run(tensor), bright_cells(images, make_spec()))
    assert_near(backend.run(tensor.flip(0).contiguous()), bright_cells(images[::-1], make_spec()))
    backend.close()
    assert int(tensor.sum()) == int(images.sum())  # PyTorch's context is as it was


@pytest.mark.gpu
def test_a_server_thread_beside_torch(build: Any, noise: Noise) -> None:
    """The thread makes an execution context and runs; this one computes in PyTorch meanwhile.

    A new thread has no current CUDA context, and PyTorch must find its own as it was.
    """
    if GPUS.problem:
        pytest.skip(f"needs a GPU: {GPUS.problem}")
    torch = pytest.importorskip("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = torch.nn.Conv2d(3, 8, 3).to(device).requires_grad_(False)
    batch = torch.rand(2, 3, 32, 32, device=device)
    before = layer(batch)
    image, found = noise(0), []
    with Detector(TensorRtBackend(build(), cuda="cuda-python")) as detector:
        worker = threading.Thread(target=lambda: found.extend(detector(image) for _ in range(200)))
        worker.start()
        while worker.is_alive():
            assert torch.allclose(layer(batch), before)
        worker.join()
        alone = detector(image)
    assert len(found) == 200
    assert len(alone) > 0
    for detections in found:
        np.testing.assert_array_equal(detections.xyxy, alone.xyxy)
        np.testing.assert_array_equal(detections.confidence, alone.confidence)


def free_memory(cuda: Cuda) -> int:
    """Bytes of the GPU that nobody uses."""
    with cuda.active():
        status, free, _ = driver.cuMemGetInfo()
    assert status == driver.CUresult.CUDA_SUCCESS
    return int(free)


@pytest.mark.gpu
def test_memory_is_flat_over_5000_runs_and_freed_by_close(
    cuda: Cuda, build: Any, noise: Noise
) -> None:
    """Other programs on the GPU may not take or free more than `SLACK` meanwhile."""
    path, images = build(), noise(0)[None]

    def opened() -> TensorRtBackend:
        backend = TensorRtBackend(path, cuda=cuda)
        backend.run(images)
        return backend

    opened().close()  # what CUDA keeps once it has it: loaded code, the context's own memory
    before = free_memory(cuda)
    backend = opened()
    during = free_memory(cuda)
    for _ in range(5000):
        backend.run(images)
    assert during - free_memory(cuda) < SLACK
    backend.close()
    assert before - free_memory(cuda) < SLACK
