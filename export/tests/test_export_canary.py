"""The canary of exported files: what fails it, and what an engine may do otherwise."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nmsfree import CallableBackend, Detector, ModelSpec, RawDetections
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.canary import SelfCheck, canary_input, canary_picture, check_canary
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.verify.canary import SEEDS, tolerances, with_canary
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint

Trace = Callable[..., ModelProto]
Weight = NDArray[np.float32]
# What computes as the file says, and in less.
EXACT, HALF, BFLOAT = "cpu", "tf32", "bf16"


@pytest.fixture(scope="module")
def model(nano: Checkpoint, trace: Trace) -> ModelProto:
    return trace(nano)


@pytest.fixture(scope="module")
def spec(model: ModelProto, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The description of the trained detector, with its canary."""
    path = tmp_path_factory.mktemp("canary") / "model.onnx"
    path.write_bytes(model.SerializeToString())
    backend = OnnxRuntimeBackend(path)
    return with_canary(backend.spec, backend)


def check(
    model: ModelProto,
    spec: ModelSpec,
    arithmetic: str = EXACT,
    images: Callable[[Any], Any] = lambda images: images,
) -> SelfCheck:
    """Run a graph as it is written, not optimized, as what computes in `arithmetic`."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = list(RawDetections._fields)
    backend: Any = CallableBackend(
        lambda pixels: RawDetections(*session.run(names, {"images": images(pixels)})), spec
    )
    backend.arithmetic = arithmetic
    return check_canary(backend)


def rounded(model: ModelProto, kind: int) -> ModelProto:
    """The graph with the factors of its convolutions rounded: a half has the digits of TF32."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        changed = NodeProto.FromString(node.SerializeToString())
        for i in range(2 if node.op_type == "Conv" else 0):
            name = f"{node.output[0]}/{i}"
            nodes.append(helper.make_node("Cast", [node.input[i]], [f"{name}/low"], to=kind))
            nodes.append(helper.make_node("Cast", [f"{name}/low"], [name], to=TensorProto.FLOAT))
            changed.input[i] = name
        nodes.append(changed)
    result = ModelProto.FromString(model.SerializeToString())
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def weights_of(model: ModelProto) -> list[TensorProto]:
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    return [named[name] for name in dict.fromkeys(found) if name in named]


def one_turned(weight: Weight) -> None:
    """The largest of a filter's numbers gets the other sign."""
    place = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    weight[place] *= -1


def one_filter_lost(weight: Weight) -> None:
    weight[0] = 0


def a_tenth_more(weight: Weight) -> None:
    weight *= 1.1


def test_the_file_itself_passes(model: ModelProto, spec: ModelSpec) -> None:
    assert spec.canary is not None
    assert len(spec.canary.values()) == spec.top_k == 100
    assert len(spec.to_json()) < 6000, "bytes of a file of 5 MB"
    found = check(model, spec)
    assert (found.ok, found.missing) == (True, 0)
    assert found.score_difference < 1e-4 and found.box_difference < 1e-3


@pytest.mark.parametrize(
    ("kind", "arithmetic"), [(TensorProto.FLOAT16, HALF), (TensorProto.BFLOAT16, BFLOAT)]
)
def test_less_exact_arithmetic_passes_as_such_only(
    model: ModelProto, spec: ModelSpec, kind: int, arithmetic: str
) -> None:
    low = rounded(model, kind)
    assert check(low, spec, arithmetic).ok
    assert not check(low, spec).ok


@pytest.mark.parametrize(
    ("layer", "damage", "fails"),
    [
        (0, one_turned, (EXACT, HALF, BFLOAT)),
        (0, a_tenth_more, (EXACT, HALF, BFLOAT)),
        (0.3, one_filter_lost, (EXACT, HALF, BFLOAT)),
        (0.3, one_turned, (EXACT, HALF)),
        (0.7, one_turned, (EXACT, HALF)),
    ],
)
def test_a_perturbed_weight_fails(
    model: ModelProto,
    spec: ModelSpec,
    copied: Callable[[ModelProto], ModelProto],
    layer: float,
    damage: Callable[[Weight], None],
    fails: tuple[str, ...],
) -> None:
    """One number of 1.3 million, a filter, or the first layer."""
    broken = copied(model)
    tensors = weights_of(broken)
    tensor = tensors[int(layer * (len(tensors) - 1))]
    weight = numpy_helper.to_array(tensor).copy()
    damage(weight)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    for arithmetic in fails:
        assert not check(broken, spec, arithmetic).ok, arithmetic


