"""The JSON beside an engine: what it was built from, by what, and for what.

`model.engine` has `model.engine.json` beside it. The engine itself stays a plain plan.

No system renames two files at once. The description comes first and holds that of the plan it
finds, too: whatever cuts a build short, one of the two belongs to the plan that is there.
"""

import json
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nmsfree.backends.tensorrt.vendor import check_nms
from nmsfree.errors import EngineError, ModelError, NmsfreeError
from nmsfree.files import write_atomic
from nmsfree.machine import sha256
from nmsfree.parsing import FileName, Positive, Sha256, decode_format, read_bytes
from nmsfree.spec import ModelSpec, from_format_1

FORMAT_VERSION = "1.2"  # 1.1: `previous`; 1.2: without `nms_on_host`
AGAIN = "build the engine again with `nmsfree build`"


@dataclass(frozen=True)
class Sidecar:
    """What is known about an engine."""

    engine_sha256: Sha256  # of the plan
    onnx: FileName  # the file it was built from, in the same folder
    onnx_sha256: Sha256
    spec: ModelSpec
    builder: str  # "tensorrt-rtx" or "tensorrt"
    builder_version: str  # exact; a plan runs on no other
    targets: Annotated[tuple[Positive, ...], Meta(min_length=1)]  # SMs, 89 for 8.9
    platform: str  # system and processor that it was built on, "Linux x86_64"
    precision: str  # what the graph computes in: "fp32", "fp16", "mixed fp16", "int8", …
    tf32: bool  # whether float32 convolutions may be computed in TF32
    batch: tuple[Positive, Positive, Positive]  # smallest, best and largest of one run
    build_seconds: float
    created: str  # ISO 8601, UTC
    format_version: str = FORMAT_VERSION
    previous: "Sidecar | None" = None  # what was there before, and still is if a build is cut short

    def __post_init__(self) -> None:
        if list(self.batch) != sorted(self.batch):
            raise ModelError(f"batch is {self.batch}, expected ascending numbers: {AGAIN}")

    def to_json(self) -> dict[str, object]:
        values = {"format_version": self.format_version} | asdict(self)
        return {k: v for k, v in values.items() if k != "previous" or v is not None}

    @classmethod
    def from_json(cls, text: bytes | str, where: object = "engine description") -> "Sidecar":
        """Read a description, as `ModelSpec.from_json`."""
        return decode_format(text, cls, FORMAT_VERSION, where, ModelError, AGAIN, _upgraded)


def _upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """With the descriptions of models in today's format."""
    for name, value in fields.items():
        if isinstance(value, dict):
            fields[name] = from_format_1(value) if name == "spec" else _upgraded(value)
    return fields


def sidecar_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.json`."""
    return engine.with_name(engine.name + ".json")


def lock_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.lock`, held by who writes the two others."""
    return engine.with_name(engine.name + ".lock")


def write_engine(engine: Path, plan: bytes, sidecar: Sidecar) -> None:
    """Write a plan and its description, in the place of older ones; hold the lock meanwhile."""
    older: Sidecar | None = None
    with suppress(NmsfreeError, OSError):
        digest = sha256(engine)
        found = read_sidecar(engine, digest)
        if found.engine_sha256 == digest:
            older = replace(found, previous=None)
    write_sidecar(engine, replace(sidecar, previous=older))
    write_atomic(engine, plan)


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Write the description beside its engine."""
    text = json.dumps(sidecar.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_atomic(sidecar_path(engine), text.encode())


def read_sidecar(engine: Path, digest: str | None = None) -> Sidecar:
    """Read the description beside an engine; the older one in it where `digest` is that plan's.

    EngineError: there is none, or NMS would have to run behind the engine. ModelError: it cannot
    be read.
    """
    path = sidecar_path(engine)
    if not path.is_file():
        raise EngineError(
            f"{engine}: no {path.name} beside it, so neither who built it nor what it takes and "
            "gives is known: build it with `nmsfree build`, or bring that file along"
        )
    found = Sidecar.from_json(read_bytes(path, error=ModelError), path)
    older = found.previous
    if older is not None and older.engine_sha256 == digest:
        found = older
    check_nms(engine, found.spec, found.builder)
    return found


def this_platform() -> str:
    """System and processor architecture, "Linux x86_64"; Windows calls the same one AMD64."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}
    return f"{platform.system()} {machine.get(platform.machine(), platform.machine())}"
