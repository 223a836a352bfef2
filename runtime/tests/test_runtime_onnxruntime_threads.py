"""Threads and memory: what a web server does to ONNX Runtime and OpenVINO on the processor."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_helpers import Noise

from nmsfree import Detections, Detector, ModelError

DEVICES = ["cpu", "openvino"]
THREADS, IMAGES = 8, 200
RUNS = 5000
MOST_GROWTH = 8 << 20  # bytes; one leaked input a run would be 90 MB

# A thread of its own looks at images while torch works in the same process.
WITH_TORCH = """
import sys, threading
import numpy as np
import torch
from nmsfree import Detector

torch.manual_seed(0)
layer = torch.nn.Conv2d(3, 8, 3)
batch = torch.rand(2, 3, 32, 32)
before = layer(batch)
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
found = []
with Detector(sys.argv[1], device=sys.argv[2]) as detector:
    alone = detector(image)
    def serve():
        for _ in range(20):
            found.append(detector(image))
    worker = threading.Thread(target=serve)
    worker.start()
    while worker.is_alive():
        assert torch.equal(layer(batch), before)
    worker.join()
assert len(found) == 20 and len(alone) > 0
assert all(np.array_equal(d.xyxy, alone.xyxy) for d in found)
assert all(np.array_equal(d.confidence, alone.confidence) for d in found)
print("worked")
"""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


@pytest.fixture(params=[1, None])
def tiny(request: pytest.FixtureRequest, tmp_path: Path, make_spec: Any, make_onnx: Any) -> Path:
    """Of a fixed and of an open batch size."""
    return make_onnx(tmp_path / "tiny.onnx", make_spec(batch=request.param))


def content(found: Detections) -> bytes:
    return found.xyxy.tobytes() + found.confidence.tobytes() + found.class_id.tobytes()


def test_eight_threads_get_what_one_gets(tiny: Path, device: str, noise: Noise) -> None:
    """All threads look at all images, each in another order."""
    images = [noise(seed, 60 + seed % 50, 90) for seed in range(IMAGES)]
    with Detector(tiny, device=device) as detector:
        expected = [content(detector(image)) for image in images]
        assert len(set(expected)) == IMAGES, "the images differ"

        def look(shift: int) -> list[bytes]:
            return [content(detector(images[(i + shift) % IMAGES])) for i in range(IMAGES)]

        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(look, range(0, IMAGES, IMAGES // THREADS)))
    for shift, results in zip(range(0, IMAGES, IMAGES // THREADS), found, strict=True):
        assert results == expected[shift:] + expected[:shift]


def test_results_are_the_callers_own(tiny: Path, device: str, noise: Noise) -> None:
    """A later run does not write into what an earlier one returned."""
    with Detector(tiny, device=device) as detector:
        inputs = [detector.preprocess([noise(seed)])[0] for seed in range(2)]
        first = detector.backend.run(inputs[0])
        kept = [value.copy() for value in first]
        second = detector.backend.run(inputs[1])
    for value, before, other in zip(first, kept, second, strict=True):
        np.testing.assert_array_equal(value, before)
        assert not np.shares_memory(value, other)
    assert first.detection_scores.tobytes() != second.detection_scores.tobytes()


def test_a_server_thread_beside_torch(
    tmp_path: Path, make_spec: Any, make_onnx: Any, device: str
) -> None:
    pytest.importorskip("torch")
    path = make_onnx(tmp_path / "tiny.onnx", make_spec())
    done = subprocess.run(
        [sys.executable, "-c", WITH_TORCH, path, device],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr


def test_closing_while_others_run(tiny: Path, device: str, noise: Noise) -> None:
    """Each call gives the right answer or says that the detector is closed; nothing crashes."""
    detector, image = Detector(tiny, device=device), noise(0)
    expected = content(detector(image))

    def look_until_closed(_: int) -> str:
        while True:
            try:
                assert content(detector(image)) == expected
            except ModelError as error:
                return str(error)

    with ThreadPoolExecutor(4) as pool:
        said = pool.map(look_until_closed, range(4))
        for _ in range(20):
            detector(image)
        detector.close()
        assert list(said) == ["the detector is closed: open it again"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory is in use")
def test_memory_stays_flat(tmp_path: Path, make_spec: Any, make_onnx: Any, device: str) -> None:
    """Over 5,000 runs, and over opening and closing, from several threads."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(batch=1))
    images = np.full((1, 64, 96, 3), 77, np.uint8)

    def work(runs: int) -> None:
        with Detector(path, device=device, threads=1) as detector, ThreadPoolExecutor(2) as pool:
            list(pool.map(detector.backend.run, [images] * runs))
        gc.collect()

    for _ in range(3):
        work(runs=100)  # pools of the engine fill
    before = process.memory_info().rss
    for _ in range(10):
        work(runs=RUNS // 10)
    assert process.memory_info().rss - before < MOST_GROWTH
