"""ModelSpec and its thresholds: written, read back, refused in one line; engines of INT8."""

import dataclasses
import json
from collections.abc import Callable
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import runtime_helpers as helpers

from nmsfree import Detector, ModelError, ModelSpec, NmsSpec
from nmsfree.parsing import decode_json
from nmsfree.spec import (
    FORMAT_VERSION,
    Canary,
    Resize,
    Target,
    Thresholds,
    Tolerance,
    check_int8_target,
)

MakeSpec = Callable[..., ModelSpec]
MEASURED = Thresholds(
    best_f1=0.6,
    best_f1_per_class=(0.7, None, 0.5),
    at_precision=None,
    at_precision_per_class=(0.9, None, None),
    recall_at_precision=None,
    recall_at_precision_per_class=(0.25, None, None),
    measured_on="digits val, 300 images, IoU 0.5",
)
CANARY = Canary(3, "0" * 64, "AAAAAAAAAAAAAAAA" * 20, {"cpu": Tolerance(0.001, 0.05, 0.0)})
VARIANTS = [
    {},
    {"batch": 8, "resize": Resize(interpolation="area"), "precision": "fp16"},
    {"resize": Resize("stretch", "center", (114, 114, 114), antialias=True, enlarge=False)},
    {"head": "o2m", "nms": NmsSpec(iou=0.45, class_aware=False, candidates_per_level=100)},
    {"class_names": ("Fußgänger", 'a "b"\n'), "category_ids": (0, 90)},
    {"thresholds": MEASURED, "threshold": 0.6},
    {"precision": "int8", "int8_target": "tensorrt"},
    {"canary": CANARY},
    {"provenance": {"checkpoint": "sha256:00", "tool": "nmsfree 0.1.0"}},
]
OPTIONAL = {"size_step", "thresholds", "int8_target", "canary", "input", "source"}
REQUIRED = ["name", "head", "height", "width", "batch", "class_names", "category_ids"]


def refused(text: str) -> str:
    return helpers.refused(lambda: ModelSpec.from_json(text), ModelError)


def changed(spec: ModelSpec, **fields: object) -> str:
    return json.dumps(json.loads(spec.to_json()) | fields)


@pytest.mark.parametrize("fields", VARIANTS)
def test_json_round_trip_is_identity_and_follows_the_schema(
    make_spec: MakeSpec, fields: dict[str, object]
) -> None:
    spec = make_spec(**fields)
    assert ModelSpec.from_json(spec.to_json()) == spec
    schema = json.loads(files("nmsfree").joinpath("model_spec.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    written = json.loads(spec.to_json())
    jsonschema.validate(written, schema)
    assert set(written) == set(schema["properties"])
    assert set(schema["required"]) == set(written) - OPTIONAL
    assert FORMAT_VERSION.startswith("2."), "a new major version needs a new schema"
    for target in get_args(Target):
        jsonschema.validate(written | {"int8_target": target}, schema)
    known = schema["properties"]["thresholds"]["oneOf"][1]["properties"]
    assert set(MEASURED.to_json()) == set(known)
    for name, wrong in (("thresholds", {}), ("thresholds", [0.5]), ("int8_target", "npu")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written | {name: wrong}, schema)


def test_a_newer_minor_version_loads(make_spec: MakeSpec) -> None:
    spec = make_spec(head="o2m", nms=NmsSpec())
    nms = {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000, "soft": 0.1}
    text = changed(spec, format_version="2.99", thresholds_per_class=[0.1], nms=nms)
    loaded = ModelSpec.from_json(text)
    assert loaded.format_version == "2.99"
    assert (loaded.name, loaded.class_names, loaded.nms) == (spec.name, spec.class_names, spec.nms)


@pytest.mark.parametrize(
    ("version", "later"), [("1.0", {}), ("1.2", {"made_for": "cpu", "thresholds": None})]
)
def test_a_file_of_format_1_is_letterboxed_as_it_was(version: str, later: dict[str, Any]) -> None:
    old = {
        "name": "old",
        "head": "o2o",
        "height": 64,
        "width": 96,
        "batch": 1,
        "class_names": ["a", "b"],
        "category_ids": [1, 7],
        "top_k": 9,
        "score_floor": 0.05,
        "threshold": 0.4,
        "interpolation": "area",
        "nms": None,
        "precision": "int8",
        "provenance": {},
        "format_version": version,
    }
    loaded = ModelSpec.from_json(json.dumps(old | later))
    assert loaded.resize == Resize(interpolation="area")
    assert (loaded.category_ids, loaded.int8_target) == ((1, 7), later.get("made_for"))
    assert ModelSpec.from_json(loaded.to_json()) == loaded


@pytest.mark.parametrize("version", ["3.0", "17.3", None, "", "0.9", "²", "9" * 5000, 1])
def test_other_major_versions_are_refused(make_spec: MakeSpec, version: object) -> None:
    message = refused(changed(make_spec(), format_version=version))
    assert "export the model again" in message and len(message) < 1000
    if version in ("3.0", "17.3"):
        assert f"has format {version}" in message and "update nmsfree" in message


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(make_spec: MakeSpec, name: str) -> None:
    values = json.loads(make_spec().to_json())
    del values[name]
    assert name in refused(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head", "nms"),
        ("resize", {"interpolation": "nearest"}),
        ("height", 0),
        ("height", 10**9),
        ("width", 64.0),
        ("category_ids", [1, 2, 2**64]),
        ("class_names", []),
        ("nms", {"iou": -1, "class_aware": True, "candidates_per_level": 1}),
        ("provenance", {"seed": 3}),
        ("batch", 0),
        ("batch", "N"),
        ("score_floor", 1.5),
        ("thresholds", {}),
    ],
)
def test_a_wrong_value_is_refused(make_spec: MakeSpec, name: str, value: object) -> None:
    message = refused(changed(make_spec(), **{name: value}))
    assert message.startswith(f"model description: {name}") or "64 bits" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"int8_target": "npu"}, "int8_target: Invalid enum value 'npu': export the model again"),
        ({"category_ids": [1]}, "1 category ids for 3 class names"),
        (
            {"thresholds": MEASURED.to_json(), "class_names": ["a", "b"], "category_ids": [1, 2]},
            "thresholds of 3 classes for 2 class names",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    make_spec: MakeSpec, fields: dict[str, object], message: str
) -> None:
    assert message in refused(changed(make_spec(), **fields))


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "null", '{"format_version": "1.0"', "3", "[" * 10**5, "\udcff"]
)
def test_other_text_is_refused(text: str) -> None:
    assert refused(text).endswith(": export the model again")


