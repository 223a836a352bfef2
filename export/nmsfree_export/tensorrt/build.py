"""ONNX file → TensorRT engine and its sidecar."""

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nmsfree.backends.tensorrt.log import reason
from nmsfree.backends.tensorrt.sidecar import Sidecar, lock_path, this_platform, write_engine
from nmsfree.backends.tensorrt.targets import resolve_targets
from nmsfree.backends.tensorrt.vendor import VendorApi, check_nms, load_vendor
from nmsfree.errors import EngineError, InputError, ModelError
from nmsfree.files import locked
from nmsfree.machine import find_gpus
from nmsfree.spec import ModelSpec, check_int8_target
from nmsfree_export.options import BUILD_DEFAULTS
from nmsfree_export.options import BuildOptions as BuildOptions
from nmsfree_export.tensorrt.network import (
    LayerTable,
    Tensor,
    check_interface,
    layers_of,
    parse,
    precision_of,
    read_layers,
    read_source,
)
from nmsfree_export.tensorrt.progress import Phases, make_monitor, stoppable

Batch = tuple[int, int, int]  # smallest, best, largest


def check_input(onnx: Path, spec: ModelSpec) -> None:
    """Refuse a file whose input an engine here has not; InputError says what has it."""
    if spec.input == "nchw-float":
        raise InputError(
            f"{onnx}: takes planar floats, engines here take pixels: build from the file that it"
            " was made from, or give the ONNX file to the program that makes floats"
        )
    if spec.input == "any" and spec.source is None:
        raise InputError(
            f"{onnx}: takes pictures of any size, an engine one size: make the file again with"
            " --source H W"
        )


def resolve_batch(onnx: Path, spec: ModelSpec, asked: Batch | None) -> Batch:
    """Return the smallest, best and largest batch of an engine."""
    if spec.batch is not None:
        if asked not in (None, (spec.batch,) * 3):
            raise InputError(
                f"{onnx}: takes batches of {spec.batch} only: leave out --batch, or export it "
                "again with `nmsfree export --batch dynamic`"
            )
        return (spec.batch,) * 3
    if asked is None:
        raise InputError(
            f"{onnx}: takes batches of any size, an engine needs a range: give --batch MIN OPT "
            "MAX, for example --batch 1 4 8"
        )
    if not 1 <= asked[0] <= asked[1] <= asked[2]:
        shown = " ".join(map(str, asked))
        raise InputError(f"batch is {shown}, expected three numbers from 1 up, ascending")
    return asked


@dataclass(frozen=True)
class BuildReport:
    """What was written; inputs and outputs are those of the network that was built."""

    engine: Path  # the plan
    size: int  # of the plan in bytes
    sidecar: Sidecar
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: LayerTable | None  # if asked for

    def to_json(self) -> dict[str, object]:
        return {
            "file": str(self.engine),
            "bytes": self.size,
            "inputs": [vars(tensor) for tensor in self.inputs],
            "outputs": [vars(tensor) for tensor in self.outputs],
            "sidecar": self.sidecar.to_json(),
            "layers": self.layers and self.layers.to_json(),
        }


