"""Engine file → plan that may be deserialised: checked, and built again where it does not fit."""

import hashlib
import logging
from importlib.metadata import entry_points
from pathlib import Path

from nmsfree.engines.check import Verdict, check_plan, read_plan
from nmsfree.engines.flavour import Flavour
from nmsfree.engines.sidecar import AGAIN, Sidecar, lock_path
from nmsfree.errors import EngineError, InputError, MissingExtraError
from nmsfree.identity import other_file
from nmsfree.lock import locked

_logger = logging.getLogger(__name__)


def load_plan(
    engine: Path,
    *,
    flavour: Flavour,
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
        flavour: the vendor module that will run it.
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
    plan, verdict = _settled(engine, flavour, sm, trust)
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
        plan, verdict = _checked(engine, flavour, sm, trust=False)
        if verdict.mismatch is not None:  # nobody else has built it meanwhile
            _rebuild(engine, onnx, verdict, flavour, sm)
            plan, verdict = _checked(engine, flavour, sm, trust=False)
    if verdict.mismatch is not None:
        raise EngineError(f"{engine}: was built again, and is still {verdict.mismatch}: {AGAIN}")
    return plan, verdict.sidecar


def _settled(engine: Path, flavour: Flavour, sm: int | None, trust: bool) -> tuple[bytes, Verdict]:
    """Check; once more where another process was just writing plan and sidecar."""
    try:
        return _checked(engine, flavour, sm, trust)
    except EngineError as error:
        if not lock_path(engine).exists():
            raise
        refusal = error
    try:
        with locked(lock_path(engine)):
            return _checked(engine, flavour, sm, trust)
    except InputError:  # the lock cannot be had: deployed read-only, where nobody builds
        raise refusal from None


def _checked(engine: Path, flavour: Flavour, sm: int | None, trust: bool) -> tuple[bytes, Verdict]:
    plan = read_plan(engine)
    verdict = check_plan(
        engine, plan, version=flavour.version, sm=sm, trust=trust, builder=flavour.name
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


def _rebuild(engine: Path, onnx: Path, verdict: Verdict, flavour: Flavour, sm: int | None) -> None:
    found = entry_points(group="nmsfree.engines", name="rebuild")
    if not found:
        raise MissingExtraError(
            f"{engine}: {verdict.mismatch}; building it again", f"nmsfree-export[{flavour.name}]"
        )
    _logger.warning("%s: %s; building it again from %s", engine, verdict.mismatch, onnx.name)
    next(iter(found)).load()(engine, verdict.sidecar, builder=flavour.name, sm=sm)