FILE = Path("model.onnx")
DEVICES = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", "openvino")
REFUSED = {
    ("tensorrt", "cpu"): "model.onnx: made for tensorrt, not for cpu: ONNX Runtime on processors"
    " runs signed activations with a bias in float at half the speed of a file made for cpu;"
    " export with --precision int8 --for cpu",
    ("tensorrt", "cuda"): "model.onnx: made for tensorrt, not for cuda: ONNX Runtime's CUDA"
    " provider has no INT8 convolutions, so nothing is gained; export with"
    " --precision fp16",
    ("tensorrt", "openvino"): "model.onnx: made for tensorrt, not for openvino: its weights of 8"
    " bits saturate in OpenVINO where the processor has no VNNI; export with --precision int8"
    " --for cpu",
    ("cpu", "cuda"): "model.onnx: made for cpu, not for cuda: ONNX Runtime's CUDA provider has no"
    " INT8 convolutions, so nothing is gained; export with --precision fp16",
    ("cpu", "tensorrt-rtx"): "model.onnx: made for cpu, not for tensorrt-rtx: TensorRT-RTX has no"
    " asymmetric zero points; export with --precision int8 --for tensorrt",
    ("cpu", "tensorrt"): "model.onnx: made for cpu, not for tensorrt: TensorRT has no asymmetric"
    " zero points; export with --precision int8 --for tensorrt",
}


@pytest.mark.parametrize(("target", "device"), REFUSED)
def test_the_wrong_engine_is_refused(make_spec: MakeSpec, target: str, device: str) -> None:
    spec = make_spec(precision="int8", int8_target=target)
    said = helpers.refused(lambda: check_int8_target(FILE, spec, device), ModelError)
    assert said == REFUSED[target, device]


@pytest.mark.parametrize(
    ("target", "device"),
    sorted({*product((None, "cpu", "tensorrt"), DEVICES)} - {*REFUSED}, key=str),
)
def test_every_other_pair_is_taken(make_spec: MakeSpec, target: str | None, device: str) -> None:
    assert check_int8_target(FILE, make_spec(int8_target=target), device) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("device", ["cpu", "cuda", "openvino"])
def test_detectors_refuse_before_anything_runs(
    tmp_path: Path, make_spec: MakeSpec, make_onnx: Callable[..., Path], device: str
) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    path = make_onnx(tmp_path / "model.onnx", make_spec(int8_target="tensorrt"))
    said = helpers.refused(lambda: Detector(path, device=device), ModelError)
    assert said == f"{tmp_path}/{REFUSED['tensorrt', device]}"


FOUR = Thresholds(
    best_f1=0.4,
    best_f1_per_class=(0.5, 0.3, None, 0.2),
    at_precision=0.6,
    at_precision_per_class=(0.7, None, None, 0.25),
    recall_at_precision=0.8,
    recall_at_precision_per_class=(0.9, None, None, 0.1),
    measured_on="digits val, 300 images, IoU 0.5",
)


def read(values: object) -> Thresholds:
    return decode_json(json.dumps(values), Thresholds, "thresholds", ModelError)


def refused_thresholds(**fields: Any) -> str:
    return helpers.refused(lambda: read(FOUR.to_json() | fields), ModelError)


def test_thresholds_json_round_trip_is_identity() -> None:
    nothing = dataclasses.replace(FOUR, at_precision=None, recall_at_precision=None)
    for thresholds in (FOUR, nothing):
        assert read(thresholds.to_json()) == thresholds


def test_fields_of_a_newer_version_are_ignored_and_the_default_is_known() -> None:
    values = FOUR.to_json() | {"best_f2": 0.1}
    del values["target_precision"]
    assert read(values) == FOUR
    assert FOUR.target_precision == 0.9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_f1", None),
        ("best_f1", 1.01),
        ("at_precision", -0.1),
        ("at_precision_per_class", [0.1, 0.2, 0.3, "x"]),
    ],
)
def test_thresholds_a_wrong_value_is_refused(name: str, value: object) -> None:
    assert refused_thresholds(**{name: value}).startswith(f"thresholds: {name}")
    assert "[3, 4] classes" in refused_thresholds(best_f1_per_class=[0.1, 0.2, 0.3])


def test_every_class_has_a_threshold() -> None:
    assert FOUR.for_best_f1() == (0.5, 0.3, 0.4, 0.2)
    # The second never reached the precision, of the third nothing is known.
    assert FOUR.for_precision() == (0.7, 1.0, 0.6, 0.25)
    unreached = dataclasses.replace(FOUR, at_precision=None)
    assert unreached.for_precision() == (0.7, 1.0, 1.0, 0.25)
