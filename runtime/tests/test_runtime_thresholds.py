"""Thresholds: JSON there and back, and one clear line for what cannot be read."""

import dataclasses
import json
from typing import Any

import pytest

from nmsfree import ModelError
from nmsfree.decode import decode_json
from nmsfree.spec import Thresholds

MEASURED = Thresholds(
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


def refused(**fields: Any) -> str:
    with pytest.raises(ModelError) as info:
        read(MEASURED.to_json() | fields)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_json_round_trip_is_identity() -> None:
    nothing = dataclasses.replace(MEASURED, at_precision=None, recall_at_precision=None)
    for thresholds in (MEASURED, nothing):
        assert read(thresholds.to_json()) == thresholds


def test_fields_of_a_newer_version_are_ignored_and_the_default_is_known() -> None:
    values = MEASURED.to_json() | {"best_f2": 0.1}
    del values["target_precision"]
    assert read(values) == MEASURED
    assert MEASURED.target_precision == 0.9


@pytest.mark.parametrize("name", sorted(MEASURED.to_json().keys() - {"target_precision"}))
def test_a_missing_field_is_named(name: str) -> None:
    values = MEASURED.to_json()
    del values[name]
    with pytest.raises(ModelError, match=name):
        read(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_f1", None),
        ("best_f1", "0.4"),
        ("best_f1", True),
        ("best_f1", 1.01),
        ("target_precision", None),
        ("at_precision", -0.1),
        ("best_f1_per_class", 0.4),
        ("at_precision_per_class", [0.1, 0.2, 0.3, "x"]),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: object) -> None:
    assert refused(**{name: value}).startswith(f"thresholds: {name}")


def test_lists_of_different_lengths_are_refused() -> None:
    assert "[3, 4] classes" in refused(best_f1_per_class=[0.1, 0.2, 0.3])


@pytest.mark.parametrize("other", [None, [], "0.4", 0.4])
def test_something_else_is_refused(other: Any) -> None:
    with pytest.raises(ModelError, match="thresholds: expected object"):
        read(other)


def test_every_class_has_a_threshold() -> None:
    assert MEASURED.for_best_f1() == (0.5, 0.3, 0.4, 0.2)
    # The second never reached the precision, of the third nothing is known.
    assert MEASURED.for_precision() == (0.7, 1.0, 0.6, 0.25)
    unreached = dataclasses.replace(MEASURED, at_precision=None)
    assert unreached.for_precision() == (0.7, 1.0, 1.0, 0.25)
