"""The real cuda-python runs our layer on a driver made here: every call, with its real types.

`test_runtime_cuda_stub.c` is a CUDA driver on host memory. It refuses calls without a context and
flags other than those that are meant, so the tests of `test_runtime_cuda.py` run on it as on a GPU.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nmsfree.machine import find_gpus

pytest.importorskip("cuda.bindings.driver")
HERE = Path(__file__).parent

ERRORS = """
from nmsfree import EngineError
from nmsfree.cuda import open_cuda

def attempt(action):
    try: action()
    except EngineError as error: print(error)

cuda = open_cuda("cuda-python")
attempt(cuda.create_stream)
with cuda.active():
    attempt(lambda: cuda.allocate(1 << 40))
attempt(lambda: open_cuda("cuda-python", 1))
cuda.close()
cuda.close()
attempt(lambda: cuda._call(cuda._driver.cuMemHostGetFlags, 0))
"""

# The backend on cuda-python and the stub; the fake TensorRT computes in the memory of both.
BACKEND = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from nmsfree import ModelSpec
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.testing.tensorrt import fake_vendor
from nmsfree.testing.tensorrt import write_fake_engine

class Memory:
    def enqueue(self, handle, work, kind): work()
    def memory(self, address, nbytes):
        return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)

def network(images):
    n = len(images)
    scores = np.sort(images.reshape(n, -1)[:, :4] / np.float32(255), axis=1)[:, ::-1]
    boxes = np.repeat(scores[..., None] * np.float32(8), 4, axis=2)
    classes = (scores > 0.5).astype(np.int32)
    return dict(num_detections=classes.sum(1, keepdims=True, dtype=np.int32), detection_boxes=boxes,
                detection_scores=scores, detection_classes=classes)

spec = ModelSpec("tiny", "o2o", 8, 8, None, ("a", "b"), (1, 2), top_k=4)
path = Path(sys.argv[1])
write_fake_engine(path, spec, batch=(1, 2, 4))
backend = TensorRtBackend(path, vendor=fake_vendor(Memory(), network))
print(backend.describe())
images = np.random.default_rng(0).integers(0, 256, (200, 3, 8, 8, 3), dtype=np.uint8)

def right(i):
    found, expected = backend.run(images[i])._asdict(), network(images[i])
    return all(np.array_equal(found[name], expected[name]) for name in expected)

with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(right, range(200)))
assert backend.timings() is None  # this thread ran nothing
assert right(0)
assert backend.timings().network >= 0
backend.close()
backend.close()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that finds the stub in place of the driver."""
    if find_gpus().cuda is not None:
        pytest.skip("this machine has a driver: tests marked gpu run on it")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    source = HERE / "test_runtime_cuda_stub.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_call_runs_in_the_real_package(environment: dict[str, str]) -> None:
    tests = str(HERE / "test_runtime_cuda.py")
    markers = "markers=gpu: needs a GPU"
    options = ("-q", "-k", "cuda-python", "-p", "no:cacheprovider", "-o", markers)
    summary = run(environment, "-m", "pytest", tests, *options).splitlines()[-1]
    assert summary.startswith("10 passed"), summary
    assert "skipped" not in summary


def test_errors_of_the_real_package_are_one_line(environment: dict[str, str]) -> None:
    doctor = "`nmsfree doctor` says what is missing"
    assert run(environment, "-c", ERRORS).splitlines() == [
        "CUDA: cuStreamCreate failed (invalid device context, CUDA_ERROR_INVALID_CONTEXT): "
        + doctor,
        "CUDA: cuMemAlloc failed (out of memory, CUDA_ERROR_OUT_OF_MEMORY): "
        "close other programs on the GPU, or run smaller batches",
        "GPU 1 does not exist, this machine has 1, counted from 0",
        "the NVIDIA driver is too old (function cuMemHostGetFlags is not found): update it",
    ]


def test_the_backend_runs_on_the_real_package(environment: dict[str, str], tmp_path: Path) -> None:
    from cuda.bindings import __version__

    assert run(environment, "-c", BACKEND, str(tmp_path / "model.engine")).strip() == (
        "tensorrt-rtx 1.7.1.116 on Stub GPU 0 (SM 8.9), fp32, TF32 off, "
        f"cuda-python {__version__}, CUDA graph"
    )
