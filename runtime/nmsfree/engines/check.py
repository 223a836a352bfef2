"""What is checked about an engine before a byte of it is deserialised: a plan runs native code."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.decode import read_bytes
from nmsfree.engines.flavour import same_platform
from nmsfree.engines.sidecar import (
    AGAIN,
    Sidecar,
    read_sidecar,
    sidecar_path,
    this_platform,
)
from nmsfree.engines.targets import sm_text, sms_text
from nmsfree.errors import EngineError, ModelError
from nmsfree.identity import sha256

_logger = logging.getLogger(__name__)
MAX_PLAN = 4 << 30  # bytes
SHOWN = 12  # digits of a hash in messages


@dataclass(frozen=True)
class Verdict:
    """What the checks say about a plan that may be trusted.

    Attributes:
        sidecar: its description.
        mismatch: "built for …, found …" where another builder, GPU, platform or ONNX file is
            there than the plan was built for or from; building again mends it. None: it fits.
    """

    sidecar: Sidecar
    mismatch: str | None


def read_plan(engine: Path) -> bytes:
    """Read an engine file.

    Raises:
        ModelError: there is none, or it is no regular file or larger than `MAX_PLAN`.
    """
    if not engine.exists():
        raise ModelError(f"{engine}: no such file, expected an engine made by `nmsfree build`")
    return read_bytes(engine, MAX_PLAN, ModelError)


def check_engine(
    engine: Path,
    *,
    version: str | None,
    sm: int | None,
    trust: bool = False,
    builder: str | None = None,
) -> Verdict:
    """Check an engine file against its sidecar, this machine and the ONNX file beside it.

    Args:
        version: of the installed vendor module; None leaves it unchecked.
        sm: compute capability of the GPU, 89 for 8.9; None leaves it unchecked.
        trust: the user vouches for a plan whose hash is not the recorded one.
        builder: name of the vendor module; None leaves it unchecked.

    Raises:
        ModelError: the engine is missing, or its sidecar cannot be read.
        EngineError: the plan has no sidecar, or another hash and `trust` is not given.
    """
    return check_plan(
        engine, read_plan(engine), version=version, sm=sm, trust=trust, builder=builder
    )


def check_plan(
    engine: Path,
    plan: bytes,
    *,
    version: str | None,
    sm: int | None,
    trust: bool = False,
    builder: str | None = None,
) -> Verdict:
    """The same for the bytes that will be deserialised, so that nobody swaps them in between."""
    digest = hashlib.sha256(plan).hexdigest()
    sidecar = read_sidecar(engine, digest)
    if digest != sidecar.engine_sha256:
        if not trust:
            raise EngineError(_other_hash(engine, digest, sidecar))
        _logger.warning(
            "%s: not the plan that %s describes, trusted as asked",
            engine,
            sidecar_path(engine).name,
        )
        # Nobody knows what this plan was built for.
        return Verdict(replace(sidecar, engine_sha256=digest), None)
    return Verdict(sidecar, _mismatch(engine, sidecar, version, sm, builder))


def _other_hash(engine: Path, digest: str, sidecar: Sidecar) -> str:
    return (
        f"{engine}: its sha256 is {digest[:SHOWN]}, {sidecar_path(engine).name} says "
        f"{sidecar.engine_sha256[:SHOWN]}, and an engine runs native code: {AGAIN}, or vouch for "
        "it with --trust"
    )


def _mismatch(
    engine: Path, sidecar: Sidecar, version: str | None, sm: int | None, builder: str | None
) -> str | None:
    """ "built for A, B, found C, D", of what differs only."""
    differences = [
        *_other_builder(sidecar, version, builder),
        *_other_machine(sidecar, sm),
        *_other_onnx(engine, sidecar),
    ]
    if not differences:
        return None
    built, found = (", ".join(side) for side in zip(*differences, strict=True))
    return f"built for {built}; found {found}"


def _other_builder(
    sidecar: Sidecar, version: str | None, builder: str | None
) -> list[tuple[str, str]]:
    found = builder or sidecar.builder, version or sidecar.builder_version
    built = sidecar.builder, sidecar.builder_version
    return [] if found == built else [(" ".join(built), " ".join(found))]


def _other_machine(sidecar: Sidecar, sm: int | None) -> list[tuple[str, str]]:
    differences = []
    if sm is not None and sm not in sidecar.targets:
        differences.append((sms_text(sidecar.targets), f"SM {sm_text(sm)}"))
    platform = this_platform()
    if not same_platform(sidecar.builder, sidecar.platform, platform):
        differences.append((sidecar.platform, platform))
    return differences


def _other_onnx(engine: Path, sidecar: Sidecar) -> list[tuple[str, str]]:
    """An application may ship the engine alone; a changed ONNX file makes the engine stale."""
    onnx = engine.with_name(sidecar.onnx)
    if not onnx.is_file():
        return []
    digest = sha256(onnx)
    if digest == sidecar.onnx_sha256:
        return []
    return [(f"{sidecar.onnx} {sidecar.onnx_sha256[:SHOWN]}", f"{sidecar.onnx} {digest[:SHOWN]}")]
