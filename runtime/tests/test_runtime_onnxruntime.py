"""The ONNX Runtime backend: the contract, files that are not ours, threads."""

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

from nmsfree import Detector, InputError, ModelError, ModelSpec
from nmsfree.backends import OnnxRuntimeBackend, open_backend

refused = helpers.refusing(ModelError)


@pytest.fixture
def tiny(tmp_path: Path, make_spec: Any, make_onnx: Any) -> Path:
    return make_onnx(tmp_path / "tiny.onnx", make_spec())


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_the_graph_equals_its_definition(
    tmp_path: Path, make_spec: Any, make_onnx: Any, bright_cells: Any, noise: Noise, batch: Any
) -> None:
    spec = make_spec(batch=batch)
    backend = OnnxRuntimeBackend(make_onnx(tmp_path / "tiny.onnx", spec))
    assert backend.spec == spec
    images = np.stack([noise(seed) for seed in range(batch or 3)])
    found, expected = backend.run(images), bright_cells(images, spec)
    for name, value in expected._asdict().items():
        assert getattr(found, name).dtype == value.dtype, name
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-6, err_msg=name)


def test_batched_equals_single(tiny: Path, noise: Noise) -> None:
    images = [noise(0), noise(1, 480, 640), noise(2, 33, 21), noise(3, 60, 400)]
    with Detector(tiny) as detector:
        for image, batched in zip(images, detector.batch(images), strict=True):
            single = detector(image)
            assert len(single) > 0
            np.testing.assert_array_equal(single.xyxy, batched.xyxy)
            np.testing.assert_array_equal(single.confidence, batched.confidence)
            np.testing.assert_array_equal(single.class_id, batched.class_id)


def test_four_threads_get_bit_identical_results(tiny: Path, noise: Noise) -> None:
    images = [noise(seed, 60 + seed, 90) for seed in range(8)]
    with Detector(tiny, threads=2) as detector:
        expected = [d.xyxy.tobytes() + d.confidence.tobytes() for d in map(detector, images)]
        assert len(set(expected)) == len(images)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(detector, images * 25))
    assert [d.xyxy.tobytes() + d.confidence.tobytes() for d in found] == expected * 25


def test_the_description_says_what_runs(tiny: Path) -> None:
    text = OnnxRuntimeBackend(tiny, threads=2).description
    assert "ONNX Runtime" in text
    assert "CPU" in text
    assert "threads 2" in text


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file", b"<html>404</html>"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(content)
    assert str(path) in refused(lambda: Detector(path))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(tiny: Path, share: float) -> None:
    data = tiny.read_bytes()
    tiny.write_bytes(data[: int(len(data) * share)])
    assert str(tiny) in refused(lambda: Detector(tiny))


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


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_graph_is_refused_in_our_words(tiny: Path, case: str, device: str) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    tiny.write_bytes(BROKEN[case](tiny.read_bytes()))
    assert str(tiny) in refused(lambda: Detector(tiny, device=device))


def test_a_missing_file_or_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(lambda: Detector(tmp_path / "absent.onnx"))
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in refused(lambda: Detector(str(tmp_path / "folder.onnx")))


def test_a_file_larger_than_the_limit_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "0")
    assert "set NMSFREE_MAX_FILE_MB=1" in refused(lambda: Detector(tiny))


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("place", ["../cells.bin", "{folder}/cells.bin", "linked.bin"])
def test_no_weights_are_read_outside_the_folder(tiny: Path, place: str, device: str) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
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


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Relu", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "other", [value], [out])
    opset = helper.make_opsetid("", 20)
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    assert "not a model exported by nmsfree" in refused(lambda: Detector(path))


def test_missing_or_broken_metadata_is_refused(
    tmp_path: Path, make_spec: Any, make_onnx: Any
) -> None:
    path = tmp_path / "tiny.onnx"
    make_onnx(path, make_spec(), metadata=None)
    assert "metadata" in refused(lambda: Detector(path))
    for text in ("{", '{"format_version": "1.0"}', '{"format_version": "9.0"}'):
        make_onnx(path, make_spec(), metadata=text)
        assert str(path) in refused(lambda: Detector(path))


def test_a_missing_output_is_named(tmp_path: Path, make_spec: Any, make_onnx: Any) -> None:
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(), drop="detection_classes")
    assert "detection_classes" in refused(lambda: Detector(path))


@pytest.mark.parametrize("fields", [{"height": 32}, {"width": 200}, {"batch": None}])
def test_a_description_of_another_input_is_refused(
    tmp_path: Path, make_spec: Any, make_onnx: Any, fields: dict[str, Any]
) -> None:
    """Preprocessing for the wrong size would give wrong boxes, silently."""
    graph = make_spec(batch=2)
    other: ModelSpec = make_spec(**({"batch": 2} | fields))
    path = make_onnx(tmp_path / "tiny.onnx", graph, metadata=other.to_json())
    assert "[2, 64, 96, 3]" in refused(lambda: Detector(path))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 96, 3), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 3), np.float32),
    ],
)
def test_a_wrong_input_is_refused_in_our_words(tiny: Path, images: NDArray[Any]) -> None:
    message = refused(lambda: OnnxRuntimeBackend(tiny).run(images))
    assert " × ".join(map(str, images.shape)) in message
    assert str(images.dtype) in message


def test_a_closed_detector_says_so(tiny: Path, noise: Noise) -> None:
    with Detector(tiny) as detector:
        detector(noise(0))
    assert "closed" in refused(lambda: detector(noise(0)))
    detector.close()  # closing again is harmless


def test_devices_and_threads_are_checked(tiny: Path) -> None:
    assert "'tpu'" in refused(lambda: Detector(tiny, device="tpu"), InputError)
    assert "threads is 0" in refused(lambda: Detector(tiny, threads=0), InputError)
