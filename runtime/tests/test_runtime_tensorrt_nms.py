"""NMS on the host equals the NMS at the end of the ONNX file, and is timed apart."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from runtime_helpers import assert_equal

from nmsfree import ModelSpec, NmsSpec, RawDetections
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.backends.tensorrt.nms import CANDIDATES, suppress_candidates
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.preprocess import resize_into
from nmsfree.testing.cuda import FakeCuda
from nmsfree.testing.tensorrt import fake_vendor, write_fake_engine

Arrays = dict[str, NDArray[Any]]
ROOT = Path(__file__).parents[2]
COUNT = 300  # candidates


def candidates(seed: int, spec: ModelSpec, images: int = 4) -> Arrays:
    """Clusters of overlapping boxes, some of them beyond the picture, with some equal scores."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, (spec.width, spec.height), (images, COUNT // 10, 2))
    centres = np.repeat(centres, 10, axis=1) + rng.normal(0, 3, (images, COUNT, 2))
    sides = rng.uniform(8, 24, (images, COUNT, 2))
    boxes = np.concatenate([centres - sides, centres + sides], axis=2).astype(np.float32)
    scores = np.round(rng.uniform(0, 1, (images, COUNT)) ** 2, 3).astype(np.float32)
    classes = rng.integers(0, len(spec.class_names), (images, COUNT), dtype=np.int32)
    return dict(zip(CANDIDATES, (boxes, scores, classes), strict=True))


def run_onnx_tail(spec: ModelSpec, arrays: Arrays) -> RawDetections:
    """What the end of our ONNX files makes of candidates."""
    append_nms = pytest.importorskip("nmsfree_export.graph.nms").append_nms
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    shapes = (["batch", COUNT, 4], ["batch", COUNT], ["batch", COUNT])
    info = helper.make_tensor_value_info
    inputs = [info(f"in_{n}", k, s) for n, k, s in zip(CANDIDATES, kinds, shapes, strict=True)]
    outputs = [info(n, k, s) for n, k, s in zip(CANDIDATES, kinds, shapes, strict=True)]
    nodes = [helper.make_node("Identity", [f"in_{n}"], [n]) for n in CANDIDATES]
    graph = helper.make_graph(nodes, "candidates", inputs, outputs)
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    append_nms(model, spec)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {f"in_{n}": a.astype(np.int64) if a.ndim == 2 and a.dtype == np.int32 else a
             for n, a in arrays.items()}  # fmt: skip
    return RawDetections(*session.run(list(RawDetections._fields), feeds))


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize("top_k", [5, 100, COUNT])
@pytest.mark.parametrize("floor", [0.05, 0.9999])
def test_it_equals_the_end_of_the_onnx_file(
    make_spec: Any, class_aware: bool, top_k: int, floor: float
) -> None:
    """Number, boxes, scores and classes of every row, in the same order."""
    nms = NmsSpec(iou=0.6, class_aware=class_aware)
    spec = make_spec(head="o2m", nms=nms, top_k=top_k, score_floor=floor)
    arrays = candidates(top_k, spec)
    expected = run_onnx_tail(spec, arrays)
    found = suppress_candidates(arrays, spec)
    assert_equal(found, expected)
    if floor < 0.5:
        assert expected.num_detections.min() > 0
        assert expected.num_detections.max() < COUNT  # something was removed


def test_it_equals_the_onnx_file_of_the_trained_detector() -> None:
    """The whole file in ONNX Runtime, against its candidates and NMS on the host."""
    pytest.importorskip("nmsfree_training.weights.checkpoint")
    pytest.importorskip("nmsfree_export.export")
    from nmsfree_export.export import ExportOptions, make_export_spec
    from nmsfree_export.graph.write import build_onnx, deploy_module
    from nmsfree_training.weights.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(ROOT / "weights/fcos_rt_nano.safetensors")
    spec = make_export_spec(checkpoint, ExportOptions(batch=None))
    model = build_onnx(deploy_module(checkpoint.build(), spec), spec)
    for name in CANDIDATES:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = [make_scene(split, i).image for split in ("val", "overlap") for i in range(16)]
    images = np.zeros((len(pictures), spec.height, spec.width, 3), np.uint8)
    for picture, image in zip(pictures, images, strict=True):
        resize_into(picture, image)
    names = [*RawDetections._fields, *CANDIDATES]
    values = dict(zip(names, session.run(names, {"images": images}), strict=True))
    found = suppress_candidates({name: values.pop(name) for name in CANDIDATES}, spec)
    expected = RawDetections(**values)
    assert expected.num_detections.max() > 0
    assert_equal(found, expected)


def test_nms_of_one_thread_holds_up_no_other(
    make_rig: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one stream of the user's too: another thread runs from start to end meanwhile."""
    spec = make_spec(head="o2m", nms=NmsSpec(), top_k=20, score_floor=0.05)
    rig = make_rig("tensorrt", spec, batch=(1, 1, 1), candidates=COUNT)
    rig.module.function = lambda images: candidates(int(images[0, 0, 0, 0]), spec, len(images))
    backend = rig.open(stream=9)
    images = [np.full((1, 64, 96, 3), value, np.uint8) for value in (1, 2)]
    first = threading.current_thread()
    others: list[RawDetections] = []

    def suppress(outputs: Arrays, spec: ModelSpec) -> RawDetections:
        if threading.current_thread() is first:
            with ThreadPoolExecutor(1) as pool:
                others.append(pool.submit(backend.run, images[1]).result(10))
        return suppress_candidates(outputs, spec)

    monkeypatch.setattr("nmsfree.backends.tensorrt.backend.suppress_candidates", suppress)
    found = backend.run(images[0])
    assert_equal(found, suppress_candidates(candidates(1, spec, 1), spec))
    assert_equal(others[0], suppress_candidates(candidates(2, spec, 1), spec))
    timings = backend.timings()
    assert timings is not None
    assert timings.nms > 0


def test_an_engine_that_ends_in_candidates_keeps_the_contract(
    tmp_path: Path, make_spec: Any
) -> None:
    spec = make_spec(head="o2m", nms=NmsSpec(), top_k=20, score_floor=0.05)
    path = tmp_path / "model.engine"
    write_fake_engine(path, spec, batch=(1, 1, 1), builder="tensorrt", candidates=COUNT)

    def network(images: NDArray[np.uint8]) -> Arrays:
        return candidates(int(images[0, 0, 0, 0]), spec, len(images))

    cuda = FakeCuda()
    vendor = fake_vendor(cuda, network, "tensorrt")
    backend = TensorRtBackend(path, cuda=cuda, vendor=vendor)
    assert backend.description.endswith("CUDA graph, NMS on the host")
    images = np.full((3, 64, 96, 3), 7, np.uint8)
    images[1], images[2] = 8, 9
    start = time.perf_counter()
    found = backend.run(images)
    passed = (time.perf_counter() - start) * 1000
    singles = [suppress_candidates(network(image[None]), spec) for image in images]
    assert_equal(found, RawDetections(*map(np.concatenate, zip(*singles, strict=True))))
    timings = backend.timings()
    assert timings is not None
    assert 0 < timings.nms < passed
    assert timings.network == 3.0  # the fake's clock: NMS is no part of it
    assert cuda.done["graph launches"] == 3
    backend.close()
    assert cuda.live() == {}
