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
from typing import Annotated

from msgspec import Meta

from nmsfree.decode import FileName, Positive, Sha256, check_format, decode_json, read_bytes
from nmsfree.errors import EngineError, ModelError, NmsfreeError
from nmsfree.files import write_atomic
from nmsfree.machine import sha256
from nmsfree.spec import ModelSpec

FORMAT_VERSION = "1.1"  # 1.1: `previous`
AGAIN = "build the engine again with `nmsfree build`"


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
        previous: what was there before; the plan is still that one if a build was cut short.
    """

    engine_sha256: Sha256
    onnx: FileName
    onnx_sha256: Sha256
    spec: ModelSpec
    builder: str
    builder_version: str
    targets: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    platform: str
    precision: str
    tf32: bool
    batch: tuple[Positive, Positive, Positive]
    nms_on_host: bool
    build_seconds: float
    created: str
    format_version: str = FORMAT_VERSION
    previous: "Sidecar | None" = None

    def __post_init__(self) -> None:
        if list(self.batch) != sorted(self.batch):
            raise ModelError(f"batch is {self.batch}, expected ascending numbers: {AGAIN}")

    def to_json(self) -> str:
        """Return the description as readable JSON."""
        return json.dumps(self.to_json_values(), indent=2, ensure_ascii=False) + "\n"

    def to_json_values(self) -> dict[str, object]:
        """Return the description as what JSON is made of."""
        values = {"format_version": self.format_version} | asdict(self)
        return {k: v for k, v in values.items() if k != "previous" or v is not None}

    @classmethod
    def from_json(cls, text: bytes | str, where: object = "engine description") -> "Sidecar":
        """Read a description; one of a newer minor version loads, fields it adds are ignored.

        Args:
            where: what the text is; begins the message.

        Raises:
            ModelError: not JSON, another major version, or a field missing, of another type or
                out of its bounds.
        """
        check_format(text, FORMAT_VERSION, where, ModelError, AGAIN)
        return decode_json(text, cls, where, ModelError, AGAIN)


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
    write_atomic(sidecar_path(engine), sidecar.to_json().encode())


def read_sidecar(engine: Path, digest: str | None = None) -> Sidecar:
    """Read the description beside an engine.

    Args:
        digest: sha256 of the plan; the older description is returned where it is that one's.

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
    found = Sidecar.from_json(read_bytes(path, error=ModelError), path)
    older = found.previous
    return older if older is not None and older.engine_sha256 == digest else found


def this_platform() -> str:
    """System and processor architecture, "Linux x86_64"; Windows calls the same one AMD64."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}
    return f"{platform.system()} {machine.get(platform.machine(), platform.machine())}"
