"""Engines of the real TensorRT-RTX: built here on the processor, run where there is a GPU."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree import Detector, EngineError, MissingExtraError, ModelSpec, RawDetections
from nmsfree.backends.tensorrt import TensorRtBackend
from nmsfree.cuda import Cuda, open_cuda
from nmsfree.gpus import find_gpus

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")
engine = pytest.importorskip("nmsfree_export.engine")

Noise = Callable[..., NDArray[np.uint8]]
GPUS = find_gpus()
LAYERS = ("cuda-python", "pycuda")


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory, make_spec: Any, make_onnx: Any
) -> Callable[..., Path]:
    """Return a function that builds the tiny model for this machine's GPU, or an RTX 4060."""
    sms = tuple(gpu.capability[0] * 10 + gpu.capability[1] for gpu in GPUS.found[:1])

    def make(batch: tuple[int, int, int] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("engine")
        spec = make_spec(batch=None if batch else 1)
        onnx = make_onnx(folder / "model.onnx", spec)
        options = engine.BuildOptions(sms=sms, batch=batch)
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
    np.testing.assert_array_equal(found.num_detections, expected.num_detections)
    np.testing.assert_allclose(found.detection_scores, expected.detection_scores, atol=1e-5)


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
def test_kernels_are_kept_beside_the_engine(cuda: Cuda, build: Any, noise: Noise) -> None:
    path = build()
    for _ in range(2):
        backend = TensorRtBackend(path, cuda=cuda)
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
def test_memory_is_flat_over_5000_runs_and_freed_by_close(
    cuda: Cuda, build: Any, noise: Noise
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this build of PyTorch has no CUDA to ask for the free memory")
    path, images = build(), noise(0)[None]
    free = lambda: torch.cuda.mem_get_info()[0]  # noqa: E731
    backend = TensorRtBackend(path, cuda=cuda)
    backend.run(images)
    during = free()
    for _ in range(5000):
        backend.run(images)
    assert abs(free() - during) < 8 << 20
    backend.close()
    assert free() >= during
