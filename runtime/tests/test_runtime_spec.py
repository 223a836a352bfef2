"""ModelSpec: what is written comes back, and what cannot be read is said in one line."""

import json
from collections.abc import Callable
from importlib.resources import files

import jsonschema
import pytest

from nmsfree import ModelError, ModelSpec, NmsSpec
from nmsfree.spec import FORMAT_VERSION, TARGETS, Thresholds

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
VARIANTS = [
    {},
    {"batch": 8, "interpolation": "area", "precision": "fp16"},
    {"head": "o2m", "nms": NmsSpec(iou=0.45, class_aware=False, candidates_per_level=100)},
    {"class_names": ("Fußgänger", 'a "b"\n'), "category_ids": (0, 90)},
    {"thresholds": MEASURED, "threshold": 0.6},
    {"precision": "int8", "made_for": "tensorrt"},
    {"provenance": {"checkpoint": "sha256:00", "tool": "nmsfree 0.1.0"}},
]
SINCE = {"thresholds", "made_for"}  # fields that 1.0 did not have
REQUIRED = ["name", "head", "height", "width", "batch", "class_names", "category_ids"]


def refused(text: str) -> str:
    with pytest.raises(ModelError) as info:
        ModelSpec.from_json(text)
    message = str(info.value)
    assert "\n" not in message
    return message


def changed(spec: ModelSpec, **fields: object) -> str:
    return json.dumps(json.loads(spec.to_json()) | fields)


@pytest.mark.parametrize("fields", VARIANTS)
def test_json_round_trip_is_identity(make_spec: MakeSpec, fields: dict[str, object]) -> None:
    spec = make_spec(**fields)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("fields", VARIANTS)
def test_json_follows_the_schema(make_spec: MakeSpec, fields: dict[str, object]) -> None:
    schema = json.loads(files("nmsfree").joinpath("model_spec.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    written = json.loads(make_spec(**fields).to_json())
    jsonschema.validate(written, schema)
    assert set(written) == set(schema["properties"])
    assert set(schema["required"]) == set(written) - SINCE, "what 1.0 had"
    assert FORMAT_VERSION.startswith("1."), "a new major version needs a new schema"


def test_a_newer_minor_version_loads(make_spec: MakeSpec) -> None:
    spec = make_spec(head="o2m", nms=NmsSpec())
    nms = {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000, "soft": 0.1}
    text = changed(spec, format_version="1.99", thresholds_per_class=[0.1], nms=nms)
    loaded = ModelSpec.from_json(text)
    assert loaded.format_version == "1.99"
    assert (loaded.name, loaded.class_names, loaded.nms) == (spec.name, spec.class_names, spec.nms)


def test_a_file_of_the_first_version_loads(make_spec: MakeSpec) -> None:
    values = json.loads(changed(make_spec(), format_version="1.0"))
    for name in SINCE:
        del values[name]
    schema = json.loads(files("nmsfree").joinpath("model_spec.schema.json").read_text("utf-8"))
    jsonschema.validate(values, schema)
    loaded = ModelSpec.from_json(json.dumps(values))
    assert loaded == make_spec(format_version="1.0")
    assert loaded.thresholds is loaded.made_for is None


def test_the_engine_that_a_file_was_made_for(make_spec: MakeSpec) -> None:
    schema = json.loads(files("nmsfree").joinpath("model_spec.schema.json").read_text("utf-8"))
    for target in (None, *TARGETS):
        text = changed(make_spec(), made_for=target)
        jsonschema.validate(json.loads(text), schema)
        assert ModelSpec.from_json(text).made_for == target
    text = changed(make_spec(), made_for="npu")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), schema)
    assert refused(text) == (
        "model description: made_for: Invalid enum value 'npu': export the model again"
    )


def test_the_schema_knows_thresholds(make_spec: MakeSpec) -> None:
    schema = json.loads(files("nmsfree").joinpath("model_spec.schema.json").read_text("utf-8"))
    written = json.loads(make_spec(thresholds=MEASURED).to_json())
    properties = schema["properties"]["thresholds"]["oneOf"][1]
    assert set(written["thresholds"]) == set(properties["properties"])
    for wrong in ({}, MEASURED.to_json() | {"best_f1": 2}, [0.5]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written | {"thresholds": wrong}, schema)


def test_thresholds_of_other_classes_are_refused(make_spec: MakeSpec) -> None:
    text = changed(make_spec(), thresholds=MEASURED.to_json())
    assert ModelSpec.from_json(text).thresholds == MEASURED
    two = {"class_names": ["a", "b"], "category_ids": [1, 2]}
    message = refused(json.dumps(json.loads(text) | two))
    assert "thresholds of 3 classes for 2 class names" in message


@pytest.mark.parametrize("version", ["2.0", "17.3"])
def test_a_newer_major_version_is_refused(make_spec: MakeSpec, version: str) -> None:
    message = refused(changed(make_spec(), format_version=version))
    assert version in message
    assert "update nmsfree" in message


@pytest.mark.parametrize("version", [None, "", "0.9", "one", "²", "9" * 5000, 1])
def test_other_versions_are_refused(make_spec: MakeSpec, version: object) -> None:
    message = refused(changed(make_spec(), format_version=version))
    assert "export the model again" in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(make_spec: MakeSpec, name: str) -> None:
    values = json.loads(make_spec().to_json())
    del values[name]
    assert name in refused(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head", "nms"),
        ("interpolation", "cubic"),
        ("height", 0),
        ("height", 10**9),
        ("width", 64.0),
        ("category_ids", [1, 2, 2**64]),
        ("category_ids", [1, 2, 3.7]),
        ("class_names", ["a", "b", None]),
        ("class_names", []),
        ("top_k", 2**31),
        ("nms", {"iou": -1, "class_aware": True, "candidates_per_level": 1}),
        ("provenance", {"seed": 3}),
        ("width", "96"),
        ("batch", 0),
        ("batch", "N"),
        ("top_k", -1),
        ("score_floor", 1.5),
        ("threshold", "high"),
        ("class_names", 3),
        ("category_ids", ["a", "b", "c"]),
        ("nms", [0.6]),
        ("thresholds", 0.6),
        ("thresholds", {}),
        ("provenance", "me"),
    ],
)
def test_a_wrong_value_is_refused(make_spec: MakeSpec, name: str, value: object) -> None:
    message = refused(changed(make_spec(), **{name: value}))
    assert message.startswith(f"model description: {name}") or "64 bits" in message


def test_every_class_needs_its_id(make_spec: MakeSpec) -> None:
    assert "1 category ids for 3 class names" in refused(changed(make_spec(), category_ids=[1]))


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "null", '{"format_version": "1.0"', "3", "[" * 10**5, "\udcff"]
)
def test_other_text_is_refused(text: str) -> None:
    assert refused(text).endswith(": export the model again")
