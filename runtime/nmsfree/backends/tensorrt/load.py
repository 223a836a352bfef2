"""Engine file → plan that may be deserialised: checked, and built again where it does not fit."""

import hashlib
import logging
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from nmsfree.backends.tensorrt.sidecar import (
    AGAIN,
    Sidecar,
    lock_path,
    read_sidecar,
    sidecar_path,
    this_platform,
)
from nmsfree.backends.tensorrt.targets import sm_text, sms_text
from nmsfree.backends.tensorrt.vendor import VendorApi, same_platform
from nmsfree.decode import read_bytes
from nmsfree.errors import EngineError, InputError, MissingExtraError, ModelError
from nmsfree.files import locked
from nmsfree.machine import other_file, sha256

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


def load_plan(
    engine: Path,
    *,
    vendor: VendorApi,
    sm: int | None,
    rebuild: bool = True,
    trust: bool = False,
    sha256: str | None = None,
) -> tuple[bytes, Sidecar]:
    """Return a plan that fits this machine, and its description.

    A plan that was built for another builder version, GPU, platform or ONNX file is built again
    from the ONNX file beside it, and a warning says so in one line.

    Args:
        engine: the plan, with its sidecar beside it.
        vendor: the vendor module that will run it.
        sm: compute capability of the GPU that will run it, 89 for 8.9; None if unknown.
        rebuild: build it again where it does not fit; False makes that an error.
        trust: take a plan whose hash is not the recorded one.
        sha256: take the plan with this hash alone, and build none in its place.

    Raises:
        ModelError: the engine is missing or has another hash, or its sidecar cannot be read.
        EngineError: it may not be trusted; or it does not fit and is not, or cannot be, rebuilt.
        MissingExtraError: it must be rebuilt and nmsfree-export is not installed.
        InputError: it must be rebuilt and its folder cannot be written to.
    """
    plan, verdict = _settled(engine, vendor, sm, trust)
    if sha256 is not None:
        found = hashlib.sha256(plan).hexdigest()
        if found != sha256:
            raise other_file(engine, found, sha256)
        if verdict.mismatch is not None:
            raise EngineError(
                f"{engine}: {verdict.mismatch}; none is built in place of the one with the sha256"
                f" that is given: {AGAIN}"
            )
    if verdict.mismatch is None:
        return plan, verdict.sidecar
    onnx = _rebuildable(engine, verdict, rebuild)
    with locked(lock_path(engine)):
        plan, verdict = _checked(engine, vendor, sm, trust=False)
        if verdict.mismatch is not None:  # nobody else has built it meanwhile
            _rebuild(engine, onnx, verdict, vendor, sm)
            plan, verdict = _checked(engine, vendor, sm, trust=False)
    if verdict.mismatch is not None:
        raise EngineError(f"{engine}: was built again, and is still {verdict.mismatch}: {AGAIN}")
    return plan, verdict.sidecar


def _settled(engine: Path, vendor: VendorApi, sm: int | None, trust: bool) -> tuple[bytes, Verdict]:
    """Check; once more where another process was just writing plan and sidecar."""
    try:
        return _checked(engine, vendor, sm, trust)
    except EngineError as error:
        if not lock_path(engine).exists():
            raise
        refusal = error
    try:
        with locked(lock_path(engine)):
            return _checked(engine, vendor, sm, trust)
    except InputError:  # the lock cannot be had: deployed read-only, where nobody builds
        raise refusal from None


def _checked(engine: Path, vendor: VendorApi, sm: int | None, trust: bool) -> tuple[bytes, Verdict]:
    plan = read_plan(engine)
    verdict = check_plan(
        engine, plan, version=vendor.version, sm=sm, trust=trust, builder=vendor.name
    )
    return plan, verdict


def _rebuildable(engine: Path, verdict: Verdict, allowed: bool) -> Path:
    """Return the ONNX file that an engine can, and may, be built again from."""
    if not allowed:
        raise EngineError(f"{engine}: {verdict.mismatch}: {AGAIN}, or leave out --no-rebuild")
    onnx = engine.with_name(verdict.sidecar.onnx)
    if not onnx.is_file():
        raise EngineError(f"{engine}: {verdict.mismatch}; {onnx.name} is not beside it: {AGAIN}")
    return onnx


def _rebuild(engine: Path, onnx: Path, verdict: Verdict, vendor: VendorApi, sm: int | None) -> None:
    found = entry_points(group="nmsfree.engines", name="rebuild")
    if not found:
        raise MissingExtraError(
            f"{engine}: {verdict.mismatch}; building it again", f"nmsfree-export[{vendor.name}]"
        )
    _logger.warning("%s: %s; building it again from %s", engine, verdict.mismatch, onnx.name)
    next(iter(found)).load()(engine, verdict.sidecar, builder=vendor.name, sm=sm)
