"""The JSON beside an engine: it survives the way there and back, and refuses what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime_helpers import refused

from nmsfree import EngineError, ModelError, NmsSpec
from nmsfree.backends.tensorrt.sidecar import (
    Sidecar,
    read_sidecar,
    sidecar_path,
    this_platform,
    write_sidecar,
)

AGAIN = "build the engine again with `nmsfree build`"


@pytest.fixture
def sidecar(make_spec: Any, make_sidecar: Any) -> Sidecar:
    spec = make_spec(class_names=("bleu", "grün", "赤"))
    return make_sidecar(onnx="modèle.onnx", spec=spec, precision="mixed fp16", batch=(1, 4, 8))


def test_a_model_described_in_format_1_is_letterboxed_as_it_was(sidecar: Sidecar) -> None:
    values = json.loads(json.dumps(replace(sidecar, previous=sidecar).to_json()))
    for holder in (values, values["previous"]):
        del holder["spec"]["resize"]
        holder["spec"] |= {"format_version": "1.2", "interpolation": "area"}
    found = Sidecar.from_json(json.dumps(values))
    assert found.previous is not None
    assert found.spec.resize.interpolation == found.previous.spec.resize.interpolation == "area"


@pytest.mark.parametrize("provenance", [{}, {"adopted": "YOLO"}])
def test_an_engine_whose_nms_ran_behind_it_is_refused(
    sidecar: Sidecar, tmp_path: Path, provenance: dict[str, str]
) -> None:
    """And says how to make one that has it inside; full TensorRT has the operator."""
    engine, onnx = tmp_path / "model.engine", tmp_path / "model.onnx"
    spec = replace(sidecar.spec, head="o2m", nms=NmsSpec(), provenance=provenance)
    write_sidecar(engine, replace(sidecar, spec=spec))
    make = "adopt ORIGINAL" if provenance else "export CHECKPOINT --head o2m"
    assert refused(lambda: read_sidecar(engine), EngineError) == (
        f"{engine}: NMS is the operator NonMaxSuppression, which tensorrt-rtx does not build: make"
        f" it of plain operators, with `nmsfree {make} --nms plain -o {onnx}`, then `nmsfree build"
        f" {onnx}`"
    )
    for good in (
        replace(sidecar, spec=replace(spec, nms=NmsSpec(steps=20))),
        replace(sidecar, spec=spec, builder="tensorrt"),
    ):
        write_sidecar(engine, good)
        assert read_sidecar(engine) == good


def test_round_trip(sidecar: Sidecar, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    write_sidecar(engine, sidecar)
    assert sidecar_path(engine).name == "model.engine.json"
    assert read_sidecar(engine) == sidecar
    assert "grün" in sidecar_path(engine).read_text(encoding="utf-8")
    assert next(iter(sidecar.to_json())) == "format_version"


def test_a_newer_minor_version_loads(sidecar: Sidecar) -> None:
    values = sidecar.to_json() | {"format_version": "1.9", "new": [1]}
    assert Sidecar.from_json(json.dumps(values)).targets == (86, 89)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": "2.0"},
            f"has format 2.0, this version reads 1.x: update nmsfree, or {AGAIN}",
        ),
        ({"format_version": None}, f"format_version: expected str, got null: {AGAIN}"),
        ({"targets": []}, f"targets: expected array of length >= 1: {AGAIN}"),
        ({"targets": [2**40]}, f"targets[0]: expected int <= 2147483647: {AGAIN}"),
        ({"batch": [4, 1, 8]}, f"batch is (4, 1, 8), expected ascending numbers: {AGAIN}"),
        ({"spec": {"format_version": "9.0"}}, "spec.format_version: expected str matching"),
        ({"engine_sha256": "e" * 63}, "engine_sha256: expected str matching regex"),
    ],
)
def test_wrong_fields_are_named(sidecar: Sidecar, change: dict[str, object], message: str) -> None:
    values = sidecar.to_json() | change
    with pytest.raises(ModelError) as error:
        Sidecar.from_json(json.dumps(values))
    assert str(error.value).startswith(f"engine description: {message}")


@pytest.mark.parametrize("name", ["../other.onnx", "a/b", "a\\b", "", ".", "..", "a\0", "a" * 300])
def test_the_onnx_file_is_in_the_same_folder(sidecar: Sidecar, name: str) -> None:
    values = sidecar.to_json() | {"onnx": name}
    with pytest.raises(ModelError, match="engine description: onnx: expected"):
        Sidecar.from_json(json.dumps(values))


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff{}", b"", b"[" * 10**5])
def test_what_is_no_description(tmp_path: Path, content: bytes) -> None:
    engine = tmp_path / "model.engine"
    path = sidecar_path(engine)
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_sidecar(engine)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(AGAIN)


def test_the_platform_has_one_name_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert this_platform() == "Windows x86_64"
