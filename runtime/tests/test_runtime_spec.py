"""ModelSpec: what is written comes back, and what cannot be read is said in one line."""

import json
from collections.abc import Callable
from importlib.resources import files

import jsonschema
import pytest

from nmsfree import ModelError, ModelSpec, NmsSpec
from nmsfree.spec import FORMAT_VERSION

MakeSpec = Callable[..., ModelSpec]
VARIANTS = [
    {},
    {"batch": 8, "interpolation": "area", "precision": "fp16"},
    {"head": "o2m", "nms": NmsSpec(iou=0.45, class_aware=False, candidates_per_level=100)},
    {"class_names": ("Fußgänger", 'a "b"\n'), "category_ids": (0, 90)},
    {"provenance": {"checkpoint": "sha256:00", "tool": "nmsfree 0.1.0"}},
]
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
    assert set(written) == set(schema["properties"]) == set(schema["required"])
    assert FORMAT_VERSION.startswith("1."), "a new major version needs a new schema"


def test_a_newer_minor_version_loads(make_spec: MakeSpec) -> None:
    spec = make_spec(head="o2m", nms=NmsSpec())
    nms = {"iou": 0.6, "class_aware": True, "candidates_per_level": 1000, "soft": 0.1}
    text = changed(spec, format_version="1.99", thresholds_per_class=[0.1], nms=nms)
    loaded = ModelSpec.from_json(text)
    assert loaded.format_version == "1.99"
    assert (loaded.name, loaded.class_names, loaded.nms) == (spec.name, spec.class_names, spec.nms)


@pytest.mark.parametrize("version", ["2.0", "17.3"])
def test_a_newer_major_version_is_refused(make_spec: MakeSpec, version: str) -> None:
    message = refused(changed(make_spec(), format_version=version))
    assert version in message
    assert "update nmsfree" in message


@pytest.mark.parametrize("version", [None, "", "0.9", "one", 1])
def test_other_versions_are_refused_or_read(make_spec: MakeSpec, version: object) -> None:
    text = changed(make_spec(), format_version=version)
    if version == 1:  # written by hand, and clear
        assert ModelSpec.from_json(text).name == "tiny"
    else:
        assert "export again" in refused(text)


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
        ("width", "96"),
        ("batch", 0),
        ("batch", "N"),
        ("top_k", -1),
        ("score_floor", 1.5),
        ("threshold", "high"),
        ("class_names", 3),
        ("category_ids", ["a", "b", "c"]),
        ("nms", [0.6]),
        ("provenance", "me"),
    ],
)
def test_a_wrong_value_is_refused(make_spec: MakeSpec, name: str, value: object) -> None:
    assert "model description" in refused(changed(make_spec(), **{name: value}))


def test_every_class_needs_its_id(make_spec: MakeSpec) -> None:
    assert "1 category ids for 3 class names" in refused(changed(make_spec(), category_ids=[1]))


@pytest.mark.parametrize("text", ["", "hello", "[]", "null", '{"format_version": "1.0"', "3"])
def test_other_text_is_refused(text: str) -> None:
    assert "JSON" in refused(text)
