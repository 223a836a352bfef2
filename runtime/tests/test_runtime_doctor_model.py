"""The doctor's model file: what it is made of. Run this file to write it again."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nmsfree import Detector, ModelSpec
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.doctor import model as doctor_model
from nmsfree.doctor.model import CELL, CELLS, FILE, ROWS, SIDE
from nmsfree.spec import METADATA_KEY

# As written by the first version of the format, so that later fields do not change the file.
DESCRIPTION = {
    "name": "doctor",
    "head": "o2o",
    "height": SIDE,
    "width": SIDE,
    "batch": 1,
    "class_names": ["blue", "green", "red"],
    "category_ids": [0, 1, 2],
    "top_k": ROWS,
    "score_floor": 0.4,
    "threshold": 0.4,
    "format_version": "1.0",
}


def build() -> onnx.ModelProto:
    """Make the model."""
    node, info = helper.make_node, helper.make_tensor_value_info
    y, x = np.mgrid[0:SIDE:CELL, 0:SIDE:CELL].reshape(2, -1)
    constants = {
        "cells": np.stack([x, y, x + CELL, y + CELL], axis=1).astype(np.float32),
        "scale": np.eye(3, dtype=np.float32)[:, :, None, None] / np.float32(255),
        "flat": np.array([1, 3, CELLS * CELLS], np.int64),
        "axis": np.array([1], np.int64),
        "k": np.array([ROWS], np.int64),
        "floor": np.float32(DESCRIPTION["score_floor"]),
    }
    pool = {"kernel_shape": [CELL] * 2, "strides": [CELL] * 2}
    nodes = [
        node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["nchw"], ["grid"], **pool),
        node("Conv", ["grid", "scale"], ["means"]),
        node("Reshape", ["means", "flat"], ["channels"]),
        node("ReduceMax", ["channels", "axis"], ["best"], keepdims=0),
        node("ArgMax", ["channels"], ["channel"], axis=1, keepdims=0),
        node("TopK", ["best", "k"], ["detection_scores", "order"], axis=1),
        node("Gather", ["cells", "order"], ["detection_boxes"], axis=0),
        node("GatherElements", ["channel", "order"], ["class64"], axis=1),
        node("Cast", ["class64"], ["detection_classes"], to=TensorProto.INT32),
        node("Greater", ["detection_scores", "floor"], ["above"]),
        node("Cast", ["above"], ["ones"], to=TensorProto.INT32),
        node("ReduceSum", ["ones", "axis"], ["num_detections"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [info("images", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [
            info("num_detections", TensorProto.INT32, [1, 1]),
            info("detection_boxes", TensorProto.FLOAT, [1, ROWS, 4]),
            info("detection_scores", TensorProto.FLOAT, [1, ROWS]),
            info("detection_classes", TensorProto.INT32, [1, ROWS]),
        ],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(DESCRIPTION)})
    onnx.checker.check_model(model, full_check=True)
    return model


def test_the_file_is_what_this_test_builds() -> None:
    written = onnx.ModelProto.FromString(FILE.read_bytes())
    assert written == build(), f"write it again: python {Path(__file__).name}"
    assert FILE.stat().st_size < 3000


def test_its_answer_is_the_expected_one(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend(doctor_model.write_model(tmp_path))
    assert backend.spec == ModelSpec.from_json(json.dumps(DESCRIPTION)) == doctor_model.SPEC
    assert doctor_model.difference(backend) == ""
    found = Detector(backend)(doctor_model.picture()[0])
    assert found.class_name == ("blue", "green", "red", "blue")
    np.testing.assert_allclose(found.confidence, [250 / 255, 210 / 255, 170 / 255, 130 / 255])


@pytest.mark.parametrize("wrong", range(4))
def test_a_wrong_answer_is_seen(wrong: int) -> None:
    class Backend:
        def run(self, images: object) -> object:
            outputs = [value.copy() for value in doctor_model.answer()]
            outputs[wrong].flat[-1] += 1 if wrong != 2 else 0.01
            return type(doctor_model.answer())(*outputs)

    text = doctor_model.difference(Backend())  # type: ignore[arg-type]
    assert text.startswith("the answer is wrong: RawDetections(")
    assert "\n" not in text


if __name__ == "__main__":
    FILE.write_bytes(build().SerializeToString())
