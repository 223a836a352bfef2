"""The JSON beside an engine: what it was built from, by what, and for what.

`model.engine` has `model.engine.json` beside it. The engine itself stays a plain plan.
"""

import json
import platform
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nmsfree.errors import EngineError, ModelError
from nmsfree.files import write_atomic
from nmsfree.spec import ModelSpec

FORMAT_VERSION = "1.0"


@dataclass(frozen=True)
class Sidecar:
    """What is known about an engine.

    Attributes:
        engine_sha256: of the plan.
        onnx: name of the ONNX file it was built from, in the same folder; names no other folder.
        onnx_sha256: of that file.
        spec: what the model takes and gives.
        builder: "tensorrt-rtx" or "tensorrt".
        builder_version: exact; a plan runs on no other.
        targets: compute capabilities, 89 for 8.9.
        platform: system and processor that it was built on, "Linux x86_64".
        precision: what the graph computes in: "fp32", "fp16", "mixed fp16", "int8", …
        tf32: whether float32 convolutions may be computed in TF32.
        batch: smallest, best and largest number of images of one run.
        nms_on_host: the engine ends in `candidate_boxes`, `candidate_scores` and
            `candidate_classes`; NMS comes after it.
        build_seconds: how long the builder took.
        created: ISO 8601, UTC.
        format_version: of this description, "major.minor".
    """

    engine_sha256: str
    onnx: str
    onnx_sha256: str
    spec: ModelSpec
    builder: str
    builder_version: str
    targets: tuple[int, ...]
    platform: str
    precision: str
    tf32: bool
    batch: tuple[int, int, int]
    nms_on_host: bool
    build_seconds: float
    created: str
    format_version: str = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the description as readable JSON."""
        return json.dumps(self.to_json_values(), indent=2, ensure_ascii=False) + "\n"

    def to_json_values(self) -> dict[str, object]:
        """Return the description as what JSON is made of."""
        return {"format_version": self.format_version} | asdict(self)

    @classmethod
    def from_json(cls, text: str) -> "Sidecar":
        """Read a description; one of a newer minor version loads, fields it adds are ignored.

        Raises:
            ModelError: not JSON, another major version, or a field missing or of a wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"engine description is not JSON ({error}): {AGAIN}") from None
        if not isinstance(values, dict):
            raise ModelError(f"engine description is not a JSON object: {AGAIN}")
        _check_version(values.get("format_version"))
        known = {f.name: f for f in fields(cls)}
        missing = [n for n, f in known.items() if f.default is MISSING and n not in values]
        if missing:
            raise ModelError(f"engine description lacks {', '.join(missing)}: {AGAIN}")
        return cls(**{name: _read(name, values[name]) for name in known if name in values})


AGAIN = "build the engine again with `nmsfree build`"


def sidecar_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.json`."""
    return engine.with_name(engine.name + ".json")


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Write the description beside its engine."""
    write_atomic(sidecar_path(engine), sidecar.to_json().encode())


def read_sidecar(engine: Path) -> Sidecar:
    """Read the description beside an engine.

    Raises:
        EngineError: there is none.
        ModelError: it cannot be read; names the file.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        raise EngineError(
            f"{engine}: no {path.name} beside it, so neither who built it nor what it takes and "
            "gives is known: build it with `nmsfree build`, or bring that file along"
        )
    try:
        return Sidecar.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"{path}: engine description is not UTF-8: {AGAIN}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def this_platform() -> str:
    """System and processor architecture, "Linux x86_64"; Windows calls the same one AMD64."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}
    return f"{platform.system()} {machine.get(platform.machine(), platform.machine())}"


def _check_version(version: Any) -> None:
    ours = FORMAT_VERSION.split(".")[0]
    found = str(version).split(".")[0]
    if found != ours:
        newer = found.isdigit() and int(found) > int(ours)
        raise ModelError(
            f"engine description has format {version}, this nmsfree reads {ours}.x: "
            + ("update nmsfree" if newer else AGAIN)
        )


def _read(name: str, value: Any) -> Any:
    """Turn one JSON value into the field's type."""
    match name:
        case "spec":
            return ModelSpec.from_json(json.dumps(value))
        case "targets":
            return _whole_numbers(name, value)
        case "batch":
            numbers = _whole_numbers(name, value)
            if len(numbers) != 3 or list(numbers) != sorted(numbers):
                raise _wrong(name, value, "three ascending whole numbers")
            return numbers
        case "tf32" | "nms_on_host":
            return _typed(name, value, bool, "true or false")
        case "build_seconds":
            return float(_typed(name, value, int | float, "a number"))
        case "onnx" if Path(_typed(name, value, str, "a text")).name != value:
            raise _wrong(name, value, "the name of a file in the same folder")
    return _typed(name, value, str, "a text")


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(v) is not int or v < 1 for v in value):
        raise _wrong(name, value, "a list of whole numbers from 1 up")
    return tuple(value)


def _typed(name: str, value: Any, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(name, value, expected)
    return value


def _wrong(name: str, value: Any, expected: str) -> ModelError:
    return ModelError(
        f"engine description is wrong ({name} is {value!r}, expected {expected}): {AGAIN}"
    )
