"""The JSON beside an engine: it survives the way there and back, and refuses what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nmsfree import EngineError, ModelError, ModelSpec
from nmsfree.engines.sidecar import (
    Sidecar,
    read_sidecar,
    sidecar_path,
    this_platform,
    write_sidecar,
)

AGAIN = "build the engine again with `nmsfree build`"


@pytest.fixture
def sidecar(make_spec: Callable[..., ModelSpec]) -> Sidecar:
    return Sidecar(
        engine_sha256="e" * 64,
        onnx="modèle.onnx",
        onnx_sha256="0" * 64,
        spec=make_spec(class_names=("bleu", "grün", "赤")),
        builder="tensorrt-rtx",
        builder_version="1.7.1.116",
        targets=(86, 89),
        platform="Linux x86_64",
        precision="mixed fp16",
        tf32=False,
        batch=(1, 4, 8),
        nms_on_host=False,
        build_seconds=1.25,
        created="2026-11-25T12:00:00+00:00",
    )


def test_round_trip(sidecar: Sidecar, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    write_sidecar(engine, sidecar)
    assert sidecar_path(engine).name == "model.engine.json"
    assert read_sidecar(engine) == sidecar
    assert "grün" in sidecar_path(engine).read_text(encoding="utf-8")


def test_the_version_comes_first(sidecar: Sidecar) -> None:
    assert next(iter(json.loads(sidecar.to_json()))) == "format_version"


def test_a_newer_minor_version_loads(sidecar: Sidecar) -> None:
    values = json.loads(sidecar.to_json()) | {"format_version": "1.9", "new": [1]}
    assert Sidecar.from_json(json.dumps(values)).targets == (86, 89)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": "2.0"},
            "engine description has format 2.0, this nmsfree reads 1.x: update nmsfree",
        ),
        (
            {"format_version": None},
            f"engine description has format None, this nmsfree reads 1.x: {AGAIN}",
        ),
        (
            {"targets": []},
            "engine description is wrong (targets is [], expected a list of whole numbers from 1 "
            f"up): {AGAIN}",
        ),
        (
            {"targets": ["89"]},
            "engine description is wrong (targets is ['89'], expected a list of whole numbers "
            f"from 1 up): {AGAIN}",
        ),
        (
            {"batch": [4, 1, 8]},
            "engine description is wrong (batch is [4, 1, 8], expected three ascending whole "
            f"numbers): {AGAIN}",
        ),
        (
            {"tf32": "no"},
            f"engine description is wrong (tf32 is 'no', expected true or false): {AGAIN}",
        ),
        (
            {"build_seconds": "1"},
            f"engine description is wrong (build_seconds is '1', expected a number): {AGAIN}",
        ),
        (
            {"builder": 3},
            f"engine description is wrong (builder is 3, expected a text): {AGAIN}",
        ),
        (
            {"onnx": "../other.onnx"},
            "engine description is wrong (onnx is '../other.onnx', expected the name of a file in "
            f"the same folder): {AGAIN}",
        ),
        (
            {"spec": {"format_version": "9.0"}},
            "model description has format 9.0, this nmsfree reads 1.x: update nmsfree",
        ),
    ],
)
def test_wrong_fields_are_named(sidecar: Sidecar, change: dict[str, object], message: str) -> None:
    values = json.loads(sidecar.to_json()) | change
    with pytest.raises(ModelError) as error:
        Sidecar.from_json(json.dumps(values))
    assert str(error.value) == message


def test_missing_fields_are_named(sidecar: Sidecar) -> None:
    values = json.loads(sidecar.to_json())
    del values["batch"], values["onnx"]
    with pytest.raises(ModelError) as error:
        Sidecar.from_json(json.dumps(values))
    assert str(error.value) == f"engine description lacks onnx, batch: {AGAIN}"


def test_what_is_no_description(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    path = sidecar_path(engine)
    path.write_text("[1]")
    with pytest.raises(ModelError) as error:
        read_sidecar(engine)
    assert str(error.value) == f"{path}: engine description is not a JSON object: {AGAIN}"
    path.write_text("{")
    with pytest.raises(ModelError) as error:
        read_sidecar(engine)
    assert str(error.value).startswith(f"{path}: engine description is not JSON (")
    path.write_bytes(b"\xff{}")
    with pytest.raises(ModelError) as error:
        read_sidecar(engine)
    assert str(error.value) == f"{path}: engine description is not UTF-8: {AGAIN}"


def test_no_sidecar(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    with pytest.raises(EngineError) as error:
        read_sidecar(engine)
    assert str(error.value) == (
        f"{engine}: no model.engine.json beside it, so neither who built it nor what it takes and "
        "gives is known: build it with `nmsfree build`, or bring that file along"
    )
    assert error.value.exit_status == 3


def test_the_platform_has_one_name_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert this_platform() == "Windows x86_64"
