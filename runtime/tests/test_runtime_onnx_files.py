"""ONNX files on processors, in ONNX Runtime and in OpenVINO alike: the contract, files that are
not ours, threads and memory as a web server has them."""

import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_helpers as helpers
from numpy.typing import NDArray
from onnx import TensorProto, helper
from runtime_helpers import Noise

from nmsfree import Detections, Detector, ModelError, ModelSpec
from nmsfree.backends import open_backend

refused = helpers.refusing(ModelError)
THREADS, IMAGES = 8, 200
RUNS = 2000
MOST_GROWTH = 8 << 20  # bytes; one leaked input a run would be 36 MB

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
for device in sys.argv[2:]:
    found = []
    with Detector(sys.argv[1], device=device) as detector:
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


@pytest.fixture(params=["cpu", "openvino"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return str(request.param)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_the_graph_equals_its_definition(
    tmp_path: Path, make_spec: Any, make_onnx: Any, bright_cells: Any, noise: Noise, batch: Any,
    device: str,
) -> None:  # fmt: skip
    spec = make_spec(batch=batch)
    backend = open_backend(make_onnx(tmp_path / "tiny.onnx", spec), device)
    assert backend.spec == spec
    for count in (batch,) if batch else (3, 1, 5):  # an open batch size may change
        images = np.stack([noise(seed) for seed in range(count)])
        found, expected = backend.run(images), bright_cells(images, spec)
        for name, value in expected._asdict().items():
            assert getattr(found, name).dtype == value.dtype, name
            np.testing.assert_allclose(getattr(found, name), value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_other_content_is_refused_without_noise(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str], device: str
) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(content)
    assert str(path) in refused(lambda: Detector(path, device=device))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.05, 0.9, 0.999])
def test_a_cut_file_is_refused(tiny: Path, share: float, device: str) -> None:
    data = tiny.read_bytes()
    tiny.write_bytes(data[: int(len(data) * share)])
    assert str(tiny) in refused(lambda: Detector(tiny, device=device))


def _edited(edit: Callable[[onnx.ModelProto], object]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        edit(model)
        return model.SerializeToString()

    return spoil


def _weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../dev/zero")


def _more_rows_than_candidates(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "k")
    tensor.raw_data = np.int64(2**62).tobytes()


def _other_type(model: onnx.ModelProto) -> None:
    cast = next(n for n in model.graph.node if "detection_classes" in n.output)
    cast.attribute[0].i = TensorProto.INT64
    model.graph.output[3].type.tensor_type.elem_type = TensorProto.INT64


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "description not UTF-8": lambda data: data.replace(b'"tiny"', b'"t\xff\xfey"'),
    "name of an output": lambda data: data.replace(b"detection_scores", b"detection_\xff\xfeores"),
    "name of the input": lambda data: data.replace(b"images", b"im\xff\xfees"),
    "name of an operator": lambda data: data.replace(b"Transpose", b"Trans\xff\xfee"),
    "weights elsewhere": _edited(_weights_elsewhere),
    "giant weights": _edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40)),
    "negative size": _edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, -1)),
    "giant input": _edited(
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**62)
    ),
    "more rows than candidates": _edited(_more_rows_than_candidates),
    "no such type": _edited(lambda m: setattr(m.graph.initializer[0], "data_type", 77)),
    "old opset": _edited(lambda m: setattr(m.opset_import[0], "version", 1)),
    "no opset": _edited(lambda m: m.ClearField("opset_import")),
    "a cycle": _edited(lambda m: m.graph.node[1].input.__setitem__(0, "means")),
    "no graph": _edited(lambda m: m.ClearField("graph")),
    "no nodes": _edited(lambda m: m.graph.ClearField("node")),
    "output of another type": _edited(_other_type),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_graph_is_refused_in_our_words(tiny: Path, case: str, device: str) -> None:
    tiny.write_bytes(BROKEN[case](tiny.read_bytes()))
    assert str(tiny) in refused(lambda: Detector(tiny, device=device))


def test_a_missing_file_or_folder_is_refused(tmp_path: Path, device: str) -> None:
    path = tmp_path / "absent.onnx"
    assert refused(lambda: Detector(path, device=device)) == f"{path}: no such file"
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in refused(lambda: Detector(str(tmp_path / "folder.onnx"), device=device))


@pytest.mark.parametrize("place", ["../cells.bin", "{folder}/cells.bin", "linked.bin"])
def test_no_weights_are_read_outside_the_folder(tiny: Path, place: str, device: str) -> None:
    inside = tiny.parent / "inside"
    inside.mkdir()
    model = onnx.load(tiny)
    cells = next(t for t in model.graph.initializer if t.name == "cells")
    (tiny.parent / "cells.bin").write_bytes(cells.raw_data)
    (inside / "linked.bin").symlink_to(tiny.parent / "cells.bin")
    cells.data_location = TensorProto.EXTERNAL
    entry = cells.external_data.add()
    entry.key, entry.value = "location", place.format(folder=tiny.parent)
    cells.ClearField("raw_data")
    (inside / "a.onnx").write_bytes(model.SerializeToString())
    refused(lambda: open_backend(inside / "a.onnx", device))