def build_engine(
    onnx: Path,
    out: Path,
    options: BuildOptions = BUILD_DEFAULTS,
    phases: Phases = Phases(),  # noqa: B008
    *,
    sm: int | None = None,
) -> BuildReport:
    """Build an engine; it and its sidecar appear under their names only when finished.

    Args:
        out: the engine to write, over an older one.
        phases: is told what the builder is doing.
        sm: of the GPU that is in use, for a builder that builds for that one only; None takes the
            first GPU's.

    Raises:
        InputError: an option that the builder or the file does not have.
        MissingExtraError: the builder is not installed.
        ModelError: the file is not ours, or the builder cannot build it.
        EngineError: the builder needs a GPU and there is none, or it lacks the file's NMS.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of a file to write")
    plan, report = _build(onnx, out, options, phases, sm)
    with locked(lock_path(out)), stoppable():
        write_engine(out, plan, report.sidecar)
    return report


def rebuild_engine(engine: Path, sidecar: Sidecar, *, builder: str, sm: int | None) -> None:
    """Build an engine again as it was, for the GPUs it was built for and this one.

    The entry point `rebuild` of the group `nmsfree.engines`: the runtime calls it for an engine
    that does not fit this machine, and holds its lock. The sidecar names the ONNX file beside it;
    `builder` and `sm`, if that is known, are what will run it.
    """
    batch = sidecar.batch if sidecar.spec.batch is None else None
    options = BuildOptions(builder=builder, batch=batch, tf32=sidecar.tf32)
    if load_vendor(builder).builds_without_gpu:
        targets = {*sidecar.targets} | ({sm} if sm is not None else set())
        options = replace(options, sms=tuple(sorted(targets)))
    plan, report = _build(engine.with_name(sidecar.onnx), engine, options, Phases(), sm)
    with stoppable():
        write_engine(engine, plan, report.sidecar)


def _build(
    onnx: Path, out: Path, options: BuildOptions, phases: Phases, sm: int | None
) -> tuple[bytes, BuildReport]:
    vendor = load_vendor(options.builder)
    targets = _targets(vendor, options, sm)
    source = read_source(onnx)
    spec = source.spec
    check_nms(onnx, spec, vendor.name)
    check_int8_target(onnx, spec, vendor.name)
    check_input(onnx, spec)
    batch = resolve_batch(onnx, spec, options.batch)
    builder = vendor.create_builder()
    network = parse(vendor, builder, source)
    inputs, outputs = check_interface(network, source)
    config = builder.create_builder_config()
    if vendor.builds_without_gpu:
        vendor.set_targets(config, targets)
    vendor.set_tf32(config, options.tf32)
    if options.layers:
        config.profiling_verbosity = vendor.module.ProfilingVerbosity.DETAILED
    if spec.batch is None:
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *((n, spec.height, spec.width, 3) for n in batch))
        config.add_optimization_profile(profile)
    begun = time.perf_counter()
    with stoppable() as stop, vendor.log.collect() as messages:  # Ctrl-C ends it at its next step
        monitor = make_monitor(vendor.module, phases, stop)
        config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
        config.progress_monitor = None
    if built is None:
        raise ModelError(
            f"{onnx}: {vendor} cannot build it ({reason(messages)}): "
            "export the model again, or run the ONNX file itself"
        )
    plan = bytes(memoryview(built))
    seconds = time.perf_counter() - begun
    layers = layers_of(network)
    sidecar = Sidecar(
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        onnx=onnx.name,
        onnx_sha256=source.sha256,
        spec=spec,
        builder=vendor.name,
        builder_version=vendor.version,
        targets=targets,
        platform=this_platform(),
        precision=precision_of(layers),
        tf32=vendor.allows_tf32(config),  # what the builder was told, not what we meant
        batch=batch,
        build_seconds=round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    table = read_layers(vendor, plan, layers) if options.layers else None
    return plan, BuildReport(out, len(plan), sidecar, inputs, outputs, table)


def _targets(vendor: VendorApi, options: BuildOptions, sm: int | None) -> tuple[int, ...]:
    if vendor.builds_without_gpu:
        return resolve_targets(options.gpus or (), options.sms or (), vendor.buildable())
    if options.gpus or options.sms:
        raise InputError(
            f"{vendor} builds for the GPU of this machine only: leave out --gpu and --sm"
        )
    gpus = find_gpus()
    if not gpus.found:
        raise EngineError(
            f"{vendor} builds on the GPU that will run the engine, and {gpus.problem}: "
            "build there, or with --with tensorrt-rtx, which needs none"
        )
    major, minor = gpus.found[0].capability
    return (10 * major + minor if sm is None else sm,)
