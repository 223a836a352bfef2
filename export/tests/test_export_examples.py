"""The programs in `examples/`, built and run: they answer as `Detector` does."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nmsfree import Detector
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.options import InputOptions
from nmsfree_training.weights.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
JSON_HEADER = Path("/usr/include/nlohmann/json.hpp")
PICTURES = 20


@pytest.fixture(scope="module")
def model(nano: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained nano detector, of pictures of any size."""
    path = tmp_path_factory.mktemp("model") / "any.onnx"
    return export_onnx(nano, path, ExportOptions(host=InputOptions("any"))).path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scenes of several sizes; the last one is a JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for i in range(PICTURES):
        scene = make_scene("val", i).image
        size = int(scene.shape[1] * (0.5 + 0.13 * i)), int(scene.shape[0] * (0.7 + 0.1 * i))
        found.append(folder / f"{i}.{'jpg' if i == PICTURES - 1 else 'png'}")
        cv2.imwrite(str(found[-1]), cv2.resize(scene, size))
    return found


def answers(lines: Sequence[str], pictures: Sequence[Path], detector: Detector) -> int:
    """Hold lines of JSON against a detector's answers, and count the detections."""
    count = 0
    assert len(lines) == len(pictures)
    for line, path in zip(lines, pictures, strict=True):
        found = json.loads(line)
        assert found["image"] == str(path)
        wanted = detector(cv2.imread(str(path)))
        rows = found["detections"]
        assert [row["class"] for row in rows] == [*wanted.class_name]
        scores = [row["score"] for row in rows]
        np.testing.assert_allclose(scores, wanted.confidence, atol=1e-4)
        boxes = np.array([row["box"] for row in rows]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, wanted.xyxy, atol=0.05)
        count += len(rows)
    return count


def run(*words: object, **more: Any) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=280, **more
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++") and JSON_HEADER.exists()),
    reason="needs apt-get install cmake g++ libpng-dev libjpeg-dev nlohmann-json3-dev",
)
def test_cpp(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    openvino = importlib.util.find_spec("openvino")
    if openvino is None or openvino.origin is None:
        pytest.skip("openvino is not installed")
    place = Path(openvino.origin).parent / "cmake"
    run("cmake", "-S", EXAMPLES / "cpp", "-B", tmp_path, f"-DOpenVINO_DIR={place}")
    run("cmake", "--build", tmp_path)
    detect = tmp_path / "detect"
    lines = run(detect, model, *pictures).splitlines()
    with Detector(model, device="openvino") as detector:
        assert answers(lines, pictures, detector) > 3 * PICTURES
    lines = run(detect, model, "--bench", 3, "--threads", 1, pictures[0]).splitlines()
    runs = json.loads(lines[0])
    assert len(runs["ms"]) == len(runs["processor_ms"]) == 3 and min(runs["ms"]) > 0
    done = subprocess.run([detect, model, pictures[0].parent], capture_output=True, text=True)
    assert done.returncode == 1 and "no PNG or JPEG" in done.stderr
    command = [detect, pictures[0], pictures[0]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert done.returncode == 2 and "error: " in done.stderr  # behind what OpenVINO says


@pytest.mark.parametrize("name", ["images", "threads"])
def test_python(name: str, model: Path, pictures: list[Path]) -> None:
    lines = run(sys.executable, EXAMPLES / "python" / f"{name}.py", model, *pictures[:6])
    with Detector(model) as detector:
        assert answers(lines.splitlines(), pictures[:6], detector) > 10


def test_python_own_dataset(model: Path, digits: Path) -> None:
    program = EXAMPLES / "python" / "own_dataset.py"
    found = json.loads(run(sys.executable, program, model, digits))
    assert found["AP"] > 0.5 and found["F1"] > 0.8 and len(found["worst"]) == 3


def test_python_fastapi(model: Path, pictures: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = EXAMPLES / "python" / "fastapi_server.py"
    with subprocess.Popen([sys.executable, str(program), str(model), str(port)]) as server:
        try:
            wanted = asked(port, pictures[0].read_bytes(), deadline=time.monotonic() + 60)
            with Detector(model) as detector:
                line = json.dumps({"image": str(pictures[0]), "detections": wanted})
                assert answers([line], pictures[:1], detector) > 1
            with pytest.raises(urllib.error.HTTPError, match="400"):
                asked(port, b"no picture")
        finally:
            server.terminate()


def asked(port: int, picture: bytes, deadline: float = 0) -> Any:
    """What the example with FastAPI answers; until `deadline` it may not listen yet."""
    head = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/detect",
        head + picture + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_python_tracking(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    video = tmp_path / "still.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 25, (320, 240))
    for _ in range(8):
        writer.write(cv2.resize(make_scene("val", 0).image, (320, 240)))
    writer.release()
    lines = run(sys.executable, EXAMPLES / "python" / "tracking.py", model, video).splitlines()
    rows = [json.loads(line) for line in lines]
    later = [{row["id"] for row in rows if row["frame"] == n and row["id"] >= 0} for n in (5, 7)]
    assert later[0] and later[0] == later[1]


def test_python_video(model: Path, tmp_path: Path) -> None:
    video = tmp_path / "scenes.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    for i in range(5):
        writer.write(cv2.resize(make_scene("val", i).image, (320, 240)))
    writer.release()
    lines = run(sys.executable, EXAMPLES / "python" / "video.py", model, video).splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(5))
    assert sum(len(json.loads(line)["detections"]) for line in lines) > 5


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm")
def test_javascript(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    program = tmp_path / "javascript"
    shutil.copytree(EXAMPLES / "javascript", program, ignore=shutil.ignore_patterns("node_modules"))
    words = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
    done = subprocess.run(words, cwd=program, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"npm cannot install its packages: {done.stderr[:200]}")
    site = tmp_path / "site"  # what it reads of a bundle
    site.mkdir()
    shutil.copy(model, site / "model.onnx")
    with Detector(model) as detector:
        (site / "model.json").write_text(detector.spec.to_json(), encoding="utf-8")
        lines = run("node", program / "detect.js", site, *pictures[:6]).splitlines()
        assert answers(lines, pictures[:6], detector) > 10
