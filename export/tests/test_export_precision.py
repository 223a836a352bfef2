"""Half precision: what computes in it, what does not, and that the file still says the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, TensorProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import GateError
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.layers import count_precisions
from nmsfree_export.options import Tolerance
from nmsfree_training.weights.checkpoint import Checkpoint

Trace = Callable[..., ModelProto]


def test_trained_weights_keep_their_detections(
    nano: Checkpoint, run: Callable[..., Any], tmp_path: Path
) -> None:
    files = tmp_path / "full.onnx", tmp_path / "half.onnx"
    full = export_onnx(nano, files[0])
    half = export_onnx(nano, files[1], ExportOptions(precision="fp16"))
    assert half.parity.passed and half.parity.tolerance == Tolerance(0.01, 0.5)
    assert half.parity.unmatched == 0 and half.parity.rows > 450
    assert half.parity.score_difference > 1e-5, "it is half"
    assert 0.45 < half.size / full.size < 0.55
    assert dict(half.certificate.lines)["precision"] == "44 convolutions in fp16"
    assert OnnxRuntimeBackend(files[1]).spec.precision == half.spec.precision == "fp16"
    assert full.spec.precision == "fp32"
    assert run("verify", *files).exit_code == 0
    assert isinstance(run("verify", *files, "--score-tolerance", "1e-4").exception, GateError)


def float_types(model: ModelProto) -> dict[str, int]:
    """The element type of every value and tensor that is known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    return types | {t.name: t.data_type for t in model.graph.initializer}


@pytest.mark.parametrize("head", ["o2o", "o2m"])
def test_what_stays_in_float(grouped: Checkpoint, trace: Trace, head: str) -> None:
    """GroupNorm, normalisation, decoding: their inputs and weights are float32."""
    model = trace(grouped, precision="fp16", head=head)
    types = float_types(model)
    kinds: dict[str, set[int]] = {}
    for node in model.graph.node:
        kinds.setdefault(node.op_type, set()).add(types.get(node.input[0], 0))
    assert kinds["Conv"] == {TensorProto.FLOAT16}
    for name in ("InstanceNormalization", "Exp", "Sigmoid"):
        assert kinds[name] == {TensorProto.FLOAT}, name
    assert not {node.domain for node in model.graph.node} - {""}
    outputs = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    assert outputs["detection_boxes"] == outputs["detection_scores"] == TensorProto.FLOAT


def test_boxes_of_neighbours_are_compared_in_float(grouped: Checkpoint, trace: Trace) -> None:
    model = trace(grouped, precision="fp16")
    types = float_types(model)
    compared = [n for n in model.graph.node if n.op_type in ("Tanh", "Div", "Exp")]
    assert len(compared) > 5
    assert {types[n.output[0]] for n in compared if n.output[0] in types} == {TensorProto.FLOAT}


def test_dynamic_batch(grouped: Checkpoint, tmp_path: Path) -> None:
    options = ExportOptions(precision="fp16", batch=None, tolerance=Tolerance(0.02, 1.0))
    report = export_onnx(grouped, tmp_path / "model.onnx", options)
    assert report.parity.passed and report.parity.score_difference > 1e-5
    assert count_precisions(onnx.load(tmp_path / "model.onnx")).keys() == {"fp16"}