@pytest.mark.parametrize("name", ["model.pt", "model", "model.plan"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert refused(lambda: open_backend(path)) == (
        f"{path}: unknown kind of model '{path.suffix}', expected .onnx, .engine"
        " or a checkpoint (.safetensors, .pth)"
    )


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path: Path, device: str) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Relu", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "other", [value], [out])
    opset = helper.make_opsetid("", 20)
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    assert refused(lambda: Detector(path, device=device)) == (
        f"{path}: no 'nmsfree' metadata, so this is not a model exported by nmsfree:"
        " export the checkpoint with `nmsfree export`, or let `nmsfree adopt` make a model of"
        " another project's file"
    )


@pytest.mark.parametrize("text", ["{", '{"format_version": "1.0"}', '{"format_version": "9.0"}'])
def test_broken_metadata_is_refused(
    tmp_path: Path, make_spec: Any, make_onnx: Any, text: str
) -> None:
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(), metadata=text)
    assert str(path) in refused(lambda: Detector(path))


def test_a_missing_output_is_named(
    tmp_path: Path, make_spec: Any, make_onnx: Any, device: str
) -> None:
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(), drop="detection_classes")
    assert refused(lambda: Detector(path, device=device)) == (
        f"{path}: outputs detection_classes are missing, found num_detections, detection_boxes,"
        " detection_scores"
    )


@pytest.mark.parametrize("fields", [{"height": 32}, {"width": 200}, {"batch": None}])
def test_a_description_of_another_input_is_refused(
    tmp_path: Path, make_spec: Any, make_onnx: Any, fields: dict[str, Any], device: str
) -> None:
    """Preprocessing for the wrong size would give wrong boxes, silently."""
    other: ModelSpec = make_spec(**({"batch": 2} | fields))
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(batch=2), metadata=other.to_json())
    assert refused(lambda: Detector(path, device=device)) == (
        f"{path}: input is images tensor(uint8) [2, 64, 96, 3], but its description says images"
        f" tensor(uint8) [{other.batch or 'N'}, {other.height}, {other.width}, 3]:"
        " export the model again"
    )


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 96, 3), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 3), np.float32),
        np.zeros((1, 3, 64, 96), np.uint8),
    ],
)
def test_a_wrong_input_is_refused_in_our_words(
    tiny: Path, images: NDArray[Any], device: str
) -> None:
    """OpenVINO itself would cast, reshape and answer."""
    shape = " × ".join(map(str, images.shape))
    said = refused(lambda: open_backend(tiny, device).run(images))
    assert said.startswith(f"the model refused images of {shape}, {images.dtype} (")


def test_a_closed_detector_says_so(tiny: Path, noise: Noise, device: str) -> None:
    with Detector(tiny, device=device) as detector:
        detector(noise(0))
    assert refused(lambda: detector(noise(0))) == "the detector is closed: open it again"
    detector.close()  # closing again is harmless


@pytest.fixture(params=[1, None])
def either(request: pytest.FixtureRequest, tmp_path: Path, make_spec: Any, make_onnx: Any) -> Path:
    """Of a fixed and of an open batch size."""
    return make_onnx(tmp_path / "tiny.onnx", make_spec(batch=request.param))


def content(found: Detections) -> bytes:
    return found.xyxy.tobytes() + found.confidence.tobytes() + found.class_id.tobytes()


def test_eight_threads_get_what_one_gets(either: Path, device: str, noise: Noise) -> None:
    """All threads look at all images, each in another order."""
    images = [noise(seed, 60 + seed % 50, 90) for seed in range(IMAGES)]
    with Detector(either, device=device) as detector:
        expected = [content(detector(image)) for image in images]
        assert len(set(expected)) == IMAGES, "the images differ"

        def look(shift: int) -> list[bytes]:
            return [content(detector(images[(i + shift) % IMAGES])) for i in range(IMAGES)]

        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(look, range(0, IMAGES, IMAGES // THREADS)))
    for shift, results in zip(range(0, IMAGES, IMAGES // THREADS), found, strict=True):
        assert results == expected[shift:] + expected[:shift]


def test_results_are_the_callers_own(either: Path, device: str, noise: Noise) -> None:
    """A later run does not write into what an earlier one returned."""
    with Detector(either, device=device) as detector:
        inputs = [detector.preprocess([noise(seed)])[0] for seed in range(2)]
        first = detector.backend.run(inputs[0])
        kept = [value.copy() for value in first]
        second = detector.backend.run(inputs[1])
    for value, before, other in zip(first, kept, second, strict=True):
        np.testing.assert_array_equal(value, before)
        assert not np.shares_memory(value, other)
    assert first.detection_scores.tobytes() != second.detection_scores.tobytes()


def test_threads_that_have_nothing_to_do_sleep(
    tmp_path: Path, make_spec: Any, make_onnx: Any, noise: Noise
) -> None:
    """ONNX Runtime's own would compute nothing for 8 to 12 ms after each run."""
    path, spent = make_onnx(tmp_path / "tiny.onnx", make_spec(height=256, width=256)), list[float]()
    with Detector(path, threads=2) as detector:
        for seed in range(5):
            detector(noise(seed, 256, 256))
            before = time.process_time()
            time.sleep(0.05)
            spent.append(time.process_time() - before)
    assert min(spent) < 0.004


@pytest.mark.slow
def test_a_server_thread_beside_torch(tiny: Path, run_python: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openvino")
    done = run_python(WITH_TORCH, tiny, "cpu", "openvino")
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr


def test_closing_while_others_run(either: Path, device: str, noise: Noise) -> None:
    """Each call gives the right answer or says that the detector is closed; nothing crashes."""
    detector, image = Detector(either, device=device), noise(0)
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory is in use")
def test_memory_stays_flat(tmp_path: Path, make_spec: Any, make_onnx: Any, device: str) -> None:
    """Over many runs, and over opening and closing, from several threads."""
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
