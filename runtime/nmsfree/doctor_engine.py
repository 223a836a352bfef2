"""The tiny model as an engine, built here: an application's machine has no exporter."""

from hashlib import sha256
from pathlib import Path

from nmsfree.doctor_model import SPEC
from nmsfree.engines.flavour import Flavour
from nmsfree.engines.sidecar import Sidecar, this_platform, write_sidecar
from nmsfree.engines.vendor_log import reason
from nmsfree.errors import EngineError


def build(onnx: Path, flavour: Flavour, sm: int) -> Path:
    """Build an engine of the tiny model beside it, with its description.

    Args:
        onnx: as `doctor_model.write_model` leaves it.
        sm: compute capability it is for, 89 for 8.9; this machine's where the library builds for
            that one only.

    Returns:
        The engine's path.

    Raises:
        EngineError: the library does not start, or does not build.
    """
    content = onnx.read_bytes()
    builder = flavour.create_builder()
    network = flavour.create_network(builder)
    parser = flavour.create_parser(network)
    config = builder.create_builder_config()
    flavour.set_tf32(config, False)
    if flavour.builds_without_gpu:
        flavour.set_targets(config, (sm,))
    with flavour.log.collect() as messages:
        plan = parser.parse(content) and builder.build_serialized_network(network, config)
    if not plan:
        raise EngineError(f"{flavour} does not build a tiny model ({reason(messages)})")
    engine = onnx.with_suffix(".engine")
    engine.write_bytes(bytes(plan))
    sidecar = Sidecar(
        engine_sha256=sha256(bytes(plan)).hexdigest(),
        onnx=onnx.name,
        onnx_sha256=sha256(content).hexdigest(),
        spec=SPEC,
        builder=flavour.name,
        builder_version=flavour.version,
        targets=(sm,),
        platform=this_platform(),
        precision="fp32",
        tf32=False,
        batch=(1, 1, 1),
        nms_on_host=False,
        build_seconds=0.0,
        created="",
    )
    write_sidecar(engine, sidecar)
    return engine