@pytest.mark.parametrize("arithmetic", [EXACT, HALF, BFLOAT])
def test_swapped_channels_fail(model: ModelProto, spec: ModelSpec, arithmetic: str) -> None:
    found = check(model, spec, arithmetic, lambda pixels: pixels[..., ::-1].copy())
    assert not found.ok and found.missing > 75


@pytest.mark.parametrize("arithmetic", [EXACT, HALF, BFLOAT])
def test_other_weights_fail(weights: Path, trace: Trace, spec: ModelSpec, arithmetic: str) -> None:
    other = trace(load_checkpoint(weights / "fcos_o2o_nano.safetensors"))
    assert not check(other, spec, arithmetic).ok


@pytest.mark.parametrize(
    ("pixels", "fails"), [(0.25, (EXACT,)), (1, (EXACT, HALF)), (4, (EXACT, HALF, BFLOAT))]
)
def test_a_shifted_box_decode_fails(
    model: ModelProto,
    spec: ModelSpec,
    copied: Callable[[ModelProto], ModelProto],
    pixels: float,
    fails: tuple[str, ...],
) -> None:
    shifted = copied(model)
    node = next(n for n in shifted.graph.node if "detection_boxes" in n.output)
    node.output[list(node.output).index("detection_boxes")] = "before"
    shifted.graph.node.append(helper.make_node("Add", ["before", "shift"], ["detection_boxes"]))
    shifted.graph.initializer.append(numpy_helper.from_array(np.float32(pixels), "shift"))
    failed = [kind for kind in (EXACT, HALF, BFLOAT) if not check(shifted, spec, kind).ok]
    assert tuple(failed) == fails


def test_weights_that_are_no_numbers(
    model: ModelProto, spec: ModelSpec, copied: Callable[[ModelProto], ModelProto]
) -> None:
    broken = copied(model)
    tensor = weights_of(broken)[5]
    weight = np.full_like(numpy_helper.to_array(tensor), np.nan)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    assert check(broken, spec).problem.startswith("answers NaN or infinity, in ")


@pytest.mark.parametrize("batch", [1, 2, None])
def test_an_export_carries_one_and_is_the_same_twice(
    checkpoint: Checkpoint, tmp_path: Path, batch: int | None
) -> None:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    reports = [export_onnx(checkpoint, p, ExportOptions(batch=batch, seed=1)) for p in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert reports[0].to_json()["canary_rows"] == reports[0].spec.top_k
    for device in ("cpu", "openvino"):
        with Detector(paths[0], device=device) as detector:
            found = detector.self_check()
        assert found.ok and found.rows == reports[0].spec.top_k * (batch or 1)


def answering(spec: ModelSpec, spread: Callable[[NDArray[np.uint8]], bool]) -> CallableBackend:
    """A model whose scores are spread for some pictures only, and 1 for the others."""

    def run(images: NDArray[np.uint8]) -> RawDetections:
        n, k = len(images), spec.top_k
        scores = np.linspace(1, 0.5 if spread(images[0]) else 1, k, dtype=np.float32)
        boxes = np.arange(k, dtype=np.float32)[:, None] + np.float32([0, 0, 5, 5])
        count = np.full((n, 1), k, np.int32)
        found = boxes[None], scores[None], np.zeros((1, k), np.int32)
        return RawDetections(count, *(np.repeat(part, n, axis=0) for part in found))

    return CallableBackend(run, spec)


@pytest.mark.parametrize("seed", [0, 1, 2, SEEDS - 1, None])
def test_a_picture_that_shows_nothing_is_not_taken(spec: ModelSpec, seed: int | None) -> None:
    plain = dataclasses.replace(spec, canary=None)
    wanted = canary_picture(spec.height, spec.width, seed or 0)
    backend = answering(plain, lambda p: seed is not None and np.array_equal(p, wanted))
    found = with_canary(plain, backend).canary
    assert (found and found.seed) == seed


def test_every_precision_has_a_tolerance_for_every_engine(spec: ModelSpec) -> None:
    tables = {
        kind: tolerances(dataclasses.replace(spec, precision=kind))
        for kind in ("fp32", "fp16", "int8")
    }
    engines = {"cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx", "tf32", "bf16"}
    assert all(set(table) == engines for table in tables.values())
    for engine in engines:
        scores = [tables[kind][engine].score for kind in ("fp32", "fp16", "int8")]
        assert scores == sorted(scores), "never stricter for a lower precision"
    assert canary_input(dataclasses.replace(spec, batch=3), 0).shape == (3, 256, 256, 3)
