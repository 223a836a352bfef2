"""Engine file → plan that may be deserialised: checked, and built again where it does not fit."""

import hashlib
import logging
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from nmsfree.backends.options import DEFAULTS, Options
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
from nmsfree.errors import EngineError, InputError, MissingExtraError, ModelError
from nmsfree.files import locked
from nmsfree.machine import other_file, sha256
from nmsfree.parsing import read_bytes

_logger = logging.getLogger(__name__)
MAX_PLAN = 4 << 30  # bytes
SHOWN = 12  # digits of a hash in messages

# A plan, its description, and "built for …; found …" where it does not fit; None: it fits.
Checked = tuple[bytes, Sidecar, str | None]


def check_engine(
    engine: Path, vendor: VendorApi | None = None, sm: int | None = None, *, trust: bool = False
) -> Checked:
    """Check an engine file against its sidecar, this machine and the ONNX file beside it.

    The plan is read once: what was checked is what will be deserialised. A vendor or SM that is
    None stays unchecked; with `trust` the user vouches for a plan with another hash.

    Raises:
        ModelError: there is no engine, no regular file or a larger one than `MAX_PLAN`, or its
            sidecar cannot be read.
        EngineError: the plan has no sidecar, or another hash and `trust` is not given.
    """
    if not engine.exists():
        raise ModelError(f"{engine}: no such file, expected an engine made by `nmsfree build`")
    plan = read_bytes(engine, MAX_PLAN, ModelError)
    digest = hashlib.sha256(plan).hexdigest()
    sidecar = read_sidecar(engine, digest)
    if digest == sidecar.engine_sha256:
        return plan, sidecar, _mismatch(engine, sidecar, vendor, sm)
    name = sidecar_path(engine).name
    if not trust:
        raise EngineError(
            f"{engine}: its sha256 is {digest[:SHOWN]}, {name} says"
            f" {sidecar.engine_sha256[:SHOWN]}, and an engine runs native code: {AGAIN}, or vouch"
            " for it with --trust"
        )
    _logger.warning("%s: not the plan that %s describes, trusted as asked", engine, name)
    return plan, replace(sidecar, engine_sha256=digest), None  # nobody knows what it was built for


def _mismatch(
    engine: Path, sidecar: Sidecar, vendor: VendorApi | None, sm: int | None
) -> str | None:
    """ "built for A, B; found C, D", of what differs only."""
    differences = []
    if vendor and (vendor.name, vendor.version) != (sidecar.builder, sidecar.builder_version):
        differences.append((f"{sidecar.builder} {sidecar.builder_version}", str(vendor)))
    if sm is not None and sm not in sidecar.targets:
        differences.append((sms_text(sidecar.targets), f"SM {sm_text(sm)}"))
    platform = this_platform()
    if not same_platform(sidecar.builder, sidecar.platform, platform):
        differences.append((sidecar.platform, platform))
    # An application may ship the engine alone; a changed ONNX file makes the engine stale.
    onnx = engine.with_name(sidecar.onnx)
    if onnx.is_file() and (digest := sha256(onnx)) != sidecar.onnx_sha256:
        hashes = sidecar.onnx_sha256, digest
        before, now = (f"{sidecar.onnx} {each[:SHOWN]}" for each in hashes)
        differences.append((before, now))
    if not differences:
        return None
    built, found = (", ".join(side) for side in zip(*differences, strict=True))
    return f"built for {built}; found {found}"


def load_plan(
    engine: Path, *, vendor: VendorApi, sm: int | None, options: Options = DEFAULTS
) -> tuple[bytes, Sidecar]:
    """Return a plan that fits this machine, and its description.

    A plan that was built for another builder version, GPU, platform or ONNX file is built again
    from the ONNX file beside it, and a warning says so in one line.

    Args:
        vendor, sm: what will run it; an SM of None is unknown.
        options: `rebuild`; `trust`; with `sha256`, the plan with this hash alone is taken, and
            none is built in its place.

    Raises:
        ModelError: the engine is missing or has another hash, or its sidecar cannot be read.
        EngineError: it may not be trusted; or it does not fit and is not, or cannot be, rebuilt.
        MissingExtraError: it must be rebuilt and nmsfree-export is not installed.
        InputError: it must be rebuilt and its folder cannot be written to.
    """
    plan, sidecar, mismatch = _settled(engine, vendor, sm, options.trust)
    if options.sha256 is not None:
        found = hashlib.sha256(plan).hexdigest()
        if found != options.sha256:
            raise other_file(engine, found, options.sha256)
        if mismatch is not None:
            raise EngineError(
                f"{engine}: {mismatch}; none is built in place of the one with the sha256"
                f" that is given: {AGAIN}"
            )
    if mismatch is None:
        return plan, sidecar
    if not options.rebuild:
        raise EngineError(f"{engine}: {mismatch}: {AGAIN}, or leave out --no-rebuild")
    onnx = engine.with_name(sidecar.onnx)
    if not onnx.is_file():
        raise EngineError(f"{engine}: {mismatch}; {onnx.name} is not beside it: {AGAIN}")
    with locked(lock_path(engine)):
        plan, sidecar, mismatch = check_engine(engine, vendor, sm)
        if mismatch is not None:  # nobody else has built it meanwhile
            rebuild = list(entry_points(group="nmsfree.engines", name="rebuild"))
            if not rebuild:
                raise MissingExtraError(
                    f"{engine}: {mismatch}; building it again", f"nmsfree-export[{vendor.name}]"
                )
            _logger.warning("%s: %s; building it again from %s", engine, mismatch, onnx.name)
            rebuild[0].load()(engine, sidecar, builder=vendor.name, sm=sm)
            plan, sidecar, mismatch = check_engine(engine, vendor, sm)
    if mismatch is not None:
        raise EngineError(f"{engine}: was built again, and is still {mismatch}: {AGAIN}")
    return plan, sidecar


def _settled(engine: Path, vendor: VendorApi, sm: int | None, trust: bool) -> Checked:
    """Check; once more where another process was just writing plan and sidecar."""
    try:
        return check_engine(engine, vendor, sm, trust=trust)
    except EngineError as error:
        if not lock_path(engine).exists():
            raise
        refusal = error
    try:
        with locked(lock_path(engine)):
            return check_engine(engine, vendor, sm, trust=trust)
    except InputError:  # the lock cannot be had: deployed read-only, where nobody builds
        raise refusal from None
